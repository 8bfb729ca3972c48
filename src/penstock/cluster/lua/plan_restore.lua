-- A node that runs executors by a plan which Redis has lost, or instead of which it has an earlier one, brings it back.
-- KEYS: members, models, plan:<name>, counters, rev, log, bell (a channel)
-- ARGV: node, incarnation, name, generation that the plan serves, revision, plan (JSON), its highest term
-- Returns 1; 0 when there is a later plan, or was one, the model has changed, or this incarnation is no longer a member.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
local there = redis.call('GET', KEYS[3])
if there then
  local plan = cjson.decode(there)
  for _, parts in ipairs({plan.executors, plan.records or {}, plan.replicas or {}}) do
    for _, part in pairs(parts) do
      if part.epoch[1] > tonumber(ARGV[7]) then
        return 0
      end
    end
  end
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
if not entry or went_online(entry) ~= ARGV[4] then
  return 0
end
if tonumber(redis.call('HGET', KEYS[4], ARGV[3]) or '0') >= tonumber(ARGV[5]) then
  return 0
end
redis.call('HSET', KEYS[4], ARGV[3], ARGV[5])
redis.call('SET', KEYS[3], ARGV[6])
redis.call('INCR', KEYS[5])
redis.call('PUBLISH', KEYS[7], '1')
redis.call('XADD', KEYS[6], 'MAXLEN', '~', 10000, '*', 'kind', 'plan.restored', 'node', ARGV[1], 'model', ARGV[3],
  'text', 'node ' .. ARGV[1] .. ' brought back the plan of ' .. ARGV[3], 'level', 'info')
return 1
