-- After `create` added done images to a job that was there: bring the shards in line, a few a call.
-- ARGV: job, first shard, how many. Answers the next shard, or nothing at the end.
-- Safe to repeat: it only derives from the images' bitmaps.
local job, first, count = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if redis.call('EXISTS', key('job', job)) == 0 then return false end

for shard = first, first + count - 1 do
  local start, stop = images_of(job, shard)
  if not start then return false end
  review(job, shard, start, stop)
end
return first + count
