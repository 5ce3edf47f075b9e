//! A market in which every function of both contracts is called, and every event emitted.

use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::providers::Provider;
use alloy::rpc::types::TransactionRequest;
use alloy::signers::SignerSync;
use alloy::sol_types::{SolCall, SolValue};
use devnet::{DEV_KEYS, DevKey};
use market::abi::{IERC20, IJobEscrow, INodeRegistry, Order, SignedVoucher, Voucher};
use market::typed_data;

use super::chain::{ASSIGNER, COIN, Chain, ETHER, NODE, OTHER_REQUESTER, REQUESTER, SETTLER, spec};

/// Owns the contracts until [`owners`].
pub const OWNER: DevKey = DEV_KEYS[0];
pub const ARBITER: DevKey = DEV_KEYS[6];
pub const SESSION: DevKey = DEV_KEYS[7];
pub const NEXT_OWNER: DevKey = DEV_KEYS[8];
pub const OTHER_NODE: DevKey = DEV_KEYS[9];

/// Does it all, in some seventy transactions, a block each.
pub async fn happen(chain: &Chain) {
    nodes(chain).await;
    deposits(chain).await;
    opened_jobs(chain).await;
    signed_orders(chain).await;
    vouchers(chain).await;
    reservations(chain).await;
    disputes(chain).await;
    covered_meanwhile(chain).await;
    owners(chain).await;
    leaving(chain).await;
}

/// A call of what the bindings do not have.
fn raw(signature: &str, arguments: &[u8]) -> Bytes {
    [&keccak256(signature)[..4], arguments].concat().into()
}

async fn escrow(chain: &Chain, from: DevKey, call: impl SolCall) {
    chain.call(from, chain.deployment.escrow, 0, call).await;
}

async fn registry(chain: &Chain, from: DevKey, call: impl SolCall) {
    chain.call(from, chain.deployment.registry, 0, call).await;
}

/// For [`NODE`], by [`REQUESTER`], with a month to settle it.
async fn order(chain: &Chain, nonce: u64) -> Order {
    let spec = spec(&nonce.to_string());
    Order { deadline: chain.now().await + 30 * 86_400, ..chain.order(nonce, &spec).await }
}

/// With a challenge window and an arbiter.
async fn disputable(chain: &Chain, nonce: u64) -> Order {
    Order { challengeWindow: 600, arbiter: ARBITER.address(), ..order(chain, nonce).await }
}

async fn open(chain: &Chain, order: &Order) {
    chain.open(order, &spec(&order.nonce.to_string())).await;
}

async fn nodes(chain: &Chain) {
    chain.register(NODE, 3 * ETHER).await;
    chain.register(OTHER_NODE, 0).await;
    let stake = INodeRegistry::stakeCall { node: OTHER_NODE.address() };
    chain.call(REQUESTER, chain.deployment.registry, 2 * ETHER, stake).await;
    let update = INodeRegistry::updateCall {
        publicKey: vec![8; 32].into(),
        payout: Address::repeat_byte(9),
        capacity: u32::MAX,
        operations: vec!["encrypt".to_owned()],
        uri: String::new(),
    };
    registry(chain, OTHER_NODE, update).await;
}

async fn deposits(chain: &Chain) {
    let token = chain.deployment.tokens["TEST"];
    chain.deposit(REQUESTER, 100_000).await;
    chain.deposit(OTHER_REQUESTER, 50_000).await;
    let gift = IJobEscrow::depositForCall { account: REQUESTER.address(), token: COIN, amount: U256::from(7) };
    chain.call(SETTLER, chain.deployment.escrow, 7, gift).await;
    let mint = (REQUESTER.address(), U256::from(90_000)).abi_encode_params();
    chain.send(REQUESTER, token, 0, raw("mint(address,uint256)", &mint)).await;
    let approve = IERC20::approveCall { spender: chain.deployment.escrow, amount: U256::from(50_000) };
    chain.call(REQUESTER, token, 0, approve).await;
    escrow(chain, REQUESTER, IJobEscrow::depositCall { token, amount: U256::from(50_000) }).await;
    deposit_with_permit(chain, token, U256::from(40_000)).await;
}

async fn deposit_with_permit(chain: &Chain, token: Address, amount: U256) {
    let request = TransactionRequest::default().to(token).input(raw("DOMAIN_SEPARATOR()", &[]).into());
    let separator = chain.provider.call(request).await.unwrap();
    let kind = keccak256("Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)");
    let (owner, spender) = (REQUESTER.address(), chain.deployment.escrow);
    let permit = keccak256((kind, owner, spender, amount, U256::ZERO, U256::MAX).abi_encode());
    let digest = keccak256([&[0x19, 1], &separator[..], &permit[..]].concat());
    let signature = REQUESTER.signer().sign_hash_sync(&digest).unwrap();
    let call = IJobEscrow::depositWithPermitCall {
        token,
        amount,
        deadline: U256::MAX,
        v: 27 + u8::from(signature.v()),
        r: signature.r().into(),
        s: signature.s().into(),
    };
    escrow(chain, REQUESTER, call).await;
}

async fn opened_jobs(chain: &Chain) {
    escrow(chain, OWNER, IJobEscrow::setFeeBpsCall { feeBps: 200 }).await;
    // Paid at once, with a fee; opened with value; left open, with a window; of a token.
    let mut at_once = order(chain, 1).await;
    at_once.maxFeeBps = 150;
    open(chain, &at_once).await;
    let paid_in = order(chain, 2).await;
    let call = IJobEscrow::openJobCall { order: paid_in.clone(), spec: spec("2") };
    chain.call(REQUESTER, chain.deployment.escrow, 1500, call).await;
    let mut anyone = order(chain, 3).await;
    (anyone.node, anyone.assigner, anyone.challengeWindow) = (Address::ZERO, ASSIGNER.address(), 60);
    open(chain, &anyone).await;
    let mut of_token = order(chain, 4).await;
    (of_token.token, of_token.maxFeeBps) = (chain.deployment.tokens["TEST"], 500);
    open(chain, &of_token).await;
    let results = [(&at_once, 900), (&paid_in, 1000), (&paid_in, 1000), (&anyone, 500), (&of_token, 800)];
    chain.submit(results.map(|(order, price)| chain.result(order, price)).to_vec()).await;
    chain.finalize(vec![anyone.clone()]).await;
    chain.wait(61).await;
    chain.finalize(vec![anyone]).await;

    // Cancelled and refunded; cancelled before it is opened, which takes that back; too early to be refunded.
    let cancelled = order(chain, 5).await;
    open(chain, &cancelled).await;
    escrow(chain, REQUESTER, IJobEscrow::cancelJobCall { order: cancelled.clone() }).await;
    let reopened = order(chain, 6).await;
    escrow(chain, REQUESTER, IJobEscrow::cancelJobCall { order: reopened.clone() }).await;
    open(chain, &reopened).await;
    let never = order(chain, 7).await;
    escrow(chain, REQUESTER, IJobEscrow::cancelJobCall { order: never }).await;
    chain.wait(31).await;
    escrow(chain, SETTLER, IJobEscrow::refundExpiredCall { orders: vec![cancelled, reopened] }).await;
}

async fn signed_orders(chain: &Chain) {
    let (at_once, mut of_token) = (order(chain, 11).await, order(chain, 12).await);
    of_token.token = chain.deployment.tokens["TEST"];
    let in_window = Order { challengeWindow: 60, ..order(chain, 13).await };
    let accepted = disputable(chain, 14).await;
    let mut foreign = order(chain, 15).await;
    foreign.requester = SETTLER.address();
    let mut results = [(&at_once, 700), (&of_token, 600), (&in_window, 500), (&accepted, 400), (&foreign, 1)]
        .map(|(order, price)| chain.signed(order, price));
    // What is not signed is skipped.
    results[4].orderSignature = vec![1; 65].into();
    chain.submit(results.to_vec()).await;
    escrow(chain, REQUESTER, IJobEscrow::acceptCall { order: accepted }).await;
    chain.wait(61).await;
    chain.finalize(vec![in_window]).await;
}

/// A voucher of `requester` for [`NODE`], as `redeem` takes it, signed by `signer`.
fn packed(
    chain: &Chain,
    (requester, signer): (DevKey, DevKey),
    token: Address,
    cumulative: u128,
    nonce: u64,
) -> Vec<u8> {
    let voucher =
        Voucher { requester: requester.address(), node: NODE.address(), token, cumulative, coveredNonce: nonce };
    let digest = typed_data::voucher_digest(&voucher, &chain.deployment.domain());
    let signature = signer.signer().sign_hash_sync(&digest).unwrap();
    let (r, mut vs): (B256, B256) = (signature.r().into(), signature.s().into());
    vs.0[0] |= u8::from(signature.v()) << 7;
    [requester.address().as_slice(), &cumulative.to_be_bytes(), &nonce.to_be_bytes(), r.as_slice(), vs.as_slice()]
        .concat()
}

async fn redeem(chain: &Chain, by: DevKey, token: Address, vouchers: &[Vec<u8>]) {
    escrow(chain, by, IJobEscrow::redeemCall { node: NODE.address(), token, vouchers: vouchers.concat().into() }).await;
}

async fn vouchers(chain: &Chain) {
    let session = IJobEscrow::authorizeSessionCall {
        key: SESSION.address(),
        token: COIN,
        cap: 2000,
        expiry: chain.now().await + 86_400,
    };
    escrow(chain, REQUESTER, session).await;
    escrow(chain, NODE, IJobEscrow::setSettlerCall { settler: SETTLER.address(), allowed: true }).await;
    escrow(chain, NODE, IJobEscrow::setSettlerCall { settler: ASSIGNER.address(), allowed: true }).await;
    escrow(chain, NODE, IJobEscrow::setSettlerCall { settler: ASSIGNER.address(), allowed: false }).await;
    // The channel has paid 1,600 for orders settled alone. Two vouchers of one requester in a batch, one of another, one
    // that is worth nothing more, and one that nobody signed.
    let own = (REQUESTER, REQUESTER);
    let batch = [
        packed(chain, own, COIN, 2600, 15),
        packed(chain, (REQUESTER, SESSION), COIN, 3600, 20),
        packed(chain, (OTHER_REQUESTER, OTHER_REQUESTER), COIN, 300, 2),
        packed(chain, own, COIN, 2600, 15),
        packed(chain, (OTHER_REQUESTER, SESSION), COIN, 900, 2),
    ];
    redeem(chain, SETTLER, COIN, &batch).await;
    redeem(
        chain,
        NODE,
        chain.deployment.tokens["TEST"],
        &[packed(chain, own, chain.deployment.tokens["TEST"], 900, 12)],
    )
    .await;
    // Settled ahead of the next voucher, and shown with it.
    let ahead = order(chain, 30).await;
    chain.submit(vec![chain.signed(&ahead, 250)]).await;
    let mut voucher = SignedVoucher {
        requester: REQUESTER.address(),
        cumulative: 4000,
        coveredNonce: 25,
        signature: Bytes::new(),
        settledAbove: vec![ahead],
    };
    let typed =
        Voucher { requester: voucher.requester, node: NODE.address(), token: COIN, cumulative: 4000, coveredNonce: 25 };
    let digest = typed_data::voucher_digest(&typed, &chain.deployment.domain());
    voucher.signature = REQUESTER.signer().sign_hash_sync(&digest).unwrap().as_bytes().to_vec().into();
    let call = IJobEscrow::redeemSignedCall { node: NODE.address(), token: COIN, vouchers: vec![voucher] };
    escrow(chain, SETTLER, call).await;
    // An order that a voucher covers is refused.
    chain.submit(vec![chain.signed(&order(chain, 24).await, 1)]).await;
    escrow(chain, REQUESTER, IJobEscrow::revokeSessionCall { key: SESSION.address(), token: COIN }).await;
}

async fn reservations(chain: &Chain) {
    let node = NODE.address();
    let reserve = |amount: u64| IJobEscrow::reserveCall { node, token: COIN, amount: U256::from(amount) };
    let thaw = |amount: u64| IJobEscrow::thawReservationCall { node, token: COIN, amount: U256::from(amount) };
    escrow(chain, OTHER_REQUESTER, reserve(5000)).await;
    escrow(chain, OTHER_REQUESTER, thaw(4800)).await;
    // The node draws on what is on its way back; then from the account too, down to what thaws there.
    redeem(chain, NODE, COIN, &[packed(chain, (OTHER_REQUESTER, OTHER_REQUESTER), COIN, 1300, 5)]).await;
    chain.wait(31).await;
    escrow(chain, OTHER_REQUESTER, IJobEscrow::releaseReservationCall { node, token: COIN }).await;
    escrow(chain, OTHER_REQUESTER, reserve(100)).await;
    escrow(chain, OTHER_REQUESTER, IJobEscrow::thawCall { token: COIN, amount: U256::from(40_000) }).await;
    redeem(chain, NODE, COIN, &[packed(chain, (OTHER_REQUESTER, OTHER_REQUESTER), COIN, 20_000, 6)]).await;
    escrow(chain, OTHER_REQUESTER, reserve_of_rest(chain).await).await;
    escrow(chain, OTHER_REQUESTER, thaw(1)).await;
}

/// Whatever is free.
async fn reserve_of_rest(chain: &Chain) -> IJobEscrow::reserveCall {
    chain.deposit(OTHER_REQUESTER, 70).await;
    let free = chain.escrow().account(OTHER_REQUESTER.address(), COIN).call().await.unwrap().free;
    IJobEscrow::reserveCall { node: NODE.address(), token: COIN, amount: U256::from(free) }
}

async fn disputes(chain: &Chain) {
    let dispute = |order: &Order| IJobEscrow::disputeCall { order: order.clone() };
    let resolve = |order: &Order, pay: u16, slash: u16| IJobEscrow::resolveCall {
        order: order.clone(),
        payNodeBps: pay,
        slashBps: slash,
    };
    // Opened: divided and slashed, with a fee. Signed: paid in full, so that the bond goes to the node. Of a token: slashed
    // and burnt. Undecided: one is paid after the arbiter's time, one is accepted, one goes on.
    let divided = Order { maxFeeBps: 400, ..disputable(chain, 41).await };
    open(chain, &divided).await;
    let in_full = disputable(chain, 42).await;
    let of_token = Order { token: chain.deployment.tokens["TEST"], ..disputable(chain, 43).await };
    let (silent, accepted) = (disputable(chain, 44).await, disputable(chain, 45).await);
    let results = [&in_full, &of_token, &silent, &accepted].map(|order| chain.signed(order, 600));
    chain.submit([&[chain.result(&divided, 800)][..], &results].concat()).await;
    for order in [&divided, &in_full, &of_token, &silent, &accepted] {
        escrow(chain, REQUESTER, dispute(order)).await;
    }
    escrow(chain, ARBITER, resolve(&divided, 2500, 10_000)).await;
    escrow(chain, ARBITER, resolve(&in_full, 10_000, 0)).await;
    escrow(chain, ARBITER, resolve(&of_token, 0, 5000)).await;
    escrow(chain, REQUESTER, IJobEscrow::acceptCall { order: accepted }).await;
    chain.wait(3601).await;
    chain.finalize(vec![silent]).await;
}

/// Results that wait in their window while a voucher pays for them: one is finalized, one is in dispute, one goes on.
async fn covered_meanwhile(chain: &Chain) {
    let orders = [disputable(chain, 51).await, disputable(chain, 52).await, disputable(chain, 53).await];
    chain.submit(orders.iter().map(|order| chain.signed(order, 300)).collect()).await;
    escrow(chain, REQUESTER, IJobEscrow::disputeCall { order: orders[1].clone() }).await;
    let claimed = chain.escrow().channel(REQUESTER.address(), NODE.address(), COIN).call().await.unwrap().claimed;
    let cumulative = claimed.to::<u128>() + 600;
    redeem(chain, NODE, COIN, &[packed(chain, (REQUESTER, REQUESTER), COIN, cumulative, 52)]).await;
    let resolve = IJobEscrow::resolveCall { order: orders[1].clone(), payNodeBps: 0, slashBps: 10_000 };
    escrow(chain, ARBITER, resolve).await;
    chain.wait(601).await;
    chain.finalize(vec![orders[0].clone()]).await;
    let waiting = disputable(chain, 54).await;
    chain.submit(vec![chain.signed(&waiting, 200)]).await;
}

async fn owners(chain: &Chain) {
    let (escrow_address, registry_address) = (chain.deployment.escrow, chain.deployment.registry);
    let min_stake = |wei: u128| INodeRegistry::setMinStakeCall { minStake: wei };
    registry(chain, OWNER, min_stake(ETHER / 2)).await;
    registry(chain, OWNER, min_stake(2 * ETHER)).await;
    for paused in [true, false] {
        escrow(chain, OWNER, IJobEscrow::setPausedCall { paused }).await;
        registry(chain, OWNER, INodeRegistry::setPausedCall { paused }).await;
    }
    registry(chain, OWNER, INodeRegistry::setPausedCall { paused: true }).await;
    let withdraw = IJobEscrow::withdrawFeesCall { token: COIN, to: OWNER.address() };
    escrow(chain, OWNER, withdraw).await;
    let to_next = NEXT_OWNER.address().abi_encode();
    for contract in [escrow_address, registry_address] {
        chain.send(OWNER, contract, 0, raw("transferOwnership(address)", &to_next)).await;
        chain.send(NEXT_OWNER, contract, 0, raw("acceptOwnership()", &[])).await;
    }
}

async fn leaving(chain: &Chain) {
    let unbond = INodeRegistry::startUnbondCall { amount: U256::from(ETHER) };
    registry(chain, OTHER_NODE, unbond).await;
    registry(chain, NODE, INodeRegistry::startUnbondCall { amount: U256::from(ETHER / 2) }).await;
    let thaw = IJobEscrow::thawCall { token: COIN, amount: U256::from(3000) };
    escrow(chain, REQUESTER, thaw).await;
    chain.wait(chain.deployment.registry_params.unbonding_period + 1).await;
    registry(chain, OTHER_NODE, INodeRegistry::finishUnbondCall {}).await;
    let to = REQUESTER.address();
    escrow(chain, REQUESTER, IJobEscrow::withdrawCall { token: COIN, to }).await;
    let thaw = IJobEscrow::thawCall { token: COIN, amount: U256::from(5) };
    escrow(chain, REQUESTER, thaw).await;
    escrow(chain, NODE, IJobEscrow::withdrawEarnedCall { token: COIN, to: NODE.address() }).await;
    let last = order(chain, 60).await;
    open(chain, &last).await;
    chain.submit(vec![chain.result(&last, 10)]).await;
}
