-- ARGV: token, job, window, how many shards to look at, first and stop of the shards that are meant.
-- Answers 1 if there is more to look at, then number, start, stop of each shard; nothing if there is
-- no such job.
local token, job, window, look_at = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local first, stop_shard = tonumber(ARGV[5]), tonumber(ARGV[6])
local answer = recall(token)
if answer then return answer end
local state = redis.call('HGET', key('job', job), 'state')
if not state then return false end
if state ~= 'active' then return {0} end

local published = key('published', job)
-- The first waiting shard from here on, or a negative number.
local function next_waiting(from)
  while from % 8 > 0 do -- BITPOS begins at a byte
    if redis.call('GETBIT', key('waiting', job), from) == 1 then return from end
    from = from + 1
  end
  return redis.call('BITPOS', key('waiting', job), 1, from / 8)
end

local room = window - count_shards(redis.call('ZRANGE', published, 0, -1), first, stop_shard)
  - count_shards(redis.call('HKEYS', key('claims', job)), first, stop_shard)
local time, from, shards = now(), first, {0}
while room > 0 do
  -- Shards that come back have lower numbers than those never published, so they come first.
  local shard = next_waiting(from)
  if shard < 0 or shard >= stop_shard then break end
  if look_at == 0 then
    shards[1] = 1
    break
  end
  look_at, from = look_at - 1, math.max(first, shard - shard % 8)
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
