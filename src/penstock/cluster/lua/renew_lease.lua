-- RENEW, see `admission.renew`. KEYS: lineage, members, expected, incarnations, node:<id>
-- ARGV: node, nonce, incarnation, lease (ms), then field, value ... that describe the node
-- Returns 'granted', 'revived', 'refused', or 'empty' when Redis has lost its memory.
local node, nonce, incarnation, lease = ARGV[1], ARGV[2], ARGV[3], KEYS[5]
local held = redis.call('HMGET', lease, 'nonce', 'incarnation', 'since')
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local standing = 'granted'
if held[1] ~= nonce or held[2] ~= incarnation then
  if redis.call('EXISTS', KEYS[1]) == 0 then
    return 'empty'
  end
  local awaited = redis.call('HGET', KEYS[2], node) == incarnation or redis.call('SISMEMBER', KEYS[3], node) == 1
  if held[1] or not awaited or redis.call('HGET', KEYS[4], node) ~= incarnation then
    return 'refused'
  end
  redis.call('HSET', lease, 'nonce', nonce, 'incarnation', incarnation, 'applied', '-1')
  standing = 'revived'
end
if standing == 'revived' or now < tonumber(held[3] or '0') then -- TIME may have been moved back
  redis.call('HSET', lease, 'since', string.format('%.0f', now))
end
if #ARGV > 4 then
  redis.call('HSET', lease, unpack(ARGV, 5))
end
redis.call('PEXPIRE', lease, ARGV[4])
return standing
