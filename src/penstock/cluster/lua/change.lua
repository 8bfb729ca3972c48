-- Write a change if nothing that it was computed from has changed meanwhile. KEYS: version
-- ARGV: prefix of lease keys, the version it was computed from, ms of TIME that must have passed, and that must not,
--       number of leases, then node, nonce, incarnation, since, applied of each (all '' = it had none),
--       then each command to run as its number of words and the words
-- Returns TIME in ms, or 0: something has changed, nothing was written.
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[2] then
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now < tonumber(ARGV[3]) or now >= tonumber(ARGV[4]) then
  return 0
end
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local held = redis.call('HMGET', ARGV[1] .. ARGV[at], 'nonce', 'incarnation', 'since', 'applied')
  for i = 1, 4 do
    if (held[i] or '') ~= ARGV[at + i] then
      return 0
    end
  end
  at = at + 5
end
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + 1 + words
end
return now
