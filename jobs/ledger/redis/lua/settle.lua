-- ARGV: microseconds of a lease, job, shard, fence, owner, number of images done, their indices, then
-- index, JSON, reason of each failure.
-- Answers 1 | 0 if the lease is lost | first and last image of the shard if one is not of it.
-- Safe to repeat: bits are set twice, counted and told once.
local lease_us, job, shard, fence, owner = unpack(ARGV, 1, 5)
local first_failed = 7 + tonumber(ARGV[6])
if not held(job, shard, fence, owner) then return 0 end

local start, stop = images_of(job, tonumber(shard))
local function of_shard(index)
  return tonumber(index) >= start and tonumber(index) < stop
end
for at = 7, first_failed - 1 do
  if not of_shard(ARGV[at]) then return {start, stop - 1} end
end
for at = first_failed, #ARGV, 3 do
  if not of_shard(ARGV[at]) then return {start, stop - 1} end
end

-- Numbers as text, runs of them as their ends: 4-7,9.
local function spans(numbers)
  table.sort(numbers)
  local texts, at = {}, 1
  while at <= #numbers do
    local last = at
    while numbers[last + 1] == numbers[last] + 1 do last = last + 1 end
    texts[#texts + 1] = numbers[at] .. (last > at and '-' .. numbers[last] or '')
    at = last + 1
  end
  return table.concat(texts, ',')
end

even_when_full()
local record, newly_done, healed = key('job', job), {}, 0
for at = 7, first_failed - 1 do
  local index = ARGV[at]
  if redis.call('SETBIT', key('done', job), index, 1) == 0 then
    newly_done[#newly_done + 1] = tonumber(index)
    redis.call('HDEL', key('deaths', job), 'i' .. index)
    if redis.call('HDEL', key('failures', job), index) == 1 then
      redis.call('SETBIT', key('failed', job), index, 0)
      healed = healed + 1
    end
  end
end
if #newly_done > 0 then
  redis.call('HDEL', record, 'error')
  event(job, 'settled', 'shard', shard, 'owner', owner, 'images', spans(newly_done))
end
redis.call('HINCRBY', record, 'done', #newly_done)
redis.call('HINCRBY', record, 'failed', -healed)
for at = first_failed, #ARGV, 3 do
  fail(job, ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
review(job, tonumber(shard), start, stop)
review_job(job)
renew(job, shard, lease_us)
return 1
