-- Gives units of a quota back, if they are still counted: KEYS[1] the quota, ARGV the slot and the units.
local used = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0') or 0
if used > 0 then
  redis.call('HINCRBY', KEYS[1], ARGV[1], string.format('%.0f', -math.min(used, tonumber(ARGV[2]))))
end
return 1
