-- The leader strikes off a member whose lease ran out. KEYS: leader, members, node:<id>, log, metrics:<id>
-- ARGV: leader's id, term, id, incarnation
-- Returns 1 when struck off, 0 when it lives (or is another incarnation), -1 when the caller does not lead.
if redis.call('HGET', KEYS[1], 'node') ~= ARGV[1] or redis.call('HGET', KEYS[1], 'term') ~= ARGV[2] then
  return -1
end
if redis.call('EXISTS', KEYS[3]) == 1 or redis.call('HGET', KEYS[2], ARGV[3]) ~= ARGV[4] then
  return 0
end
redis.call('HDEL', KEYS[2], ARGV[3])
redis.call('DEL', KEYS[5])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'kind', 'node.lost', 'node', ARGV[3],
  'text', 'node ' .. ARGV[3] .. ' is lost: its lease ran out', 'level', 'warning')
return 1
