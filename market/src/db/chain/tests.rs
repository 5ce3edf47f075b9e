//! Against a real Postgres: histories of the contracts, applied, taken back and applied again.

use alloy::primitives::I256;
use devnet::TestDatabase;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use sqlx::PgPool;

use super::*;
use crate::confirmation::Level;
use crate::db::chain_view::of_channels;
use crate::db::leader::{Leadership, Role};
use crate::db::outbox::Entity;
use crate::db::voucher::Channel;
use crate::fold::model::{self, Action, Model, contracts, histories, node, requester, token};
use crate::fold::{Key, RawLog, Rows, time_of};
use crate::ledger::Account;

/// A database that an indexer leads.
struct Index {
    pool: PgPool,
    leadership: Leadership,
    at: BlockId,
    /// Of the steps to come.
    settled: u64,
    _database: TestDatabase,
}

/// A block and its events.
type Mined = (Block, Vec<ChainEvent>);

fn now() -> DateTime<Utc> {
    time_of(1_900_000_000)
}

fn block(number: u64, salt: u8) -> Block {
    let hash = |number: u64| {
        let mut hash = B256::left_padding_from(&number.to_be_bytes());
        hash.0[0] = salt;
        hash
    };
    let id = BlockId { number, hash: hash(number) };
    Block { id, parent_hash: hash(number.saturating_sub(1)), mined_at: time_of(1_800_000_000 + number) }
}

/// The blocks of a history, with hashes of their own by `salt`.
fn mined(events: &[ChainEvent], salt: u8) -> Vec<Mined> {
    let last = events.last().map_or(0, |event| event.log.block_number);
    let mut blocks: Vec<Mined> = (1..=last).map(|number| (block(number, salt), vec![])).collect();
    for event in events {
        let mut event = event.clone();
        let (block, events) = &mut blocks[usize::try_from(event.log.block_number).unwrap() - 1];
        event.log.block_hash = block.id.hash;
        block.mined_at = event.log.mined_at;
        events.push(event);
    }
    blocks
}

fn fold(blocks: &[Mined]) -> Rows {
    let mut rows = Rows::default();
    blocks.iter().flat_map(|(_, events)| events).for_each(|event| rows.apply(event).unwrap());
    rows
}

impl Index {
    async fn new() -> Self {
        let database = TestDatabase::create().await.unwrap();
        let pool = crate::db::connect(database.url(), 4).await.unwrap();
        crate::db::migrate(&pool).await.unwrap();
        let leadership = Leadership::try_acquire(&pool, Role::Indexer, now()).await.unwrap().unwrap();
        let anchor = block(0, 0);
        let mut tx = pool.begin().await.unwrap();
        begin(&mut tx, leadership.fence(), &contracts(), &anchor).await.unwrap();
        tx.commit().await.unwrap();
        Self { pool, leadership, at: anchor.id, settled: 0, _database: database }
    }

    /// Follows `blocks`, after going back to `ancestor` if there is one.
    async fn apply(&mut self, ancestor: Option<BlockId>, blocks: &[Mined]) -> Applied {
        self.try_apply(ancestor, blocks).await.unwrap()
    }

    async fn try_apply(&mut self, ancestor: Option<BlockId>, blocks: &[Mined]) -> Result<Applied, ApplyError> {
        let (from, events) = (self.at, blocks.iter().flat_map(|(_, events)| events).cloned().collect());
        let blocks: Vec<Block> = blocks.iter().map(|(block, _)| block.clone()).collect();
        let tip = blocks.last().unwrap().id;
        let step = Step { from, ancestor, blocks, events, settled: self.settled };
        let mut tx = self.pool.begin().await.unwrap();
        let applied = apply(&mut tx, self.leadership.fence(), &contracts(), &step, now()).await?;
        tx.commit().await.unwrap();
        self.at = tip;
        Ok(applied)
    }

    /// Numbers of the blocks that have left images.
    async fn images_of(&self) -> Vec<i64> {
        let mut db = self.pool.acquire().await.unwrap();
        let numbers = sqlx::query_scalar!("select distinct block_number from chain_undo order by block_number");
        numbers.fetch_all(&mut *db).await.unwrap()
    }

    async fn undo_above(&self) -> u64 {
        cursor(&mut self.pool.acquire().await.unwrap()).await.unwrap().unwrap().undo_above
    }

    /// Asserts that rows and ledger are what `blocks` amount to.
    async fn assert_is(&self, blocks: &[Mined]) {
        let mut db = self.pool.acquire().await.unwrap();
        let expected = fold(blocks);
        assert_eq!(all_rows(&mut db).await.unwrap(), expected);
        let mut sums: BTreeMap<(Account, Address), I256> = BTreeMap::new();
        let mut rows = Rows::default();
        for event in blocks.iter().flat_map(|(_, events)| events) {
            let keys = event.event.keys();
            let before = Balances::of(&rows, &keys);
            rows.apply(event).unwrap();
            for entry in entries(&event.event, &before, &Balances::of(&rows, &keys)) {
                *sums.entry((entry.account, entry.token)).or_default() += entry.amount;
            }
        }
        sums.retain(|_, sum| !sum.is_zero());
        let balances = ledger::balances(&mut db).await.unwrap();
        let balances = balances.into_iter().map(|row| ((row.account, row.token), row.amount)).collect();
        assert_eq!(sums, balances);
        assert_eq!(ledger::not_taken_back(&mut db).await.unwrap(), []);
        let (first, last) = (blocks[0].0.id.number, self.at.number);
        let events = blocks.iter().flat_map(|(_, events)| events);
        let logs: Vec<_> = events.map(|event| event.log.clone()).collect();
        assert_eq!(canonical_between(&mut db, first, last).await.unwrap(), logs);
    }

    /// What the outbox says of jobs, and forgets it.
    async fn told(&self) -> Vec<(B256, String)> {
        let mut db = self.pool.acquire().await.unwrap();
        let rows = outbox::next(&mut db, Source::Chain, 1000).await.unwrap();
        outbox::remove(&mut db, Source::Chain, &rows.iter().map(|row| row.seq).collect::<Vec<_>>()).await.unwrap();
        let job = |row: outbox::Entry| match row.entity {
            Entity::Job(id) => Some((id, row.event)),
            Entity::Node(_) => None,
        };
        rows.into_iter().filter_map(job).collect()
    }
}

#[tokio::test]
async fn whatever_is_taken_back_and_comes_again_counts_as_the_final_chain_has_it() {
    let mut runner = TestRunner::deterministic();
    for _ in 0..6 {
        let ours = mined(&histories().new_tree(&mut runner).unwrap().current().events(), 0);
        let mut index = Index::new().await;
        index.apply(None, &ours[..1]).await;
        for step in ours[1..].chunks(7) {
            index.apply(None, step).await;
        }
        index.assert_is(&ours).await;
        for (cut, salt) in [(ours.len() - 1, 1), (ours.len() / 2, 2), (1, 3)] {
            // Onto a branch with the same events in other blocks and nothing after them, and back onto the first one.
            let ancestor = Some(ours[cut - 1].0.id);
            let events: Vec<ChainEvent> = ours.iter().flat_map(|(_, events)| events).cloned().collect();
            let mut other = mined(&events, salt);
            other[..cut].clone_from_slice(&ours[..cut]);
            let shorter = &other[..cut + (ours.len() - cut).div_ceil(2)];
            index.apply(ancestor, &shorter[cut..]).await;
            index.assert_is(shorter).await;
            let applied = index.apply(ancestor, &ours[cut..]).await;
            let undone = shorter[cut..].iter().map(|(_, events)| events.len()).sum::<usize>();
            assert_eq!(applied.events_undone, u64::try_from(undone).unwrap());
            index.assert_is(&ours).await;
        }
    }
}

/// What the chain's latest actions turn into: how many are taken back, what comes in their place, and how many blocks a step of
/// the cursor takes.
fn turns() -> impl Strategy<Value = Vec<(usize, Vec<Action>, usize)>> {
    proptest::collection::vec(
        (0..40_usize, proptest::collection::vec(model::action(model::ORDERS), 1..40), 1..6_usize),
        2..12,
    )
}

/// Forward by steps of one and of several blocks, and back into the middle of any of them, onto branches that differ in hashes
/// and in events.
#[tokio::test]
async fn whatever_reorgs_come_the_rows_are_a_fold_of_the_final_chain() {
    let same = |(ours, other): &(&Mined, &Mined)| {
        let logs = |mined: &Mined| mined.1.iter().map(|event| event.log.clone()).collect::<Vec<_>>();
        let alike = |(one, other): (&RawLog, &RawLog)| {
            (one.mined_at, &one.topics, &one.data) == (other.mined_at, &other.topics, &other.data)
        };
        ours.1.len() == other.1.len() && logs(ours).iter().zip(&logs(other)).all(alike)
    };
    let (mut runner, mut reorgs) = (TestRunner::deterministic(), 0);
    for _ in 0..model::config().cases.div_ceil(12) {
        let mut index = Index::new().await;
        let mut actions: Vec<Action> = model::preparations().collect();
        let mut chain: Vec<Mined> = vec![];
        for (salt, (gone, come, at_once)) in (1_u8..).zip(turns().new_tree(&mut runner).unwrap().current()) {
            actions.truncate(actions.len().saturating_sub(gone));
            actions.extend(come);
            let branch = mined(&Model::after(&actions).events(), salt);
            let kept = chain.iter().zip(&branch).take_while(same).count();
            if kept == branch.len() {
                continue;
            }
            let last = kept.checked_sub(1).map_or(block(0, 0).id, |last| chain[last].0.id);
            let ancestor = (kept < chain.len()).then_some(last);
            reorgs += usize::from(ancestor.is_some());
            chain.truncate(kept);
            chain.extend_from_slice(&branch[kept..]);
            // A branch comes whole; what only goes on may come in steps.
            let first = if ancestor.is_some() { chain.len() } else { chain.len().min(kept + at_once) };
            index.apply(ancestor, &chain[kept..first]).await;
            for step in chain[first..].chunks(at_once) {
                index.apply(None, step).await;
            }
            index.assert_is(&chain).await;
        }
    }
    assert!(reorgs > 10, "only {reorgs} reorgs");
}

#[tokio::test]
async fn a_reorg_deeper_than_the_images_is_refused_and_changes_nothing() {
    let actions: Vec<Action> = (1..20).flat_map(|n| [Action::Deposit(0, 0, n), Action::Wait(1)]).collect();
    let ours = mined(&Model::after(&actions).events(), 0);
    let mut index = Index::new().await;
    // Settled in the middle of a step: blocks up to 6 leave no images.
    index.settled = 6;
    index.apply(None, &ours[..10]).await;
    assert_eq!((index.images_of().await, index.undo_above().await), (vec![7, 8, 9, 10], 6));
    let other = mined(&Model::after(&actions[..30]).events(), 1);
    let refused = index.try_apply(Some(ours[4].0.id), &other[5..12]).await.unwrap_err();
    assert!(matches!(refused, ApplyError::TooDeep { ancestor: 5, undo_above: 6 }), "{refused}");
    index.assert_is(&ours[..10]).await;
    index.apply(Some(ours[5].0.id), &other[6..12]).await;
    index.assert_is(&[&ours[..6], &other[6..12]].concat()).await;

    // Images go once their blocks are settled, not with every block.
    index.settled = 8;
    index.apply(None, &other[12..13]).await;
    assert_eq!((index.images_of().await.first(), index.undo_above().await), (Some(&7), 6));
    index.settled = 13 + 40;
    let empty: Vec<Mined> = (14..60).map(|number| (block(number, 1), vec![])).collect();
    index.apply(None, &empty).await;
    assert_eq!((index.images_of().await, index.undo_above().await), (vec![], 53));
    let refused = index.try_apply(Some(empty[0].0.id), &other[14..15]).await.unwrap_err();
    assert!(matches!(refused, ApplyError::TooDeep { ancestor: 14, undo_above: 53 }), "{refused}");
}

#[tokio::test]
async fn events_that_cannot_follow_change_nothing_and_leave_the_connection_as_it_was() {
    let mut index = Index::new().await;
    let actions = [Action::Deposit(0, 0, 500), Action::Register(0, 0), Action::Stake(0, 700), Action::Stake(0, 9)];
    let blocks = mined(&Model::after(&actions).events(), 0);
    let events: Vec<ChainEvent> = blocks.iter().flat_map(|(_, events)| events).cloned().collect();
    let unregistered: Vec<ChainEvent> =
        events.into_iter().filter(|event| event.event.kind() != "NodeUpdated").collect();
    let mut db = index.pool.acquire().await.unwrap();
    for _ in 0..2 {
        let step = Step {
            from: index.at,
            ancestor: None,
            blocks: vec![blocks.last().unwrap().0.clone()],
            events: unregistered.clone(),
            settled: 0,
        };
        let mut tx = sqlx::Connection::begin(&mut *db).await.unwrap();
        let refused = apply(&mut tx, index.leadership.fence(), &contracts(), &step, now()).await.unwrap_err();
        assert!(matches!(refused, ApplyError::Fold(_)), "{refused}");
        tx.rollback().await.unwrap();
    }
    drop(db);
    assert_eq!(cursor(&mut index.pool.acquire().await.unwrap()).await.unwrap().unwrap().block, index.at);
    index.apply(None, &blocks).await;
    index.assert_is(&blocks).await;
}

// What no program does has no query of its own.
#[allow(clippy::disallowed_methods)]
#[tokio::test]
async fn a_block_that_comes_back_takes_the_place_of_what_was_stored_of_it() {
    let mut index = Index::new().await;
    let actions: Vec<Action> = (1..4).flat_map(|n| [Action::Deposit(0, 0, n), Action::Wait(1)]).collect();
    let ours = mined(&Model::after(&actions).events(), 0);
    index.apply(None, &ours).await;
    index.apply(Some(ours[0].0.id), &[(block(2, 1), vec![])]).await;
    for spoil in
        ["update chain_event set data = '\\x00', canonical = false", "delete from chain_event where block_number = 3"]
    {
        sqlx::query(spoil).execute(&index.pool).await.unwrap();
    }
    index.apply(Some(block(0, 0).id), &ours).await;
    index.assert_is(&ours).await;
}

async fn refusal(index: &Index, statement: impl AsyncFnOnce(&PgPool) -> Result<(), sqlx::Error>) -> String {
    statement(&index.pool).await.unwrap_err().to_string()
}

#[tokio::test]
async fn the_ledger_takes_no_change_and_nothing_that_does_not_balance() {
    let mut index = Index::new().await;
    index.apply(None, &mined(&Model::after(&[Action::Deposit(0, 0, 500)]).events(), 0)).await;
    let before = ledger::balances(&mut index.pool.acquire().await.unwrap()).await.unwrap();
    assert_eq!(before.len(), 2);
    let changed = refusal(&index, async |pool| {
        sqlx::query!("update ledger_entry set amount = amount + 1").execute(pool).await.map(drop)
    });
    assert!(changed.await.contains("append-only"));
    let removed = refusal(&index, async |pool| sqlx::query!("delete from ledger_entry").execute(pool).await.map(drop));
    assert!(removed.await.contains("append-only"));
    let emptied = refusal(&index, async |pool| sqlx::query!("truncate ledger_entry").execute(pool).await.map(drop));
    assert!(emptied.await.contains("append-only"));
    let one_sided = refusal(&index, async |pool| {
        sqlx::query!(
            "insert into ledger_entry (block_number, block_hash, log_index, reversal, account, token, amount)
             values (1, $1, 0, false, 'fee', $2, 5)",
            DbHash(B256::ZERO) as _,
            DbAddress(Address::ZERO) as _
        )
        .execute(pool)
        .await
        .map(drop)
    });
    assert!(one_sided.await.contains("do not sum to zero"));
    // Two tokens do not balance each other, nor do two logs.
    let crossed = refusal(&index, async |pool| {
        sqlx::query!(
            "insert into ledger_entry (block_number, block_hash, log_index, reversal, account, token, amount)
             values (1, $1, 0, false, 'fee', $2, 5), (1, $1, 0, false, 'world', $3, -5),
                    (1, $1, 1, false, 'world', $2, -5), (1, $1, 1, false, 'fee', $3, 5)",
            DbHash(B256::ZERO) as _,
            DbAddress(Address::ZERO) as _,
            DbAddress(token(1)) as _
        )
        .execute(pool)
        .await
        .map(drop)
    });
    assert!(crossed.await.contains("do not sum to zero"));
    assert_eq!(ledger::balances(&mut index.pool.acquire().await.unwrap()).await.unwrap(), before);
}

/// Keeps signed orders 0, 2, … of the model as completed jobs, and a voucher over the first two.
async fn promise(index: &Index, numbers: &[u8], (cumulative, nonce): (u128, u64)) {
    let spec = crate::abi::JobSpec::default();
    let mut db = index.pool.acquire().await.unwrap();
    let node = model::order(numbers[0]).node;
    for n in numbers {
        let order = model::order(*n);
        let id = DbHash(Model::job_id(&order));
        assert!(
            crate::db::order::insert_signed(
                &mut db,
                id.0,
                (&order, &spec),
                b"s",
                &crate::db::order::Terms::default(),
                now()
            )
            .await
            .unwrap()
        );
        sqlx::query!(
            "insert into job_completion (job_id, fence, node, output_cid, result_hash, price, receipt_signature,
                                         assignment_expiry, assignment_signature, started_at, completed_at)
             values ($1, 1, $2, '', $1, 10, '', 0, '', $3, $3)",
            id as _,
            DbAddress(node) as _,
            now()
        )
        .execute(&mut *db)
        .await
        .unwrap();
    }
    let (requester, token) = (model::order(numbers[0]).requester, model::order(numbers[0]).token);
    sqlx::query!(
        "insert into voucher (requester, node, token, cumulative, covered_nonce, signer, signature, created_at)
         values ($1, $2, $3, $4, $5, $1, '', $6)",
        DbAddress(requester) as _,
        DbAddress(node) as _,
        DbAddress(token) as _,
        crate::db::types::DbAmount::from(cumulative) as _,
        crate::db::types::DbAmount::from(u128::from(nonce)) as _,
        now()
    )
    .execute(&mut *db)
    .await
    .unwrap();
}

#[tokio::test]
async fn whoever_watches_a_job_is_told_when_a_voucher_pays_for_it_and_when_that_is_taken_back() {
    // Order 6, of requester 0 and node 0 in token 1, has nonce 7; the voucher over it is worth 300.
    let order = model::order(6);
    assert_eq!((order.requester, order.node, order.token, order.nonce), (requester(0), node(0), token(1), 7));
    let id = Model::job_id(&order);
    let mut index = Index::new().await;
    promise(&index, &[6], (300, 7)).await;
    // Found too little at first; then paid; then redeemed for more, which is none of the job's business.
    let deposit = |amount| Action::Deposit(0, 1, amount);
    let redeem = |due| Action::Redeem(0, 1, vec![(0, due, 7, None)]);
    let later = Action::Wait(1);
    let course = [deposit(100), later.clone(), redeem(300), later.clone(), deposit(900), later.clone(), redeem(200)];
    let blocks = mined(&Model::after(&course).events(), 0);
    let redeeming = |(_, events): &&Mined| events.iter().any(|event| event.event.kind() == "VouchersRedeemed");
    let places: Vec<u64> = blocks.iter().filter(redeeming).map(|(block, _)| block.id.number).collect();
    let [first, second] = [places[0], places[1]].map(|number| usize::try_from(number).unwrap());

    index.apply(None, &blocks[..first]).await;
    assert_eq!(index.told().await, [(id, "job.covered".to_owned())]);
    index.apply(None, &blocks[first..second]).await;
    assert_eq!(index.told().await, [(id, "job.paid".to_owned())]);
    let other: Vec<Mined> = (second..=second).map(|n| (block(u64::try_from(n).unwrap(), 9), vec![])).collect();
    index.apply(Some(blocks[second - 2].0.id), &other).await;
    assert_eq!(index.told().await, [(id, "job.reorged".to_owned())]);
    index.apply(Some(blocks[second - 2].0.id), &blocks[second - 1..second]).await;
    assert_eq!(index.told().await, [(id, "job.paid".to_owned())]);

    // Elsewhere, the same transaction.
    let elsewhere: Vec<Mined> = mined(&Model::after(&course).events(), 7).split_off(second - 1);
    index.apply(Some(blocks[second - 2].0.id), &elsewhere[..1]).await;
    assert_eq!(index.told().await, [(id, "job.moved".to_owned())]);
    index.apply(Some(blocks[second - 2].0.id), &blocks[second - 1..second]).await;
    assert_eq!(index.told().await, [(id, "job.moved".to_owned())]);

    let more = [&course[..], &[later, redeem(50)]].concat();
    let more = mined(&Model::after(&more).events(), 0);
    index.apply(None, &more[second..]).await;
    assert_eq!(index.told().await, [], "a job is paid once");
}

#[tokio::test]
async fn a_transaction_that_is_mined_elsewhere_moved() {
    let mut index = Index::new().await;
    let wait = || Action::Wait(1);
    let course: Vec<Action> = model::preparations().flat_map(|action| [action, wait()]).collect();
    let [one, two] = [4, 6].map(|n| (Model::job_id(&model::order(n)), Action::Open(n, 0)));
    let both = [&course[..], &[one.1.clone(), wait(), two.1, wait()]].concat();
    let both = mined(&Model::after(&both).events(), 0);
    index.apply(None, &both).await;
    let said = |id: B256, what: &str| (id, what.to_owned());
    assert_eq!(index.told().await, [said(one.0, "job.opened"), said(two.0, "job.opened")]);

    // On the other branch the first is opened as it was, the second not at all.
    let only = [&course[..], &[one.1, wait()]].concat();
    let only = mined(&Model::after(&only).events(), 5);
    let fork = both.len() - 2;
    index.apply(Some(both[fork - 1].0.id), &only[fork..]).await;
    let mut told = index.told().await;
    told.sort();
    let mut expected = [said(one.0, "job.moved"), said(two.0, "job.reorged")];
    expected.sort();
    assert_eq!(told, expected);
}

#[tokio::test]
async fn a_channel_is_as_sure_as_the_last_block_that_changed_it() {
    let blocks = mined(&histories().new_tree(&mut TestRunner::deterministic()).unwrap().current().events(), 0);
    let mut index = Index::new().await;
    for step in blocks.chunks(5) {
        index.apply(None, step).await;
    }
    let mut changed: BTreeMap<Channel, u64> = BTreeMap::new();
    for event in blocks.iter().flat_map(|(_, events)| events) {
        for key in event.event.keys() {
            if let Key::Channel { requester, node, token } = key {
                changed.insert(Channel { requester, node, token }, event.log.block_number);
            }
        }
    }
    assert!(changed.len() > 2, "a history with some channels");
    let mut channels: Vec<Channel> = changed.keys().copied().collect();
    channels.push(Channel { requester: node(0), node: requester(0), token: token(0) });
    let tip = index.at.number;
    let mut db = index.pool.acquire().await.unwrap();
    let seen = of_channels(&mut db, &channels).await.unwrap();
    let numbers = seen[..changed.len()].iter().map(|seen| {
        let seen = seen.unwrap();
        assert_ne!(seen.level, Level::Final, "{seen:?}");
        assert_eq!(seen.depth, tip - seen.block_number);
        seen.block_number
    });
    assert_eq!(numbers.collect::<Vec<_>>(), changed.values().copied().collect::<Vec<_>>());
    assert_eq!(seen[changed.len()], None, "of which the chain says nothing");

    sqlx::query!("update chain_cursor set final_number = block_number").execute(&mut *db).await.unwrap();
    let seen = of_channels(&mut db, &channels).await.unwrap();
    assert!(seen[..changed.len()].iter().all(|seen| seen.unwrap().level == Level::Final), "{seen:?}");
    assert_eq!(seen[changed.len()], None);
}
