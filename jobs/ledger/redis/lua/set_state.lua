-- ARGV: job, the state wanted, images failed where that counts or nothing, why it is paused or nothing.
-- Answers the state after it; nothing if there is no such job.
-- Safe to repeat: the second time the job is in that state.
local job, wanted, expected = ARGV[1], ARGV[2], tonumber(ARGV[3])
local record = key('job', job)
local state, total, done, failed =
  unpack(redis.call('HMGET', record, 'state', 'total', 'done', 'failed'))
if not state then return false end
if state == wanted and wanted == 'paused' then redis.call('HSET', record, 'reason', ARGV[4]) end
if state == wanted or state == 'done' or state == 'cancelled' then return state end
if wanted == 'done' and done + failed < tonumber(total) then return state end
if wanted == 'done' and expected and expected ~= tonumber(failed) then return state end

even_when_full()
redis.call('HSET', record, 'state', wanted, 'reason', ARGV[4])
if wanted == 'done' or wanted == 'cancelled' then
  local time = digits(now())
  redis.call('HSET', record, 'ended', time, 'waiting', 0, 'notices', 0)
  redis.call('DEL', key('waiting', job), key('published', job))
  if redis.call('HGET', record, 'webhook') ~= '' then redis.call('ZADD', NOTICES, time, job) end
end
review_job(job)
if wanted == 'done' then
  redis.call('HDEL', record, 'error')
  event(job, wanted, 'done', done, 'failed', failed)
else
  event(job, wanted)
end
return wanted
