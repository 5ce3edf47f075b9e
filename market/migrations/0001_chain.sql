-- What the chain says. Writer of every table here: the indexer, and no one else.
-- Blocks and events are kept for orphaned branches too (`canonical` false); folded rows hold canonical state only and are
-- always equal to a fold over the canonical events of their key, so a reorg undoes them by folding again.

-- A 20-byte account and a 32-byte hash as the chain writes them.
create domain address as bytea check (octet_length(value) = 20);
create domain bytes32 as bytea check (octet_length(value) = 32);
-- An amount in the token's smallest unit: any uint256.
create domain amount as numeric(78, 0)
    check (value >= 0 and value <= 115792089237316195423570985008687907853269984665640564039457584007913129639935);

-- Headers of blocks that were applied, canonical or orphaned: of every block with events, and of the latest blocks even
-- without. The lowest one is where indexing began, at or before the contracts' deployment.
create table chain_block (
    hash        bytes32 primary key,
    number      bigint not null check (number >= 0),
    parent_hash bytes32 not null,
    mined_at    timestamptz not null,            -- the header's timestamp
    canonical   boolean not null
);
create unique index chain_block_one_canonical on chain_block (number) where canonical;

-- How far the indexer is, and on which deployment. One row.
create table chain_cursor (
    singleton    boolean primary key default true check (singleton),
    chain_id     bigint not null check (chain_id > 0),
    escrow       address not null,
    registry     address not null,
    block_number bigint not null,                -- last applied block
    block_hash   bytes32 not null,
    epoch        bigint not null                 -- epoch of the leader that wrote last
);

-- Logs of the escrow and the registry, as they were emitted. The key columns name the rows that the event touches.
create table chain_event (
    block_hash   bytes32 not null references chain_block (hash),
    log_index    bigint not null check (log_index >= 0),
    block_number bigint not null,
    tx_hash      bytes32 not null,
    contract     address not null,
    kind         text not null,                  -- the event's name, such as JobOpened
    topics       bytea not null check (octet_length(topics) % 32 = 0),
    data         bytea not null,
    job_id       bytes32,                        -- also of a Skipped, which changes nothing
    account      address,                        -- owner of the escrow account it changes, with token
    node         address,                        -- node whose earnings (with token) or registry row (without) it changes
    token        address,                        -- zero for the native coin
    canonical    boolean not null,
    primary key (block_hash, log_index)
);
create index chain_event_position on chain_event (block_number, log_index) where canonical;
create index chain_event_job on chain_event (job_id, block_number, log_index) where canonical and job_id is not null;
create index chain_event_account on chain_event (account, token, block_number, log_index) where canonical and account is not null;
create index chain_event_node on chain_event (node, token, block_number, log_index) where canonical and node is not null;
create index chain_event_tx on chain_event (tx_hash) where canonical;

-- A job opened in the escrow.
create table escrow_job (
    job_id            bytes32 primary key,       -- EIP-712 digest of the order
    requester         address not null,
    token             address not null,
    max_price         amount not null,
    order_node        address not null,          -- node the order names; zero if open
    assigner          address not null,
    spec_hash         bytes32 not null,
    deadline          timestamptz not null,      -- last moment a result counts
    challenge_window_secs bigint not null,
    arbiter           address not null,
    max_fee_bps       integer not null,
    nonce             numeric(20, 0) not null,
    input_cid         text not null,
    operation         text not null,
    params            text not null,
    spec_valid        boolean not null,          -- false if the spec's strings are not text that can be stored as they
                                                 -- were signed (invalid UTF-8, NUL); such a job is never queued
    state             text not null check (state in ('open', 'submitted', 'paid', 'refunded')),
    opened_block      bigint not null,
    opened_tx         bytes32 not null,
    opened_at         timestamptz not null,
    node              address,                   -- who did the work; from `submitted` on
    price             amount,
    result_hash       bytes32,
    finalize_at       timestamptz,               -- end of the challenge window
    submitted_tx      bytes32,
    closed_block      bigint,                    -- paid or refunded
    closed_tx         bytes32,
    closed_at         timestamptz,
    check ((state = 'open') = (node is null and price is null) or state = 'refunded'),
    check ((state in ('paid', 'refunded')) = (closed_tx is not null))
);
create index escrow_job_open on escrow_job (opened_block, job_id) where state = 'open';
create index escrow_job_submitted on escrow_job (finalize_at) where state = 'submitted';
create index escrow_job_requester on escrow_job (requester, opened_block);
create index escrow_job_node on escrow_job (node, opened_block) where node is not null;

-- A requester's balance in one token.
create table escrow_account (
    owner    address not null,
    token    address not null,
    free     amount not null,
    thawing  amount not null,
    thaw_end timestamptz,                        -- null while nothing is thawing
    primary key (owner, token)
);

-- What a node has earned in one token and not withdrawn.
create table escrow_earned (
    node   address not null,
    token  address not null,
    earned amount not null,
    primary key (node, token)
);

-- A registered node.
create table registry_node (
    node       address primary key,              -- the operator's key
    node_id    bytes32 not null,
    public_key bytea not null,
    payout     address not null,
    capacity   bigint not null,                  -- most jobs at once
    operations text[] not null,
    uri        text not null,
    stake      amount not null,                  -- active, in wei
    unbonding  amount not null,
    unbond_end timestamptz                       -- null while nothing is unbonding
);
create index registry_node_id on registry_node (node_id);

-- Entities whose Redis state is to be projected again because the chain changed them; rows go once applied.
create table chain_outbox (
    seq        bigserial primary key,
    entity     text not null check (entity in ('job', 'node')),
    key        bytea not null,                   -- job id, or node address
    event      text not null,                    -- what happened, such as job.opened
    created_at timestamptz not null
);
