-- Forgets a group with all of its values. KEYS: the group's.
for _, key in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  redis.call('DEL', key)
end
redis.call('DEL', KEYS[1])
return 1
