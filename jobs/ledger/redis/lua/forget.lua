-- ARGV: job, 1 if it is to go whatever its state. Answers whether it is gone. Safe to repeat.
local job, force = ARGV[1], ARGV[2] == '1'
if redis.call('EXISTS', key('job', job)) == 1 and not force then
  local state = apart(redis.call, 'HGET', key('job', job), 'state')
  if state ~= 'done' and state ~= 'cancelled' then return false end
end
local claimed = apart(redis.call, 'HKEYS', key('claims', job)) or {}
for _, part in ipairs(PARTS) do
  redis.call('UNLINK', key(part, job))
end
for _, shard in ipairs(claimed) do
  redis.call('ZREM', LEASES, shard .. '/' .. job)
end
redis.call('ZREM', JOBS, job)
redis.call('SREM', SETTLED, job)
redis.call('ZREM', NOTICES, job)
return true
