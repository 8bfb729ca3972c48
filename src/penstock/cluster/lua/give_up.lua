-- The leader declares a model failed. KEYS: leader, model:<name>, rev, log
-- ARGV: leader's id, term, name, generation, error
-- Returns 1; 0 when the model has changed; -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
if redis.call('HGET', KEYS[2], 'generation') ~= ARGV[4] then
  return 0
end
redis.call('HSET', KEYS[2], 'error', ARGV[5])
redis.call('INCR', KEYS[3])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'kind', 'model.failed', 'node', ARGV[1], 'model', ARGV[3],
  'text', 'model ' .. ARGV[3] .. ' failed: ' .. ARGV[5], 'level', 'error')
return 1
