-- Takes or renews a lock. KEYS: the lock's hash, the last fence. ARGV: owner, ms that it lasts, ms that fences are remembered.
-- Returns the fence, or nothing if another holds it.
local holder = redis.call('HGET', KEYS[1], 'owner')
if holder == ARGV[1] then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return redis.call('HGET', KEYS[1], 'fence')
end
if holder then return false end
-- Never less than before, not even when the counter was flushed: time has gone on.
local time = redis.call('TIME')
local now, last = tonumber(time[1]) * 1000000 + tonumber(time[2]), tonumber(redis.call('GET', KEYS[2]) or '0')
local fence = string.format('%.0f', math.max(now, last + 1))
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'owner', ARGV[1], 'fence', fence)
redis.call('PEXPIRE', KEYS[1], ARGV[2])
redis.call('SET', KEYS[2], fence, 'PX', ARGV[3])
return fence
