-- Ends a rebuild: puts the staging keys in the place of those that readers see, all at once.
-- KEYS: 1 token of the rebuild, 2 generation, 3 and 4 what was applied last of each outbox
-- ARGV: 1 token, 2 generation, 3 key prefix, 4 and 5 batches of each outbox that were applied when the rebuild began, then ids
-- of nodes that had keys of their own
-- Without the token Redis was flushed meanwhile, and what lies in the staging keys is not all.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
    return 0
end
local prefix = ARGV[3]
local staging = prefix .. 'littoral:staging:'
local function swap(name)
    if redis.call('EXISTS', staging .. name) == 1 then
        redis.call('RENAME', staging .. name, prefix .. name)
    else
        redis.call('DEL', prefix .. name)
    end
end
for _, name in ipairs({
    'jobs:pending', 'jobs:completed', 'payments:completed', 'littoral:deadlines',
    'nodes:available', 'nodes:heartbeats', 'littoral:nodes', 'littoral:lines',
}) do
    swap(name)
end

local owners = {}
for _, node in ipairs(redis.call('SMEMBERS', staging .. 'owners')) do
    owners[node] = true
end
for index = 6, #ARGV do
    owners[ARGV[index]] = true
end
for node in pairs(owners) do
    swap('jobs:active:' .. node)
    -- Sorted by time and job id while it was made; a list for readers.
    local name = 'payments:pending:' .. node
    local payments = redis.call('ZRANGE', staging .. name, 0, -1)
    redis.call('DEL', prefix .. name, staging .. name)
    for first = 1, #payments, 1000 do
        redis.call('RPUSH', prefix .. name, unpack(payments, first, math.min(first + 999, #payments)))
    end
end
redis.call('DEL', staging .. 'owners', KEYS[1])
-- Batches that came since the beginning have left higher numbers.
for source = 1, 2 do
    local known = tonumber(redis.call('HGET', KEYS[2 + source], 'batch') or '-1')
    if known < tonumber(ARGV[3 + source]) then
        if known >= 0 then
            -- It had forgotten some: what was told then may be forgotten too. See batch.lua.
            local time = redis.call('TIME')
            local epoch = string.format('%x%05x', time[1], time[2])
            redis.call('SET', prefix .. 'littoral:history', epoch .. ' ' .. ARGV[2])
        end
        redis.call('HSET', KEYS[2 + source], 'batch', ARGV[3 + source], 'epoch', '0', 'rows', '')
    end
end
redis.call('SET', KEYS[2], ARGV[2])
return 1
