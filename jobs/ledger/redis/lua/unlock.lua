-- ARGV: name, owner. Safe to repeat.
local lock, owner = key('lock', ARGV[1]), ARGV[2]
if redis.call('GET', lock) == owner then redis.call('DEL', lock) end
return true
