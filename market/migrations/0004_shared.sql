-- Leadership: an advisory lock elects, the epoch fences. Each role's row is written by that role's leader only.
create table leader (
    role  text primary key check (role in ('indexer', 'settler')),
    epoch bigint not null check (epoch >= 0),
    since timestamptz not null
);

-- Names this database's contents towards Redis, which holds the same name once it was filled from here. One row; a restored
-- backup gets a new name, so that Redis is filled again.
create table redis_generation (
    singleton  boolean primary key default true check (singleton),
    generation text not null
);
insert into redis_generation (generation) values (gen_random_uuid());

-- Orders the snapshots that projectors take of one entity; drawn under that entity's advisory lock.
create sequence projection_version;

-- Reads that no single writer's queries need.
create index escrow_job_deadline on escrow_job (deadline) where state in ('open', 'submitted');
create index escrow_job_listed on escrow_job (opened_at desc, job_id desc);
create index escrow_job_closed on escrow_job (closed_at) where state in ('paid', 'refunded');
create index job_submission_listed on job_submission (created_at desc, job_id desc);

-- Every job that was opened or announced. Two branches rather than a full join, so that a condition on a column reaches
-- the index of each table.
create view known_job as
select e.job_id, e.requester, e.opened_at as listed_at
from escrow_job e
union all
select s.job_id, s.requester, s.created_at
from job_submission s
where not exists (select from escrow_job e where e.job_id = s.job_id);

-- A job as the rows of all its writers show it. Whether it has expired depends on the clock and is left to the reader
-- (market::job::JobStatus::at), so `status` is never 'expired'.
create view job_view as
select
    j.job_id,
    case
        when e.state = 'paid' then 'paid'
        when e.state = 'refunded' then 'refunded'
        when e.state = 'submitted' then 'challengeable'
        when e.job_id is null then 'awaiting_escrow'
        when not e.spec_valid then 'failed'           -- no node is given it, ever
        when w.state = 'completed' and b.id is not null then 'settling'
        when w.state = 'completed' then 'completed'
        when w.state = 'failed' then 'failed'
        when w.state = 'leased' then 'active'
        else 'pending'
    end as status,
    j.requester,
    j.listed_at,                                      -- its place in lists: opened, or else announced
    -- The order: its columns once opened, before that the announcement.
    e.token, e.max_price, e.order_node, e.assigner, e.spec_hash, e.challenge_window_secs, e.arbiter, e.max_fee_bps,
    e.nonce, e.input_cid, e.operation, e.params, e.spec_valid,
    -- The end of the year 9999 is as far as a time can be told.
    coalesce(
        e.deadline,
        to_timestamp(least((s.order_json ->> 'deadline')::numeric, 253402300799)::double precision)
    ) as deadline,
    s.order_json, s.spec_json, s.created_at as announced_at,
    coalesce(s.priority, 100) as priority,
    -- On the chain.
    e.state as escrow_state,
    e.opened_block, e.opened_tx, e.opened_at,
    e.node as settled_node, e.price as settled_price, e.result_hash as settled_result_hash, e.finalize_at, e.submitted_tx,
    e.closed_block, e.closed_tx, e.closed_at,
    -- The work.
    w.state as work_state, w.fence, w.attempts, w.node as work_node, w.leased_at, w.lease_expires_at, w.not_before,
    w.last_error,
    -- The result.
    c.fence as completion_fence, c.node as completion_node, c.output_cid, c.result_hash, c.price, c.started_at,
    c.completed_at,
    p.amount as due_amount, p.created_at as due_at,
    -- The payment.
    b.id as batch_id, b.kind as batch_kind, t.tx_hash as batch_tx, h.reason as hold_reason,
    -- The chain it is on.
    (select k.chain_id from chain_cursor k) as chain_id,
    -- Who holds it or did it: as the chain says, else who completed, else who holds the lease.
    n.node, n.node_id,
    (select r.node_id from registry_node r where r.node = e.order_node) as order_node_id
from known_job j
left join escrow_job e on e.job_id = j.job_id
left join job_submission s on s.job_id = j.job_id
left join job_work w on w.job_id = j.job_id
left join job_completion c on c.job_id = j.job_id
left join payment_due p on p.job_id = j.job_id
left join settlement_hold h on h.job_id = j.job_id
left join lateral (
    select sb.id, sb.kind
    from settlement_item i
    join settlement_batch sb on sb.id = i.batch_id
    where i.job_id = j.job_id and sb.state = 'pending'
    order by sb.id desc
    limit 1
) b on true
left join lateral (
    select a.tx_hash from settlement_attempt a where a.batch_id = b.id order by a.created_at desc, a.tx_hash limit 1
) t on true
left join lateral (
    select o.node, r.node_id
    from (
        select case
            when e.node is not null then e.node
            when w.state in ('leased', 'completed') then coalesce(c.node, w.node)
        end as node
    ) o
    left join registry_node r on r.node = o.node
) n on true;

-- A job's status by itself.
create view job_status as select job_id, status from job_view;

-- A node as registered on the chain, as it introduced itself to the API, or both.
create view node_view as
select
    k.node,
    r.node_id, r.public_key, r.payout, r.capacity, r.operations, r.uri, r.stake, r.unbonding, r.unbond_end,
    p.public_key as profile_public_key, p.max_concurrent_jobs, p.operations as profile_operations, p.registered_at,
    p.last_heartbeat_at,
    active.jobs as active_jobs, completed.jobs as completed_jobs, paid.jobs as paid_jobs,
    recent.completed as recent_completed, recent.lost as recent_lost
from (
    select node from registry_node
    union all
    select q.node from node_profile q where not exists (select from registry_node o where o.node = q.node)
) k
left join registry_node r on r.node = k.node
left join node_profile p on p.node = k.node
left join lateral (
    select count(*) as jobs from job_work w where w.node = k.node and w.state = 'leased'
) active on true
left join lateral (
    select count(*) as jobs from job_completion c where c.node = k.node
) completed on true
left join lateral (
    select count(*) as jobs from escrow_job e where e.node = k.node and e.state = 'paid'
) paid on true
-- The latest attempts only: what reputation is made of costs the same for every node, and old failures are forgotten.
left join lateral (
    select
        count(*) filter (where a.outcome = 'completed') as completed,
        count(*) filter (where a.outcome in ('failed', 'expired')) as lost
    from (
        select outcome from job_attempt
        where node = k.node and outcome is not null
        order by leased_at desc, job_id
        limit 1000
    ) a
) recent on true;
