-- The leader takes a plan back. KEYS: leader, plan:<name>, connected:<name>, lost:<name>, rev, moves:<name>, bell (a channel)
-- ARGV: leader's id, term
-- Returns 1, or -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[6])
redis.call('INCR', KEYS[5])
redis.call('PUBLISH', KEYS[7], '1')
return 1
