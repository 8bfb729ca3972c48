-- Everything that may have changed, at one moment. KEYS: version
-- ARGV: prefix of all keys, version, models-version and stamp of the runtime layer known to the caller ('' = none),
--       idempotency key to look up ('' = none)
-- Returns {seconds, microseconds, version, leader fields, {node, ms its lease lasts, lease fields} ...,
--   catalogue or nil when its version is known, stamp, runtime layer or nil when its stamp is known, {id, ended},
--   records of durable checkpoints}: they change too often to be part of the runtime layer
-- The stamp holds the lineage: the counter of the runtime layer starts again when Redis has lost its memory.
local prefix = ARGV[1]
local function at(name)
  return prefix .. name
end
local time = redis.call('TIME')
local version = redis.call('GET', KEYS[1]) or ''
local lineage = redis.call('GET', at('lineage')) or ''

local leases = {}
for _, node in ipairs(redis.call('HKEYS', at('incarnations'))) do
  local lasts = redis.call('PTTL', at('node:' .. node))
  if lasts >= 0 then
    leases[#leases + 1] = {node, lasts, redis.call('HGETALL', at('node:' .. node))}
  end
end

local catalogue = false
if version == '' or version ~= ARGV[2] then
  local models_version = redis.call('GET', at('models-version')) or ''
  local models = false
  if models_version == '' or models_version ~= ARGV[3] then
    models = redis.call('HGETALL', at('models'))
  end
  catalogue = {
    lineage,
    redis.call('GET', at('revision')) or '0',
    redis.call('HGETALL', at('members')),
    redis.call('SMEMBERS', at('expected')),
    redis.call('HGETALL', at('incarnations')),
    redis.call('HGETALL', at('txs')),
    redis.call('HGETALL', at('offers')),
    models_version,
    models,
  }
end

local stamp = lineage == '' and '' or (redis.call('GET', at('rev')) or '0') .. '@' .. lineage
local runtime = false
if stamp == '' or stamp ~= ARGV[4] then
  local names, listed = {}, {}
  for _, source in ipairs({redis.call('HKEYS', at('models')), redis.call('SMEMBERS', at('planned'))}) do
    for _, name in ipairs(source) do
      if not listed[name] then
        listed[name] = true
        names[#names + 1] = name
      end
    end
  end
  runtime = {redis.call('HGETALL', at('counters'))}
  for _, name in ipairs(names) do
    runtime[#runtime + 1] = {
      name,
      redis.call('GET', at('plan:' .. name)) or '',
      redis.call('HGETALL', at('run:' .. name)),
      redis.call('HGETALL', at('connected:' .. name)),
      redis.call('HGETALL', at('lost:' .. name)),
      redis.call('GET', at('failed:' .. name)) or '',
      redis.call('HGETALL', at('moves:' .. name)),
    }
  end
end

local idem = {'', ''}
if ARGV[5] ~= '' then
  local id = redis.call('GET', at('idem:' .. ARGV[5])) or ''
  idem = {id, id ~= '' and redis.call('GET', at('ended:' .. id)) or ''}
end
return {time[1], time[2], version, redis.call('HGETALL', at('leader')), leases, catalogue, stamp, runtime, idem,
  redis.call('HGETALL', at('checkpoints'))}
