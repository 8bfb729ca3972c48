-- An agent tells what it runs of a model. KEYS: members, run:<name>, connected:<name>, lost:<name>, plan:<name>, rev, bell (a channel)
-- ARGV: node, incarnation, connected revision ('' = unchanged), records lost ('' = unchanged),
--       then executor, report (JSON; '' = nothing runs any more) ...
-- Returns 1, or 0 when this incarnation is no longer a member.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
for i = 5, #ARGV, 2 do
  local text = redis.call('HGET', KEYS[2], ARGV[i])
  local old = text and cjson.decode(text)
  if ARGV[i + 1] == '' then
    if old and old.node == ARGV[1] then
      redis.call('HDEL', KEYS[2], ARGV[i])
    end
  else
    -- A later incarnation of the executor, elsewhere, has the last word.
    local new = cjson.decode(ARGV[i + 1])
    local later = old and (old.epoch[1] > new.epoch[1]
      or (old.epoch[1] == new.epoch[1] and old.epoch[2] > new.epoch[2]))
    if not later then
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
  end
end
if redis.call('EXISTS', KEYS[5]) == 1 then
  if ARGV[3] ~= '' then
    redis.call('HSET', KEYS[3], ARGV[1], ARGV[3])
  end
  if ARGV[4] ~= '' then
    redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
  end
end
redis.call('INCR', KEYS[6])
redis.call('PUBLISH', KEYS[7], '1')
return 1
