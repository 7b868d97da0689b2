-- ARGV: submitter, images or '' for no quota. Safe to repeat.
if ARGV[2] == '' then
  redis.call('HDEL', QUOTAS, ARGV[1])
else
  redis.call('HSET', QUOTAS, ARGV[1], ARGV[2])
end
return true
