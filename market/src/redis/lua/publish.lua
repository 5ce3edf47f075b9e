-- Publishes a message and keeps it, in one step with the state that it tells. Stands in front of batch.lua.
-- A channel that someone follows has a stream `{channel}:stream` behind it (watch.lua makes it, and it goes some time after
-- the last follower); the global one always has. Every message then says where in it it stands, `epoch` and `offset`:
-- offsets are contiguous within an epoch, and a stream that was lost begins a new one.
local HISTORY, GLOBAL_HISTORY = 256, 100000

-- When Redis was last found to have lost what it had told already, as an epoch: earlier histories are not whole.
local lost_at = ''

local function fresh_epoch()
    local time = redis.call('TIME')
    return string.format('%x%05x', time[1], time[2])
end

local function publish(channel, text)
    local stream = channel .. ':stream'
    local is_global = string.sub(channel, -21) == 'channel:global:events'
    local latest = redis.pcall('XREVRANGE', stream, '+', '-', 'COUNT', 1)
    if latest.err then
        -- Of another type: another application left it under our name.
        redis.call('DEL', stream)
        latest = {}
    end
    local last = latest[1]
    if last or is_global then
        local offset, epoch, life = 1, nil, -1
        if last and last[2][2] >= lost_at then
            offset, epoch = tonumber(string.match(last[1], '^%d+')) + 1, last[2][2]
        else
            epoch, life = fresh_epoch(), redis.call('PTTL', stream)
            redis.call('DEL', stream)
        end
        text = string.format('%s,"epoch":"%s","offset":%d}', string.sub(text, 1, -2), epoch, offset)
        local kept = is_global and GLOBAL_HISTORY or HISTORY
        redis.call('XADD', stream, 'MAXLEN', '~', kept, string.format('%d-0', offset), 'epoch', epoch, 'message', text)
        if life > 0 then
            redis.call('PEXPIRE', stream, life)
        end
    end
    redis.call('PUBLISH', channel, text)
end
