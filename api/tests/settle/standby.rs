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
