-- ARGV: token, microseconds for which nobody else gets it. Answers job, time of its end and attempts of
-- the notice that is due first; nothing if none is due.
local token, hold_us = ARGV[1], ARGV[2]
local answer = recall(token)
if answer then return answer end
local time = now()
local job = redis.call('ZRANGEBYSCORE', NOTICES, '-inf', digits(time), 'LIMIT', 0, 1)[1]
if not job then return false end
local ended = apart(redis.call, 'HGET', key('job', job), 'ended')
even_when_full()
local attempt = tonumber(ended) and apart(redis.call, 'HINCRBY', key('job', job), 'notices', 1)
if not attempt then -- somebody has deleted or changed keys by hand
  redis.call('ZREM', NOTICES, job)
  return false
end

redis.call('ZADD', NOTICES, digits(time + hold_us), job)
return remember(token, {job, ended, attempt})
