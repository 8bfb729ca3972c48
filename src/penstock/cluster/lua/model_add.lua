-- Add a model. KEYS: models, model:<name>, numbers, rev, log
-- ARGV: name, path, topology (JSON), node
-- Returns its generation, -1 when the name is taken, -2 when all 65,536 numbers are taken.
if redis.call('EXISTS', KEYS[2]) == 1 then
  return -1
end
if redis.call('HLEN', KEYS[3]) >= 65536 then
  return -2
end
local number = (tonumber(redis.call('HGET', KEYS[3], 'last') or '0') + 1) % 65536
while redis.call('HSETNX', KEYS[3], number, ARGV[1]) == 0 do
  number = (number + 1) % 65536
end
redis.call('HSET', KEYS[3], 'last', number)
local now = redis.call('TIME')
redis.call('SADD', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[2], 'name', ARGV[1], 'path', ARGV[2], 'topology', ARGV[3], 'desired', 'offline',
  'number', number, 'generation', 1, 'counter', 0, 'changed', now[1] .. '.' .. string.format('%06d', now[2]))
redis.call('INCR', KEYS[4])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'model.added', 'node', ARGV[4], 'model', ARGV[1],
  'text', 'model ' .. ARGV[1] .. ' added from ' .. ARGV[2], 'level', 'info')
return 1
