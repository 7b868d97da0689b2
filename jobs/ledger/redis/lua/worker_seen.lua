-- ARGV: name, JSON, microseconds. Also drops workers that were not seen for too long. Safe to repeat.
local name, json, ttl_us = ARGV[1], ARGV[2], ARGV[3]
local time = now()
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', WORKERS, '-inf', digits(time))) do
  redis.call('ZREM', WORKERS, gone)
  redis.call('HDEL', WORKER, gone)
  redis.call('HDEL', SEEN, gone)
end
redis.call('ZADD', WORKERS, time + ttl_us, name)
redis.call('HSET', WORKER, name, json)
redis.call('HSET', SEEN, name, digits(time))
return true
