-- The leader declares a model failed. KEYS: leader, models, failed:<name>, rev, log, bell (a channel)
-- ARGV: leader's id, term, name, generation, failure (JSON), error
-- Returns 1; 0 when the model has changed or that is known; -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
if not entry or went_online(entry) ~= ARGV[4] then
  return 0
end
if redis.call('GET', KEYS[3]) == ARGV[5] then
  return 0
end
redis.call('SET', KEYS[3], ARGV[5])
redis.call('INCR', KEYS[4])
redis.call('PUBLISH', KEYS[6], '1')
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'model.failed', 'node', ARGV[1], 'model', ARGV[3],
  'text', 'model ' .. ARGV[3] .. ' failed: ' .. ARGV[6], 'level', 'error')
return 1
