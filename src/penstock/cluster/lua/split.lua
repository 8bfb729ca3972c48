-- Somebody wants key groups of a keyed stage on another executor. KEYS: models, plan:<name>, moves:<name>, rev, log, bell
-- (a channel)
-- ARGV: model, generation, text and user for the log, node that was asked, stage, wish (JSON)
-- Returns 1; 0 when the model has changed or has no plan, or something is wanted of the stage already.
local entry = redis.call('HGET', KEYS[1], ARGV[1])
if not entry or went_online(entry) ~= ARGV[2] or redis.call('EXISTS', KEYS[2]) == 0 then
  return 0
end
if redis.call('HSETNX', KEYS[3], ARGV[6], ARGV[7]) == 0 then
  return 0
end
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'split.wanted', 'node', ARGV[5], 'model', ARGV[1],
  'text', ARGV[3], 'level', 'info', 'user', ARGV[4])
redis.call('PUBLISH', KEYS[6], '1')
return 1
