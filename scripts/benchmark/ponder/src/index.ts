// One row for each event, and the rows that it changes: the same work as that of our indexer's folds, without its ledger.
import { ponder } from "ponder:registry";
import { account, chainEvent, channel, earned, job, node } from "ponder:schema";
import { eventsOf } from "./settings";

type Row = Record<string, any>;
type Handler = (db: any, args: Row, event: any) => Promise<unknown>;

const put = (db: any, table: any, key: Row, rest: Row, otherwise: Row = {}) =>
  db.insert(table).values({ ...otherwise, ...key, ...rest }).onConflictDoUpdate(rest);

const free = (db: any, owner: string, token: string, free: bigint) =>
  put(db, account, { owner, token }, { free }, { thawing: 0n });
const balances = (db: any, owner: string, token: string, free: bigint, thawing: bigint, thawEnd?: bigint) =>
  put(db, account, { owner, token }, thawEnd === undefined ? { free, thawing } : { free, thawing, thawEnd });
const earn = (db: any, a: Row) => put(db, earned, { node: a.node, token: a.token }, { earned: a.earned });
const stakes = (db: any, id: string, rest: Row) => put(db, node, { id }, rest, { stake: 0n, bonds: 0 });

async function redeemed(db: any, a: Row) {
  await earn(db, a);
  const bytes = Buffer.from(a.redemptions.slice(2), "hex");
  const number = (at: number, length: number) => BigInt(`0x${bytes.subarray(at, at + length).toString("hex")}`);
  for (let at = 0; at < bytes.length; at += 96) {
    const requester = `0x${bytes.subarray(at, at + 20).toString("hex")}`;
    const rest = { claimed: number(at + 20, 12), reserved: number(at + 76, 12), coveredNonce: number(at + 88, 8) };
    await put(db, channel, { requester, node: a.node.toLowerCase(), token: a.token.toLowerCase() }, rest);
    if (number(at + 64, 12) !== 0n) await balances(db, requester, a.token, number(at + 32, 16), number(at + 48, 16));
  }
}

const escrow: Record<string, Handler> = {
  Deposited: (db, a) => free(db, a.account, a.token, a.free),
  Thawing: (db, a) => balances(db, a.account, a.token, a.free, a.thawing, a.thawEnd),
  Withdrawn: (db, a) => balances(db, a.account, a.token, a.free, a.thawing),
  async JobOpened(db, a) {
    const { jobId, spec, free: left, ...order } = a;
    const { inputCID: inputCid, operation: specOperation, params } = spec;
    await put(db, job, { id: jobId }, { ...order, inputCid, specOperation, params, state: "open" });
    await free(db, a.requester, a.token, left);
  },
  async ResultSubmitted(db, a) {
    const { requester, node, token, price, resultHash, finalizeAt } = a;
    await put(db, job, { id: a.jobId }, { requester, node, token, price, resultHash, finalizeAt, state: "submitted" });
    await free(db, requester, token, a.free);
  },
  async JobPaid(db, a, event) {
    const { requester, node, token, price, resultHash } = a;
    const rest = { requester, node, token, price, resultHash, state: "paid", closedTx: event.transaction.hash };
    await put(db, job, { id: a.jobId }, rest);
    await free(db, requester, token, a.free);
    await earn(db, a);
  },
  async JobRefunded(db, a, event) {
    await put(db, job, { id: a.jobId }, { requester: a.requester, state: "refunded", closedTx: event.transaction.hash });
    await free(db, a.requester, a.token, a.free);
  },
  JobCancelling: (db, a) => put(db, job, { id: a.jobId }, { requester: a.requester, cancelAt: a.cancelAt }, { state: "none" }),
  async ChannelUpdated(db, a) {
    const { requester, node, token, claimed, reserved } = a;
    await put(db, channel, { requester, node, token }, { claimed, reserved }, { coveredNonce: 0n });
    await balances(db, requester, token, a.free, a.thawing);
  },
  VouchersRedeemed: redeemed,
  async ReservationChanged(db, a) {
    const { requester, node, token, reserved } = a;
    await put(db, channel, { requester, node, token }, { reserved }, { claimed: 0n, coveredNonce: 0n });
    await free(db, requester, token, a.free);
  },
  EarnedWithdrawn: earn,
};

const registry: Record<string, Handler> = {
  NodeUpdated(db, a) {
    const { nodeId, payout, capacity, operations, uri } = a;
    return stakes(db, a.node, { nodeId, payout, capacity, operations: JSON.stringify(operations), uri });
  },
  Staked: (db, a) => stakes(db, a.node, { stake: a.stake }),
  BondLocked: (db, a) => stakes(db, a.node, { bonds: a.bonds }),
  BondReleased: (db, a) => stakes(db, a.node, { bonds: a.bonds }),
};

for (const [contract, handlers] of Object.entries({ JobEscrow: escrow, NodeRegistry: registry })) {
  for (const kind of eventsOf(contract)) {
    const fold = handlers[kind];
    ponder.on(`${contract}:${kind}` as any, async ({ event, context }: any) => {
      await context.db.insert(chainEvent).values({
        id: event.id,
        blockNumber: event.block.number,
        blockHash: event.block.hash,
        logIndex: event.log.logIndex,
        txHash: event.transaction.hash,
        contract: event.log.address,
        kind,
        topics: event.log.topics.join(""),
        data: event.log.data,
      });
      if (fold) await fold(context.db, event.args, event);
    });
  }
}
