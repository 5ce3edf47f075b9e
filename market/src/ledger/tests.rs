use std::collections::BTreeMap;

use alloy::primitives::{Address, I256, U256};
use proptest::prelude::*;

use super::*;
use crate::abi::IJobEscrow;
use crate::fold::model::{self, Model, histories, node, requester, token};

/// The entries of all events, an event each.
fn book(events: &[crate::fold::ChainEvent]) -> (Vec<Vec<Entry>>, Rows) {
    let mut rows = Rows::default();
    let mut book = vec![];
    for event in events {
        let keys = event.event.keys();
        let before = Balances::of(&rows, &keys);
        rows.apply(event).unwrap();
        book.push(entries(&event.event, &before, &Balances::of(&rows, &keys)));
    }
    (book, rows)
}

fn sums(book: &[Vec<Entry>]) -> BTreeMap<(Account, Address), I256> {
    let mut sums = BTreeMap::new();
    for entry in book.iter().flatten() {
        let sum: &mut I256 = sums.entry((entry.account, entry.token)).or_default();
        *sum += entry.amount;
    }
    sums.retain(|_, sum| !sum.is_zero());
    sums
}

/// What the contracts hold, by their own word.
fn held(model: &Model) -> BTreeMap<(Account, Address), I256> {
    let mut held = BTreeMap::new();
    let mut put = |account, token, amount: u128| {
        held.insert((account, token), I256::try_from(amount).unwrap());
    };
    for ((owner, token), account) in &model.accounts {
        put(Account::Free(*owner), *token, account.free);
        put(Account::Thawing(*owner), *token, account.thawing);
    }
    for ((requester, node, token), channel) in &model.channels {
        put(Account::Reserved { requester: *requester, node: *node }, *token, channel.reserved);
    }
    for order in (0..model::ORDERS).map(model::order) {
        let id = Model::job_id(&order);
        put(Account::Job(id), order.token, model.locked(&id));
    }
    model.earned.iter().for_each(|((node, token), amount)| put(Account::Earned(*node), *token, *amount));
    model.fees.iter().for_each(|(token, amount)| put(Account::Fee, *token, *amount));
    for (address, node) in &model.nodes {
        put(Account::Stake(*address), Address::ZERO, node.stake);
        put(Account::Unbonding(*address), Address::ZERO, node.unbonding);
    }
    held.retain(|_, amount| !amount.is_zero());
    held
}

proptest! {
    #![proptest_config(model::config())]

    #[test]
    fn entries_sum_to_zero_and_to_what_the_contracts_hold(model in histories()) {
        let (book, _) = book(&model.events());
        for entries in &book {
            let mut totals: BTreeMap<Address, I256> = BTreeMap::new();
            for entry in entries {
                prop_assert!(!entry.amount.is_zero());
                prop_assert_ne!(entry.account, Account::Suspense, "honest tokens leave nothing unaccounted for");
                *totals.entry(entry.token).or_default() += entry.amount;
            }
            prop_assert!(totals.values().all(I256::is_zero), "{entries:?}");
        }
        let mut sums = sums(&book);
        let mut world = BTreeMap::new();
        sums.retain(|(account, token), sum| {
            if *account == Account::World {
                world.insert(*token, *sum);
            }
            *account != Account::World
        });
        let held = held(&model);
        prop_assert_eq!(&sums, &held);
        for coin in (0..2).map(token) {
            let inside: I256 = held.iter().filter(|((_, token), _)| *token == coin).map(|(_, sum)| *sum).sum();
            prop_assert_eq!(world.get(&coin).copied().unwrap_or_default(), -inside);
        }
    }
}

fn rows_with_free(amount: u128) -> Rows {
    let mut rows = Rows::default();
    let account = crate::fold::EscrowAccount { free: amount.into(), ..Default::default() };
    rows.accounts.insert((requester(0), token(1)), account);
    rows
}

fn entries_between(event: &Event, before: &Rows, after: &Rows) -> Vec<Entry> {
    let keys = event.keys();
    entries(event, &Balances::of(before, &keys), &Balances::of(after, &keys))
}

#[test]
fn what_an_event_does_not_account_for_is_in_suspense() {
    let deposited = |amount: u64, free: u64| {
        Event::Deposited(IJobEscrow::Deposited {
            account: requester(0),
            token: token(1),
            from: node(1),
            amount: U256::from(amount),
            free: U256::from(free),
        })
    };
    let of = |account, amount: i64| Entry { account, token: token(1), amount: I256::try_from(amount).unwrap() };
    let (five, nine) = (rows_with_free(5), rows_with_free(9));
    let honest = entries_between(&deposited(4, 9), &five, &nine);
    assert_eq!(honest, [of(Account::World, -4), of(Account::Free(requester(0)), 4)]);
    let odd = entries_between(&deposited(3, 9), &five, &nine);
    let expected = [of(Account::World, -3), of(Account::Free(requester(0)), 4), of(Account::Suspense, -1)];
    assert_eq!(odd, expected);
    assert_eq!(entries_between(&deposited(0, 5), &five, &five), []);
}
