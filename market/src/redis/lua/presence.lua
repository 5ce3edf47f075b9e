-- Notes who follows channels by way of one instance of the API, and lets go of those whose instance has ended.
-- KEYS: 1 instances by the time (ms) until which they are alive, 2 what this instance has noted
-- ARGV: 1 key prefix, 2 instance, 3 milliseconds that it is alive without calling again, 4 '1' if it begins, then for each
-- change the channel, the member's id and the member as JSON; nothing for one that leaves
-- Returns: whether the instance was known (1, 0), whether there is more to let go of
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local prefix, instance = ARGV[1], ARGV[2]

local function typed(key, kind)
    local actual = redis.call('TYPE', key).ok
    if actual ~= kind and actual ~= 'none' then
        redis.call('DEL', key)
    end
    return key
end
typed(KEYS[1], 'zset')
typed(KEYS[2], 'set')

local function leave(channel, id)
    local key = typed(channel .. ':presence', 'hash')
    local member = redis.call('HGET', key, id)
    if member then
        redis.call('HDEL', key, id)
        redis.call('PUBLISH', key, '{"action":"leave","member":' .. member .. '}')
    end
end

local score = tonumber(redis.call('ZSCORE', KEYS[1], instance) or '0')
if ARGV[4] ~= '1' and score <= now then
    -- Flushed, or taken for dead: whoever took it for that may be letting go of what it has at this moment.
    return { 0, 0 }
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[3]), instance)
for index = 5, #ARGV, 3 do
    local channel, id, member = ARGV[index], ARGV[index + 1], ARGV[index + 2]
    local entry = id .. ' ' .. channel
    if member == '' then
        redis.call('SREM', KEYS[2], entry)
        leave(channel, id)
    else
        local key = typed(channel .. ':presence', 'hash')
        local is_new = redis.call('HSET', key, id, member) == 1
        redis.call('SADD', KEYS[2], entry)
        redis.call('PUBLISH', key, '{"action":"' .. (is_new and 'enter' or 'update') .. '","member":' .. member .. '}')
    end
end

local more = 0
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 1)) do
    local noted = typed(prefix .. 'littoral:presence:' .. dead, 'set')
    for _, entry in ipairs(redis.call('SPOP', noted, 500)) do
        local id, channel = string.match(entry, '^(%S+) (.*)$')
        if id then
            leave(channel, id)
        end
    end
    if redis.call('EXISTS', noted) == 0 then
        redis.call('ZREM', KEYS[1], dead)
    end
    more = 1
end
return { 1, more }
