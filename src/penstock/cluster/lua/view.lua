-- Everything, at one moment. KEYS: rev, members, models, leader
-- ARGV: prefix of all other keys, revision known to the caller ('' = none)
-- Returns {rev, seconds, microseconds, leader, {member, incarnation, lease fields} ..., models or nil when rev is known}
local now = redis.call('TIME')
local rev = redis.call('GET', KEYS[1]) or '0'
local members = {}
local list = redis.call('HGETALL', KEYS[2])
for i = 1, #list, 2 do
  members[#members + 1] = {list[i], list[i + 1], redis.call('HGETALL', ARGV[1] .. 'node:' .. list[i])}
end
local answer = {rev, now[1], now[2], redis.call('HGETALL', KEYS[4]), members}
if rev ~= ARGV[2] then
  local models = {}
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    models[#models + 1] = {
      redis.call('HGETALL', ARGV[1] .. 'model:' .. name),
      redis.call('GET', ARGV[1] .. 'plan:' .. name) or '',
      redis.call('HGETALL', ARGV[1] .. 'run:' .. name),
      redis.call('HGETALL', ARGV[1] .. 'connected:' .. name),
      redis.call('HGETALL', ARGV[1] .. 'lost:' .. name),
    }
  end
  answer[6] = models
end
return answer
