-- Leadership: an advisory lock elects, the epoch fences. Each role's row is written by that role's leader only.
create table leader (
    role  text primary key check (role in ('indexer', 'settler')),
    epoch bigint not null check (epoch >= 0),
    since timestamptz not null
);

-- The leader's signs of life, and whom to end when there are none. A table of its own: transactions that check the epoch lock
-- its row, and may last longer than a lease.
create table leader_lease (
    role          text primary key references leader (role),
    epoch         bigint not null,
    lease_ms      bigint not null check (lease_ms > 0),
    renewed_at    timestamptz not null,          -- by Postgres' clock
    backend_pid   integer not null,              -- of the session that holds the lock
    backend_start timestamptz not null,          -- of that session: process ids are used again
    session       text not null                  -- application_name of all sessions of the process
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

-- Batches of each outbox that were applied to Redis, which keeps the same number: if it has less, it has lost something. Moved by
-- whoever drains the outbox, in the transaction that removes the batch's rows.
create table projection_progress (
    source text primary key check (source in ('chain', 'work')),
    batch  bigint not null check (batch >= 0)
);
insert into projection_progress (source, batch) values ('chain', 0), ('work', 0);

-- Reads that no single writer's queries need.
create index escrow_job_deadline on escrow_job (deadline) where state in ('open', 'submitted');
create index escrow_job_listed on escrow_job (opened_at desc, job_id desc);
create index escrow_job_closed on escrow_job (closed_at) where closed_at is not null;
create index escrow_job_queue on escrow_job (opened_at, job_id) where state = 'open';
create index job_submission_listed on job_submission (created_at desc, job_id desc);

-- Where the chain stands: the last applied block, and the latest one that counts as final. Depth is counted in applied blocks,
-- of which each is known to be the child of the one before; what a node claims to have on top counts for nothing. Without a
-- cursor no chain is followed, and nothing can be undone. One row.
create view chain_level as
select
    coalesce((select c.block_number from chain_cursor c), 9223372036854775807) as block_number,
    coalesce(
        (select least(coalesce(c.final_number, -1), c.block_number) from chain_cursor c),
        9223372036854775807
    ) as final_number;

-- How deep the block of something worth `worth` of `of_token` must be to be acted on before it is final; null if it must be
-- final. In plpgsql, which keeps the plan.
create function confirmation_depth(of_token address, worth amount) returns bigint stable language plpgsql as $$
begin
    return (
        select s.depth from confirmation_step s
        where s.token = of_token and s.up_to >= worth
        order by s.up_to limit 1
    );
end $$;

-- What was agreed on each job that can be paid: orders opened on the chain, and signed ones. `rail` says how it is paid.
create view job_order as
select
    e.job_id, 'opened' as rail, e.requester, e.token, e.max_price, e.order_node, e.assigner, e.spec_hash, e.deadline,
    e.challenge_window_secs, e.arbiter, e.max_fee_bps, e.nonce, e.input_cid, e.operation, e.params, e.spec_valid,
    null::bytea as signature, e.opened_at as enqueued_at
from escrow_job e
where e.opened_at is not null
union all
select
    g.job_id, 'signed', g.requester, g.token, g.max_price, g.order_node, g.assigner, g.spec_hash, g.deadline,
    g.challenge_window_secs, g.arbiter, g.max_fee_bps, g.nonce, g.input_cid, g.operation, g.params, true,
    g.signature, g.created_at
from signed_order g
where not exists (select from escrow_job e where e.job_id = g.job_id and e.opened_at is not null);

-- Orders on which a result can still be settled, as far as the chain and the requester's word go: their money is locked, or
-- promised and not yet paid. Time and vouchers are left to the reader, and so is `is_confirmed`: no node is given what is not.
create view open_order as
select
    e.job_id, 'opened' as rail, e.requester, e.token, e.order_node, e.assigner, e.deadline, e.nonce, e.input_cid,
    e.operation, e.spec_valid, e.opened_at as enqueued_at, coalesce(s.priority, 100) as priority, e.cancel_at,
    e.max_price, s.not_before, coalesce(s.min_reputation, 0::smallint) as min_reputation,
    coalesce(s.min_stake, 0)::amount as min_stake,
    -- Its block is as deep as its price asks. The depth is worked out only for what is not final.
    e.opened_block <= l.final_number
        or coalesce(l.block_number - e.opened_block >= confirmation_depth(e.token, e.max_price), false) as is_confirmed
from escrow_job e
cross join chain_level l
left join job_submission s on s.job_id = e.job_id
where e.state = 'open'
union all
select
    g.job_id, 'signed', g.requester, g.token, g.order_node, g.assigner, g.deadline, g.nonce, g.input_cid,
    g.operation, true, g.created_at, g.priority,
    (select e.cancel_at from escrow_job e where e.job_id = g.job_id), g.max_price, g.not_before, g.min_reputation,
    g.min_stake, true
from signed_order g
where g.closed_at is null and g.withdrawn_at is null
    and not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none');

-- Puts those of the jobs that wait for a node into job_queue, or mends their rows. A point of priority is worth a second
-- (market::redis::keys::PRIORITY_BOOST_MS). Claims that wait are woken.
create function queue_put(ids bytea[]) returns void language plpgsql as $$
begin
    insert into job_queue (job_id, operation, order_node, requester, score, ready_at, deadline, token, max_price, min_reputation,
        min_stake)
    select
        e.job_id, e.operation, e.order_node, e.requester,
        greatest(
            floor(extract(epoch from e.enqueued_at) * 1000)::bigint - (e.priority - 100) * 1000,
            floor(extract(epoch from greatest(w.not_before, e.not_before)) * 1000)::bigint
        ),
        coalesce(greatest(w.not_before, e.not_before), '-infinity'), e.deadline, e.token, e.max_price, e.min_reputation,
        e.min_stake
    from open_order e
    left join job_work w on w.job_id = e.job_id
    where e.job_id = any(ids) and e.spec_valid and (w.job_id is null or w.state = 'queued')
    order by e.job_id
    on conflict (job_id) do update set
        operation = excluded.operation, order_node = excluded.order_node, requester = excluded.requester,
        score = excluded.score, ready_at = excluded.ready_at, deadline = excluded.deadline, token = excluded.token,
        max_price = excluded.max_price, min_reputation = excluded.min_reputation, min_stake = excluded.min_stake;
    if found then
        perform pg_notify('littoral_job_queued', '');
    end if;
end $$;

-- Takes those of the jobs out of job_queue on which nothing can be settled any more, and puts in those on which something can.
create function queue_follow_order() returns trigger language plpgsql as $$
declare
    ids bytea[];
begin
    if tg_op = 'DELETE' then
        ids := array(select o.job_id from gone o);
    else
        ids := array(select c.job_id from changed c);
    end if;
    if tg_op <> 'INSERT' or tg_table_name <> 'signed_order' then
        delete from job_queue q
        where q.job_id = any(ids) and not exists (select from open_order e where e.job_id = q.job_id);
    end if;
    perform queue_put(ids);
    return null;
end $$;

-- Most changes put nothing back: what is not there to be done is not looked for in all that makes an order open.
create function queue_follow_work() returns trigger language plpgsql as $$
declare
    ids bytea[];
begin
    ids := array(select c.job_id from changed c where c.state <> 'queued');
    if ids <> '{}' then
        delete from job_queue q where q.job_id = any(ids);
    end if;
    ids := array(select c.job_id from changed c where c.state = 'queued');
    if ids <> '{}' then
        perform queue_put(ids);
    end if;
    return null;
end $$;

create trigger queue_on_insert after insert on escrow_job
    referencing new table as changed for each statement execute function queue_follow_order();
create trigger queue_on_update after update on escrow_job
    referencing new table as changed for each statement execute function queue_follow_order();
create trigger queue_on_delete after delete on escrow_job
    referencing old table as gone for each statement execute function queue_follow_order();
create trigger queue_on_insert after insert on signed_order
    referencing new table as changed for each statement execute function queue_follow_order();
create trigger queue_on_update after update on signed_order
    referencing new table as changed for each statement execute function queue_follow_order();
create trigger queue_on_insert after insert on job_work
    referencing new table as changed for each statement execute function queue_follow_work();
create trigger queue_on_update after update on job_work
    referencing new table as changed for each statement execute function queue_follow_work();

-- Signed orders that bind their requester's deposit: what was promised and is neither paid nor void. What a result locked in
-- its challenge window has left the deposit already. `amount` is what the result asks, before that the most it may ask.
create view order_promise as
select
    g.job_id, g.requester, g.token, coalesce(c.node, nullif(g.order_node, '\x0000000000000000000000000000000000000000'))
        as node,
    g.nonce, g.deadline, c.job_id is not null as completed, coalesce(c.price, g.max_price) as amount
from signed_order g
left join job_completion c on c.job_id = g.job_id
where g.closed_at is null and g.withdrawn_at is null
    and not exists (select from escrow_job e where e.job_id = g.job_id and e.state <> 'none')
    and not exists (select from job_work w where w.job_id = g.job_id and w.state = 'failed')
    and not exists (
        select from escrow_channel h
        where h.requester = g.requester and h.token = g.token and h.covered_nonce >= g.nonce
            and h.node = coalesce(c.node, g.order_node)
    );

-- What redeemed vouchers have left unpaid because their requester had too little. The orders that they covered are void, and
-- what comes into the deposit next can be drawn for it: it stays promised.
create view channel_debt as
select h.requester, h.node, h.token, v.cumulative + a.alone - h.claimed as amount
from escrow_channel h
cross join lateral (
    select u.cumulative
    from voucher u
    where u.requester = h.requester and u.node = h.node and u.token = h.token and u.covered_nonce <= h.covered_nonce
    order by u.covered_nonce desc, u.cumulative desc
    limit 1
) v
cross join lateral (
    -- What was settled alone above the voucher is claimed besides.
    select coalesce(sum(coalesce(e.resolved_paid, e.price)), 0) as alone
    from signed_order g
    join escrow_job e on e.job_id = g.job_id
    where g.requester = h.requester and g.token = h.token and g.nonce > h.covered_nonce
        and g.order_node in (h.node, '\x0000000000000000000000000000000000000000')
        and e.node = h.node and e.state in ('paid', 'resolved') and e.opened_at is null
) a
where v.cumulative + a.alone > h.claimed;

-- Every job that was opened, signed or announced. Branches rather than a full join, so that a condition on a column reaches
-- the index of each table.
create view known_job as
select e.job_id, e.requester, e.opened_at as listed_at
from escrow_job e
where e.opened_at is not null
union all
select g.job_id, g.requester, g.created_at
from signed_order g
where not exists (select from escrow_job e where e.job_id = g.job_id and e.opened_at is not null)
union all
select s.job_id, s.requester, s.created_at
from job_submission s
where not exists (select from escrow_job e where e.job_id = s.job_id and e.opened_at is not null)
    and not exists (select from signed_order g where g.job_id = s.job_id);

-- A job as the rows of all its writers show it. Whether it has expired depends on the clock and is left to the reader
-- (market::job::JobStatus::at), so `status` is never 'expired'.
create view job_view as
select
    j.job_id,
    case
        -- What was paid or decided on the chain counts once that is final.
        when e.state in ('paid', 'resolved') and e.closed_block > l.final_number then 'settling'
        when e.state = 'paid' then 'paid'
        -- A redeemed voucher pays for it, unless its requester had too little; it may give back a lock besides.
        when v.covered and c.job_id is not null and v.paid and not coalesce(v.block_number > l.final_number, false) then 'paid'
        when v.covered and c.job_id is not null then 'settling'
        when e.state = 'refunded' then 'refunded'
        when e.state = 'resolved' then 'resolved'
        when e.state = 'disputed' then 'disputed'
        when e.state = 'submitted' then 'challengeable'
        when o.job_id is null then 'awaiting_escrow'
        when g.withdrawn_at is not null then 'cancelled'
        when v.covered then 'failed'                  -- void: no node can be paid for it any more
        when not o.spec_valid then 'failed'           -- no node is given it, ever
        when w.state = 'completed' and b.id is not null then 'settling'
        -- A voucher pays for it whatever becomes of the order: it is out of the deadline's reach.
        when w.state = 'completed' and exists (
            select from voucher u
            where u.requester = g.requester and u.node = c.node and u.token = g.token and u.covered_nonce >= g.nonce
        ) then 'settling'
        when w.state = 'completed' then 'completed'
        when w.state = 'failed' then 'failed'
        when w.state = 'leased' then 'active'
        when e.cancel_at is not null then 'cancelling'
        else 'pending'
    end as status,
    j.requester,
    j.listed_at,                                      -- its place in lists: opened or signed, or else announced
    -- The order: as opened or signed, before that the announcement.
    o.rail, o.token, o.max_price, o.order_node, o.assigner, o.spec_hash, o.challenge_window_secs, o.arbiter, o.max_fee_bps,
    o.nonce, o.input_cid, o.operation, o.params, o.spec_valid,
    -- The end of the year 9999 is as far as a time can be told.
    coalesce(
        o.deadline,
        to_timestamp(least((s.order_json ->> 'deadline')::numeric, 253402300799)::double precision)
    ) as deadline,
    s.order_json, s.spec_json, s.created_at as announced_at,
    coalesce(g.priority, s.priority, 100) as priority,
    coalesce(g.not_before, s.not_before) as delayed_until,
    coalesce(g.min_reputation, s.min_reputation, 0::smallint) as min_reputation,
    coalesce(g.min_stake, s.min_stake, 0)::amount as min_stake,
    -- On the chain.
    case when o.rail = 'signed' and (e.state is null or e.state = 'none') then 'open' else e.state end as escrow_state,
    e.opened_block, e.opened_tx, e.opened_at, e.cancel_at,
    case when v.covered then coalesce(e.node, c.node) else e.node end as settled_node,
    case when v.covered then coalesce(e.price, c.price) else e.price end as settled_price,
    case when v.covered then coalesce(e.result_hash, c.result_hash) else e.result_hash end as settled_result_hash,
    e.finalize_at, e.submitted_tx, e.dispute_bond, e.decide_by, e.disputed_tx, e.resolved_paid,
    case when e.state = 'paid' or not coalesce(v.covered, false) then e.closed_block else v.block_number end as closed_block,
    case when e.state = 'paid' or not coalesce(v.covered, false) then e.closed_tx else v.tx_hash end as closed_tx,
    case when e.state = 'paid' or not coalesce(v.covered, false) then e.closed_at else v.mined_at end as closed_at,
    -- The work.
    w.state as work_state, w.fence, w.attempts, w.node as work_node, w.leased_at, w.lease_expires_at, w.not_before,
    w.last_error,
    -- The result.
    c.fence as completion_fence, c.node as completion_node, c.output_cid, c.result_hash, c.price, c.started_at,
    c.completed_at,
    p.amount as due_amount, p.created_at as due_at,
    -- The payment.
    b.id as batch_id, b.kind as batch_kind, t.tx_hash as batch_tx, h.reason as hold_reason,
    -- The chain it is on, and how sure the latest that it says of the job is.
    (select k.chain_id from chain_cursor k) as chain_id,
    case
        when o.rail = 'signed' then true
        else coalesce(e.opened_block <= l.final_number
            or l.block_number - e.opened_block >= confirmation_depth(e.token, e.max_price), false)
    end as is_confirmed,
    seen.block_number as seen_block,
    (select k.hash from chain_block k where k.canonical and k.number = seen.block_number) as seen_hash, l.block_number as cursor_block, l.final_number,
    -- Who holds it or did it: as the chain says, else who completed, else who holds the lease.
    n.node, n.node_id,
    (select r.node_id from registry_node r where r.node = o.order_node) as order_node_id
from known_job j
cross join chain_level l
left join job_order o on o.job_id = j.job_id
left join escrow_job e on e.job_id = j.job_id
left join signed_order g on g.job_id = j.job_id and o.rail = 'signed'
left join job_submission s on s.job_id = j.job_id
left join job_work w on w.job_id = j.job_id
left join job_completion c on c.job_id = j.job_id
left join payment_due p on p.job_id = j.job_id
left join settlement_hold h on h.job_id = j.job_id
left join lateral (
    -- The voucher that was redeemed, and whether all that it covered has been paid.
    select
        true as covered,
        not exists (
            select from voucher u
            where u.requester = g.requester and u.node = x.node and u.token = g.token and u.covered_nonce >= g.nonce
            group by u.requester having min(u.cumulative) > x.claimed
        ) as paid,
        y.block_number, y.tx_hash, y.mined_at
    from escrow_channel x
    left join lateral (
        select q.block_number, q.tx_hash, k.mined_at
        from chain_redemption r
        join chain_event q on q.block_number = r.block_number and q.log_index = r.log_index and q.block_hash = r.block_hash
            and q.canonical
        join chain_block k on k.hash = q.block_hash
        where r.requester = g.requester and r.token = g.token and r.node = x.node and r.covered_nonce >= g.nonce
        order by q.block_number, q.log_index
        limit 1
    ) y on true
    where x.requester = g.requester and x.token = g.token and x.covered_nonce >= g.nonce
        and x.node = coalesce(c.node, g.order_node)
) v on true
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
    select z.node, r.node_id
    from (
        select case
            when e.node is not null then e.node
            when w.state in ('leased', 'completed') then coalesce(c.node, w.node)
        end as node
    ) z
    left join registry_node r on r.node = z.node
) n on true
-- The block of the latest thing that the chain says of it. Of a result and an objection only the transaction is kept.
cross join lateral (
    select coalesce(
        case when coalesce(v.covered, false) and e.state is distinct from 'paid' then v.block_number end,
        e.closed_block,
        (select q.block_number from chain_event q
         where q.canonical and q.tx_hash = coalesce(e.disputed_tx, e.submitted_tx) limit 1),
        e.opened_block
    ) as block_number
) seen;

-- A job's status by itself.
create view job_status as select job_id, status from job_view;

-- A node as registered on the chain, as it introduced itself to the API, or both.
create view node_view as
select
    k.node,
    r.node_id, r.public_key, r.payout, r.capacity, r.operations, r.uri, r.stake, r.unbonding, r.unbond_end,
    p.public_key as profile_public_key, p.max_concurrent_jobs, p.operations as profile_operations, p.registered_at,
    p.last_heartbeat_at,
    active.jobs as active_jobs, completed.jobs as completed_jobs, paid.jobs as paid_jobs, paid.slashed, paid.slashing,
    moved.number as stake_block,
    (select b.hash from chain_block b where b.canonical and b.number = moved.number) as stake_hash,
    l.block_number as cursor_block, l.final_number,
    l.block_number - moved.number >= confirmation_depth('\x0000000000000000000000000000000000000000', r.stake)
        as stake_is_deep,
    recent.completed as recent_completed, recent.lost as recent_lost
from (
    select node from registry_node
    union all
    select q.node from node_profile q where not exists (select from registry_node o where o.node = q.node)
) k
cross join chain_level l
left join registry_node r on r.node = k.node
left join node_profile p on p.node = k.node
left join lateral (
    select count(*) as jobs from job_work w where w.node = k.node and w.state = 'leased'
) active on true
left join lateral (
    select count(*) as jobs from job_completion c where c.node = k.node
) completed on true
left join lateral (
    -- Paid and slashed only once that is final.
    select
        count(*) filter (where e.state = 'paid' and e.closed_block <= l.final_number) as jobs,
        coalesce(sum(e.slashed) filter (where e.closed_block <= l.final_number), 0) as slashed,
        coalesce(sum(e.slashed) filter (where e.closed_block > l.final_number), 0) as slashing
    from escrow_job e where e.node = k.node and e.state in ('paid', 'resolved')
) paid on true
cross join lateral (
    -- Where its stake moved last. What did not move since is as it was at the final block.
    select coalesce(
        (select max(y.block_number) from ledger_entry y
         where y.block_number > l.final_number and y.block_number <= l.block_number and y.account = 'stake' and y.owner = k.node),
        nullif(nullif(l.final_number, -1), 9223372036854775807)
    ) as number
) moved
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
