//! Two settlers, and a leader that is frozen and thaws.

use crate::rails::EAGER;
use crate::world::World;

/// As short as the settler allows.
const LEAD_TIMEOUT: [&str; 2] = ["--lead-timeout", "1"];

fn signal(process: &devnet::Process, signal: &str) {
    let pid = process.pid().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_standby_takes_over_from_a_frozen_leader_which_does_no_harm_when_it_thaws() {
    let mut world = World::start().await;
    world.allow_settler().await;
    let mut settlers = Vec::new();
    for _ in 0..2 {
        settlers.push(world.settler().args(EAGER).args(LEAD_TIMEOUT).spawn().unwrap());
    }
    let first = world.mixed().await;
    world.wait_done(&first).await;
    let leads = |settler: &devnet::Process| settler.output().contains("leading");
    let leader = usize::from(!leads(&settlers[0]));
    let standby = 1 - leader;
    assert!(leads(&settlers[leader]) && !leads(&settlers[standby]), "one leads");

    // Work arrives, and the leader freezes in the midst of it: its connections stay open.
    let second = world.mixed_again(&first).await;
    signal(&settlers[leader], "-STOP");
    world.wait("the standby takes over by itself", async |_| leads(&settlers[standby])).await;
    let all = [first, second].concat();
    world.wait_done(&all).await;
    signal(&settlers[leader], "-CONT");
    world.wait("the other notices", async |_| settlers[leader].output().contains("lost the lead")).await;
    let third = world.mixed_again(&all).await;
    let all = [all, third].concat();
    world.wait_done(&all).await;
    world.assert_exactly_once(&all).await;
    let batches = world.batches().await;
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap(), "{batches:?}");
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}");
}

/// A leader that freezes at `point`, of whose transactions so many are stored by then, is taken over from, and thaws.
async fn freezes_at(point: &str, stored: usize) {
    let mut world = World::start().await;
    world.allow_settler().await;
    let first = world.mixed().await;
    let leader = world.settler().args(EAGER).args(LEAD_TIMEOUT).env("LITTORAL_FREEZE_AT", point).spawn().unwrap();
    world.wait("the leader freezes", async |_| leader.output().contains("freezing as")).await;
    let signed = world.signed().await;
    assert_eq!(signed.len(), stored, "{}", leader.log_tail());
    let standby = world.settler().args(EAGER).args(LEAD_TIMEOUT).spawn().unwrap();
    world.wait_done(&first).await;
    assert!(standby.output().contains("leading"), "{}", standby.log_tail());
    assert!(!leader.output().contains("thawed"), "it is still frozen");

    signal(&leader, "-CONT");
    world.wait("it notices", async |_| leader.output().contains("lost the lead")).await;
    let second = world.mixed_again(&first).await;
    let all = [first, second].concat();
    world.wait_done(&all).await;
    world.assert_exactly_once(&all).await;
    let (batches, attempts) = (world.batches().await, world.signed().await);
    assert!(attempts.starts_with(&signed), "what was stored is what was sent");
    assert_eq!(attempts.len(), batches.len(), "none was signed again: {batches:?}");
    assert!(batches.iter().all(|(state, _)| state == "mined"), "{batches:?}");
    assert_eq!(world.nonce().await, u64::try_from(batches.len()).unwrap(), "{batches:?}");
}

#[tokio::test]
async fn a_leader_that_freezes_with_a_nonce_taken_and_thaws_does_no_harm() {
    freezes_at("nonce", 0).await;
}

#[tokio::test]
async fn a_leader_that_freezes_with_bytes_signed_and_not_stored_does_no_harm() {
    freezes_at("sign", 0).await;
}

#[tokio::test]
async fn a_leader_that_freezes_with_bytes_stored_and_not_sent_sends_them_to_no_harm() {
    freezes_at("persist", 1).await;
}

#[tokio::test]
async fn a_leader_that_freezes_while_it_sends_does_no_harm() {
    freezes_at("send", 1).await;
}
