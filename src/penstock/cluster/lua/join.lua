-- A node joins. KEYS: members, incarnations, node:<id>, log
-- ARGV: id, nonce of the process, lease (ms), least incarnation, then field, value ... of the lease
-- Returns {1, incarnation}, or {0, ms} when another living process has the name (ms: what its lease still lasts).
local id, nonce, lease, least = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local holder = redis.call('HGET', KEYS[3], 'nonce')
if holder and holder ~= nonce then
  return {0, redis.call('PTTL', KEYS[3])}
end
local last = tonumber(redis.call('HGET', KEYS[2], id) or '0')
local incarnation = math.max(last, least) + 1
redis.call('HSET', KEYS[2], id, incarnation)
redis.call('HSET', KEYS[1], id, incarnation)
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'nonce', nonce, 'incarnation', incarnation)
for i = 5, #ARGV, 2 do
  redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[3], lease)
local now = redis.call('TIME')
redis.call('XADD', KEYS[4], 'MAXLEN', '~', 10000, '*', 'kind', 'node.joined', 'node', id,
  'text', 'node ' .. id .. ' joined (incarnation ' .. incarnation .. ')', 'level', 'info')
return {1, incarnation}
