// An outside application: the stock socket.io-client and viem against two instances of the API, the first of which is killed
// in between. Says what it saw as JSON on its last line.
//   API_A, API_B: addresses; PID_A: process of the first; REQUESTER_KEY, NODE_KEY: hex keys
import { createHash } from "node:crypto";
import { io } from "socket.io-client";
import { hashStruct, hashTypedData, keccak256, zeroAddress } from "viem";
import { privateKeyToAccount } from "viem/accounts";
import { createSiweMessage } from "viem/siwe";

const { API_A, API_B, PID_A } = process.env;
const requester = privateKeyToAccount(process.env.REQUESTER_KEY);
const node = privateKeyToAccount(process.env.NODE_KEY);

async function call(api, method, path, token, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body !== undefined && !(body instanceof Buffer)) headers["content-type"] = "application/json";
  const sent = body === undefined || body instanceof Buffer ? body : JSON.stringify(body);
  const answer = await fetch(api + path, { method, headers, body: sent });
  const text = await answer.text();
  if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
  return text ? JSON.parse(text) : null;
}

async function signIn(api, account, chainId) {
  const { nonce } = await call(api, "POST", "/lit-compute/auth/nonce");
  const domain = new URL(api).host;
  const message = createSiweMessage({ address: account.address, chainId, domain, nonce, uri: api, version: "1" });
  const signature = await account.signMessage({ message });
  return (await call(api, "POST", "/lit-compute/auth/verify", null, { message, signature })).token;
}

const ORDER = [
  ["requester", "address"], ["token", "address"], ["maxPrice", "uint128"], ["node", "address"], ["assigner", "address"],
  ["specHash", "bytes32"], ["deadline", "uint64"], ["challengeWindow", "uint32"], ["arbiter", "address"],
  ["maxFeeBps", "uint16"], ["nonce", "uint64"],
];
const types = {
  Order: ORDER.map(([name, type]) => ({ name, type })),
  JobSpec: ["inputCID", "operation", "params"].map((name) => ({ name, type: "string" })),
  Receipt: [["jobId", "bytes32"], ["price", "uint128"], ["resultHash", "bytes32"]].map(([name, type]) => ({ name, type })),
};

// Follows a job over one connection; resolves when the subscription has begun.
function follow(api, token, request, seen, lost) {
  const socket = io(`${api}/lit-compute`, { transports: ["websocket"], auth: { token }, reconnection: false });
  socket.on("job:update", (message) => seen.push(message));
  socket.on("history:lost", (message) => lost.push(message));
  return new Promise((resolve, reject) => {
    socket.on("connect_error", reject);
    socket.on("connect", () => socket.emit("subscribe:job", request, (answer) => resolve({ socket, answer })));
  });
}

async function until(what, holds) {
  for (let tries = 0; tries < 200; tries += 1) {
    if (holds()) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
  throw new Error(`${what} did not come`);
}

const chain = await call(API_A, "GET", "/lit-compute/chain");
const domain = { name: "Littoral", version: "1", chainId: chain.chainId, verifyingContract: chain.escrow };
// Signed in at one instance, known to the other.
const requesterToken = await signIn(API_A, requester, chain.chainId);
const nodeToken = await signIn(API_B, node, chain.chainId);
const { cid } = await call(API_B, "PUT", "/lit-compute/blobs", requesterToken, Buffer.from("the input"));
await call(API_A, "POST", "/lit-compute/nodes/register", nodeToken, {
  walletAddress: node.address, publicKey: `0x${"11".repeat(32)}`,
  capabilities: { maxConcurrentJobs: 2, supportedOperations: ["encrypt"] },
});

// The node is told what it can do, at the instance that the requester does not use.
const nodeId = keccak256(node.address);
const forNode = await call(API_A, "POST", "/lit-compute/realtime/token", nodeToken, { nodes: [nodeId] });
const commands = [];
const worker = io(`${API_B}/lit-compute`, { transports: ["websocket"], auth: { token: forNode.token }, reconnection: false });
worker.on("node:command", (message) => commands.push(message));
await new Promise((resolve, reject) => {
  worker.on("connect_error", reject);
  worker.on("connect", () => worker.emit("subscribe:node", nodeId, resolve));
});

const spec = { inputCID: cid, operation: "encrypt", params: "" };
const message = {
  requester: requester.address, token: zeroAddress, maxPrice: 1000n, node: node.address, assigner: zeroAddress,
  specHash: hashStruct({ data: spec, primaryType: "JobSpec", types }), deadline: BigInt(Math.floor(Date.now() / 1000) + 3600),
  challengeWindow: 0, arbiter: zeroAddress, maxFeeBps: 0, nonce: 1n,
};
const jobId = hashTypedData({ domain, types, primaryType: "Order", message });
const signature = await requester.signTypedData({ domain, types, primaryType: "Order", message });
const order = { ...message, maxPrice: "1000", deadline: Number(message.deadline), nonce: "1" };
const submitted = await call(API_A, "POST", "/lit-compute/jobs/submit", requesterToken, { order, spec, signature });
if (submitted.jobId !== jobId) throw new Error(`the job is ${submitted.jobId}, not ${jobId}`);

const { token } = await call(API_B, "POST", "/lit-compute/realtime/token", requesterToken, { jobs: [jobId] });
const refusals = [];
const intruder = io(`${API_A}/lit-compute`, { transports: ["websocket"], auth: { token: "none" }, reconnection: false });
await new Promise((resolve) => intruder.on("connect_error", (error) => resolve(refusals.push(error.message))));

const [seen, lost] = [[], []];
const first = await follow(API_A, token, jobId, seen, lost);
refusals.push((await first.socket.emitWithAck("subscribe:job", { jobId: `0x${"ff".repeat(32)}` })).error.code);
refusals.push((await first.socket.emitWithAck("subscribe:job", "*")).error.code);
refusals.push((await first.socket.emitWithAck("subscribe:node", jobId)).error.code);

await until("the command", () => commands.length > 0);
const lease = await call(API_A, "POST", "/lit-compute/jobs/claim", nodeToken, {});
await until("the lease", () => seen.some((message) => message.event === "job.leased"));
const last = seen.at(-1);

const dropped = new Promise((resolve) => first.socket.on("disconnect", resolve));
process.kill(Number(PID_A), "SIGKILL");
await dropped;
const output = Buffer.from("the output");
await call(API_B, "PUT", "/lit-compute/blobs", nodeToken, output);
const failed = await call(API_B, "POST", `/lit-compute/jobs/${jobId}/fail`, nodeToken, {
  fence: lease.fence, reason: "again, please", retryable: true,
});
await until("the pause", () => Date.now() >= Date.parse(failed.notBefore ?? 0));
let again = null;
for (let tries = 0; tries < 60 && !again; tries += 1) {
  again = await call(API_B, "POST", "/lit-compute/jobs/claim", nodeToken, { waitSecs: 1 });
}

const since = { epoch: last.epoch, offset: last.offset };
const second = await follow(API_B, token, { jobId, since }, seen, lost);
const resultHash = `0x${createHash("sha256").update(output).digest("hex")}`;
const receipt = { jobId, price: 900n, resultHash };
await call(API_B, "POST", `/lit-compute/jobs/${jobId}/complete`, nodeToken, {
  fence: again.fence, outputCID: (await call(API_B, "PUT", "/lit-compute/blobs", nodeToken, output)).cid, price: "900",
  receiptSignature: await node.signTypedData({ domain, types, primaryType: "Receipt", message: receipt }),
});
await until("the completion", () => seen.some((message) => message.event === "job.completed"));

// From a place that is not known the client is told so.
const elsewhere = await follow(API_B, token, { jobId, since: { epoch: "other", offset: 3 } }, [], lost);
const events = seen.map(({ event, epoch, offset }) => ({ event, epoch, offset }));
const recovered = [first, second, elsewhere].map(({ answer }) => answer.recovered);
console.log(JSON.stringify({ jobId, events, recovered, lost, refusals, commands }));
process.exit(0);
