-- Keeps a value and notes it in groups. KEYS: the value's, then those of groups, sets sorted by when their values end.
-- ARGV: the value, and how long it lasts in milliseconds.
local lasts = tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('SET', KEYS[1], ARGV[1], 'PX', lasts)
for at = 2, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[at], '-inf', now)
  redis.call('ZADD', KEYS[at], now + lasts, KEYS[1])
  if redis.call('PTTL', KEYS[at]) < lasts then
    redis.call('PEXPIRE', KEYS[at], lasts)
  end
end
return 1
