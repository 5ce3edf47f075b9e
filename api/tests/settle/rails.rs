//! The signed rail: orders that are only signed, vouchers, and what must hold of all payments in the end.

use std::collections::BTreeMap;

use alloy::primitives::{Address, B256, U256};
use alloy::signers::SignerSync;
use alloy::sol_types::SolStruct;
use devnet::{DevKey, Unforgiven};
use market::abi::{IJobEscrow, JobSpec, Order, Voucher};
use market::db::chain::cursor;
use market::db::order;
use market::db::types::{DbAddress, DbAmount, DbHash};
use market::{ContentId, clock, typed_data};

use crate::world::{ASSIGNER, Job, MAX_PRICE, NODES, PRICE, SETTLER, Terms, World};

impl World {
    /// Keeps an order that `requester` signed for each of `terms`, as the API does when one is submitted.
    pub async fn sign(&mut self, requester: DevKey, terms: &[Terms]) -> Vec<Job> {
        self.sign_for(requester.address(), requester, terms).await
    }

    /// As [`Self::sign`], with `key` signing for the contract wallet `requester`.
    pub async fn sign_for(&mut self, requester: Address, key: DevKey, terms: &[Terms]) -> Vec<Job> {
        let now = u64::try_from(clock::now().timestamp()).unwrap();
        let mut jobs = Vec::new();
        let mut db = self.pool.begin().await.unwrap();
        for terms in terms {
            self.orders += 1;
            let spec = JobSpec {
                inputCID: ContentId::of(b"input").to_string(),
                operation: "encrypt".to_owned(),
                params: String::new(),
            };
            let order = Order {
                requester,
                token: terms.token,
                maxPrice: MAX_PRICE,
                node: terms.node.address(),
                assigner: ASSIGNER.address(),
                specHash: typed_data::spec_hash(&spec),
                deadline: now + terms.deadline_secs,
                challengeWindow: terms.window_secs,
                arbiter: Address::ZERO,
                maxFeeBps: 0,
                nonce: self.orders,
            };
            let id = typed_data::job_id(&order, &self.domain());
            let signature = key.signer().sign_hash_sync(&id).unwrap().as_bytes();
            let kept =
                order::insert_signed(&mut db, id, (&order, &spec), &signature, &order::Terms::default(), clock::now())
                    .await
                    .unwrap();
            assert!(kept);
            jobs.push(Job { id, order, node: terms.node });
        }
        db.commit().await.unwrap();
        jobs
    }

    /// Keeps a voucher that pays for `jobs` and all before them, as the API does when a client countersigns. `before` is
    /// what the channel owed until then.
    pub async fn countersign(&self, jobs: &[Job], before: u128) {
        let cumulative = before + PRICE * u128::try_from(jobs.len()).unwrap();
        let covered = jobs.iter().map(|job| job.order.nonce).max().unwrap();
        let order = &jobs[0].order;
        let requester = crate::world::REQUESTERS.into_iter().find(|key| key.address() == order.requester).unwrap();
        self.voucher(order, cumulative, covered, requester).await;
    }

    /// Keeps a voucher of the channel of `order`, signed by `signer`.
    pub async fn voucher(&self, order: &Order, cumulative: u128, covered: u64, signer: DevKey) {
        self.voucher_for(signer.address(), order, (cumulative, covered), signer).await;
    }

    /// As [`Self::voucher`], with `key` signing for the contract wallet `signer`.
    pub async fn voucher_for(&self, signer: Address, order: &Order, (cumulative, covered): (u128, u64), key: DevKey) {
        let voucher = Voucher {
            requester: order.requester,
            node: order.node,
            token: order.token,
            cumulative,
            coveredNonce: covered,
        };
        let digest = voucher.eip712_signing_hash(&self.domain());
        let signature = key.signer().sign_hash_sync(&digest).unwrap().as_bytes().to_vec();
        sqlx::query!(
            "insert into voucher (requester, node, token, cumulative, covered_nonce, signer, signature, created_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
            DbAddress(order.requester) as _,
            DbAddress(order.node) as _,
            DbAddress(order.token) as _,
            DbAmount::from(cumulative) as _,
            DbAmount::from(u128::from(covered)) as _,
            DbAddress(signer) as _,
            signature,
            clock::now()
        )
        .execute(&self.pool)
        .await
        .unwrap();
    }

    /// Has every node let the settler redeem its vouchers.
    pub async fn allow_settler(&mut self) {
        for node in NODES {
            self.mined(self.escrow().setSettler(SETTLER.address(), true).from(node.address()).send()).await;
        }
        self.caught_up().await;
    }

    /// Waits until the indexer is where the chain is.
    pub async fn caught_up(&mut self) {
        let block = self.block().await;
        self.wait("the indexer has caught up", async |world| {
            let mut db = world.pool.acquire().await.unwrap();
            cursor(&mut db).await.unwrap().is_some_and(|cursor| cursor.block.number >= block)
        })
        .await;
    }

    pub async fn block(&self) -> u64 {
        alloy::providers::Provider::get_block_number(&self.provider).await.unwrap()
    }

    /// Waits until Postgres calls all `jobs` paid, on whichever rail, and no batch is pending.
    pub async fn wait_done(&mut self, jobs: &[Job]) {
        let ids: Vec<_> = jobs.iter().map(|job| DbHash(job.id)).collect();
        self.wait("all jobs are paid", async |world| {
            let paid = sqlx::query_scalar!(
                r#"select count(*) as "paid!" from job_status where job_id = any($1) and status = 'paid'"#,
                &ids as _
            )
            .fetch_one(&world.pool)
            .await
            .unwrap();
            usize::try_from(paid).unwrap() == ids.len()
        })
        .await;
        self.wait_settled().await;
    }

    /// Asserts by the chain itself that each job was paid once: what every node earned is the sum over its jobs, what every
    /// channel paid is the sum over its orders, no job was paid alone twice; and that Postgres and its ledger agree, down to a clean audit.
    pub async fn assert_exactly_once(&mut self, jobs: &[Job]) {
        self.assert_exactly_once_besides(jobs, 0).await;
    }

    /// As [`Self::assert_exactly_once`], where the settler's account sent so many `foreign` transactions.
    pub async fn assert_exactly_once_besides(&mut self, jobs: &[Job], foreign: u64) {
        self.caught_up().await;
        let _unforgiven = Unforgiven::new("each payment once");
        let escrow = self.escrow();
        let mut alone: BTreeMap<B256, u32> = BTreeMap::new();
        for log in self.logs::<IJobEscrow::JobPaid>().await {
            *alone.entry(log.inner.jobId).or_default() += 1;
            assert_eq!(log.inner.price, PRICE);
        }
        assert!(alone.values().all(|times| *times == 1), "{alone:?}");
        let (mut nodes, mut channels) = (BTreeMap::new(), BTreeMap::new());
        let opened: Vec<_> = self.logs::<IJobEscrow::JobOpened>().await.iter().map(|log| log.inner.jobId).collect();
        for job in jobs {
            *nodes.entry((job.node.address(), job.order.token)).or_insert(0) += PRICE;
            if !opened.contains(&job.id) {
                *channels.entry((job.order.requester, job.node.address(), job.order.token)).or_insert(0) += PRICE;
            }
        }
        let mut earned_in_all = U256::ZERO;
        for ((node, token), sum) in nodes {
            assert_eq!(escrow.earned(node, token).call().await.unwrap(), U256::from(sum), "earned by {node}");
            let kept = sqlx::query_scalar!(
                r#"select earned as "earned: DbAmount" from escrow_earned where node = $1 and token = $2"#,
                DbAddress(node) as _,
                DbAddress(token) as _
            )
            .fetch_one(&self.pool)
            .await
            .unwrap();
            assert_eq!(kept.0.0, U256::from(sum), "Postgres agrees");
            earned_in_all += U256::from(sum);
        }
        for ((requester, node, token), sum) in channels {
            let claimed = escrow.channel(requester, node, token).call().await.unwrap().claimed;
            assert_eq!(claimed, U256::from(sum), "claimed from {requester} by {node}");
        }
        let booked = sqlx::query_scalar!(
            r#"select coalesce(sum(amount), 0) as "earned!" from ledger_entry where account = 'earned'"#
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        let booked = booked.to_string();
        assert_eq!(booked.trim_start_matches('-'), earned_in_all.to_string(), "the ledger agrees");
        let batches = u64::try_from(self.batches().await.len()).unwrap();
        assert!(self.nonce().await <= batches + foreign, "every transaction of the settler is a batch");
        self.audit().await;
    }

    /// Waits until every batch is final.
    pub async fn wait_final(&mut self) {
        self.wait("every batch is final", async |world| {
            let open =
                sqlx::query_scalar!(r#"select count(*) as "open!" from settlement_batch where final_at is null"#);
            open.fetch_one(&world.pool).await.unwrap() == 0
        })
        .await;
    }

    /// Kinds of the batches, oldest first.
    pub async fn kinds(&self) -> Vec<String> {
        sqlx::query_scalar!("select kind from settlement_batch order by id").fetch_all(&self.pool).await.unwrap()
    }

    /// Work of all kinds: opened jobs, signed orders that no voucher covers and signed orders that one does, of several
    /// requesters and nodes.
    pub async fn mixed(&mut self) -> Vec<Job> {
        let terms: Vec<_> = NODES.map(|node| Terms { node, ..Terms::default() }).into();
        let opened = self.open(&terms).await;
        let [_, second, third] = crate::world::REQUESTERS;
        let alone = self.sign(second, &terms[..2]).await;
        let covered = self.sign(third, &[terms[0], terms[0], terms[1]]).await;
        let jobs = [opened, alone, covered.clone()].concat();
        self.complete_and_countersign(&jobs, &covered, &[]).await;
        jobs
    }

    /// As [`Self::mixed`], where `before` was done already.
    pub async fn mixed_again(&mut self, before: &[Job]) -> Vec<Job> {
        let terms: Vec<_> = NODES.map(|node| Terms { node, ..Terms::default() }).into();
        let [_, second, third] = crate::world::REQUESTERS;
        let alone = self.sign(second, &terms[..2]).await;
        let covered = self.sign(third, &[terms[0], terms[0], terms[1]]).await;
        let jobs = [alone, covered.clone()].concat();
        self.complete_and_countersign(&jobs, &covered, before).await;
        jobs
    }

    /// The vouchers are there before the results are: none is settled alone meanwhile.
    async fn complete_and_countersign(&self, jobs: &[Job], covered: &[Job], before: &[Job]) {
        let mut channels: BTreeMap<Address, Vec<Job>> = BTreeMap::new();
        for job in covered {
            channels.entry(job.node.address()).or_default().push(job.clone());
        }
        for (node, jobs) in channels {
            let same = |job: &&Job| job.node.address() == node && job.order.requester == jobs[0].order.requester;
            let owed = PRICE * u128::try_from(before.iter().filter(same).count()).unwrap();
            self.countersign(&jobs, owed).await;
        }
        self.complete(jobs).await;
    }
}

/// Arguments with which neither vouchers nor results wait.
pub const EAGER: [&str; 4] = ["--voucher-wait", "0.3", "--voucher-grace", "0.3"];
