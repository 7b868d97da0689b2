-- ARGV: token, job, microseconds, the time before which a shard must have been published (0 at the
-- first call, later what that answered), how many shards at most, first and stop of the shards that are
-- meant.
-- Answers that time, then number, start, stop of each shard; nothing if there is no such job.
local token, job, older_us, before, most = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local first, stop_shard = tonumber(ARGV[6]), tonumber(ARGV[7])
local answer = recall(token)
if answer then return answer end
local state = redis.call('HGET', key('job', job), 'state')
if not state then return false end

local time, published = now(), key('published', job)
if before == 0 then before = time - older_us end
local shards = {digits(before)}
if state ~= 'active' then return shards end
for _, shard in ipairs(redis.call('ZRANGEBYSCORE', published, '-inf', '(' .. shards[1])) do
  local number = tonumber(shard)
  if #shards > 3 * most then break end
  if first <= number and number < stop_shard then
    redis.call('ZADD', published, time, shard)
    local start, stop = images_of(job, number)
    shards[#shards + 1], shards[#shards + 2], shards[#shards + 3] = number, start, stop
  end
end
return #shards == 1 and shards or remember(token, shards)
