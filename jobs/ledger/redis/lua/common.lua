-- Put in front of every script by `jobs/ledger/redis/scripts.py`.
--
-- Keys of a job, each `sdbatch:<part>:<job>`:
--   job       hash: what it is, its state, and counts: done, failed, waiting, evaluated, fence,
--             notices (how often its webhook was tried since it ended); error: why it does not move on;
--             since when a shard of it is held without a break, how long that was before (held), and
--             how long in all when evaluations were last told (rendering); seconds of workers (worked)
--   bounds    0, then for each shard the index after its last image, 4 bytes each, big-endian
--   done      bitmap of images; failed too, which has none of the done ones
--   failures  hash: index -> JSON of what went wrong; counts only for images in `failed`
--   open      bitmap of shards that have images to do; flawed: of shards that have failed images
--   waiting   bitmap of shards to be published, a part of the open ones
--   published zset of shards whose message is out, by its time
--   claims    hash of the shards that a worker holds (see read_claim)
--   attempts  for each shard how often it was claimed, 4 bytes each
--   deaths    hash: shard -> workers that died on it; i<index> -> the same of a single image
--   events    stream, its length capped
-- An open shard of a job that is not cancelled is either waiting, published or claimed.
--
-- Keys of the ledger: jobs (zset of ids, by time of creation), news (stream of the events of all jobs,
-- its length capped), settled (set of ids of jobs that only need their end), notices (zset of ids of ended
-- jobs whose webhook is to be told, by when), leases (zset of "shard/job", by expiry), workers (zset of
-- names, by expiry), worker (hash, name -> JSON), seen (hash, name -> time of its last report), quotas
-- (hash, submitter or * -> images), lock:<name>, answer:<token> and upload:<token>.
--
-- Times are microseconds of this server's clock; below 2^53, so exact as Lua's numbers.

local PREFIX = 'sdbatch:'
local JOBS, SETTLED, LEASES = PREFIX .. 'jobs', PREFIX .. 'settled', PREFIX .. 'leases'
local NOTICES, NEWS = PREFIX .. 'notices', PREFIX .. 'news'
local QUOTAS = PREFIX .. 'quotas'
local WORKERS, WORKER, SEEN = PREFIX .. 'workers', PREFIX .. 'worker', PREFIX .. 'seen'
local PARTS = {'job', 'bounds', 'done', 'failed', 'failures', 'open', 'flawed', 'waiting', 'published',
               'claims', 'attempts', 'deaths', 'events'}
local EVENTS, NEWS_KEPT = 2000, 5000
local ANSWERS_MS = 60000

local function key(part, job)
  return PREFIX .. part .. ':' .. job
end

local function digits(number) -- tostring keeps 14 of them only
  return string.format('%.0f', number)
end

local function now()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Redis does not let a script begin to write when it is full, but lets one go on that has begun.
-- Work that is out should be finished then, so its scripts begin with a write that is always allowed:
-- this one, where they do not begin by removing something anyway.
local function even_when_full()
  redis.call('DEL', PREFIX .. 'nothing')
end

-- Users may have fewer rights (infra/redis/users.acl), and a script that is refused a command ends there.
-- One that not all of them may run begins to write by what only those may, so that it changes nothing:
-- `create` by a write to `jobs` or BITOP, `retry` by BITOP, `forget` by UNLINK.

-- What a script answers cannot always be found out a second time. Such a script keeps its answer for
-- a minute under the token that its caller drew, and gives it again if the caller did not get it.
local function recall(token)
  local answer = redis.call('GET', key('answer', token))
  return answer and cjson.decode(answer)
end

local function remember(token, answer)
  redis.call('SET', key('answer', token), cjson.encode(answer), 'PX', ANSWERS_MS)
  return answer
end

local function event(job, kind, ...)
  redis.call('XADD', key('events', job), 'MAXLEN', '~', EVENTS, '*', 'kind', kind, ...)
  redis.call('XADD', NEWS, 'MAXLEN', '~', NEWS_KEPT, '*', 'job', job, 'kind', kind, ...)
end

-- What step answers; nothing if something that the ledger holds of this job is not as it must be: that is
-- not to keep the other jobs of a call waiting. A server that refuses to write is another matter.
local FLAWS = {'WRONGTYPE', 'not an integer', 'not a valid float', 'overflow', 'attempt to', 'bad argument',
               'too short'}

local function apart(step, ...)
  local ok, answer = pcall(step, ...)
  if ok then return answer end
  local text = type(answer) == 'table' and answer.err or tostring(answer)
  for _, flaw in ipairs(FLAWS) do
    if string.find(text, flaw, 1, true) then return nil end
  end
  error(answer, 0)
end

-- Shards and their images

-- The shard's images [start, stop); nil if the job has no such shard.
local function images_of(job, shard)
  local bounds = redis.call('GETRANGE', key('bounds', job), shard * 4, shard * 4 + 7)
  if #bounds < 8 then return nil end
  local start, stop = struct.unpack('>I4I4', bounds)
  return start, stop
end

-- Images of [start, stop) that are neither done nor failed, and 1 if any has failed, else 0.
local function look(job, start, stop)
  local first, last = math.floor(start / 8), math.floor((stop - 1) / 8)
  local done = redis.call('GETRANGE', key('done', job), first, last)
  local failed = redis.call('GETRANGE', key('failed', job), first, last)
  local to_do, flawed = {}, 0
  for at = first, last do
    local failed_bits = string.byte(failed, at - first + 1) or 0
    local settled_bits = bit.bor(failed_bits, string.byte(done, at - first + 1) or 0)
    if settled_bits < 255 or failed_bits > 0 then
      for index = math.max(start, at * 8), math.min(stop, at * 8 + 8) - 1 do
        local mask = bit.rshift(128, index % 8)
        if bit.band(settled_bits, mask) == 0 then to_do[#to_do + 1] = index end
        if bit.band(failed_bits, mask) > 0 then flawed = 1 end
      end
    end
  end
  return to_do, flawed
end

-- Bits of [start, stop) that are set.
local function count_bits(bitmap, start, stop)
  local count = 0
  while start < stop and start % 8 > 0 do
    count, start = count + redis.call('GETBIT', bitmap, start), start + 1
  end
  while start < stop and stop % 8 > 0 do
    stop = stop - 1
    count = count + redis.call('GETBIT', bitmap, stop)
  end
  if start < stop then count = count + redis.call('BITCOUNT', bitmap, start / 8, stop / 8 - 1) end
  return count
end

-- How many of these shards are within [first, stop).
local function count_shards(shards, first, stop)
  local count = 0
  for _, shard in ipairs(shards) do
    shard = tonumber(shard)
    if first <= shard and shard < stop then count = count + 1 end
  end
  return count
end

-- Let a shard wait to be published, or no longer.
local function set_waiting(job, shard, bit_wanted)
  if redis.call('SETBIT', key('waiting', job), shard, bit_wanted) ~= bit_wanted then
    redis.call('HINCRBY', key('job', job), 'waiting', bit_wanted == 1 and 1 or -1)
  end
end

-- Let every open shard wait that nobody holds and whose message is not out.
local function let_open_wait(job)
  local waiting = key('waiting', job)
  redis.call('BITOP', 'OR', waiting, key('open', job))
  for _, shard in ipairs(redis.call('ZRANGE', key('published', job), 0, -1)) do
    redis.call('SETBIT', waiting, shard, 0)
  end
  for _, shard in ipairs(redis.call('HKEYS', key('claims', job))) do
    redis.call('SETBIT', waiting, shard, 0)
  end
  redis.call('HSET', key('job', job), 'waiting', redis.call('BITCOUNT', waiting))
end

-- Bring what is known of a shard in line with its images; returns how many are to do.
local function review(job, shard, start, stop)
  local to_do, flawed = look(job, start, stop)
  local left = #to_do
  redis.call('SETBIT', key('open', job), shard, left > 0 and 1 or 0)
  redis.call('SETBIT', key('flawed', job), shard, flawed)
  if left == 0 then
    set_waiting(job, shard, 0)
    redis.call('ZREM', key('published', job), shard)
  end
  return left
end

-- Keep the list of jobs that only need their end.
local function review_job(job)
  local state, total, done, failed =
    unpack(redis.call('HMGET', key('job', job), 'state', 'total', 'done', 'failed'))
  if (state == 'active' or state == 'paused') and done + failed >= tonumber(total) then
    redis.call('SADD', SETTLED, job)
  else
    redis.call('SREM', SETTLED, job)
  end
end

-- Images of a job that are to do, if it is this submitter's.
local function to_do_of(job, submitter)
  local whose, state, total, done, failed =
    unpack(redis.call('HMGET', key('job', job), 'submitter', 'state', 'total', 'done', 'failed'))
  if whose ~= submitter or state == 'cancelled' then return 0 end
  return total - done - failed
end

-- An answer if `more` images to do of this job are too many for its submitter, with its quota and how many
-- images of its other jobs are to do. Looks at all jobs, a few microseconds each.
local function over_quota(submitter, job, more)
  local most = redis.call('HGET', QUOTAS, submitter) or redis.call('HGET', QUOTAS, '*')
  if not most or more <= 0 then return nil end
  if #most > 15 or not string.match(most, '^%d+$') then most = '0' end -- somebody has written it by hand
  local to_do = 0
  for _, other in ipairs(redis.call('ZRANGE', JOBS, 0, -1)) do
    if other ~= job then to_do = to_do + (apart(to_do_of, other, submitter) or 0) end
  end
  return to_do + more > tonumber(most) and {'quota', most, digits(to_do), digits(more)} or nil
end

-- Record that an image failed; nothing if it is done.
local function fail(job, index, failure, reason)
  if redis.call('GETBIT', key('done', job), index) == 1 then return end
  redis.call('HSET', key('failures', job), index, failure)
  if redis.call('SETBIT', key('failed', job), index, 1) == 0 then
    redis.call('HINCRBY', key('job', job), 'failed', 1)
    redis.call('HDEL', key('deaths', job), 'i' .. index)
    event(job, 'failed', 'index', index, 'reason', reason)
  end
end

-- Claims

-- A claim: fence, token (drawn by the caller of claim), beat (token of the last heartbeat), single
-- (the one image it is for, or -) and owner.
local function read_claim(job, shard)
  local text = redis.call('HGET', key('claims', job), shard)
  if not text then return nil end
  local fence, token, beat, single, owner = string.match(text, '^(%d+) (%S+) (%S+) (%S+) (.*)$')
  if not fence then return nil end -- somebody has written it by hand
  return {fence = fence, token = token, beat = beat, single = single, owner = owner}
end

-- Microseconds in which at least one shard was held.
local function held_us(job)
  local before, since = unpack(redis.call('HMGET', key('job', job), 'held', 'since'))
  return (before or 0) + (since and now() - since or 0)
end

local function write_claim(job, shard, claim)
  local text = table.concat({claim.fence, claim.token, claim.beat, claim.single, claim.owner}, ' ')
  redis.call('HSET', key('claims', job), shard, text)
end

-- The claim if this lease still holds the shard.
local function held(job, shard, fence, owner)
  local claim = read_claim(job, shard)
  return claim and claim.fence == fence and claim.owner == owner and claim or nil
end

local function renew(job, shard, lease_us)
  redis.call('ZADD', LEASES, now() + lease_us, shard .. '/' .. job)
end

local function end_claim(job, shard)
  redis.call('HDEL', key('claims', job), shard)
  redis.call('ZREM', LEASES, shard .. '/' .. job)
  if redis.call('HLEN', key('claims', job)) == 0 and redis.call('EXISTS', key('job', job)) == 1 then
    redis.call('HSET', key('job', job), 'held', digits(held_us(job)))
    redis.call('HDEL', key('job', job), 'since')
  end
end
