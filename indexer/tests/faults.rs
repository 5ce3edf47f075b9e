//! Endpoints that fail, refuse, lag, leave out and contradict themselves and each other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use alloy::providers::Provider;
use devnet::AnvilOptions;
use littoral_indexer::follower::{FollowError, NEAR, Remedy, SETTLED_DISTANCE};
use market::confirmation::{Finality, Policy};
use market::db::confirmation;
use market::source::SourceError;
use metrics_exporter_prometheus::PrometheusBuilder;
use support::endpoint::{Endpoint, Faults};
use support::{Chain, ETHER, Index, NODE, REQUESTER, spec};

/// Some hundred blocks, a few of them with events, and none but final ones at the end.
async fn busy_chain() -> Chain {
    let chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    for nonce in 0..6 {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        chain.open(&order, &spec).await;
        chain.mine(10).await;
        chain.submit(vec![chain.result(&order, 1)]).await;
    }
    chain.mine(SETTLED_DISTANCE).await;
    chain
}

async fn head(chain: &Chain) -> u64 {
    chain.provider.get_block_number().await.unwrap()
}

#[tokio::test]
async fn where_long_ranges_are_refused_shorter_ones_are_asked_for() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    for limit in [1, 10] {
        endpoint.set(Faults { log_range: limit, ..Faults::default() });
        let before = endpoint.seen();
        let mut index = Index::of(&chain).await;
        index.catch_up().await;
        let seen = endpoint.seen();
        let (refused, answered) = (seen.refused - before.refused, seen.logs - before.logs);
        assert!(refused > 0 && refused * 2 < answered, "{refused} refusals of {answered} queries");
        endpoint.set(Faults::default());
        index.assert_equals_a_fresh_index(&chain).await;
    }
}

#[tokio::test]
async fn where_there_are_too_many_logs_the_range_that_is_suggested_is_asked_for() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    for suggests in [true, false] {
        endpoint.set(Faults { log_count: 3, suggests, ..Faults::default() });
        let mut index = Index::of(&chain).await;
        index.catch_up().await;
        assert!(endpoint.seen().refused > 0);
        endpoint.set(Faults::default());
        index.assert_equals_a_fresh_index(&chain).await;
    }
}

#[tokio::test]
async fn an_endpoint_that_fails_now_and_then_is_asked_again() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::with_range(&chain, 20).await;
    endpoint.set(Faults { fail_every: 1, ..Faults::default() });
    let error = index.advance().await.unwrap_err();
    assert_eq!(error.remedy(), Remedy::Retry, "{error}");
    assert!(error.to_string().contains("502"), "{error}");
    endpoint.set(Faults { fail_every: 3, ..Faults::default() });
    // Of several requests under way one may be unlucky three times in a row.
    loop {
        match index.advance().await {
            Ok(progress) if progress.step.is_none() => break,
            Ok(_) => {}
            Err(error) => assert_eq!(error.remedy(), Remedy::Retry, "{error}"),
        }
    }
    endpoint.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_endpoint_that_is_asked_too_often_is_given_the_time_it_wants() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    endpoint.set(Faults { busy: 2, ..Faults::default() });
    let begun = Instant::now();
    index.catch_up().await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "it said twice to come back after a second");
    assert_eq!(endpoint.seen().busy, 2, "and was not asked before");
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_endpoint_without_batches_is_asked_one_by_one() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    endpoint.set(Faults { no_batches: true, ..Faults::default() });
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    assert!(endpoint.seen().headers > 10);
    endpoint.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_endpoint_that_falls_behind_changes_nothing() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let before = index.state().await;
    for behind in [1, 5, SETTLED_DISTANCE + 10] {
        endpoint.set(Faults { behind, ..Faults::default() });
        assert_eq!(index.advance().await.unwrap().step, None);
    }
    assert_eq!(index.state().await, before);
}

#[tokio::test]
async fn logs_of_another_block_than_was_asked_for_are_refused() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    endpoint.set(Faults { logs_of: head(&chain).await - SETTLED_DISTANCE, ..Faults::default() });
    chain.mine(1).await;
    let before = index.state().await;
    let error = index.advance().await.unwrap_err();
    assert!(matches!(error, FollowError::Source(SourceError::Inconsistent(_))), "{error}");
    assert_eq!(error.remedy(), Remedy::Retry);
    assert_eq!(index.state().await, before);
    endpoint.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn a_blocks_missing_logs_are_asked_for_again() {
    let mut chain = busy_chain().await;
    let endpoint = Endpoint::before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    for answers in [1, 2] {
        chain.deposit(REQUESTER, 7).await;
        endpoint.set(Faults { no_logs: Some(answers), ..Faults::default() });
        let progress = index.advance().await.unwrap();
        assert_eq!(progress.step.unwrap().events, 1, "with {answers} empty answers");
    }
    endpoint.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn of_two_endpoints_one_that_leaves_logs_out_does_no_harm() {
    let mut chain = busy_chain().await;
    let [first, second] = Endpoint::two_before(&mut chain).await;
    for faults in
        [Faults { no_logs: Some(u64::MAX), ..Faults::default() }, Faults { loses_last: true, ..Faults::default() }]
    {
        first.set(Faults::default());
        let mut index = Index::of(&chain).await;
        index.catch_up().await;
        first.set(faults);
        let spec = spec("left out");
        let order = chain.order(1000 + head(&chain).await, &spec).await;
        chain.open(&order, &spec).await;
        chain.submit(vec![chain.result(&order, 1)]).await;
        index.catch_up().await;
        let asked = first.seen().logs;
        chain.deposit(REQUESTER, 1).await;
        index.catch_up().await;
        assert_eq!(first.seen().logs, asked, "it is not asked any more");
        first.set(Faults::default());
        index.assert_equals_a_fresh_index(&chain).await;
    }
    assert!(second.seen().logs > 0);
}

#[tokio::test]
async fn of_two_endpoints_one_that_knows_no_old_logs_does_no_harm() {
    let mut chain = busy_chain().await;
    let [first, _] = Endpoint::two_before(&mut chain).await;
    first.set(Faults { no_logs: Some(u64::MAX), ..Faults::default() });
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    first.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn an_answer_that_is_cut_off_is_not_taken_for_a_whole_one() {
    let mut chain = Chain::start().await;
    chain.register(NODE, ETHER).await;
    chain.deposit(REQUESTER, 100_000).await;
    // Each item but the first is skipped, with an event that says so.
    for nonce in 0..5 {
        let spec = spec(&nonce.to_string());
        let order = chain.order(nonce, &spec).await;
        chain.open(&order, &spec).await;
        chain.submit(vec![chain.result(&order, 1); 260]).await;
    }
    chain.mine(NEAR + 1).await;
    let endpoint = Endpoint::before(&mut chain).await;
    endpoint.set(Faults { cuts_off: 1000, ..Faults::default() });
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    endpoint.set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn of_two_endpoints_either_may_be_down_or_behind() {
    let mut chain = busy_chain().await;
    let endpoints = Endpoint::two_before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    for down in [0, 1] {
        endpoints[down].set(Faults { fail_every: 1, ..Faults::default() });
        chain.deposit(REQUESTER, 5).await;
        index.catch_up().await;
        assert_eq!(index.follower.cursor().number, head(&chain).await);
        endpoints[down].set(Faults::default());
    }
    endpoints[0].set(Faults { busy: u64::MAX, rest_secs: 600, ..Faults::default() });
    chain.deposit(REQUESTER, 5).await;
    let begun = Instant::now();
    index.catch_up().await;
    // The longest rest is 20 s.
    assert!(begun.elapsed() < Duration::from_secs(15), "nobody waits for an endpoint that wants to rest");
    assert_eq!(index.follower.cursor().number, head(&chain).await);
    endpoints[0].set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn where_two_endpoints_disagree_about_settled_blocks_none_is_taken_for_final() {
    let mut chain = busy_chain().await;
    let endpoints = Endpoint::two_before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    let from = index.follower.cursor().number;
    endpoints[1].set(Faults { forked_at: 1, ..Faults::default() });
    for _ in 0..3 {
        // It goes on with linked blocks of the endpoint that is preferred.
        let Ok(progress) = index.advance().await else { continue };
        assert!(progress.step.is_none_or(|step| !step.is_backfill), "{progress:?}");
    }
    assert!(index.follower.cursor().number > from);
    endpoints[1].set(Faults::default());
    index.assert_equals_a_fresh_index(&chain).await;
}

#[tokio::test]
async fn while_two_endpoints_disagree_nothing_becomes_final_and_that_is_counted() {
    let metrics = PrometheusBuilder::new().install_recorder().unwrap();
    let disagreements = || {
        let rendered = metrics.render();
        let line = rendered.lines().find_map(|line| line.strip_prefix("littoral_rpc_disagreements_total "));
        line.map_or(0, |count| count.parse::<u64>().unwrap())
    };
    // All but the last two blocks are final.
    let args = ["--slots-in-an-epoch".to_owned(), "1".to_owned()].to_vec();
    let mut chain = Chain::start_with(AnvilOptions { args, ..AnvilOptions::default() }).await;
    chain.deployment.confirmation = Policy::new(Finality::Tag, false, vec![]).unwrap();
    chain.deposit(REQUESTER, 100_000).await;
    chain.mine(NEAR + 10).await;
    let endpoints = Endpoint::two_before(&mut chain).await;
    let mut index = Index::of(&chain).await;
    index.catch_up().await;
    let final_block = async |index: &Index| {
        let mut db = index.pool.acquire().await.unwrap();
        confirmation::standing(&mut db).await.unwrap().unwrap().final_block
    };
    let before = final_block(&index).await;
    assert_eq!(before, Some(head(&chain).await - 2));
    assert_eq!(disagreements(), 0);

    endpoints[1].set(Faults { forked_at: before.unwrap() + 1, ..Faults::default() });
    let begun = Instant::now();
    while disagreements() < 2 {
        chain.mine(1).await;
        match index.advance().await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            Err(error) => assert_eq!(error.remedy(), Remedy::Retry, "{error}"),
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "it asks every second or so");
        assert_eq!(final_block(&index).await, before, "of two, nobody knows which is wrong");
    }
    assert!(index.follower.cursor().number > before.unwrap() + 2, "it is followed all the same");

    endpoints[1].set(Faults::default());
    while final_block(&index).await == before {
        index.advance().await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(120), "now they agree");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    index.assert_equals_a_fresh_index(&chain).await;
}
