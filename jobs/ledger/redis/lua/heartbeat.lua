-- ARGV: token, microseconds of a lease, then job, shard, fence, owner, evaluations, microseconds of the
-- worker for each lease.
-- Answers held, lost or cancelled for each.
-- Safe to repeat: a claim keeps the token of its last heartbeat, whose figures count once.
local token, lease_us = ARGV[1], ARGV[2]

local function beat(job, shard, fence, owner, evaluated, worked_us)
  local claim = held(job, shard, fence, owner)
  if not claim then return 'lost' end
  even_when_full()
  if claim.beat ~= token then
    claim.beat = token
    write_claim(job, shard, claim)
    redis.call('HINCRBY', key('job', job), 'evaluated', evaluated)
    redis.call('HINCRBY', key('job', job), 'worked', worked_us)
    if tonumber(evaluated) > 0 then
      redis.call('HSET', key('job', job), 'rendering', digits(held_us(job)))
    end
  end
  renew(job, shard, lease_us)
  local state = redis.call('HGET', key('job', job), 'state')
  return state == 'cancelled' and 'cancelled' or 'held'
end

local answers = {}
for at = 3, #ARGV, 6 do
  answers[#answers + 1] = apart(beat, unpack(ARGV, at, at + 5)) or 'lost'
end
return answers
