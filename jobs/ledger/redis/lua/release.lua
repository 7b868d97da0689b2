-- ARGV: token, job, shard, fence, owner. Answers how many images are to do, 0 if the lease is lost.
local token, job, shard, fence, owner = unpack(ARGV)
local answer = recall(token)
if answer then return answer end
if not held(job, shard, fence, owner) then return 0 end

end_claim(job, shard)
local left = review(job, tonumber(shard), images_of(job, tonumber(shard)))
if left > 0 and redis.call('HGET', key('job', job), 'state') ~= 'cancelled' then
  set_waiting(job, shard, 1)
end
event(job, 'released', 'shard', shard, 'owner', owner, 'left', left)
return remember(token, left)
