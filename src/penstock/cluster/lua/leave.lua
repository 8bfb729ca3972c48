-- A node leaves. KEYS: members, node:<id>, leader, metrics:<id>, log
-- ARGV: id, incarnation
-- Returns 1, or 0 when this incarnation is no longer a member.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[4])
if redis.call('HGET', KEYS[3], 'node') == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'node.left', 'node', ARGV[1],
  'text', 'node ' .. ARGV[1] .. ' left', 'level', 'info')
return 1
