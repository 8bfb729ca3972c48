-- The leader writes down how the durable checkpoints of a model go, or only asks whether it might.
-- KEYS: leader, models, plan:<name>, checkpoints
-- ARGV: leader's id, term, name, generation, SHA-1 of the plan under which the checkpoint was taken ('' = whatever it is),
--       record (JSON; '' = only ask), number of the last complete checkpoint in it ('' = what the store has, also if
--       that is less than what is on record)
-- Returns 1; 0 when model or plan have changed, or a later checkpoint is complete; -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local entry = redis.call('HGET', KEYS[2], ARGV[3])
if not entry or went_online(entry) ~= ARGV[4] then
  return 0
end
if ARGV[5] ~= '' then
  local plan = redis.call('GET', KEYS[3])
  if not plan or redis.sha1hex(plan) ~= ARGV[5] then
    return 0
  end
end
if ARGV[6] == '' then
  return 1
end
local there = ARGV[7] ~= '' and redis.call('HGET', KEYS[4], ARGV[3])
if there then
  local known = cjson.decode(there)
  if tostring(known.generation) == ARGV[4] and known.number > tonumber(ARGV[7]) then
    return 0
  end
end
redis.call('HSET', KEYS[4], ARGV[3], ARGV[6])
return 1
