-- Makes all keys that one job has equal to a snapshot of it. The body of a function of batch.lua, which has its KEYS and ARGV.
-- KEYS: 1 version, 2 job hash, 3 jobs:pending, 4 jobs:completed, 5 payments:completed, 6 deadlines, 7 lines, 8 turns
-- ARGV: 1 version of the snapshot, 2 seconds to keep it, 3 key prefix, 4 job id, 5 snapshot (JSON; see plan.rs)
-- Keys of nodes are made from the prefix: which ones they were is known only here. With a hash-tagged prefix they share a
-- slot with the others.
local seen = redis.call('GET', KEYS[1])
if seen and tonumber(seen) > tonumber(ARGV[1]) then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])

local prefix, job = ARGV[3], ARGV[4]
local plan = cjson.decode(ARGV[5])

-- Other applications can write these keys too. One of another type would stop this and all that comes behind it, so it
-- goes; what it should hold of other entities is filled in again once the generation is gone.
local function typed(key, kind, is_shared)
    local actual = redis.call('TYPE', key).ok
    if actual ~= kind and actual ~= 'none' then
        redis.call('DEL', key)
        if is_shared then
            redis.call('DEL', prefix .. 'littoral:generation')
        end
    end
    return key
end
typed(KEYS[2], 'hash')
for index = 3, 8 do
    typed(KEYS[index], 'zset', true)
end
local old = redis.call('HMGET', KEYS[2], 'status', 'state', 'nodeId', 'payment', 'line')
local old_status, old_state, old_node, old_payment, old_line = old[1], old[2], old[3], old[4], old[5]

local function active(node) return typed(prefix .. 'jobs:active:' .. node, 'set', true) end
local function owed(node) return typed(prefix .. 'payments:pending:' .. node, 'list', true) end

-- What the job left behind and does not have any more.
if old_status == 'active' and old_node and plan.active ~= old_node then
    redis.call('SREM', active(old_node), job)
end
local keeps_owed = plan.owed and plan.owed.node == old_node and plan.owed.payment == old_payment
if old_payment then
    if old_state == 'paid' then
        if not (plan.paid and plan.paid.payment == old_payment) then
            redis.call('ZREM', KEYS[5], old_payment)
        end
        keeps_owed = false
    elseif old_node and not keeps_owed then
        redis.call('LREM', owed(old_node), 1, old_payment)
    end
end

-- What it has.
redis.call('DEL', KEYS[2])
if plan.fields then
    local flat = {}
    for name, value in pairs(plan.fields) do
        flat[#flat + 1] = name
        flat[#flat + 1] = value
    end
    redis.call('HSET', KEYS[2], unpack(flat))
    if plan.expireAt then
        redis.call('PEXPIREAT', KEYS[2], plan.expireAt)
    end
end
local function place(key, score)
    if score then
        redis.call('ZADD', key, score, job)
    else
        redis.call('ZREM', key, job)
    end
end
place(KEYS[3], plan.pending)
place(KEYS[4], plan.completed)
place(KEYS[6], plan.deadline)
local line = plan.fields and plan.fields.line
local function stand(key)
    if old_line and old_line ~= line then
        redis.call('ZREM', key, old_line)
    end
    if line then
        redis.call('ZADD', key, 0, line)
    end
end
stand(KEYS[7])
if plan.served then
    redis.call('ZADD', KEYS[8], 'GT', plan.served.at, plan.served.line)
end
if plan.active then
    redis.call('SADD', active(plan.active), job)
end
if plan.paid then
    redis.call('ZADD', KEYS[5], plan.paid.score, plan.paid.payment)
end

-- The list of payments is kept in the order of their times, whichever order they come in; nearly always that is the end.
-- Entries that are not ours have no place in that order: ours come behind them.
local function read(payment)
    local is_json, value = pcall(cjson.decode, payment)
    if is_json and type(value) == 'table' and type(value.timestamp) == 'number' and type(value.jobId) == 'string' then
        return value
    end
end
local function before(payment, other)
    local a, b = read(payment), read(other)
    if not a or not b then
        return false
    end
    if a.timestamp ~= b.timestamp then
        return a.timestamp < b.timestamp
    end
    return a.jobId < b.jobId
end
if plan.owed and not keeps_owed then
    local key = owed(plan.owed.node)
    local behind
    local index = -1
    local last = redis.call('LINDEX', key, index)
    while last and before(plan.owed.payment, last) do
        behind = last
        index = index - 1
        last = redis.call('LINDEX', key, index)
    end
    if behind then
        redis.call('LINSERT', key, 'BEFORE', behind, plan.owed.payment)
    else
        redis.call('RPUSH', key, plan.owed.payment)
    end
end

-- While a rebuild is under way, the same in the keys that will take the place of these.
if redis.call('EXISTS', prefix .. 'littoral:rebuilding') == 1 then
    local staging = prefix .. 'littoral:staging:'
    place(staging .. 'jobs:pending', plan.pending)
    place(staging .. 'jobs:completed', plan.completed)
    place(staging .. 'littoral:deadlines', plan.deadline)
    stand(staging .. 'littoral:lines')
    if old_node then
        redis.call('SREM', staging .. 'jobs:active:' .. old_node, job)
        if old_payment then
            redis.call('ZREM', staging .. 'payments:pending:' .. old_node, old_payment)
        end
    end
    if old_payment then
        redis.call('ZREM', staging .. 'payments:completed', old_payment)
    end
    if plan.active then
        redis.call('SADD', staging .. 'owners', plan.active)
        redis.call('SADD', staging .. 'jobs:active:' .. plan.active, job)
    end
    if plan.owed then
        redis.call('SADD', staging .. 'owners', plan.owed.node)
        redis.call('ZADD', staging .. 'payments:pending:' .. plan.owed.node, plan.owed.at, plan.owed.payment)
    end
    if plan.paid then
        redis.call('ZADD', staging .. 'payments:completed', plan.paid.score, plan.paid.payment)
    end
end

-- Who must know. A Redis that was flushed has forgotten who held it; Postgres has not.
local holder
if old_status == 'active' then
    holder = old_node
elseif not old_status then
    holder = plan.leased
end
local public = plan.fields and plan.fields.status
local still_its = plan.fields and plan.fields.nodeId == holder and (public == 'active' or public == 'completed')
if holder and plan.tell and not still_its then
    local state = plan.fields and plan.fields.state or 'removed'
    local command = { command = 'job.revoked', jobId = job, state = state }
    local text = cjson.encode(command)
    publish(prefix .. 'channel:node:' .. holder .. ':commands', text)
end
for _, message in ipairs(plan.messages) do
    publish(message[1], message[2])
end
return 1
