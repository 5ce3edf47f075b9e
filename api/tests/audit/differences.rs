//! Every way in which the books can disagree is found and named.

use std::time::Duration;

use alloy::primitives::{B256, U256};
use alloy::providers::Provider;
use alloy::providers::ext::AnvilApi;
use alloy::rpc::types::Filter;
use littoral_api::audit::{At, AuditError, Report, What, run};
use market::abi::IJobEscrow;

use crate::chain::{COIN, Chain, REQUESTER};
use crate::everything;
use crate::world::Books;

#[tokio::test]
async fn a_market_in_which_everything_happened_is_clean() {
    let chain = Chain::start().await;
    everything::happen(&chain).await;
    let books = Books::of(&chain).await;
    let report = books.audited(&chain).await.unwrap();
    assert!(report.is_clean(), "{report}");
    let checked = report.checked;
    let contracts = vec![chain.deployment.escrow, chain.deployment.registry];
    let logs = chain.provider.get_logs(&Filter::new().address(contracts).from_block(0)).await.unwrap();
    assert!(
        checked.events == logs.len() && checked.rows > 30 && checked.entries > 100,
        "{} logs: {checked:?}",
        logs.len()
    );
    assert!(checked.balances > 10 && checked.calls > 40, "{checked:?}");
    assert_eq!(report.block.number, chain.provider.get_block_number().await.unwrap());
    assert!(report.to_string().contains("nothing differs"), "{report}");
    assert!(report.payments.not_asked > 10, "nothing of it came through the API: {report}");
}

/// What an audit says once `statements` were run on the books of a small market.
async fn after(statements: &[&'static str]) -> Report {
    let chain = Chain::start().await;
    chain.deposit(REQUESTER, 5000).await;
    let call = IJobEscrow::reserveCall { node: crate::chain::NODE.address(), token: COIN, amount: U256::from(1000) };
    chain.call(REQUESTER, chain.deployment.escrow, 0, call).await;
    let books = Books::of(&chain).await;
    assert!(books.audited(&chain).await.unwrap().is_clean());
    let mut db = books.pool.acquire().await.unwrap();
    for statement in statements {
        sqlx::query(*statement).execute(&mut *db).await.unwrap();
    }
    drop(db);
    let report = books.audited(&chain).await.unwrap();
    assert!(!report.is_clean() && report.to_string().contains("do not agree"), "{report}");
    report
}

/// Asserts that exactly these kinds of things differ, and that each of `words` is said.
fn assert_says(report: &Report, kinds: &[What], words: &[&str]) {
    let mut found: Vec<What> = report.differences.iter().map(|difference| difference.what).collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found, kinds, "{report}");
    let text = report.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text}");
}

#[tokio::test]
async fn a_row_that_is_not_what_happened_is_found() {
    let report = after(&["update escrow_account set free = free + 1"]).await;
    let requester = format!("{:?}", REQUESTER.address());
    assert_says(
        &report,
        &[What::Row],
        &["escrow_account", &requester, "free: Amount(4001) instead of free: Amount(4000)"],
    );
    assert_eq!(report.differences.len(), 1);
    let report = after(&["delete from escrow_channel"]).await;
    assert_says(&report, &[What::Row], &["escrow_channel", "None"]);
    let report = after(&["insert into escrow_fee values ('\\x0000000000000000000000000000000000000001', 5)"]).await;
    assert_says(&report, &[What::Row], &["escrow_fee", "Amount(5)"]);
}

#[tokio::test]
async fn an_entry_of_the_ledger_that_is_not_what_happened_is_found() {
    const OFF: &str = "alter table ledger_entry disable trigger all";
    let report = after(&[OFF, "update ledger_entry set amount = amount + 7 where account = 'reserved'"]).await;
    assert_says(&report, &[What::Entry, What::Sum], &["log 0 of block", "Reserved", "1007"]);
    // Two entries that were changed to cancel out leave the sums as they are.
    let report = after(&[
        OFF,
        "update ledger_entry set amount = amount + case when amount > 0 then 7 else -7 end
                               where account in ('free', 'world') and log_index = 0 and block_hash = (
                                   select block_hash from ledger_entry where account = 'world')",
        "update ledger_entry set amount = amount - 7 where account = 'free' and amount < 0",
        "update ledger_entry set amount = amount + 7 where account = 'world'",
    ])
    .await;
    assert_says(&report, &[What::Entry], &["log 0 of block"]);
}

#[tokio::test]
async fn entries_of_a_block_that_is_not_on_the_chain_are_found() {
    let report =
        after(&["insert into ledger_entry (block_number, block_hash, log_index, reversal, account, token, amount)
         select 1, '\\x0707070707070707070707070707070707070707070707070707070707070707', 3, false, a,
                '\\x0000000000000000000000000000000000000000', m
         from unnest(array['fee', 'world'], array[5, -5]) as e (a, m)"])
        .await;
    let block = B256::repeat_byte(7).to_string();
    assert_says(&report, &[What::Entry, What::Sum], &["log 3 of block", &block, "Fee"]);
}

#[tokio::test]
async fn an_event_that_is_missing_or_another_is_found() {
    let report = after(&["delete from chain_event where kind = 'ReservationChanged'"]).await;
    assert_says(&report, &[What::Event], &["ReservationChanged (log 0 of block", "None"]);
    let report = after(&["update chain_event set data = data || '\\x00' where kind = 'Deposited'"]).await;
    assert_says(&report, &[What::Event], &["Deposited (log 0 of block"]);
    // The indexer never saw it: events, rows and ledger all lack it.
    let report = after(&[
        "alter table ledger_entry disable trigger all",
        "delete from ledger_entry where account = 'reserved' or account = 'free' and amount < 0",
        "delete from chain_event where kind = 'ReservationChanged'",
        "delete from escrow_channel",
        "update escrow_account set free = 5000",
    ])
    .await;
    assert_says(&report, &[What::Event, What::Row, What::Entry, What::Sum], &["ReservationChanged", "escrow_channel"]);
}

#[tokio::test]
async fn a_contract_that_says_or_holds_something_else_than_its_events_is_found() {
    let chain = Chain::start().await;
    chain.deposit(REQUESTER, 5000).await;
    let escrow = chain.deployment.escrow;
    let fee = |bps: u64| U256::from(bps) << 160;
    chain.call(everything::OWNER, escrow, 0, IJobEscrow::setFeeBpsCall { feeBps: 200 }).await;
    let mut slot = U256::ZERO;
    while chain.provider.get_storage_at(escrow, slot).await.unwrap() != fee(200) {
        slot += U256::ONE;
        assert!(slot < U256::from(20), "the fee lies behind the pending owner");
    }
    chain.provider.anvil_set_storage_at(escrow, slot, B256::from(fee(7))).await.unwrap();
    chain.provider.anvil_set_balance(escrow, U256::from(4999)).await.unwrap();
    chain.mine(1).await;
    let books = Books::of(&chain).await;
    let report = books.audited(&chain).await.unwrap();
    assert_says(
        &report,
        &[What::Contract, What::Solvency],
        &[
            "feeBps()",
            "(7, false, false, Amount(1000000000000000000)) instead of (200, ",
            "4999 instead of at least 5000",
        ],
    );
    assert_eq!(report.differences.len(), 2, "{report}");
}

#[tokio::test]
async fn where_nothing_can_be_told_the_reason_is() {
    let chain = Chain::start().await;
    chain.deposit(REQUESTER, 5000).await;
    let books = Books::of(&chain).await;
    let head = chain.provider.get_block_number().await.unwrap();
    for at in [At::Number(head), At::Latest, At::Finalized] {
        let report = run(&books.audit(&chain).at(at)).await.unwrap();
        assert!(report.is_clean() && report.block.number == head, "{report}");
    }
    chain.mine(2).await;
    let behind = run(&books.audit(&chain).at(At::Latest)).await.unwrap_err();
    assert!(
        matches!(behind, AuditError::Behind { cursor, wanted } if (cursor, wanted) == (head, head + 2)),
        "{behind}"
    );
    // The indexer gets there while the audit waits.
    let audit = books.audit(&chain).at(At::Latest).patience(Duration::from_secs(30));
    let (report, ()) = tokio::join!(run(&audit), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        books.index().await;
    });
    assert!(report.unwrap().is_clean());

    chain.reorg(1).await;
    let reorganised = books.audited(&chain).await.unwrap_err();
    assert!(matches!(reorganised, AuditError::Reorganised(number) if number == head + 2), "{reorganised}");
    let mut deployment = chain.deployment.clone();
    deployment.escrow = chain.deployment.registry;
    let other = littoral_api::audit::Audit::new(books.pool.clone(), books.source.clone(), deployment);
    let other = run(&other.patience(Duration::ZERO)).await.unwrap_err();
    assert!(matches!(other, AuditError::OtherDeployment(_)), "{other}");
}
