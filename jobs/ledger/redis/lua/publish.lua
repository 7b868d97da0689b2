-- ARGV: token, job, window, how many shards to look at.
-- Answers 1 if there is more to look at, then number, start, stop of each shard; nothing if there is
-- no such job.
local token, job, window, look_at = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local answer = recall(token)
if answer then return answer end
local state = redis.call('HGET', key('job', job), 'state')
if not state then return false end
if state ~= 'active' then return {0} end

local published = key('published', job)
local room = window - redis.call('ZCARD', published) - redis.call('HLEN', key('claims', job))
local time, from, shards = now(), 0, {0}
while room > 0 do
  -- Shards that come back have lower numbers than those never published, so they come first.
  local shard = redis.call('BITPOS', key('waiting', job), 1, from)
  if shard < 0 then break end
  if look_at == 0 then
    shards[1] = 1
    break
  end
  look_at, from = look_at - 1, math.floor(shard / 8)
  local start, stop = images_of(job, shard)
  if #look(job, start, stop) > 0 then
    redis.call('ZADD', published, time, shard)
    set_waiting(job, shard, 0)
    room = room - 1
    shards[#shards + 1], shards[#shards + 2], shards[#shards + 3] = shard, start, stop
  else -- `create` has settled it since, and is about to say so
    redis.call('SETBIT', key('open', job), shard, 0)
    set_waiting(job, shard, 0)
  end
end
return #shards == 1 and shards or remember(token, shards)
