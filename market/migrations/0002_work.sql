-- What the API decides. Writer of every table here: `littoral-api serve`, any instance.

-- Addresses that signed in; the token itself is never stored.
create table session (
    token_hash bytes32 primary key,              -- SHA2-256 of the bearer token
    user_id    text not null,                    -- names the Redis hash session:{userId}
    wallet     address not null,
    created_at timestamptz not null,
    expires_at timestamptz not null
);
create index session_expiry on session (expires_at);
create index session_by_user on session (user_id);

-- Nonces handed out for sign-in; a row goes when it is used, so that each works once.
create table signin_nonce (
    nonce      text primary key,
    expires_at timestamptz not null
);
create index signin_nonce_expiry on signin_nonce (expires_at);

-- What calls under an Idempotency-Key were answered. A call that is under way has a row without status: `locked_until` is by when
-- it has ended, or its process has.
create table idempotency (
    user_id      text not null,
    operation    text not null,
    key          text not null,
    request_hash bytes32 not null,               -- of method, path and body: the same key for another request is refused
    owner        bigint not null,                -- whose call it is: drawn at random
    locked_until timestamptz not null,
    status       smallint check (status between 200 and 599),
    body         bytea,
    expires_at   timestamptz not null,
    primary key (user_id, operation, key),
    check ((status is null) = (body is null))
);
create index idempotency_expiry on idempotency (expires_at);

-- Switches that operators set with `littoral-api flag`. A feature without a row is on.
create table feature_flag (
    name       text primary key check (name ~ '^[a-z0-9_]{1,64}$'),
    enabled    boolean not null,
    updated_at timestamptz not null
);

-- Keys that all instances share and make for themselves.
create table api_secret (
    name   text primary key,
    secret bytea not null check (octet_length(secret) >= 32)
);

-- Content that the object store holds.
create table blob (
    cid        text primary key,
    size_bytes bigint not null check (size_bytes >= 0),
    created_by address not null,
    created_at timestamptz not null
);

-- Orders announced to the API before they are on the chain.
create table job_submission (
    job_id     bytes32 primary key,
    requester  address not null,
    order_json jsonb not null,                   -- the order as it will be opened
    spec_json  jsonb not null,
    priority   integer not null check (priority between 0 and 1000),
    not_before timestamptz,                      -- no node is given it earlier
    min_reputation smallint not null default 0 check (min_reputation between 0 and 100),
    min_stake  amount not null default 0,        -- in wei; nodes with less are not given it
    created_at timestamptz not null
);
create index job_submission_requester on job_submission (requester, created_at);

-- Orders that their requester signed and that are paid from the deposit, on the order's signature or by a voucher: a job each.
-- One that is opened on the chain after all counts as opened.
create table signed_order (
    job_id       bytes32 primary key,            -- EIP-712 digest of the order
    requester    address not null,
    token        address not null,
    max_price    amount not null,
    order_node   address not null,               -- node the order names; zero if open
    assigner     address not null,
    spec_hash    bytes32 not null,
    deadline     timestamptz not null,
    challenge_window_secs bigint not null,
    arbiter      address not null,
    max_fee_bps  integer not null,
    nonce        numeric(20, 0) not null check (nonce > 0),
    input_cid    text not null,
    operation    text not null,
    params       text not null,
    signature    bytea not null,                 -- the requester's, over the order
    priority     integer not null check (priority between 0 and 1000),
    not_before   timestamptz,                    -- no node is given it earlier
    min_reputation smallint not null default 0 check (min_reputation between 0 and 100),
    min_stake    amount not null default 0,      -- in wei; nodes with less are not given it
    created_at   timestamptz not null,
    withdrawn_at timestamptz,                    -- the requester took it back before any node had it
    closed_at    timestamptz                     -- it binds nothing any more, for good: see order_promise
);
create index signed_order_queue on signed_order (created_at, job_id) where closed_at is null and withdrawn_at is null;
create index signed_order_listed on signed_order (created_at desc, job_id desc);
create index signed_order_promise on signed_order (requester, token) where closed_at is null and withdrawn_at is null;
create index signed_order_channel on signed_order (requester, order_node, token, nonce);

-- Vouchers that requesters countersigned, append-only; the last one of a channel (highest in both numbers) is the best.
create table voucher (
    requester     address not null,
    node          address not null,
    token         address not null,
    cumulative    amount not null,               -- all that the channel is to have paid
    covered_nonce numeric(20, 0) not null,       -- for signed orders up to it
    signer        address not null,              -- the requester, or its session key
    signature     bytea not null,
    created_at    timestamptz not null,
    primary key (requester, node, token, covered_nonce, cumulative)
);
create index voucher_node on voucher (node, token, created_at);

-- Where the work on a job stands. Absent means: never claimed. Legal transitions: market::job.
create table job_work (
    job_id           bytes32 primary key,
    state            text not null check (state in ('queued', 'leased', 'completed', 'failed')),
    fence            bigint not null check (fence >= 0),      -- grows with every lease; a stale one is refused
    attempts         integer not null check (attempts >= 0),  -- leases that ended without completion, since it was redriven
    forgiven_fence   bigint not null default 0 check (forgiven_fence between 0 and fence),  -- leases up to it count no more:
                                                 -- the requester had the job tried again
    node             address,                    -- holder of the lease, or who completed
    leased_at        timestamptz,
    lease_expires_at timestamptz,
    not_before       timestamptz,                -- when a failed attempt may be tried again
    last_error       text,
    updated_at       timestamptz not null,
    check ((state = 'leased') = (lease_expires_at is not null)),
    check (state <> 'leased' or (node is not null and leased_at is not null)),
    check (state <> 'completed' or node is not null)
);
create index job_work_leases on job_work (lease_expires_at) where state = 'leased';
create index job_work_node on job_work (node) where state = 'leased';

-- Jobs that wait for a node, as a claim looks for them: an index over `open_order` and `job_work`. Nobody writes it; triggers keep
-- it (0004) in whoever's transaction changes an order or its work. A claim locks the row it takes. That a row is here says that
-- the job can be looked at, not that it may be given out.
create table job_queue (
    job_id         bytes32 primary key,
    operation      text not null,
    order_node     address not null,             -- node the order names; zero if open
    requester      address not null,
    score          bigint not null,              -- place in the requester's line: enqueue time in ms less priority, or later
                                                 -- the end of a pause
    ready_at       timestamptz not null,         -- end of the pause or delay; -infinity without one
    deadline       timestamptz not null,
    token          address not null,
    max_price      amount not null,
    min_reputation smallint not null,
    min_stake      amount not null
);
-- A line per operation, node and requester; claims go from line to line in turn.
create index job_queue_line on job_queue (operation, order_node, requester, score, job_id);
create index job_queue_deadline on job_queue (deadline);
create index job_queue_reputation on job_queue (job_id) where min_reputation > 0;

-- When a line was last served. Written by claims, and not waited for: two at once may take turns in the same moment.
create table queue_turn (
    operation  text not null,
    order_node address not null,
    requester  address not null,
    served_at  timestamptz not null,
    primary key (operation, order_node, requester)
) with (fillfactor = 50);
create index queue_turn_served on queue_turn (served_at);

-- Every lease there ever was.
create table job_attempt (
    job_id    bytes32 not null,
    fence     bigint not null,
    node      address not null,
    leased_at timestamptz not null,
    ended_at  timestamptz,
    outcome   text check (outcome in ('completed', 'failed', 'expired', 'released')),
    error     text,
    primary key (job_id, fence)
);
create index job_attempt_node on job_attempt (node, leased_at);

-- The result of a job, with all signatures that its settlement needs.
create table job_completion (
    job_id               bytes32 primary key,
    fence                bigint not null,
    node                 address not null,
    output_cid           text not null,
    result_hash          bytes32 not null,       -- digest inside output_cid, as the receipt has it
    price                amount not null,
    receipt_signature    bytea not null,
    assignment_expiry    bigint not null,        -- unix seconds; zero where the order names its node
    assignment_signature bytea not null,         -- empty where the order names its node
    started_at           timestamptz not null,
    completed_at         timestamptz not null
);
create index job_completion_node on job_completion (node, completed_at);

-- Money that a completed job owes its node; written in the transaction that completes the job.
create table payment_due (
    job_id     bytes32 primary key references job_completion (job_id),
    node       address not null,
    token      address not null,
    amount     amount not null,
    created_at timestamptz not null,
    closed_at  timestamptz                       -- the chain has settled it for good, one way or another
);
create index payment_due_node on payment_due (node, created_at);
-- What is not settled can be found without reading what is.
create index payment_due_unsettled on payment_due (created_at, job_id) where closed_at is null;

-- What a node said of itself when it registered with the API, and when it last spoke.
create table node_profile (
    node                address primary key,
    public_key          bytea not null,
    max_concurrent_jobs integer not null check (max_concurrent_jobs > 0),
    operations          text[] not null,
    registered_at       timestamptz not null,
    last_heartbeat_at   timestamptz not null
);

-- The least that a node does an operation for. An operation with a price is done only for the tokens that have one; one without
-- for any price in any token.
create table node_price (
    node      address not null,
    operation text not null,
    token     address not null,
    min_price amount not null,
    primary key (node, operation, token)
);

-- As chain_outbox, for changes that the API made.
create table work_outbox (
    seq        bigserial primary key,
    entity     text not null check (entity in ('job', 'node')),
    key        bytea not null,
    event      text not null,
    created_at timestamptz not null
);
