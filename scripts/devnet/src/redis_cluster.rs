//! A private Redis Cluster.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use crate::redis::{Redis, RedisOptions};

const SLOTS: u32 = 16_384;
const READY_WITHIN: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// Three masters on 127.0.0.1 that share the slots. Dropping it shuts them down.
#[derive(Debug)]
pub struct RedisCluster {
    masters: Vec<Redis>,
}

impl RedisCluster {
    /// Starts the nodes and waits until all of them serve. `persistent`: whether a node that is restarted has its keys.
    ///
    /// # Errors
    /// When Redis is not installed, or the nodes do not become a cluster in time.
    pub async fn start(persistent: bool) -> anyhow::Result<Self> {
        let mut masters = Vec::new();
        for _ in 0..3 {
            let options = RedisOptions { persistent, cluster: true, ..RedisOptions::default() };
            masters.push(Redis::start(options).await?);
        }
        let cluster = Self { masters };
        let count = u32::try_from(cluster.masters.len())?;
        for (number, master) in (0..count).zip(&cluster.masters) {
            let (first, last) = (first_slot(number, count), first_slot(number + 1, count) - 1);
            master.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]).await?;
            // Without an epoch of its own each would have to find out first that another has the same.
            master.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await?;
        }
        for master in &cluster.masters[1..] {
            meet(&cluster.masters[0], master).await?;
        }
        for master in &cluster.masters {
            let served = ["cluster_state:ok", "cluster_slots_ok:16384", "cluster_known_nodes:3"];
            until(master, &["CLUSTER", "INFO"], |info| served.iter().all(|line| info.contains(line))).await?;
        }
        Ok(cluster)
    }

    /// Starts a copy of a master, and waits until it has all that the master has. It can take the master's place with
    /// `CLUSTER FAILOVER TAKEOVER`.
    ///
    /// # Errors
    /// As [`RedisCluster::start`].
    pub async fn start_replica(&self, master: usize) -> anyhow::Result<Redis> {
        let replica = Redis::start(RedisOptions { cluster: true, ..RedisOptions::default() }).await?;
        meet(&self.masters[master], &replica).await?;
        let id = self.masters[master].cli(&["CLUSTER", "MYID"]).await?;
        until(&replica, &["CLUSTER", "NODES"], |nodes| nodes.contains(&id)).await?;
        replica.cli(&["CLUSTER", "REPLICATE", &id]).await?;
        until(&replica, &["INFO", "replication"], |info| info.contains("master_link_status:up")).await?;
        Ok(replica)
    }

    /// `redis+cluster://…`, with all nodes.
    pub fn url(&self) -> String {
        let nodes: Vec<String> = self.masters.iter().map(|master| format!("127.0.0.1:{}", master.port())).collect();
        format!("redis+cluster://{}/", nodes.join(","))
    }

    /// A node, to ask it or to end its process.
    pub fn master(&mut self, number: usize) -> &mut Redis {
        &mut self.masters[number]
    }

    /// The number of the master that has the slot of `key`, as long as no slot was moved.
    ///
    /// # Errors
    /// When none of them answers.
    pub async fn owner(&self, key: &str) -> anyhow::Result<usize> {
        let slot: u32 = self.cli(&["CLUSTER", "KEYSLOT", key]).await?.parse()?;
        let count = u32::try_from(self.masters.len())?;
        let owner = (0..count).rev().find(|number| first_slot(*number, count) <= slot);
        Ok(usize::try_from(owner.unwrap_or_default())?)
    }

    /// What the cluster answers to a plain client that knows all nodes.
    ///
    /// # Errors
    /// When no node answers, or the command is refused.
    pub async fn cli(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut last = None;
        for master in &self.masters {
            match master.cli(arguments).await {
                Ok(said) => return Ok(said),
                Err(error) => last = Some(error),
            }
        }
        Err(last.context("the cluster has no nodes")?)
    }
}

fn first_slot(number: u32, count: u32) -> u32 {
    SLOTS * number / count
}

/// Makes `other` known to `node`, and with it to all that `node` knows.
async fn meet(node: &Redis, other: &Redis) -> anyhow::Result<()> {
    let bus = other.bus_port().context("not a node of a cluster")?;
    node.cli(&["CLUSTER", "MEET", "127.0.0.1", &other.port().to_string(), &bus.to_string()]).await?;
    Ok(())
}

async fn until(node: &Redis, question: &[&str], is_it: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    let started = Instant::now();
    loop {
        let said = node.cli(question).await?;
        if is_it(&said) {
            return Ok(());
        }
        if started.elapsed() > READY_WITHIN {
            bail!("the node at {} is not ready after {} s: {said}", node.url(), READY_WITHIN.as_secs());
        }
        sleep(POLL).await;
    }
}
