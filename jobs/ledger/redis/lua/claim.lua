-- ARGV: token, job, shard, owner, microseconds of a lease, deaths from which images run one by one.
-- Answers run, fence, attempt, 1 if it is one image alone, and the images | busy | done | paused | cancelled | unknown.
-- A claim keeps its token: whoever asks again with it gets the same lease, and nobody else does.
local token, job, shard, owner = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local lease_us, most_deaths = ARGV[5], tonumber(ARGV[6])
local record, deaths = key('job', job), key('deaths', job)

local state = redis.call('HGET', record, 'state')
local start, stop = images_of(job, shard)
if not state or not start then return {'unknown'} end

local indices = look(job, start, stop)

local function run(claim, attempt)
  local answer = {'run', claim.fence, attempt, claim.single == '-' and 0 or 1}
  if claim.single ~= '-' then indices = {tonumber(claim.single)} end
  for _, index in ipairs(indices) do answer[#answer + 1] = index end
  return answer
end

local function attempts()
  local count = redis.call('GETRANGE', key('attempts', job), shard * 4, shard * 4 + 3)
  return #count == 4 and struct.unpack('>I4', count) or 0
end

-- The image that the fewest workers died on.
local function safest()
  local best, fewest
  for _, index in ipairs(indices) do
    local count = tonumber(redis.call('HGET', deaths, 'i' .. index)) or 0
    if not fewest or count < fewest then best, fewest = index, count end
  end
  return best
end

local claim = read_claim(job, shard)
if claim and claim.token == token then return run(claim, attempts()) end
if state == 'cancelled' then return {'cancelled'} end
if claim and #indices > 0 then return {'busy'} end
even_when_full()
if #indices == 0 then
  review(job, shard, start, stop)
  return {'done'}
end
if state == 'paused' then
  if redis.call('ZREM', key('published', job), shard) == 1 then set_waiting(job, shard, 1) end
  return {'paused'}
end

local single = '-'
if (tonumber(redis.call('HGET', deaths, shard)) or 0) >= most_deaths then single = safest() end
local attempt = attempts() + 1
redis.call('SETRANGE', key('attempts', job), shard * 4, struct.pack('>I4', attempt))
redis.call('ZREM', key('published', job), shard)
set_waiting(job, shard, 0)
claim = {
  fence = digits(redis.call('HINCRBY', record, 'fence', 1)),
  token = token, beat = '-', single = single, owner = owner,
}
if redis.call('HLEN', key('claims', job)) == 0 then
  redis.call('HSET', record, 'since', digits(now()))
end
write_claim(job, shard, claim)
renew(job, shard, lease_us)
event(job, 'claimed', 'shard', shard, 'owner', owner, 'attempt', attempt)
return run(claim, attempt)
