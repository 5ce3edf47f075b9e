// Every event, and the rows that our indexer folds from them. Ours keeps more: a ledger of double entries, sessions, settlers,
// fees and the contracts' parameters.
import { onchainTable, primaryKey } from "ponder";

export const chainEvent = onchainTable("chain_event", (t) => ({
  id: t.text().primaryKey(),
  blockNumber: t.bigint().notNull(),
  blockHash: t.hex().notNull(),
  logIndex: t.integer().notNull(),
  txHash: t.hex().notNull(),
  contract: t.hex().notNull(),
  kind: t.text().notNull(),
  topics: t.text().notNull(),
  data: t.hex().notNull(),
}));

export const account = onchainTable(
  "account",
  (t) => ({
    owner: t.hex().notNull(),
    token: t.hex().notNull(),
    free: t.bigint().notNull(),
    thawing: t.bigint().notNull(),
    thawEnd: t.bigint(),
  }),
  (row) => ({ pk: primaryKey({ columns: [row.owner, row.token] }) }),
);

export const earned = onchainTable(
  "earned",
  (t) => ({ node: t.hex().notNull(), token: t.hex().notNull(), earned: t.bigint().notNull() }),
  (row) => ({ pk: primaryKey({ columns: [row.node, row.token] }) }),
);

export const channel = onchainTable(
  "channel",
  (t) => ({
    requester: t.hex().notNull(),
    node: t.hex().notNull(),
    token: t.hex().notNull(),
    claimed: t.bigint().notNull(),
    reserved: t.bigint().notNull(),
    coveredNonce: t.bigint().notNull(),
  }),
  (row) => ({ pk: primaryKey({ columns: [row.requester, row.node, row.token] }) }),
);

export const job = onchainTable("job", (t) => ({
  id: t.hex().primaryKey(),
  requester: t.hex().notNull(),
  node: t.hex(),
  token: t.hex(),
  maxPrice: t.bigint(),
  assigner: t.hex(),
  deadline: t.bigint(),
  challengeWindow: t.integer(),
  arbiter: t.hex(),
  maxFeeBps: t.integer(),
  nonce: t.bigint(),
  inputCid: t.text(),
  specOperation: t.text(), // `operation` is reserved
  params: t.text(),
  state: t.text().notNull(),
  price: t.bigint(),
  resultHash: t.hex(),
  finalizeAt: t.bigint(),
  cancelAt: t.bigint(),
  closedTx: t.hex(),
}));

export const node = onchainTable("node", (t) => ({
  id: t.hex().primaryKey(),
  nodeId: t.hex(),
  payout: t.hex(),
  capacity: t.integer(),
  operations: t.text(),
  uri: t.text(),
  stake: t.bigint().notNull(),
  bonds: t.integer().notNull(),
}));
