//! What becomes of jobs and payments as blocks come on top of them.

use alloy::primitives::{Address, B256};
use market::confirmation::{Finality, Policy, Step};
use market::db::chain::BlockId;
use market::db::chain_view::{self, ObserveError, Standing};
use market::db::leader::{Fence, Leadership, Role};
use market::db::{confirmation, outbox};

use crate::support::{World, hash, job, node};

/// A chain that its nodes finalize, and jobs of up to 999 that must be 2 deep, up to 5,000 that must be 5 deep.
fn policy() -> Policy {
    let step = |up_to: u128, depth| Step { token: Address::ZERO, up_to: up_to.into(), depth };
    Policy::new(Finality::Tag, false, vec![step(999, 2), step(5_000, 5)]).unwrap()
}

/// A world whose cursor this test moves.
struct Chain {
    world: World,
    leadership: Leadership,
}

impl Chain {
    async fn at(block: i64, policy: &Policy) -> Self {
        let world = World::new().await;
        let leadership =
            Leadership::try_acquire(&world.pool, Role::Indexer, world.start).await.unwrap().expect("nobody else leads");
        sqlx::query("update chain_cursor set block_number = $1, final_number = null")
            .bind(block)
            .execute(&world.pool)
            .await
            .unwrap();
        let chain = Self { world, leadership };
        let mut tx = chain.world.pool.begin().await.unwrap();
        confirmation::adopt(&mut tx, chain.fence(), policy, chain.world.start).await.unwrap();
        tx.commit().await.unwrap();
        chain
    }

    fn fence(&self) -> Fence {
        self.leadership.fence()
    }

    /// The chain's nodes call `number` final.
    async fn finalized(&self, number: u64) -> Result<Standing, ObserveError> {
        let finalized = Some(BlockId { number, hash: hash(0xb0, u8::try_from(number).unwrap()) });
        let mut tx = self.world.pool.begin().await.unwrap();
        let standing = chain_view::observe(&mut tx, self.fence(), 200, finalized, self.world.start).await?;
        tx.commit().await.unwrap();
        Ok(standing)
    }

    /// What the outbox has, and takes it out.
    async fn told(&self) -> Vec<(String, String)> {
        let mut db = self.world.pool.acquire().await.unwrap();
        let rows = outbox::next(&mut db, outbox::Source::Chain, 1000).await.unwrap();
        outbox::remove(&mut db, outbox::Source::Chain, &rows.iter().map(|row| row.seq).collect::<Vec<_>>())
            .await
            .unwrap();
        rows.into_iter().map(|row| (row.entity.to_string(), row.event)).collect()
    }
}

fn told(entity: B256, event: &str) -> (String, String) {
    (format!("job {entity}"), event.to_owned())
}

#[tokio::test]
async fn what_the_nodes_call_final_is_told_once_and_never_goes_back() {
    let chain = Chain::at(10, &policy()).await;
    chain.world.open(1, node(0), 3600, 0).await;
    chain.world.open(2, node(0), 3600, 0).await;
    chain.world.paid(2, 7, 1).await;
    sqlx::query(
        "with block as (
             insert into chain_block (hash, number, parent_hash, mined_at, canonical)
             values (decode(repeat('b9', 32), 'hex'), 9, decode(repeat('b8', 32), 'hex'), now(), true) returning hash)
         insert into chain_event (block_hash, log_index, block_number, tx_hash, contract, kind, topics, data, job_id, canonical)
         select hash, 0, 9, hash, decode(repeat('e5', 20), 'hex'), 'JobPaid', '', '', $1, true from block",
    )
    .bind(job(2).as_slice())
    .execute(&chain.world.pool)
    .await
    .unwrap();
    chain.told().await;

    let standing = chain.finalized(4).await.unwrap();
    assert_eq!((standing.block, standing.final_block, standing.irrevocable), (10, Some(4), Some(4)));
    assert_eq!(standing.head, Some(200));
    assert_eq!(chain.told().await, [told(job(1), "job.confirmed")], "opened in block 1");

    assert_eq!(chain.finalized(3).await.unwrap().final_block, Some(4), "a node that is behind knows no better");
    assert!(chain.told().await.is_empty());

    let error = chain.finalized(9).await.unwrap_err();
    assert!(matches!(error, ObserveError::Contradicted { number: 9, .. }), "{error}");
    assert!(chain.told().await.is_empty(), "nothing was taken down");

    sqlx::query("update chain_block set canonical = false").execute(&chain.world.pool).await.unwrap();
    let standing = chain.finalized(90).await.unwrap();
    assert_eq!(standing.final_block, Some(10), "no more than is applied");
    sqlx::query("update chain_block set canonical = true").execute(&chain.world.pool).await.unwrap();
    assert!(chain.told().await.is_empty(), "no canonical block, no payment in it");
}

#[tokio::test]
async fn a_stale_leader_takes_nothing_down_and_another_policy_has_open_jobs_looked_at_again() {
    let chain = Chain::at(10, &policy()).await;
    chain.world.open(1, node(0), 3600, 0).await;
    chain.told().await;
    let strict = Policy::default();
    let mut tx = chain.world.pool.begin().await.unwrap();
    confirmation::adopt(&mut tx, chain.fence(), &policy(), chain.world.start).await.unwrap();
    tx.commit().await.unwrap();
    assert!(chain.told().await.is_empty(), "it is the same");
    let mut tx = chain.world.pool.begin().await.unwrap();
    confirmation::adopt(&mut tx, chain.fence(), &strict, chain.world.start).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(chain.told().await, [told(job(1), "job.confirmed")]);

    let stale = chain.fence();
    sqlx::query("update leader set epoch = epoch + 1").execute(&chain.world.pool).await.unwrap();
    let mut tx = chain.world.pool.begin().await.unwrap();
    let error = chain_view::observe(&mut tx, stale, 300, None, chain.world.start).await.unwrap_err();
    assert!(matches!(error, ObserveError::Fence(_)), "{error}");
}
