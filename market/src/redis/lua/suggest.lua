-- Jobs that wait, those first whose line's turn it is: the rule of market::db::queue.
-- KEYS: 1 littoral:lines, 2 littoral:turns
-- ARGV: 1 requester to begin with (40 hex digits), 2 most lines to go through in a group, 3 highest score of a job that can be had
-- now, 4 most jobs, then groups. Lengths of a member's parts: see keys.rs
local GROUP_AND_REQUESTER, SCORE = 56, 16
local start, most, last, limit = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local lines = {}
-- The lines of `group` from the requester `from` on and before `to`, at most `left`; how many there were.
local function walk(group, from, to, left)
    local low, high, count = '[' .. group .. from, '(' .. group .. to, 0
    while count < left do
        local head = redis.call('ZRANGEBYLEX', KEYS[1], low, high, 'LIMIT', 0, 1)[1]
        if not head then
            break
        end
        local name = string.sub(head, 1, GROUP_AND_REQUESTER)
        lines[#lines + 1] = {
            name = name,
            head = head,
            score = string.sub(head, GROUP_AND_REQUESTER + 1, GROUP_AND_REQUESTER + SCORE),
            served = tonumber(redis.call('ZSCORE', KEYS[2], name) or '-1'),
        }
        count = count + 1
        -- Behind all of the line: no member has this character.
        low = '(' .. name .. '~'
    end
    return count
end
for index = 5, #ARGV do
    local found = walk(ARGV[index], start, 'g', most)
    walk(ARGV[index], '', start, most - found)
end
table.sort(lines, function(a, b)
    if a.served ~= b.served then
        return a.served < b.served
    end
    if a.score ~= b.score then
        return a.score < b.score
    end
    return a.name < b.name
end)

local each = math.max(1, math.floor(limit / math.max(1, #lines)))
for _, line in ipairs(lines) do
    if line.score > last then
        line.jobs = {}
    elseif each == 1 then
        line.jobs = { line.head }
    else
        line.jobs = redis.call('ZRANGEBYLEX', KEYS[1], '[' .. line.name, '[' .. line.name .. last .. '~', 'LIMIT', 0, each)
    end
end
local jobs = {}
for place = 1, each do
    for _, line in ipairs(lines) do
        if line.jobs[place] and #jobs < limit then
            jobs[#jobs + 1] = string.sub(line.jobs[place], GROUP_AND_REQUESTER + SCORE + 1)
        end
    end
end
return jobs
