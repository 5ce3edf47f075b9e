-- Leadership: an advisory lock elects, the epoch fences. Each role's row is written by that role's leader only.
create table leader (
    role  text primary key check (role in ('indexer', 'settler')),
    epoch bigint not null check (epoch >= 0),
    since timestamptz not null
);

-- A job's status, over the rows that each writer owns. Whether a pending job has expired depends on the clock and is left
-- to the reader.
create view job_status as
select
    coalesce(e.job_id, s.job_id) as job_id,
    case
        when e.state = 'paid' then 'paid'
        when e.state = 'refunded' then 'refunded'
        when e.state = 'submitted' then 'challengeable'
        when e.job_id is null then 'awaiting_escrow'
        when w.state = 'completed' and b.job_id is not null then 'settling'
        when w.state = 'completed' then 'completed'
        when w.state = 'failed' then 'failed'
        when w.state = 'leased' then 'active'
        else 'pending'
    end as status
from escrow_job e
full join job_submission s on s.job_id = e.job_id
left join job_work w on w.job_id = coalesce(e.job_id, s.job_id)
left join lateral (
    select i.job_id
    from settlement_item i
    join settlement_batch sb on sb.id = i.batch_id
    where i.job_id = e.job_id and sb.state = 'pending'
    limit 1
) b on true;
