//! All that the chain's tables say, to be compared.

use sqlx::postgres::PgConnection;

/// Everything the chain's tables say that follows from the canonical chain alone, one JSON object a row, in a fixed order:
/// two databases that indexed the same chain give the same lines, whatever each saw on its way there.
pub async fn canonical_state(db: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    let lines = sqlx::query_scalar!(
        r#"select line as "line!" from (
               select 1 as tab, jsonb_build_array(block_number, log_index) as pos,
                      (to_jsonb(e) - 'canonical' || '{"table": "chain_event"}')::text as line
               from chain_event e where canonical
               union all
               select 2, jsonb_build_array(job_id), (to_jsonb(j) || '{"table": "escrow_job"}')::text from escrow_job j
               union all
               select 3, jsonb_build_array(owner, token), (to_jsonb(a) || '{"table": "escrow_account"}')::text
               from escrow_account a
               union all
               select 4, jsonb_build_array(node, token), (to_jsonb(w) || '{"table": "escrow_earned"}')::text
               from escrow_earned w
               union all
               select 5, jsonb_build_array(node), (to_jsonb(n) || '{"table": "registry_node"}')::text
               from registry_node n
               union all
               select 6, '[]', (to_jsonb(c) - array['epoch', 'singleton', 'head_number', 'final_number', 'undo_above']
                                || '{"table": "chain_cursor"}')::text
               from chain_cursor c
               union all
               select 7, jsonb_build_array(number), (to_jsonb(b) || '{"table": "chain_block"}')::text
               from chain_block b
               where canonical and exists (
                   select from chain_event e where e.block_number = b.number and e.block_hash = b.hash)
               union all
               select 8, jsonb_build_array(requester, node, token),
                      (to_jsonb(x) || '{"table": "escrow_channel"}')::text from escrow_channel x
               union all
               select 9, jsonb_build_array(requester, session_key, token),
                      (to_jsonb(x) || '{"table": "escrow_session"}')::text from escrow_session x
               union all
               select 10, jsonb_build_array(node, settler), (to_jsonb(x) || '{"table": "escrow_settler"}')::text
               from escrow_settler x
               union all
               select 11, jsonb_build_array(token), (to_jsonb(x) || '{"table": "escrow_fee"}')::text from escrow_fee x
               union all
               select 12, '[]', (to_jsonb(x) || '{"table": "chain_parameter"}')::text from chain_parameter x
               union all
               select 13, jsonb_build_array(account, owner, node, job_id, token),
                      jsonb_build_object('table', 'ledger_entry', 'account', account, 'owner', owner, 'node', node,
                                         'job_id', job_id, 'token', token, 'amount', sum(amount))::text
               from ledger_entry group by account, owner, node, job_id, token having sum(amount) <> 0
           ) as state order by tab, pos"#
    )
    .fetch_all(db)
    .await?;
    Ok(lines)
}
