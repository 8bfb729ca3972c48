-- The leader forgets checkpoints of models that were taken offline or deleted.
-- KEYS: leader, models, checkpoints, checkpoint-numbers   ARGV: leader's id, term, names ...
-- Returns how many; -1 when the caller does not lead. The record of a model's present generation stays while it is online.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local forgotten = 0
for i = 3, #ARGV do
  local text = redis.call('HGET', KEYS[2], ARGV[i])
  local entry = text and cjson.decode(text)
  local known = redis.call('HGET', KEYS[3], ARGV[i])
  local present = entry and entry.state == 'online' and known
    and tostring(cjson.decode(known).generation) == went_online(text)
  if known and not present then
    redis.call('HDEL', KEYS[3], ARGV[i])
    redis.call('HDEL', KEYS[4], ARGV[i])
    forgotten = forgotten + 1
  end
end
return forgotten
