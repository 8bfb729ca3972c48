-- A node renews its lease. KEYS: members, node:<id>
-- ARGV: id, incarnation, nonce, lease (ms), then field, value ...
-- Returns 1, or 0 when this incarnation is no longer a member: the caller must join again.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] or redis.call('HGET', KEYS[2], 'nonce') ~= ARGV[3] then
  return 0
end
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return 1
