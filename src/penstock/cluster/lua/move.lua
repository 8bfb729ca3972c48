-- Somebody wants executors on other nodes. KEYS: models, plan:<name>, moves:<name>, rev, log, bell (a channel)
-- ARGV: model, generation, text and user for the log, node that was asked, then executor, move (JSON) ...
-- Returns 1; 0 when the model has changed or has no plan. A later wish for an executor replaces an earlier one.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or went_online(entry) ~= ARGV[2] or redis.call('EXISTS', KEYS[2]) == 0 then
  return 0
end
for i = 6, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'move.wanted', 'node', ARGV[5], 'model', ARGV[1],
  'text', ARGV[3], 'level', 'info', 'user', ARGV[4])
redis.call('PUBLISH', KEYS[6], '1')
return 1
