-- Change a model if nobody else has. KEYS: model:<name>, rev, log
-- ARGV: name, generation that the change is based on, kind and text of the log entry, node, then field, value ...
-- Returns the new generation; 0 when it has another generation by now; -1 when it is gone.
local generation = redis.call('HGET', KEYS[1], 'generation')
if not generation then
  return -1
end
if generation ~= ARGV[2] then
  return 0
end
local now = redis.call('TIME')
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call('HSET', KEYS[1], 'changed', now[1] .. '.' .. string.format('%06d', now[2]))
redis.call('INCR', KEYS[2])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', 10000, '*', 'kind', ARGV[3], 'node', ARGV[5], 'model', ARGV[1],
  'text', ARGV[4], 'level', 'info')
return redis.call('HINCRBY', KEYS[1], 'generation', 1)
