-- Makes all keys that one node has equal to a snapshot of it. The body of a function of batch.lua, which has its KEYS and ARGV.
-- KEYS: 1 version, 2 nodes:available, 3 nodes:heartbeats, 4 node ids
-- ARGV: 1 version of the snapshot, 2 seconds to keep it, 3 key prefix, 4 address, 5 snapshot (JSON; see plan.rs)
local seen = redis.call('GET', KEYS[1])
if seen and tonumber(seen) > tonumber(ARGV[1]) then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])

local prefix, address = ARGV[3], ARGV[4]
local plan = cjson.decode(ARGV[5])

-- As in job.lua: what other applications left under our names must not stop us.
for index, kind in pairs({ [2] = 'set', [3] = 'zset', [4] = 'hash' }) do
    local actual = redis.call('TYPE', KEYS[index]).ok
    if actual ~= kind and actual ~= 'none' then
        redis.call('DEL', KEYS[index], prefix .. 'littoral:generation')
    end
end
local old = redis.call('HGET', KEYS[4], address)
local function status(node) return prefix .. 'nodes:' .. node .. ':status' end

if old and old ~= plan.nodeId then
    redis.call('DEL', status(old))
    redis.call('SREM', KEYS[2], old)
    redis.call('ZREM', KEYS[3], old)
    redis.call('HDEL', KEYS[4], address)
end
if plan.nodeId then
    redis.call('DEL', status(plan.nodeId))
    if plan.fields then
        local flat = {}
        for name, value in pairs(plan.fields) do
            flat[#flat + 1] = name
            flat[#flat + 1] = value
        end
        redis.call('HSET', status(plan.nodeId), unpack(flat))
        redis.call('PEXPIREAT', status(plan.nodeId), plan.expireAt)
        redis.call('ZADD', KEYS[3], plan.heartbeat, plan.nodeId)
        redis.call('HSET', KEYS[4], address, plan.nodeId)
    else
        redis.call('ZREM', KEYS[3], plan.nodeId)
        redis.call('HDEL', KEYS[4], address)
    end
    if plan.available then
        redis.call('SADD', KEYS[2], plan.nodeId)
    else
        redis.call('SREM', KEYS[2], plan.nodeId)
    end
end
-- As in job.lua.
if redis.call('EXISTS', prefix .. 'littoral:rebuilding') == 1 then
    local staging = prefix .. 'littoral:staging:'
    local now = plan.fields and plan.nodeId
    for _, id in pairs({ old or false, plan.nodeId or false }) do
        if id then
            redis.call('SREM', staging .. 'nodes:available', id)
            redis.call('ZREM', staging .. 'nodes:heartbeats', id)
        end
    end
    redis.call('HDEL', staging .. 'littoral:nodes', address)
    if now then
        redis.call('ZADD', staging .. 'nodes:heartbeats', plan.heartbeat, now)
        redis.call('HSET', staging .. 'littoral:nodes', address, now)
    end
    if plan.nodeId and plan.available then
        redis.call('SADD', staging .. 'nodes:available', plan.nodeId)
    end
end
for _, message in ipairs(plan.messages) do
    publish(message[1], message[2])
end
return 1
