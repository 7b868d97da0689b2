-- Enter a job, or go on with it. The bitmap of images that are done was uploaded before, so that the
-- job comes into being whole.
-- ARGV: token, job, plan, bounds, open, 1 if there is an upload, webhook, priority, store, budget,
-- submitter, images, then fields and values of the job.
-- Answers: new | there | conflict with plan and store of the job that is there | stale, if the upload
-- has gone meanwhile | quota, as over_quota has it.
local token, job, plan, has_upload = ARGV[1], ARGV[2], ARGV[3], ARGV[6] == '1'
local webhook, priority, store, budget = ARGV[7], ARGV[8], ARGV[9], ARGV[10]
local submitter, total = ARGV[11], tonumber(ARGV[12])
local record, done, failed = key('job', job), key('done', job), key('failed', job)
local upload = key('upload', token)

local answer = recall(token)
if answer then return answer end

local known, known_store = unpack(redis.call('HMGET', record, 'plan', 'store'))
if known and (known ~= plan or known_store ~= store) then
  redis.call('DEL', upload)
  return {'conflict', known, known_store}
end
if has_upload and redis.call('EXISTS', upload) == 0 then return {'stale'} end

-- Images that this adds to those that the submitter has to do: none of a job of its own that goes on.
local state, counted, failures, owner = unpack(redis.call('HMGET', record, 'state', 'done', 'failed', 'submitter'))
if not known or state == 'cancelled' or owner ~= submitter then
  local there = has_upload and redis.call('BITCOUNT', upload) or 0
  local more = total - math.max(there, (tonumber(counted) or 0) + (tonumber(failures) or 0))
  local refused = over_quota(submitter, job, more)
  if refused then
    redis.call('DEL', upload)
    return remember(token, refused)
  end
end

if not known then
  local time = digits(now())
  redis.call('ZADD', JOBS, time, job)
  -- Fences begin at the time, so that those of a job that was forgotten, or wiped, are smaller.
  redis.call('HSET', record, 'plan', plan, 'state', 'active', 'created', time, 'fence', time,
    'failed', 0, 'evaluated', 0, 'webhook', webhook, 'priority', priority, 'store', store,
    'budget', budget, 'submitter', submitter, 'total', total, unpack(ARGV, 13))
  redis.call('SET', key('bounds', job), ARGV[4])
  redis.call('SET', key('open', job), ARGV[5])
  if has_upload then
    redis.call('RENAME', upload, done)
    redis.call('PERSIST', done)
  end
  local count = redis.call('BITCOUNT', done)
  redis.call('HSET', record, 'done', count)
  let_open_wait(job)
  review_job(job)
  event(job, 'created', 'images', total, 'done', count)
  return remember(token, {'new'})
end

if has_upload then
  redis.call('BITOP', 'OR', done, done, upload)
  redis.call('HSET', record, 'done', redis.call('BITCOUNT', done))
  if redis.call('EXISTS', failed) == 1 then -- done wins: failed, but not both failed and done
    redis.call('BITOP', 'AND', upload, failed, done)
    redis.call('BITOP', 'XOR', failed, failed, upload)
    redis.call('HSET', record, 'failed', redis.call('BITCOUNT', failed))
  end
  redis.call('DEL', upload)
end
local old = redis.call('HMGET', record, 'webhook', 'priority', 'budget')
if old[1] ~= webhook or old[2] ~= priority or (old[3] or '') ~= budget or owner ~= submitter then
  redis.call('HSET', record, 'webhook', webhook, 'priority', priority, 'budget', budget,
    'submitter', submitter)
end
local reason = redis.call('HGET', record, 'reason')
if state == 'cancelled' or (state == 'paused' and reason == 'budget') then
  let_open_wait(job)
  redis.call('HSET', record, 'state', 'active', 'reason', '')
  redis.call('HDEL', record, 'ended')
  redis.call('ZREM', NOTICES, job)
  event(job, 'active')
end
review_job(job)
return remember(token, {'there'})
