-- The leader puts a plan in force. KEYS: leader, models, plan:<name>, failed:<name>, counters, rev, log
-- ARGV: leader's id, term, name, generation that the plan serves, revision, plan (JSON), kind, text and level of the entry
-- Returns 1; 0 when the model has changed or a plan of this revision exists; -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
if not entry or tostring(cjson.decode(entry).generation) ~= ARGV[4] then
  return 0
end
if tonumber(redis.call('HGET', KEYS[5], ARGV[3]) or '0') >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', KEYS[5], ARGV[3], ARGV[5])
redis.call('SET', KEYS[3], ARGV[6])
redis.call('DEL', KEYS[4])
redis.call('INCR', KEYS[6])
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, '*', 'kind', ARGV[7], 'node', ARGV[1], 'model', ARGV[3],
  'text', ARGV[8], 'level', ARGV[9])
return 1
