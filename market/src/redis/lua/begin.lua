-- Begins a rebuild: from here on every snapshot is applied to the staging keys too, which start out empty.
-- KEYS: 1 token of the rebuild, 2 and 3 what was applied last of each outbox
-- ARGV: 1 token, 2 seconds to keep it, 3 key prefix, 4 '1' if the contents are another database's
local staging = ARGV[3] .. 'littoral:staging:'
for _, node in ipairs(redis.call('SMEMBERS', staging .. 'owners')) do
    redis.call('DEL', staging .. 'jobs:active:' .. node, staging .. 'payments:pending:' .. node)
end
for _, name in ipairs({
    'owners', 'jobs:pending', 'jobs:completed', 'payments:completed', 'littoral:deadlines',
    'nodes:available', 'nodes:heartbeats', 'littoral:nodes', 'littoral:lines',
}) do
    redis.call('DEL', staging .. name)
end
if ARGV[4] == '1' then
    redis.call('DEL', KEYS[2], KEYS[3])
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
