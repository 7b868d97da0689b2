-- Done images that are gone from the store are to do again.
-- ARGV: token, job, then for each shard that has some: its number, how many, their indices.
-- Answers how many of them were done; nothing if there is no such job.
local token, job = ARGV[1], ARGV[2]
local record, done = key('job', job), key('done', job)
local answer = recall(token)
if answer then return answer end
local state = redis.call('HGET', record, 'state')
if not state then return false end

local reopened, at = 0, 3
while at < #ARGV do
  local shard, last, of_shard = ARGV[at], at + 1 + ARGV[at + 1], 0
  for place = at + 2, last do
    if redis.call('GETBIT', done, ARGV[place]) == 1 then
      redis.call('SETBIT', done, ARGV[place], 0)
      -- `create` leaves these where it adds an image that is done.
      redis.call('HDEL', key('failures', job), ARGV[place])
      redis.call('HDEL', key('deaths', job), 'i' .. ARGV[place])
      of_shard = of_shard + 1
    end
  end
  if of_shard > 0 then
    redis.call('SETBIT', key('open', job), shard, 1)
    local out = redis.call('HEXISTS', key('claims', job), shard) == 1
      or redis.call('ZSCORE', key('published', job), shard)
    if state ~= 'cancelled' and not out then set_waiting(job, shard, 1) end
  end
  reopened, at = reopened + of_shard, last + 1
end
if reopened == 0 then return 0 end

redis.call('HINCRBY', record, 'done', -reopened)
if state == 'done' then
  redis.call('HSET', record, 'state', 'active')
  redis.call('HDEL', record, 'ended')
  redis.call('ZREM', NOTICES, job)
end
review_job(job)
event(job, 'reopened', 'images', reopened)
return remember(token, reopened)
