-- ARGV: job. Safe to repeat.
local job = ARGV[1]
for _, shard in ipairs(redis.call('HKEYS', key('claims', job))) do
  redis.call('ZREM', LEASES, shard .. '/' .. job)
end
for _, part in ipairs(PARTS) do
  redis.call('UNLINK', key(part, job))
end
redis.call('ZREM', JOBS, job)
redis.call('SREM', SETTLED, job)
redis.call('ZREM', NOTICES, job)
return true
