-- Become or stay the leader. KEYS: leader, term, members, node:<id>, log
-- ARGV: id, incarnation, lease (ms), term held (0: none), least term
-- Returns {1, term} for the leader, {0, term, node} for everybody else.
local id, incarnation, held = ARGV[1], ARGV[2], tonumber(ARGV[4])
local term = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), tonumber(ARGV[5]))
local leader = redis.call('HGET', KEYS[1], 'node')
if leader then
  local theirs = tonumber(redis.call('HGET', KEYS[1], 'term'))
  if leader == id and theirs == held then
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    return {1, theirs}
  end
  return {0, theirs, leader}
end
local member = redis.call('HGET', KEYS[3], id) == incarnation
if not member or redis.call('HGET', KEYS[4], 'incarnation') ~= incarnation then
  return {0, term, ''}
end
term = term + 1
redis.call('SET', KEYS[2], term)
redis.call('HSET', KEYS[1], 'node', id, 'incarnation', incarnation, 'term', term)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('XADD', KEYS[5], 'MAXLEN', '~', 10000, '*', 'kind', 'leader.elected', 'node', id,
  'text', 'node ' .. id .. ' leads (term ' .. term .. ')', 'level', 'info')
return {1, term}
