-- ARGV: token, leases at most, deaths from which an image is given up, JSON of the failure.
-- Answers for each lease a list: job, shard, start, stop, owner, deaths, images given up.
local token, most, most_deaths, failure = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local answer = recall(token)
if answer then return answer end

-- A worker died on the one image that the claim gave; true if it was one too many.
local function image_died(job, index)
  if #look(job, index, index + 1) == 0 then return false end -- it had finished before
  if redis.call('HINCRBY', key('deaths', job), 'i' .. index, 1) < most_deaths then return false end
  local values = cjson.decode(failure)
  values.index = index
  fail(job, index, cjson.encode(values), values.reason)
  return true
end

local function end_lease(job, shard)
  local claim = read_claim(job, shard)
  local start, stop = images_of(job, shard)
  end_claim(job, shard)
  if not claim or not start then return nil end -- somebody has deleted keys by hand
  local expired = {job, shard, start, stop, claim.owner}
  local deaths = key('deaths', job)
  if redis.call('HGET', key('job', job), 'state') == 'cancelled' then
    expired[6] = tonumber(redis.call('HGET', deaths, shard)) or 0
  else
    expired[6] = redis.call('HINCRBY', deaths, shard, 1)
    local single = tonumber(claim.single)
    if single and image_died(job, single) then expired[7] = single end
    if review(job, shard, start, stop) > 0 then set_waiting(job, shard, 1) end
    review_job(job)
  end
  event(job, 'expired', 'shard', shard, 'owner', claim.owner, 'deaths', expired[6])
  return expired
end

local all = {}
for _, lease in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', digits(now()),
                                  'LIMIT', 0, most)) do
  local shard, job = string.match(lease, '^(%d+)/(.*)$')
  all[#all + 1] = shard and apart(end_lease, job, tonumber(shard))
  redis.call('ZREM', LEASES, lease) -- also if it could not be ended as it should
end
return #all == 0 and all or remember(token, all)
