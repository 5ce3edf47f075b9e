-- How payments reach the chain. Writer of every table here: `littoral-api settle`, the leader.

-- One transaction of the settler, whichever signed form of it gets mined. A nonce is taken once and for all.
create table settlement_batch (
    id           bigserial primary key,
    kind         text not null check (kind in ('submit', 'finalize', 'redeem')),
    node         address,                        -- whose vouchers it redeems
    token        address,                        -- in which token
    sender       address not null,
    nonce        bigint not null check (nonce >= 0),
    -- A reorg that frees the nonce makes an ended batch pending again. Displaced: another transaction took the nonce.
    state        text not null check (state in ('pending', 'mined', 'reverted', 'displaced')),
    epoch        bigint not null,                -- of the leader that planned it
    created_at   timestamptz not null,
    ended_at     timestamptz,
    tx_hash      bytes32,                        -- what used the nonce; null if that is not known
    block_number bigint,                         -- where it was mined, or by when the nonce was used
    block_hash   bytes32,
    gas_used     bigint,                         -- null if no node tells
    gas_price    numeric(39, 0),                 -- wei paid for a unit of gas
    final_at     timestamptz,                    -- seen in a final block
    unique (sender, nonce),
    check ((kind = 'redeem') = (node is not null)),
    check ((node is null) = (token is null)),
    check (final_at is null or state <> 'pending'),
    check ((state = 'pending') = (ended_at is null)),
    check (num_nulls(ended_at, block_number, block_hash) in (0, 3)),
    check (num_nulls(gas_used, gas_price) in (0, 2)),
    check (state not in ('mined', 'reverted') or tx_hash is not null)
);
create index settlement_batch_pending on settlement_batch (nonce) where state = 'pending';
-- What a reorg can still undo.
create index settlement_batch_unfinal on settlement_batch (block_number) where state <> 'pending' and final_at is null;
create index settlement_batch_created on settlement_batch (created_at);

create table settlement_item (
    batch_id bigint not null references settlement_batch (id),
    job_id   bytes32 not null,
    position integer not null,
    primary key (batch_id, job_id),
    unique (batch_id, position)
);
create index settlement_item_job on settlement_item (job_id);

-- Vouchers that a batch redeems.
create table settlement_voucher (
    batch_id      bigint not null references settlement_batch (id),
    position      integer not null,
    requester     address not null,
    cumulative    amount not null,
    covered_nonce numeric(20, 0) not null,
    primary key (batch_id, requester),
    unique (batch_id, position)
);
create index settlement_voucher_of on settlement_voucher (requester, cumulative);

-- Signed bytes, stored and committed before they are first sent. Append-only.
create table settlement_attempt (
    tx_hash                  bytes32 primary key,
    batch_id                 bigint not null references settlement_batch (id),
    raw_tx                   bytea not null,
    gas_limit                bigint not null,
    max_fee_per_gas          numeric(39, 0) not null,   -- wei
    max_priority_fee_per_gas numeric(39, 0) not null,   -- wei
    created_at               timestamptz not null
);
create index settlement_attempt_batch on settlement_attempt (batch_id, created_at);
create trigger settlement_attempt_append_only before update or delete or truncate on settlement_attempt
    for each statement execute function is_append_only();

-- Nonces of the settler's account that no batch had when the chain had used them. Nothing was sent from when that was seen
-- until the chain's logs up to the block had been read, so that what they paid was not due any more.
create table settlement_foreign_nonce (
    sender       address not null,
    first_nonce  bigint not null check (first_nonce >= 0),
    last_nonce   bigint not null,
    block_number bigint not null,                -- by which they were used
    block_hash   bytes32 not null,
    found_at     timestamptz not null,
    primary key (sender, first_nonce, block_hash),
    check (last_nonce >= first_nonce)
);

-- Jobs that the contract has skipped, by its log on the canonical chain, for a reason that trying again does not mend; and those
-- whose deadline lies before the time of a final block. What a node only says is no reason.
create table settlement_hold (
    job_id     bytes32 primary key,
    reason     text not null,
    created_at timestamptz not null
);

-- Vouchers that the contract has skipped in the same way. A better one of the channel is tried.
create table voucher_hold (
    requester  address not null,
    node       address not null,
    token      address not null,
    cumulative amount not null,
    reason     text not null,
    created_at timestamptz not null,
    primary key (requester, node, token, cumulative)
);
