-- The leader removes reports of nodes that are gone. KEYS: leader, run:<name>, members, rev, bell (a channel)
-- ARGV: leader's id, term, prefix of lease keys, executors ...
-- Returns how many, or -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
local removed = 0
for i = 4, #ARGV do
  local text = redis.call('HGET', KEYS[2], ARGV[i])
  if text then
    local report = cjson.decode(text)
    local same = redis.call('HGET', KEYS[3], report.node) == tostring(report.incarnation)
    if not (same and redis.call('EXISTS', ARGV[3] .. report.node) == 1) then
      removed = removed + redis.call('HDEL', KEYS[2], ARGV[i])
    end
  end
end
if removed > 0 then
  redis.call('INCR', KEYS[4])
  redis.call('PUBLISH', KEYS[5], '1')
end
return removed
