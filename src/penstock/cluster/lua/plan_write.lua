-- The leader puts a plan in force.
-- KEYS: leader, models, plan:<name>, failed:<name>, counters, rev, log, moves:<name>, bell (a channel)
-- ARGV: leader's id, term, name, generation that the plan serves, revision, plan (JSON), how many moves are over,
--       the executors of these ..., then kind, text and level of each entry for the log ...
-- Returns 1; 0 when the model has changed or a plan of this revision exists; -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
if not entry or went_online(entry) ~= ARGV[4] then
  return 0
end
if tonumber(redis.call('HGET', KEYS[5], ARGV[3]) or '0') >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', KEYS[5], ARGV[3], ARGV[5])
redis.call('SET', KEYS[3], ARGV[6])
redis.call('DEL', KEYS[4])
redis.call('INCR', KEYS[6])
redis.call('PUBLISH', KEYS[9], '1')
local over = tonumber(ARGV[7])
for i = 8, 7 + over do
  redis.call('HDEL', KEYS[8], ARGV[i])
end
for i = 8 + over, #ARGV, 3 do
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', 10000, '*', 'kind', ARGV[i], 'node', ARGV[1], 'model', ARGV[3],
    'text', ARGV[i + 1], 'level', ARGV[i + 2])
end
return 1
