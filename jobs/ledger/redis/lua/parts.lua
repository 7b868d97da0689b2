-- ARGV: job, then for each part of it first and stop of its shards, first and stop of its images.
-- Answers for each part: waiting, published and claimed shards, done and failed images; nothing if there
-- is no such job.
local job = ARGV[1]
if redis.call('EXISTS', key('job', job)) == 0 then return false end

local answer = {}
for at = 2, #ARGV, 4 do
  local first, stop = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local start_image, stop_image = tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  answer[#answer + 1] = {
    count_bits(key('waiting', job), first, stop),
    count_shards(redis.call('ZRANGE', key('published', job), 0, -1), first, stop),
    count_shards(redis.call('HKEYS', key('claims', job)), first, stop),
    count_bits(key('done', job), start_image, stop_image),
    count_bits(key('failed', job), start_image, stop_image),
  }
end
return answer
