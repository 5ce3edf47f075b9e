-- Counts a request if both tiers admit it.
-- KEYS: the burst's window and the one before it, the sustained tier's window and the one before it.
-- ARGV, for each tier: quota, length of the window in ms, ms since the window began.
-- Returns whether it was admitted (1 or 0), then the four counts.
local admitted, counts = 1, {}
for tier = 0, 1 do
  local now = tonumber(redis.call('GET', KEYS[2 * tier + 1]) or '0')
  local before = tonumber(redis.call('GET', KEYS[2 * tier + 2]) or '0')
  local quota, window, elapsed = tonumber(ARGV[3 * tier + 1]), tonumber(ARGV[3 * tier + 2]), tonumber(ARGV[3 * tier + 3])
  if now * window + before * (window - elapsed) + window > quota * window then admitted = 0 end
  counts[2 * tier + 1], counts[2 * tier + 2] = now, before
end
if admitted == 1 then
  for tier = 0, 1 do
    counts[2 * tier + 1] = redis.call('INCR', KEYS[2 * tier + 1])
    redis.call('PEXPIRE', KEYS[2 * tier + 1], 2 * tonumber(ARGV[3 * tier + 2]))
  end
end
return { admitted, counts[1], counts[2], counts[3], counts[4] }
