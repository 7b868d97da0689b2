-- ARGV: name, owner, milliseconds. Answers 1 if the owner has the lock now. Safe to repeat.
local lock, owner, ttl_ms = key('lock', ARGV[1]), ARGV[2], ARGV[3]
local holder = redis.call('GET', lock)
if holder and holder ~= owner then return 0 end
redis.call('SET', lock, owner, 'PX', ttl_ms)
return 1
