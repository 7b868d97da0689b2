-- Answers the JSON of each worker seen lately. Changes nothing.
local found = {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '(' .. digits(now()), '+inf')) do
  found[#found + 1] = redis.call('HGET', WORKER, name)
end
return found
