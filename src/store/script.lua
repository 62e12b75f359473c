-- Spends all charges and counts all tallies, or does none of it.
--
-- Charges go by GCRA. ARGV[1] says how many there are; their KEYS come first, and ARGV has for each what it costs and
-- what a whole budget is, in nanoseconds in which that comes back, how many units are wanted, and what one of them is. If
-- there is not as much as is wanted, as many units are given as there are, if that is enough for the cost. Kept is when a budget is whole again, by the
-- server's clock: seconds, and nanoseconds beside them, since a double holds no such time in one number.
--
-- The other KEYS are quotas, and ARGV has for each its limit, the cost, the slot of now, how many slots count, and in
-- how many milliseconds what is counted now counts no longer. Kept is what was used in each slot.
--
-- Answers whether it was done; for each charge in how many nanoseconds its budget is whole; for each tally a list of
-- slots and what is used in them; for each charge how many units were given.
local charges = tonumber(ARGV[1])
local debts, cut, given, fits = {}, {}, {}, 1
local now, now_ns = 0, 0
if charges > 0 then
  local time = redis.call('TIME')
  now, now_ns = tonumber(time[1]), tonumber(time[2]) * 1000
  local kept = redis.call('MGET', unpack(KEYS, 1, charges))
  for i = 1, charges do
    local at = 4 * i - 2
    local price, whole = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
    local debt = 0
    if kept[i] then
      local seconds, ns = string.match(kept[i], '^(%d+) (%d+)$')
      if seconds then
        debt = (tonumber(seconds) - now) * 1e9 + tonumber(ns) - now_ns
      end
    end
    -- More than a whole budget is owed only where it was made smaller, or the clock went back.
    debts[i], cut[i] = math.max(0, math.min(debt, whole)), debt > whole
    if debts[i] + price > whole then
      fits = 0
    end
    local fit = math.floor((whole - debts[i]) / tonumber(ARGV[at + 3]))
    given[i] = math.min(tonumber(ARGV[at + 2]), fit)
  end
end
local tallies = {}
for i = charges + 1, #KEYS do
  local at = 4 * charges + 2 + 5 * (i - charges - 1)
  local tally = {
    limit = tonumber(ARGV[at]), cost = tonumber(ARGV[at + 1]), slot = tonumber(ARGV[at + 2]),
    ttl = ARGV[at + 4], used = {}, gone = {}, here = 0,
  }
  local first, sum = tally.slot - tonumber(ARGV[at + 3]), 0
  local kept = redis.call('HGETALL', KEYS[i])
  for k = 1, #kept, 2 do
    local slot, used = tonumber(kept[k]), tonumber(kept[k + 1])
    if not slot or not used or slot <= first then
      table.insert(tally.gone, kept[k])
    else
      sum = sum + used
      if slot > tally.slot + 1 then
        -- A clock was set back, or is far ahead: what was used is from now.
        table.insert(tally.gone, kept[k])
        tally.here = tally.here + used
      elseif slot == tally.slot then
        tally.here = tally.here + used
      else
        table.insert(tally.used, slot)
        table.insert(tally.used, used)
      end
    end
  end
  if sum + tally.cost > tally.limit then
    fits = 0
  end
  tallies[i - charges] = tally
end
for i = 1, charges do
  if fits == 1 then
    debts[i] = debts[i] + given[i] * tonumber(ARGV[4 * i + 1])
  end
  -- A debt that was cut comes back from now on, or it would be cut to the same again and again.
  if fits == 1 or cut[i] then
    local ns = now_ns + debts[i]
    local carry = math.floor(ns / 1e9)
    local value = string.format('%.0f %.0f', now + carry, ns - carry * 1e9)
    local ttl = string.format('%.0f', math.ceil(debts[i] / 1e6) + 1)
    redis.call('SET', KEYS[i], value, 'PX', ttl)
  end
end
if fits == 1 then
  for i, tally in ipairs(tallies) do
    local key = KEYS[charges + i]
    tally.here = tally.here + tally.cost
    if #tally.gone > 0 then
      redis.call('HDEL', key, unpack(tally.gone))
    end
    redis.call('HSET', key, string.format('%.0f', tally.slot), string.format('%.0f', tally.here))
    redis.call('PEXPIRE', key, tally.ttl)
  end
end
local used = {}
for i, tally in ipairs(tallies) do
  table.insert(tally.used, tally.slot)
  table.insert(tally.used, tally.here)
  used[i] = tally.used
end
return {fits, debts, used, given}
