//! What the chain says, read without the indexer's code, and what Postgres says of the same.
//!
//! Every log is compared by a checksum over all that is stored of it. The rows that events amount to are made again from the
//! logs alone, which works since every event tells amounts as they stand afterwards: the last word on a key is its row.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, Keccak256, U256};
use alloy::rpc::types::Log;
use alloy::sol_types::SolEventInterface;
use anyhow::{Context, bail, ensure};
use market::abi::IJobEscrow::IJobEscrowEvents as Escrow;
use market::abi::INodeRegistry::INodeRegistryEvents as Registry;
use market::abi::IOwnable2Step::IOwnable2StepEvents as Ownership;
use market::db;
use sqlx::PgPool;

use super::ceiling::filter;
use super::chain::Chain;

/// Events that are compared at once, about.
const STRETCH: u64 = 10_000;
/// Bytes of one redemption, and where in it what is compared lies: see `VouchersRedeemed`.
const REDEMPTION: usize = 96;

type Pair = (Address, Address);

/// All that the chain says.
#[derive(Default)]
pub struct Truth {
    /// A checksum of each log, in order.
    logs: Vec<B256>,
    /// Blocks with logs and all others up to this one.
    head: u64,
    /// Free and thawing balance by requester and token.
    accounts: BTreeMap<Pair, (U256, U256)>,
    earned: BTreeMap<Pair, U256>,
    /// All that a channel paid, by requester, node and token.
    claimed: BTreeMap<(Address, Address, Address), U256>,
    jobs: BTreeMap<B256, &'static str>,
    /// Stake by node.
    stakes: BTreeMap<Address, U256>,
}

impl Truth {
    /// Reads the chain up to `head`.
    pub async fn read(chain: &Chain, head: u64, about: u64) -> anyhow::Result<Self> {
        let manifest = &chain.deployment.manifest;
        let mut truth = Self { head, ..Self::default() };
        for (from, to) in stretches(head, about) {
            let filter = filter([manifest.escrow, manifest.registry], from, to);
            for log in chain.rpc.call::<Vec<Log>>("eth_getLogs", filter).await? {
                truth.logs.push(log_checksum(&log)?);
                truth.add(&log, log.address() == manifest.escrow).with_context(|| format!("{log:?}"))?;
            }
        }
        Ok(truth)
    }

    /// How many events there are.
    pub fn events(&self) -> u64 {
        self.logs.len().try_into().unwrap_or(u64::MAX)
    }

    /// Fails unless Postgres says the same; how many rows were compared.
    pub async fn compare(&self, pool: &PgPool) -> anyhow::Result<usize> {
        let mut db = pool.acquire().await?;
        let mut stored = Vec::with_capacity(self.logs.len());
        for (from, to) in stretches(self.head, self.events()) {
            for log in db::chain::canonical_between(&mut db, from, to).await? {
                let place = (log.block_number, log.block_hash, log.tx_hash, log.log_index);
                stored.push(checksum(place, log.contract, &log.topics, &log.data));
            }
        }
        if let Some(at) = self.logs.iter().zip(&stored).position(|(chain, stored)| chain != stored) {
            bail!("event {at} in Postgres is not the chain's");
        }
        ensure!(self.logs.len() == stored.len(), "Postgres has {} of {} events", stored.len(), self.logs.len());
        let rows = db::chain::all_rows(&mut db).await?;
        let accounts = rows.accounts.iter().map(|(key, row)| (*key, (row.free.0, row.thawing.0)));
        let jobs = rows.jobs.iter().map(|(id, row)| (*id, row.state.name()));
        let compared = [
            same("escrow_account", &self.accounts, accounts)?,
            same("escrow_earned", &self.earned, rows.earned.iter().map(|(key, row)| (*key, row.0)))?,
            same("escrow_channel", &self.claimed, rows.channels.iter().map(|(key, row)| (*key, row.claimed.0)))?,
            same("escrow_job", &self.jobs, jobs)?,
            same("registry_node", &self.stakes, rows.nodes.iter().map(|(key, row)| (*key, row.stake.0)))?,
        ];
        Ok(stored.len() + compared.iter().sum::<usize>())
    }

    fn free(&mut self, owner: Address, token: Address, free: U256) {
        self.accounts.entry((owner, token)).or_default().0 = free;
    }

    fn add(&mut self, log: &Log, is_escrow: bool) -> anyhow::Result<()> {
        // Owners are compared by the events only.
        if Ownership::decode_raw_log(log.topics(), &log.data().data).is_ok() {
            return Ok(());
        }
        if is_escrow {
            return self.escrow(log);
        }
        if let Registry::Staked(e) = Registry::decode_raw_log(log.topics(), &log.data().data)? {
            self.stakes.insert(e.node, e.stake);
        }
        Ok(())
    }

    fn escrow(&mut self, log: &Log) -> anyhow::Result<()> {
        match Escrow::decode_raw_log(log.topics(), &log.data().data)? {
            Escrow::Deposited(e) => self.free(e.account, e.token, e.free),
            Escrow::Thawing(e) => drop(self.accounts.insert((e.account, e.token), (e.free, e.thawing))),
            Escrow::Withdrawn(e) => drop(self.accounts.insert((e.account, e.token), (e.free, e.thawing))),
            Escrow::JobOpened(e) => {
                self.jobs.insert(e.jobId, "open");
                self.free(e.requester, e.token, e.free);
            }
            Escrow::ResultSubmitted(e) => {
                self.jobs.insert(e.jobId, "submitted");
                self.free(e.requester, e.token, e.free);
            }
            Escrow::JobPaid(e) => {
                self.jobs.insert(e.jobId, "paid");
                self.free(e.requester, e.token, e.free);
                self.earned.insert((e.node, e.token), e.earned);
            }
            Escrow::JobRefunded(e) => {
                self.jobs.insert(e.jobId, "refunded");
                self.free(e.requester, e.token, e.free);
            }
            Escrow::ChannelUpdated(e) => {
                self.accounts.insert((e.requester, e.token), (e.free, e.thawing));
                self.claimed.insert((e.requester, e.node, e.token), e.claimed);
            }
            Escrow::ReservationChanged(e) => {
                self.free(e.requester, e.token, e.free);
                self.claimed.entry((e.requester, e.node, e.token)).or_default();
            }
            Escrow::EarnedWithdrawn(e) => drop(self.earned.insert((e.node, e.token), e.earned)),
            Escrow::VouchersRedeemed(e) => {
                self.earned.insert((e.node, e.token), e.earned);
                for redemption in e.redemptions.chunks_exact(REDEMPTION) {
                    self.redeemed(e.node, e.token, redemption);
                }
            }
            // Of these, nothing is compared but the event itself.
            Escrow::SessionUpdated(_)
            | Escrow::SettlerSet(_)
            | Escrow::JobCancelling(_)
            | Escrow::FeeTaken(_)
            | Escrow::FeeBpsSet(_)
            | Escrow::Skipped(_) => {}
            other => bail!("the traffic was not to cause {other:?}"),
        }
        Ok(())
    }

    fn redeemed(&mut self, node: Address, token: Address, redemption: &[u8]) {
        let number = |at: usize, length: usize| U256::from_be_slice(&redemption[at..at + length]);
        let requester = Address::from_slice(&redemption[..20]);
        self.claimed.insert((requester, node, token), number(20, 12));
        if !number(64, 12).is_zero() {
            self.accounts.insert((requester, token), (number(32, 16), number(48, 16)));
        }
    }
}

/// Whether the rows of one table are what the logs say; how many there are.
fn same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    table: &str,
    wanted: &BTreeMap<K, V>,
    rows: impl Iterator<Item = (K, V)>,
) -> anyhow::Result<usize> {
    let rows: BTreeMap<K, V> = rows.collect();
    for (key, value) in wanted {
        let row = rows.get(key);
        ensure!(row == Some(value), "{table} {key:?}: the chain says {value:?}, Postgres {row:?}");
    }
    ensure!(rows.len() == wanted.len(), "{table} has {} rows, not {}", rows.len(), wanted.len());
    Ok(rows.len())
}

/// Ranges of blocks up to `head` with few enough events to be held at once.
fn stretches(head: u64, events: u64) -> impl Iterator<Item = (u64, u64)> {
    let blocks = (head * STRETCH / events.max(1)).max(1);
    (0..=head / blocks).map(move |n| (n * blocks, head.min((n + 1) * blocks - 1)))
}

fn log_checksum(log: &Log) -> anyhow::Result<B256> {
    let (Some(number), Some(block), Some(transaction), Some(index)) =
        (log.block_number, log.block_hash, log.transaction_hash, log.log_index)
    else {
        bail!("a log that is not of a mined block: {log:?}");
    };
    Ok(checksum((number, block, transaction, index), log.address(), log.topics(), &log.data().data))
}

fn checksum(place: (u64, B256, B256, u64), contract: Address, topics: &[B256], data: &[u8]) -> B256 {
    let (number, block, transaction, index) = place;
    let mut hash = Keccak256::new();
    hash.update(number.to_be_bytes());
    hash.update(block);
    hash.update(transaction);
    hash.update(index.to_be_bytes());
    hash.update(contract);
    hash.update(topics.concat());
    hash.update(data);
    hash.finalize()
}
