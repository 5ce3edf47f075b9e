-- Begins or goes on to keep what is published on a channel, and tells what was since a position.
-- KEYS: 1 stream of the channel, 2 when histories were lost
-- ARGV: 1 milliseconds that the stream is kept without being watched again, 2 epoch and 3 offset of the position, or nothing
-- Returns: epoch, offset of the latest message (0 if none), whether the position is known (1, 0), the messages after it
local latest = redis.pcall('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
local last = not latest.err and latest[1]
local lost_at = string.match(redis.call('GET', KEYS[2]) or '', '^%S*')
if not last or last[2][2] < lost_at then
    redis.call('DEL', KEYS[1])
    local time = redis.call('TIME')
    -- An entry without a message, so that the epoch is known before the first.
    redis.call('XADD', KEYS[1], '1-0', 'epoch', string.format('%x%05x', time[1], time[2]), 'message', '')
    last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
local epoch, head = last[2][2], tonumber(string.match(last[1], '^%d+'))
local result = { epoch, string.format('%d', head), 0 }
local since = tonumber(ARGV[3])
if ARGV[2] ~= epoch or not since or since > head or since < 1 then
    return result
end
local missed = redis.call('XRANGE', KEYS[1], string.format('%d-0', since + 1), '+')
if since < head and (not missed[1] or missed[1][1] ~= string.format('%d-0', since + 1)) then
    return result
end
result[3] = 1
for index, entry in ipairs(missed) do
    result[3 + index] = entry[2][4]
end
return result
