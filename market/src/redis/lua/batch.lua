-- Applies the snapshots of many entities in one step: what readers see of one they see of all. publish, job and node are
-- defined in front of this, from publish.lua, job.lua and node.lua.
-- KEYS: 1 what was applied last of this outbox, 2 generation, 3 token of a rebuild (unused here; it declares the slot)
-- ARGV: 1 place in the outbox (JSON; see apply.rs), 2 key prefix, 3 version of the snapshots, 4 seconds to keep that, then for
-- each entity its kind, its id and its snapshot (JSON; see plan.rs)
local place, prefix = cjson.decode(ARGV[1]), ARGV[2]
local answer = 'applied'

-- What Redis had told it may have forgotten: whoever goes on from a place in it is told so, and not what stands there now.
local marked_at, marked = string.match(redis.call('GET', prefix .. 'littoral:history') or '', '^(%S+) (.*)$')
lost_at = marked_at or ''
local function histories_are_lost()
    lost_at = fresh_epoch()
    redis.call('SET', prefix .. 'littoral:history', lost_at .. ' ' .. place.generation)
end

-- Batches of one outbox are numbered without gaps, under a lock in Postgres. A Redis that holds another database's contents, or
-- none, is being filled anew and takes them as they come.
if place.batch then
    local kind = redis.call('TYPE', KEYS[1]).ok
    if kind ~= 'hash' and kind ~= 'none' then
        redis.call('DEL', KEYS[1])
    end
    local generation = redis.call('GET', KEYS[2])
    if generation and generation ~= place.generation and marked ~= place.generation then
        histories_are_lost()
    end
    if generation == place.generation then
        local known = redis.call('HMGET', KEYS[1], 'batch', 'epoch', 'rows')
        local batch, epoch = tonumber(known[1] or '-1'), tonumber(known[2] or '-1')
        local ours = tonumber(place.batch)
        if epoch > tonumber(place.epoch) or batch > ours then
            return { 'ahead', '' }
        elseif batch == ours and not place.again then
            return { 'repeated', known[3] or '' }
        elseif batch < ours - 1 then
            -- What lies between is lost, so all of it has to be made again.
            redis.call('DEL', KEYS[2])
            histories_are_lost()
            answer = 'gap'
        end
    end
    redis.call('HSET', KEYS[1], 'batch', place.batch, 'epoch', place.epoch, 'rows', place.rows)
end

for index = 5, #ARGV, 3 do
    local kind, id, plan = ARGV[index], ARGV[index + 1], ARGV[index + 2]
    local version = prefix .. 'littoral:version:' .. id
    if kind == 'job' then
        local keys = {
            version,
            prefix .. 'job:' .. id .. ':status',
            prefix .. 'jobs:pending',
            prefix .. 'jobs:completed',
            prefix .. 'payments:completed',
            prefix .. 'littoral:deadlines',
            prefix .. 'littoral:lines',
            prefix .. 'littoral:turns',
        }
        job(keys, { ARGV[3], ARGV[4], prefix, id, plan })
    else
        local keys = {
            version,
            prefix .. 'nodes:available',
            prefix .. 'nodes:heartbeats',
            prefix .. 'littoral:nodes',
        }
        node(keys, { ARGV[3], ARGV[4], prefix, id, plan })
    end
end
return { answer, '' }
