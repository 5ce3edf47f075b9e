//! What becomes of jobs and payments as blocks come on top of them.

use alloy::primitives::{Address, B256};
use market::Amount;
use market::confirmation::{self, Finality, Level, Policy};
use market::db::chain::{self, Block, BlockId, Step};
use market::db::chain_view::{self, ObserveError, Standing};
use market::db::job_view::{self, JobView};
use market::db::leader::{Fence, Leadership, Role};
use market::db::queue::{self, Worker};
use market::db::{blob, confirmation as rows, outbox};
use market::fold::Contracts;
use market::job::JobStatus;
use market::redis::pubsub::{Signal, Subscription};
use market::typed_data;

use crate::support::{CHAIN_ID, World, hash, job, node, node_id, requester, spec};

fn block_hash(number: u64) -> B256 {
    hash(0xb0, u8::try_from(number).unwrap())
}

/// A chain that its nodes finalize, and jobs of up to 999 that must be 2 deep, up to 5,000 that must be 5 deep.
fn policy() -> Policy {
    let step = |up_to: u128, depth| confirmation::Step { token: Address::ZERO, up_to: up_to.into(), depth };
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
        sqlx::query("update chain_cursor set block_number = $1, block_hash = $2, epoch = 0, final_number = null")
            .bind(block)
            .bind(block_hash(block.unsigned_abs()).as_slice())
            .execute(&world.pool)
            .await
            .unwrap();
        let chain = Self { world, leadership };
        let mut tx = chain.world.pool.begin().await.unwrap();
        rows::adopt(&mut tx, chain.fence(), policy, chain.world.start).await.unwrap();
        tx.commit().await.unwrap();
        chain
    }

    fn fence(&self) -> Fence {
        self.leadership.fence()
    }

    /// The chain's nodes call `number` final.
    async fn finalized(&self, number: u64) -> Result<Standing, ObserveError> {
        let finalized = Some(BlockId { number, hash: block_hash(number) });
        let mut tx = self.world.pool.begin().await.unwrap();
        let standing = chain_view::observe(&mut tx, self.fence(), 200, finalized, self.world.start).await?;
        tx.commit().await.unwrap();
        Ok(standing)
    }

    /// The indexer applies blocks without events, up to `number`; from `ancestor` on others, if it is a reorg.
    async fn applies(&self, ancestor: Option<u64>, number: u64) {
        let contracts = Contracts {
            chain_id: CHAIN_ID,
            escrow: Address::repeat_byte(0xe5),
            registry: Address::repeat_byte(0xe5),
            domain: typed_data::domain(CHAIN_ID, Address::repeat_byte(0xe5)),
            confirmation: Policy::default(),
        };
        let mut tx = self.world.pool.begin().await.unwrap();
        let from = chain::cursor(&mut tx).await.unwrap().unwrap().block;
        let id = BlockId { number, hash: block_hash(number) };
        let step = Step {
            from,
            ancestor: ancestor.map(|number| BlockId { number, hash: block_hash(number) }),
            blocks: vec![Block { id, parent_hash: block_hash(number - 1), mined_at: self.world.start }],
            events: Vec::new(),
            settled: 0,
        };
        chain::apply(&mut tx, self.fence(), &contracts, &step, self.world.start).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn view(&self, n: u8) -> JobView {
        let mut db = self.world.pool.acquire().await.unwrap();
        job_view::by_id(&mut db, job(n)).await.unwrap().unwrap()
    }

    async fn level(&self, n: u8) -> (u64, Level) {
        let confirmation = self.view(n).await.confirmation.unwrap();
        (confirmation.depth, confirmation.level)
    }

    /// Whether Redis suggests the job and Postgres would give it to a node.
    async fn is_claimable(&self, n: u8) -> (bool, bool) {
        self.world.drain(1).await;
        let suggested = self.world.suggested(10, 100).await.contains(&job(n));
        let mut tx = self.world.pool.begin().await.unwrap();
        let worker = Worker {
            node: node(5),
            operations: vec!["encrypt".to_owned()],
            stake: Amount::ZERO,
            reputation: 100,
            assigner: Address::repeat_byte(0xee),
            deadline_from: self.world.start,
            unfunded: Vec::new(),
        };
        let now = self.world.start;
        let listed = queue::candidates(&mut tx, &worker, Address::ZERO, 10, now).await.unwrap().contains(&job(n));
        let locked = !queue::lock(&mut tx, &[job(n)], &worker, 1, now).await.unwrap().is_empty();
        assert_eq!(listed, locked, "both ask the same");
        (suggested, locked)
    }

    async fn input_is_stored(&self) {
        let mut db = self.world.pool.acquire().await.unwrap();
        blob::insert(&mut db, spec().inputCID.parse().unwrap(), 2, requester(), self.world.start).await.unwrap();
    }

    async fn told_without_taking(&self) -> Vec<(String, String)> {
        let mut db = self.world.pool.acquire().await.unwrap();
        let rows = outbox::next(&mut db, outbox::Source::Chain, 1000).await.unwrap();
        rows.into_iter().map(|row| (row.entity.to_string(), row.event)).collect()
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
         insert into chain_event (block_hash, log_index, block_number, tx_hash, contract, kind, topics, data, canonical)
         select hash, 0, 9, hash, decode(repeat('e5', 20), 'hex'), 'JobPaid', decode(repeat('00', 32), 'hex') || $1, '', true from block",
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

    sqlx::raw_sql("update chain_block set canonical = false; update chain_event set canonical = false")
        .execute(&chain.world.pool)
        .await
        .unwrap();
    let standing = chain.finalized(90).await.unwrap();
    assert_eq!(standing.final_block, Some(10), "no more than is applied");
    assert!(chain.told().await.is_empty(), "no canonical block, no payment in it");
}

#[tokio::test]
async fn a_stale_leader_takes_nothing_down_and_another_policy_has_open_jobs_looked_at_again() {
    let chain = Chain::at(10, &policy()).await;
    chain.world.open(1, node(0), 3600, 0).await;
    chain.told().await;
    let strict = Policy::default();
    let mut tx = chain.world.pool.begin().await.unwrap();
    rows::adopt(&mut tx, chain.fence(), &policy(), chain.world.start).await.unwrap();
    tx.commit().await.unwrap();
    assert!(chain.told().await.is_empty(), "it is the same");
    let mut tx = chain.world.pool.begin().await.unwrap();
    rows::adopt(&mut tx, chain.fence(), &strict, chain.world.start).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(chain.told().await, [told(job(1), "job.confirmed")]);

    let stale = chain.fence();
    sqlx::query("update leader set epoch = epoch + 1").execute(&chain.world.pool).await.unwrap();
    let mut tx = chain.world.pool.begin().await.unwrap();
    let error = chain_view::observe(&mut tx, stale, 300, None, chain.world.start).await.unwrap_err();
    assert!(matches!(error, ObserveError::Fence(_)), "{error}");
}

#[tokio::test]
async fn a_job_is_queued_only_as_deep_as_its_value_asks_and_leaves_the_queue_if_a_reorg_makes_it_shallower() {
    let chain = Chain::at(1, &policy()).await;
    chain.input_is_stored().await;
    chain.world.open(1, Address::ZERO, 3600, 0).await;
    assert_eq!(chain.view(1).await.stored_status, JobStatus::Pending, "shown at once");
    assert_eq!(chain.level(1).await, (0, Level::Pending));
    assert_eq!(chain.is_claimable(1).await, (false, false), "of 1,000 it must be 5 deep");
    assert_eq!(chain.world.status(job(1)).await["status"], "pending");
    chain.told().await;

    chain.applies(None, 5).await;
    assert!(chain.told().await.is_empty(), "4 deep");
    assert_eq!(chain.is_claimable(1).await, (false, false));
    chain.applies(None, 6).await;
    assert_eq!(chain.level(1).await, (5, Level::Confirmed));
    assert_eq!(chain.is_claimable(1).await, (true, true));

    chain.applies(Some(4), 5).await;
    assert_eq!(chain.level(1).await, (4, Level::Pending));
    assert_eq!(chain.is_claimable(1).await, (false, false), "the chain is shorter now");
    chain.applies(None, 6).await;
    assert_eq!(chain.is_claimable(1).await, (true, true));
    chain.applies(None, 7).await;
    assert!(chain.told().await.is_empty(), "nothing more follows from more depth");
}

#[tokio::test]
async fn what_is_worth_more_than_the_last_step_or_in_another_token_waits_until_it_is_final() {
    let chain = Chain::at(1, &policy()).await;
    chain.input_is_stored().await;
    chain.world.open(1, Address::ZERO, 3600, 0).await;
    chain.world.open(2, Address::ZERO, 3600, 0).await;
    let set = "update escrow_job set max_price = 5001 where job_id = $1";
    sqlx::query(set).bind(job(1).as_slice()).execute(&chain.world.pool).await.unwrap();
    let set = "update escrow_job set token = decode(repeat('07', 20), 'hex') where job_id = $1";
    sqlx::query(set).bind(job(2).as_slice()).execute(&chain.world.pool).await.unwrap();
    chain.applies(None, 60).await;
    for n in [1, 2] {
        assert_eq!(chain.level(n).await, (59, Level::Pending));
        assert_eq!(chain.is_claimable(n).await, (false, false));
    }
    chain.finalized(1).await.unwrap();
    for n in [1, 2] {
        assert_eq!(chain.level(n).await, (59, Level::Final));
        assert_eq!(chain.is_claimable(n).await, (true, true));
    }
}

#[tokio::test]
async fn a_payment_is_settling_until_it_is_final_and_its_name_is_told_then() {
    let chain = Chain::at(9, &policy()).await;
    let world = &chain.world;
    world.register(7, node_id(7), 5, 0).await;
    world.open(1, node(7), 3600, 0).await;
    world.claim(1, 7, 1).await;
    world.complete(1, 7, 2).await;
    world.paid(1, 7, 3).await;
    pays(world, 1, 9).await;
    let mut heard = Subscription::open(world.redis.clone(), vec![world.redis.keys().channel_job(job(1))]);
    assert_eq!(heard.next().await, Signal::Resumed);
    world.drain(4).await;
    let view = chain.view(1).await;
    assert_eq!((view.stored_status, view.paid()), (JobStatus::Settling, None));
    assert_eq!(chain.level(1).await, (0, Level::Confirmed), "deep enough to be queued, once");
    let dump = world.dump().await;
    assert_eq!(dump[&world.redis.keys().payments_pending(node_id(7))]["value"].as_array().unwrap().len(), 1);
    assert!(!dump.contains_key("payments:completed"));
    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != "job.completed") {
        names.push(event(&mut heard).await);
    }
    assert!(names.contains(&"job.settling".to_owned()) && !names.contains(&"job.paid".to_owned()), "{names:?}");

    chain.applies(None, 20).await;
    assert_eq!(chain.view(1).await.stored_status, JobStatus::Settling, "however deep");
    chain.finalized(9).await.unwrap();
    assert_eq!(chain.told_without_taking().await, [told(job(1), "job.paid")]);
    world.drain(5).await;
    assert_eq!(event(&mut heard).await, "job.paid");
    assert_eq!(chain.view(1).await.stored_status, JobStatus::Paid);
    let dump = world.dump().await;
    assert!(dump.contains_key("payments:completed") && !dump.keys().any(|key| key.starts_with("payments:pending:")));
}

/// The log of the payment.
async fn pays(world: &World, n: u8, block: u8) {
    sqlx::query(
        "with block as (
             insert into chain_block (hash, number, parent_hash, mined_at, canonical)
             values ($2, $3, $2, now(), true) returning hash, number)
         insert into chain_event (block_hash, log_index, block_number, tx_hash, contract, kind, topics, data, canonical)
         select hash, 0, number, hash, decode(repeat('e5', 20), 'hex'), 'JobPaid', decode(repeat('00', 32), 'hex') || $1, '', true from block",
    )
    .bind(job(n).as_slice())
    .bind(block_hash(u64::from(block)).as_slice())
    .bind(i64::from(block))
    .execute(&world.pool)
    .await
    .unwrap();
}

async fn event(heard: &mut Subscription) -> String {
    loop {
        if let Signal::Message { payload, .. } = heard.next().await {
            let message: serde_json::Value = serde_json::from_str(&payload).unwrap();
            return message["event"].as_str().unwrap().to_owned();
        }
    }
}
