-- ARGV: the longest entry in bytes.
-- Answers name, JSON and time of the last report of each worker seen lately; an empty text for an entry
-- that is longer, or not there, and for a time that no version of ours wrote. Changes nothing.
local longest, found = tonumber(ARGV[1]), {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. digits(now()), '+inf')) do
  local fits = redis.call('HSTRLEN', WORKER, name) <= longest
  found[#found + 1], found[#found + 2] = name, fits and redis.call('HGET', WORKER, name) or ''
  found[#found + 1] = redis.call('HGET', SEEN, name) or ''
end
return found
