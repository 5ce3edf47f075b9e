//! What the API reads of jobs and nodes.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256};
use market::db::job_view::{self, Filter, Sum};
use market::db::{node_view, outbox};
use market::job::JobStatus;

use crate::projection::a_bit_of_everything;
use crate::support::{CHAIN_ID, PRICE, World, amount, hash, job, node, node_id, output, requester, spec};

#[tokio::test]
async fn a_view_shows_what_every_writer_says_of_a_job() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let mut db = world.pool.acquire().await.unwrap();
    let mut view = async |n| job_view::by_id(&mut db, job(n)).await.unwrap();

    assert_eq!(view(99).await, None);
    let announced = view(8).await.unwrap();
    assert_eq!(announced.stored_status, JobStatus::AwaitingEscrow);
    assert_eq!((announced.order.requester, announced.spec.clone()), (requester(), spec()));
    assert_eq!((announced.opened, announced.announced_at), (None, Some(world.at(8))));
    assert_eq!(announced.deadline.timestamp(), world.at(3600).timestamp());

    let pending = view(2).await.unwrap();
    assert_eq!((pending.stored_status, pending.order.node), (JobStatus::Pending, node(2)));
    assert_eq!((pending.node, pending.order_node_id), (None, Some(node_id(2))));
    assert_eq!(pending.order.nonce, 2);
    assert_eq!(pending.chain_id, Some(CHAIN_ID));

    let active = view(3).await.unwrap();
    let lease = active.lease.unwrap();
    assert_eq!((active.node, active.node_id), (Some(node(1)), Some(node_id(1))));
    assert_eq!((lease.node, lease.since, lease.expires_at), (node(1), world.at(10), world.at(70)));
    assert_eq!(active.fence.0, 1);

    let completed = view(4).await.unwrap();
    let completion = completed.completion.clone().unwrap();
    assert_eq!((completion.output_cid, completion.price), (output(4).to_string(), amount(PRICE)));
    assert_eq!((completed.due.unwrap().amount, completed.batch), (amount(PRICE), None));
    assert_eq!((completed.lease, completed.paid()), (None, None));

    let settling = view(5).await.unwrap();
    assert_eq!(settling.stored_status, JobStatus::Settling);
    assert_eq!(settling.batch.unwrap().tx, Some(hash(0xa7, 5)));

    let challengeable = view(6).await.unwrap();
    assert_eq!(challengeable.stored_status, JobStatus::Challengeable);
    assert_eq!(challengeable.settled.unwrap().finalize_at, Some(world.at(60)));

    let (paid, closed) = view(7).await.unwrap().paid().unwrap();
    assert_eq!((paid.node, paid.price), (node(2), amount(PRICE)));
    assert_eq!((closed.tx, closed.block, closed.at), (hash(0xc1, 7), 9, world.at(19)));
}

#[tokio::test]
async fn lists_are_filtered_and_paged_newest_first() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let mut db = world.pool.acquire().await.unwrap();
    let mut ids = async |filter: Filter, limit, now| -> Vec<B256> {
        let page = job_view::list(&mut db, &filter, limit, world.at(now)).await.unwrap();
        page.iter().map(|view| view.job_id).collect()
    };
    let all: Vec<B256> = (1..=8).rev().map(job).collect();
    assert_eq!(ids(Filter::default(), 100, 20).await, all);
    assert_eq!(ids(Filter { requester: Some(requester()), ..Filter::default() }, 100, 20).await, all);
    assert_eq!(ids(Filter { requester: Some(node(1)), ..Filter::default() }, 100, 20).await, Vec::<B256>::new());
    assert_eq!(ids(Filter { after: Some((world.at(6), job(6))), ..Filter::default() }, 2, 20).await, [job(5), job(4)]);
    let of_node = |n| Filter { node: Some(node(n)), ..Filter::default() };
    assert_eq!(ids(of_node(1), 100, 20).await, [job(6), job(3)]);
    assert_eq!(ids(of_node(2), 100, 20).await, [job(7), job(4)]);
    let with = |status| Filter { status: Some(status), ..Filter::default() };
    assert_eq!(ids(with(JobStatus::Pending), 100, 20).await, [job(2), job(1)]);
    assert_eq!(ids(with(JobStatus::AwaitingEscrow), 100, 20).await, [job(8)]);
    assert_eq!(ids(with(JobStatus::Expired), 100, 20).await, Vec::<B256>::new());
    // The clock alone makes these expired; what is on its way to be paid stays.
    assert_eq!(ids(with(JobStatus::Pending), 100, 3601).await, Vec::<B256>::new());
    assert_eq!(ids(with(JobStatus::Expired), 100, 3601).await, [8, 4, 3, 2, 1].map(job));
    assert_eq!(ids(with(JobStatus::Settling), 100, 3601).await, [job(5)]);
}

#[tokio::test]
async fn stats_count_jobs_by_status_and_money_by_token() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    let mut db = world.pool.acquire().await.unwrap();
    let stats = job_view::stats(&mut db, world.at(20)).await.unwrap();
    let counts = |pairs: &[(&'static str, i64)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
    assert_eq!(
        stats.by_status,
        counts(&[
            ("pending", 2),
            ("active", 1),
            ("completed", 1),
            ("settling", 1),
            ("challengeable", 1),
            ("paid", 1),
            ("awaiting_escrow", 1),
        ])
    );
    assert_eq!(stats.due, BTreeMap::from([(Address::ZERO, Sum { jobs: 3, amount: amount(3 * PRICE) })]));
    assert_eq!(stats.paid, BTreeMap::from([(Address::ZERO, Sum { jobs: 1, amount: amount(PRICE) })]));
    let later = job_view::stats(&mut db, world.at(3601)).await.unwrap();
    assert_eq!(later.by_status, counts(&[("expired", 5), ("settling", 1), ("challengeable", 1), ("paid", 1)]));
    assert_eq!(later.due[&Address::ZERO].jobs, 2, "what expired is not paid any more");
}

#[tokio::test]
async fn a_node_is_found_by_its_id_and_by_its_address() {
    let world = World::new().await;
    a_bit_of_everything(&world).await;
    world.heartbeat(9, 5).await;
    let mut db = world.pool.acquire().await.unwrap();
    let view = node_view::by_node_id(&mut db, node_id(1)).await.unwrap().unwrap();
    assert_eq!(view.node, node(1));
    assert_eq!((view.active_jobs, view.completed_jobs, view.paid_jobs, view.reputation), (1, 1, 0, 100));
    assert_eq!((view.capacity(), view.operations()), (3, vec!["encrypt".to_owned()]));
    assert!(view.is_online(world.at(318)) && !view.is_online(world.at(319)));
    assert_eq!(node_view::by_address(&mut db, node(1)).await.unwrap(), Some(view));
    assert_eq!(node_view::address_of(&mut db, node_id(2)).await.unwrap(), Some(node(2)));
    assert_eq!(node_view::node_id_of(&mut db, node(2)).await.unwrap(), Some(node_id(2)));
    assert_eq!(node_view::address_of(&mut db, node_id(9)).await.unwrap(), None);
    let unregistered = node_view::by_address(&mut db, node(9)).await.unwrap().unwrap();
    assert_eq!((unregistered.node_id(), unregistered.capacity()), (None, 3));
    assert_eq!(node_view::by_address(&mut db, node(77)).await.unwrap(), None);
    let page = node_view::list(&mut db, node(2), 10).await.unwrap();
    assert_eq!(page.iter().map(|view| view.node).collect::<Vec<_>>(), [node(3), node(9)]);
}

#[tokio::test]
async fn failed_and_expired_attempts_cost_reputation() {
    let world = World::new().await;
    world.register(1, node_id(1), 5, 0).await;
    for n in 1..=10 {
        world.open(n, Address::ZERO, 3600, 0).await;
        world.claim(n, 1, 1).await;
        world.fail(n, Some(1), 1).await;
    }
    let mut db = world.pool.acquire().await.unwrap();
    assert_eq!(node_view::by_address(&mut db, node(1)).await.unwrap().unwrap().reputation, 50);
}

#[tokio::test]
async fn an_outbox_row_is_there_only_once_its_transaction_commits() {
    let world = World::new().await;
    let (source, entity) = (outbox::Source::Work, outbox::Entity::Job(job(1)));
    let mut tx = world.pool.begin().await.unwrap();
    outbox::append(&mut tx, source, entity, "job.claimed", world.at(0)).await.unwrap();
    tx.rollback().await.unwrap();
    let mut db = world.pool.acquire().await.unwrap();
    assert_eq!(outbox::depth(&mut db, source).await.unwrap(), (0, None));
    let changes = [(entity, "job.claimed"), (outbox::Entity::Node(node(1)), "node.heartbeat"), (entity, "job.failed")];
    outbox::append_many(&mut db, source, &changes, world.at(1)).await.unwrap();
    assert_eq!(outbox::depth(&mut db, source).await.unwrap(), (3, Some(world.at(1))));
    let rows = outbox::next(&mut db, source, 2).await.unwrap();
    let read: Vec<_> = rows.iter().map(|row| (row.entity, row.event.as_str())).collect();
    assert_eq!(read, changes[..2]);
    let seqs: Vec<i64> = rows.iter().map(|row| row.seq).collect();
    outbox::remove(&mut db, source, &seqs).await.unwrap();
    outbox::remove(&mut db, source, &seqs).await.unwrap();
    assert_eq!(outbox::next(&mut db, source, 10).await.unwrap()[0].event, "job.failed");
    assert_eq!(outbox::depth(&mut db, outbox::Source::Chain).await.unwrap(), (0, None));
}
