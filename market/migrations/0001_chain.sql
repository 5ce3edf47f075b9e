-- What the chain says. Writer of every table here: the indexer, and no one else.
-- Blocks and events are kept for orphaned branches too (`canonical` false); folded rows hold canonical state only and are
-- always equal to a fold over the canonical events of their key. A reorg puts back what they were (chain_undo).

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
    undo_above   bigint not null,                -- blocks above this one can be taken back: chain_undo holds what they changed
    epoch        bigint not null,                -- epoch of the leader that wrote last
    head_number  bigint,                         -- latest block that the chain was seen to have
    final_number bigint                          -- latest block that counts as final; above block_number while catching up
);

-- The chain's confirmation policy, as the manifest had it when the indexer began to lead (market::confirmation). One row.
create table confirmation_policy (
    singleton          boolean primary key default true check (singleton),
    final_depth        bigint check (final_depth >= 0),  -- null where the chain's nodes say what is final
    reorgs_below_final boolean not null
);

-- How deep a job's block must be for the job to be queued: by the first step of its token that is not below its price. Beyond
-- the last one, and in other tokens, it must be final.
create table confirmation_step (
    token address not null,
    up_to amount not null,
    depth bigint not null check (depth >= 0),    -- blocks on top
    primary key (token, up_to)
);

-- Logs of the escrow and the registry, as they were emitted. Here and in chain_redemption block_hash refers to chain_block and
-- no foreign key says so: the one writer writes blocks and events together, and a check for each of them would cost more
-- than the row does.
create table chain_event (
    block_number bigint not null,
    log_index    bigint not null check (log_index >= 0),
    block_hash   bytes32 not null,
    tx_hash      bytes32 not null,
    contract     address not null,
    kind         text not null,                  -- the event's name, such as JobOpened
    topics       bytea not null check (octet_length(topics) % 32 = 0),
    data         bytea not null,
    canonical    boolean not null,
    primary key (block_number, log_index, block_hash)
);
create index chain_event_tx on chain_event using hash (tx_hash);

-- What each voucher of a VouchersRedeemed did, as it stands afterwards: one log tells of many requesters, who are found here.
-- Canonical where its event is.
create table chain_redemption (
    block_number  bigint not null,
    log_index     bigint not null,
    position      integer not null,
    block_hash    bytes32 not null,
    requester     address not null,
    node          address not null,
    token         address not null,
    claimed       amount not null,
    covered_nonce numeric(20, 0) not null,
    primary key (block_number, log_index, position, block_hash)
);
create index chain_redemption_channel on chain_redemption (requester, node, token, block_number, log_index);

-- Rows of the tables below as they were before a block changed them, for blocks that may still be taken back: a reorg puts the
-- earliest image above the ancestor in each row's place. Emptied of blocks that are settled.
create table chain_undo (
    block_number bigint not null,                -- the block that changed the row
    key          jsonb not null,                 -- the table and key (market::fold::Key)
    before       jsonb,                          -- the row (market::fold::Row); null where there was none
    primary key (block_number, key)
);

-- A job opened in the escrow, or a signed order of which the chain has told. The order's columns are those of an opened job;
-- events about signed orders do not carry them (the API keeps the order in signed_order).
create table escrow_job (
    job_id            bytes32 primary key,       -- EIP-712 digest of the order
    requester         address not null,
    token             address,
    max_price         amount,
    order_node        address,                   -- node the order names; zero if open
    assigner          address,
    spec_hash         bytes32,
    deadline          timestamptz,               -- last moment a result counts
    challenge_window_secs bigint,
    arbiter           address,
    max_fee_bps       integer,
    nonce             numeric(20, 0),
    input_cid         text,
    operation         text,
    params            text,
    spec_valid        boolean,                   -- false if the spec's strings are not text that can be stored as they
                                                 -- were signed (invalid UTF-8, NUL); such a job is never queued
    state             text not null
        check (state in ('none', 'open', 'submitted', 'disputed', 'paid', 'refunded', 'resolved')),
    opened_block      bigint,
    opened_tx         bytes32,
    opened_at         timestamptz,
    cancel_at         timestamptz,               -- from then on no result settles; null without notice
    node              address,                   -- who did the work; from `submitted` on
    price             amount,
    paid_token        address,                   -- token of the result, known for signed orders too
    result_hash       bytes32,
    finalize_at       timestamptz,               -- end of the challenge window
    submitted_tx      bytes32,
    dispute_bond      amount,                    -- what the requester locked to object
    decide_by         timestamptz,               -- end of the arbiter's time
    disputed_tx       bytes32,
    resolved_paid     amount,                    -- the arbiter's decision: to the node, of the price
    slashed           amount,                    -- of the node's stake, in wei
    compensation      amount,                    -- of that to the requester, in wei
    closed_block      bigint,                    -- paid, refunded or resolved
    closed_tx         bytes32,
    closed_at         timestamptz,
    check (num_nulls(token, max_price, order_node, assigner, spec_hash, deadline, challenge_window_secs, arbiter,
                     max_fee_bps, nonce, input_cid, operation, params, spec_valid, opened_block, opened_tx, opened_at)
           in (0, 17)),
    check (state <> 'open' or opened_at is not null),
    check (num_nulls(node, price, paid_token, result_hash) in (0, 4)),
    check (state not in ('submitted', 'disputed', 'paid', 'resolved') or node is not null),
    check (num_nulls(finalize_at, submitted_tx) in (0, 2)),
    check (num_nulls(dispute_bond, decide_by, disputed_tx) in (0, 3)),
    check ((state = 'resolved') = (resolved_paid is not null)),
    check (num_nulls(resolved_paid, slashed, compensation) in (0, 3)),
    check (num_nulls(closed_block, closed_tx, closed_at) in (0, 3)),
    check ((state in ('paid', 'refunded', 'resolved')) = (closed_tx is not null))
);
create index escrow_job_open on escrow_job (opened_block, job_id) where state = 'open';
create index escrow_job_submitted on escrow_job (finalize_at) where state = 'submitted';
create index escrow_job_disputed on escrow_job (decide_by) where state = 'disputed';
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
    unbond_end timestamptz,                      -- null while nothing is unbonding
    bonds         bigint not null,               -- bonds of its stake that are locked
    bonded_paid   bigint not null,               -- bonded jobs that were paid
    bonded_disputed bigint not null,             -- … that were disputed
    bonded_lost   bigint not null                -- … that after a dispute were not paid in full
);
create index registry_node_id on registry_node (node_id);

-- What lies between a requester and a node in one token.
create table escrow_channel (
    requester     address not null,
    node          address not null,
    token         address not null,
    claimed       amount not null,               -- all it ever paid: vouchers, and signed orders settled alone
    reserved      amount not null,               -- set aside for the node
    covered_nonce numeric(20, 0) not null,       -- a redeemed voucher pays for signed orders up to it
    thawing       amount not null,               -- of `reserved`, on its way back
    thaw_end      timestamptz,                   -- null while nothing is thawing
    primary key (requester, node, token),
    check (thawing <= reserved)
);
create index escrow_channel_node on escrow_channel (node, token);

-- A key that may sign its requester's vouchers.
create table escrow_session (
    requester  address not null,
    session_key address not null,
    token      address not null,
    amount_left amount not null,                 -- what it may still spend
    expires_at timestamptz not null,             -- up to and including
    primary key (requester, session_key, token)
);

-- Who may redeem a node's vouchers besides itself.
create table escrow_settler (
    node    address not null,
    settler address not null,
    allowed boolean not null,
    primary key (node, settler)
);

-- Fees taken and not withdrawn.
create table escrow_fee (
    token address primary key,
    fees  amount not null
);

-- What the contracts' owners have set. One row, from the first event on.
create table chain_parameter (
    singleton        boolean primary key default true check (singleton),
    fee_bps          integer not null,
    escrow_paused    boolean not null,
    registry_paused  boolean not null,
    min_stake        amount,                     -- in wei; null while that of the construction holds
    min_stake_since  timestamptz,
    min_stake_before amount,                     -- holds until min_stake_since; null as above
    check ((min_stake is null) = (min_stake_since is null))
);

-- Double-entry bookkeeping of every movement of money in the contracts. The entries of one log sum to zero in each token.
-- Append-only: what a reorg undoes is taken back by entries with `reversal`, never removed.
create table ledger_entry (
    block_number bigint not null,
    block_hash bytes32 not null,
    log_index  bigint not null,
    reversal   boolean not null,
    account    text not null,
    owner      address,                          -- requester of free, thawing and reserved; node of earned, stake, unbonding
    node       address,                          -- of reserved
    job_id     bytes32,                          -- of job
    token      address not null,                 -- zero for the native coin
    amount     numeric(79, 0) not null check (amount <> 0),
    check (case account
        when 'free' then owner is not null and node is null and job_id is null
        when 'job' then owner is null and node is null and job_id is not null
        when 'earned' then owner is not null and node is null and job_id is null
        when 'reserved' then owner is not null and node is not null and job_id is null
        when 'thawing' then owner is not null and node is null and job_id is null
        when 'stake' then owner is not null and node is null and job_id is null
        when 'unbonding' then owner is not null and node is null and job_id is null
        else account in ('world', 'fee', 'transit', 'suspense') and owner is null and node is null and job_id is null
    end)
);
-- Only the indexer asks for entries one by one, by their blocks: an index by account would take longer to write than the entry. Views ask
-- for those of the blocks that are not final.
create index ledger_entry_block on ledger_entry (block_number);

-- A statement enters no two blocks of one number, so the number stands for the block.
create function ledger_is_balanced() returns trigger language plpgsql as $$
begin
    if exists (select from added group by block_number, log_index, reversal, token having sum(amount) <> 0) then
        raise exception 'ledger entries do not sum to zero' using errcode = 'check_violation';
    end if;
    return null;
end $$;
create trigger ledger_balance after insert on ledger_entry
    referencing new table as added for each statement execute function ledger_is_balanced();

create function is_append_only() returns trigger language plpgsql as $$
begin
    raise exception '% is append-only', tg_table_name using errcode = 'restrict_violation';
end $$;
create trigger ledger_append_only before update or delete or truncate on ledger_entry
    for each statement execute function is_append_only();

-- Entities whose Redis state is to be projected again because the chain changed them; rows go once applied.
create table chain_outbox (
    seq        bigserial primary key,
    entity     text not null check (entity in ('job', 'node')),
    key        bytea not null,                   -- job id, or node address
    event      text not null,                    -- what happened, such as job.opened
    created_at timestamptz not null
);

-- What the indexer found when it held its tables against the chain. The latest runs only.
create table chain_verification (
    id          bigserial primary key,
    started_at  timestamptz not null,
    finished_at timestamptz not null,
    from_block  bigint not null,
    to_block    bigint not null,
    verdict     text not null check (verdict in ('same', 'differs', 'unknown')),
    events      bigint not null,                 -- logs that were compared
    differences bigint not null,
    detail      text not null                    -- the first of them, or why nothing can be told
);

-- Reorgs that were followed. The latest only.
create table chain_reorg (
    id            bigserial primary key,
    at            timestamptz not null,
    ancestor      bigint not null,               -- the last block that both branches have
    from_block    bigint not null,               -- where the cursor stood
    from_hash     bytes32 not null,
    to_block      bigint not null,               -- where it stood then
    to_hash       bytes32 not null,
    events_undone bigint not null
);
