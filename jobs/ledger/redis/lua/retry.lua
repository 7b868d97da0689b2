-- ARGV: token, job. Answers how many failed images are to do again; nothing if there is no such job; what
-- over_quota says, and the submitter, if those are too many.
local token, job = ARGV[1], ARGV[2]
local record = key('job', job)
local answer = recall(token)
if answer then return answer end
local state, failed, total, done, submitter =
  unpack(redis.call('HMGET', record, 'state', 'failed', 'total', 'done', 'submitter'))
if not state then return false end
failed = tonumber(failed)
if failed == 0 and (state == 'active' or state == 'done') then return 0 end
local refused = submitter and over_quota(submitter, job, total - done)
if refused then
  refused[#refused + 1] = submitter
  return refused
end

redis.call('BITOP', 'OR', key('open', job), key('open', job), key('flawed', job))
redis.call('HSET', record, 'state', 'active', 'reason', '', 'failed', 0)
redis.call('HDEL', record, 'ended')
redis.call('ZREM', NOTICES, job)
redis.call('UNLINK', key('flawed', job), key('failed', job), key('failures', job))
let_open_wait(job)
review_job(job)
event(job, 'retried', 'images', failed)
return remember(token, failed)
