-- The leader begins a durable checkpoint of a model. KEYS: leader, models, plan:<name>, checkpoint-numbers
-- ARGV: leader's id, term, name, generation, SHA-1 of the plan that it has seen, greatest number that it knows to be used
-- Returns the checkpoint's number, which nobody gets again; 0 when model or plan have changed; -1 when the caller does
-- not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
local plan = redis.call('GET', KEYS[3])
if not entry or went_online(entry) ~= ARGV[4] or not plan or redis.sha1hex(plan) ~= ARGV[5] then
  return 0
end
local used = math.max(tonumber(redis.call('HGET', KEYS[4], ARGV[3]) or '0'), tonumber(ARGV[6]))
redis.call('HSET', KEYS[4], ARGV[3], string.format('%.0f', used + 1))
return used + 1
