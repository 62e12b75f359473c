-- Spends all charges or none, by GCRA. KEYS are the budgets; ARGV has for each what it costs and what a
-- whole one is, in nanoseconds in which that comes back. Kept is when a budget is whole again, by the
-- server's clock: seconds, and nanoseconds beside them, since a double holds no such time in one number.
-- Answers whether they were spent, and for each in how many nanoseconds its budget is whole.
local time = redis.call('TIME')
local now, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
local kept = redis.call('MGET', unpack(KEYS))
local debts, fits = {}, 1
for i = 1, #KEYS do
  local price, whole = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local debt = 0
  if kept[i] then
    local seconds, ns = string.match(kept[i], '^(%d+) (%d+)$')
    if seconds then
      debt = (tonumber(seconds) - now) * 1e9 + tonumber(ns) - now_ns
    end
  end
  -- More than a whole budget is owed only where it was made smaller, or the clock went back.
  debts[i] = math.max(0, math.min(debt, whole))
  if debts[i] + price > whole then
    fits = 0
  end
end
if fits == 1 then
  for i = 1, #KEYS do
    debts[i] = debts[i] + tonumber(ARGV[2 * i - 1])
    local ns = now_ns + debts[i]
    local carry = math.floor(ns / 1e9)
    local value = string.format('%.0f %.0f', now + carry, ns - carry * 1e9)
    local ttl = string.format('%.0f', math.ceil(debts[i] / 1e6) + 1)
    redis.call('SET', KEYS[i], value, 'PX', ttl)
  end
end
return {fits, unpack(debts)}
