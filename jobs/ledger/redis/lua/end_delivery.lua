-- ARGV: job, time of its end, attempts, microseconds after which to try again, or an empty text.
-- Safe to repeat: what is removed stays so, and trying again is put off by a moment more.
local job, ended, attempts, again_us = unpack(ARGV)
local now_ended, now_attempts = unpack(redis.call('HMGET', key('job', job), 'ended', 'notices'))
if now_ended ~= ended then return true end
if again_us == '' then
  redis.call('ZREM', NOTICES, job)
elseif now_attempts == attempts then
  even_when_full()
  redis.call('ZADD', NOTICES, 'XX', digits(now() + again_us), job)
end
return true
