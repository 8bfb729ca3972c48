-- Delete a model. KEYS: models, model:<name>, numbers, rev, log, plan:<name>, run:<name>
-- ARGV: name, generation, node
-- Returns 1; 0 when it has another generation by now; -1 when it is gone; -2 while something of it runs.
local generation = redis.call('HGET', KEYS[2], 'generation')
if not generation then
  return -1
end
if generation ~= ARGV[2] then
  return 0
end
if redis.call('HGET', KEYS[2], 'desired') ~= 'offline' or redis.call('EXISTS', KEYS[6], KEYS[7]) > 0 then
  return -2
end
redis.call('HDEL', KEYS[3], redis.call('HGET', KEYS[2], 'number'))
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'model.deleted', 'node', ARGV[3], 'model', ARGV[1],
  'text', 'model ' .. ARGV[1] .. ' deleted', 'level', 'info')
return 1
