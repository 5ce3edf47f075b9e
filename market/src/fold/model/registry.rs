//! Registrations, stakes and bonds.

use alloy::primitives::{Address, B256, U256};

use super::{Action, BOND, Model, UNBONDING_PERIOD, node};
use crate::abi::INodeRegistry;

impl Model {
    pub(super) fn move_stake(&mut self, action: &Action) {
        let (Action::Register(n, _) | Action::Stake(n, _) | Action::Unbond(n, _) | Action::FinishUnbond(n)) = action
        else {
            return;
        };
        let node = node(*n);
        if let Action::Register(_, uri) = action {
            return self.describe(node, &format!("https://{uri}.example"));
        }
        let now = self.now;
        let Some(row) = self.nodes.get_mut(&node) else { return };
        match action {
            Action::Stake(_, amount) => {
                row.stake += u128::from(*amount);
                let (amount, stake) = (U256::from(*amount), U256::from(row.stake));
                self.registry(&INodeRegistry::Staked { node, from: node, amount, stake });
            }
            Action::Unbond(_, amount) if *amount > 0 && u128::from(*amount) <= row.stake => {
                row.stake -= u128::from(*amount);
                row.unbonding += u128::from(*amount);
                row.unbond_end = now + UNBONDING_PERIOD;
                let (stake, unbonding) = (U256::from(row.stake), U256::from(row.unbonding));
                let unbond_end = row.unbond_end;
                self.registry(&INodeRegistry::Unbonding { node, stake, unbonding, unbondEnd: unbond_end });
            }
            Action::FinishUnbond(_)
                if row.unbonding > 0 && now >= row.unbond_end && row.stake >= u128::from(row.bonds) * BOND =>
            {
                let (amount, stake) = (U256::from(row.unbonding), U256::from(row.stake));
                (row.unbonding, row.unbond_end) = (0, 0);
                self.registry(&INodeRegistry::Unbonded { node, to: node, amount, stake });
            }
            _ => {}
        }
    }

    fn describe(&mut self, node: Address, uri: &str) {
        if self.paused.1 && !self.nodes.contains_key(&node) {
            return;
        }
        self.nodes.entry(node).or_default();
        self.registry(&INodeRegistry::NodeUpdated {
            node,
            nodeId: B256::left_padding_from(node.as_slice()),
            publicKey: vec![1; 32].into(),
            payout: node,
            capacity: 1,
            operations: vec![uri.to_owned()],
            uri: uri.to_owned(),
        });
    }

    pub(super) fn is_staked(&self, node: Address) -> bool {
        self.nodes.get(&node).is_some_and(|row| row.stake >= self.min_stake())
    }

    pub(super) fn lock_bond(&mut self, node: Address) -> bool {
        let staked = self.is_staked(node);
        let Some(row) = self.nodes.get_mut(&node).filter(|_| staked) else { return false };
        if row.stake < u128::from(row.bonds + 1) * BOND {
            return false;
        }
        row.bonds += 1;
        let bonds = row.bonds;
        self.registry(&INodeRegistry::BondLocked { node, bonds });
        true
    }

    /// What was slashed, and what of that compensates.
    pub(super) fn release_bond(
        &mut self,
        node: Address,
        disputed: bool,
        lost: bool,
        slash: u128,
        compensation: u128,
    ) -> (u128, u128) {
        let row = self.nodes.get_mut(&node).expect("only registered nodes lock bonds");
        row.bonds -= 1;
        row.disputed += u32::from(disputed);
        row.lost += u32::from(lost);
        row.paid += u32::from(!lost);
        let (bonds, paid, disputes, losses) = (row.bonds, row.paid, row.disputed, row.lost);
        let slashed = slash.min(row.stake + row.unbonding);
        let from_active = slashed.min(row.stake);
        row.stake -= from_active;
        row.unbonding -= slashed - from_active;
        let (stake, unbonding) = (U256::from(row.stake), U256::from(row.unbonding));
        let compensation = compensation.min(slashed);
        self.registry(&INodeRegistry::BondReleased { node, bonds, paid, disputed: disputes, lost: losses });
        if slash == 0 {
            return (0, 0);
        }
        let (amount, given) = (U256::from(slashed), U256::from(compensation));
        self.registry(&INodeRegistry::Slashed { node, amount, compensation: given, stake, unbonding });
        (slashed, compensation)
    }
}
