-- ARGV: job, text. Safe to repeat.
local record = key('job', ARGV[1])
if redis.call('EXISTS', record) == 1 then redis.call('HSET', record, 'error', ARGV[2]) end
return true
