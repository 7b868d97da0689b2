-- ARGV: the longest entry in bytes.
-- Answers name and JSON of each worker seen lately; an empty text for one that is longer, or not there.
-- Changes nothing.
local longest, found = tonumber(ARGV[1]), {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. digits(now()), '+inf')) do
  local fits = redis.call('HSTRLEN', WORKER, name) <= longest
  found[#found + 1], found[#found + 2] = name, fits and redis.call('HGET', WORKER, name) or ''
end
return found
