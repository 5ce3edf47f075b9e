// Many stock clients that follow one job, and the messages that they are sent. The same for every server.
//   URLS: servers, separated by commas; clients are spread over them and change to the next when theirs is gone
//   TOKEN, JOB, CLIENTS; REDIS_URL and PUBLISH, the script that publishes
// Reads lines `burst SECONDS` and `paced SECONDS MESSAGES_PER_SECOND` (a message counts once for each client that gets it),
// answers each with a line of JSON, and ends with its input.
import { createInterface } from "node:readline";
import { Redis } from "ioredis";
import { io } from "socket.io-client";

const { URLS, TOKEN, JOB, CLIENTS, REDIS_URL, PUBLISH } = process.env;
const [urls, count, channel] = [URLS.split(","), Number(CLIENTS), `channel:job:${JOB}:updates`];
// Messages that are on their way while as many as possible are sent.
const WINDOW = 16;
// How long what is still on its way may take to come, and a client to connect.
const PATIENCE_MS = 20_000;
const BODY = {
  event: "job.leased", jobId: JOB, state: "active", status: "active", operation: "encrypt",
  requester: "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266", nodeId: `0x${"7a".repeat(32)}`,
};

const redis = new Redis(REDIS_URL);
redis.defineCommand("send", { numberOfKeys: 1, lua: PUBLISH });
const now = () => performance.timeOrigin + performance.now();
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Numbers of messages, from 1 on; of each, when it was published and how many have it.
let published = 0;
let run = null;
const clients = [];
const recoveries = { asked: 0, refused: 0 };

class Client {
  constructor(index) {
    this.had = 0;
    this.missing = 0;
    this.repeated = 0;
    this.at = index % urls.length;
  }

  // Resolves when it follows.
  connect() {
    const socket = io(`${urls[this.at]}/lit-compute`, {
      transports: ["websocket"], auth: { token: TOKEN }, reconnection: false, forceNew: true,
    });
    const again = async () => {
      this.at = (this.at + 1) % urls.length;
      await pause(Math.random() * 100);
      return this.connect();
    };
    socket.on("job:update", (message) => this.take(message));
    return new Promise((resolve) => {
      socket.on("connect_error", () => again().then(resolve));
      socket.on("disconnect", () => again().then(resolve));
      socket.on("connect", () => {
        const since = this.last;
        if (since) recoveries.asked += 1;
        socket.emit("subscribe:job", { jobId: JOB, since }, (answer) => {
          if (!answer.ok) throw new Error(JSON.stringify(answer));
          if (since && !answer.recovered) recoveries.refused += 1;
          if (answer.epoch && !this.last) this.last = { epoch: answer.epoch, offset: answer.offset };
          resolve();
        });
      });
    });
  }

  take({ number, sentAt, epoch, offset }) {
    this.last = { epoch, offset };
    if (number <= this.had) {
      this.repeated += 1;
      return;
    }
    this.missing += number - this.had - 1;
    this.had = number;
    run?.got(number, now() - sentAt);
  }
}

class Run {
  constructor() {
    this.latencies = [];
    this.first = published + 1;
    this.left = new Map();
    this.began = now();
  }

  got(number, latency) {
    this.latencies.push(latency);
    const left = this.left.get(number) - 1;
    if (left > 0) {
      this.left.set(number, left);
    } else {
      this.left.delete(number);
      this.next?.();
    }
  }

  async send() {
    published += 1;
    this.left.set(published, count);
    const message = { ...BODY, number: published, sentAt: now(), timestamp: Date.now() };
    await redis.send(channel, JSON.stringify(message));
  }

  // Until everyone has everything, or nothing comes any more.
  async end() {
    for (let had = -1; this.left.size > 0 && had !== this.latencies.length; await pause(1000)) had = this.latencies.length;
    const seconds = (this.ended ?? now()) - this.began;
    const sorted = Float64Array.from(this.latencies).sort();
    const at = (part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? null;
    const expected = (published - this.first + 1) * count;
    return {
      seconds: seconds / 1000, messages: sorted.length, expected, p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1),
      ...recoveries, repeated: clients.reduce((sum, client) => sum + client.repeated, 0),
      missed: clients.reduce((sum, client) => sum + client.missing + published - client.had, 0),
    };
  }
}

// As many as there can be, with a few on their way.
async function burst(seconds) {
  run = new Run();
  const until = run.began + seconds * 1000;
  while (now() < until) {
    if (run.left.size >= WINDOW) await new Promise((resolve) => { run.next = resolve; setTimeout(resolve, PATIENCE_MS).unref(); });
    else await run.send();
  }
  while (run.left.size > 0 && now() < until + PATIENCE_MS) await pause(1);
  run.ended = now();
  return run.end();
}

async function paced(seconds, rate) {
  run = new Run();
  const step = (1000 * count) / rate;
  const messages = Math.round((seconds * 1000) / step);
  for (let sent = 0; sent < messages; sent += 1) {
    const due = run.began + sent * step;
    if (due > now()) await pause(due - now());
    await run.send();
  }
  return run.end();
}

for (let index = 0; index < count; index += 1) clients.push(new Client(index));
// Not all at once: what is measured is not how fast clients connect.
for (let index = 0; index < count; index += 50) await Promise.all(clients.slice(index, index + 50).map((client) => client.connect()));
console.log(JSON.stringify({ connected: count }));
for await (const line of createInterface({ input: process.stdin })) {
  const [what, ...numbers] = line.split(" ");
  const result = await { burst, paced }[what](...numbers.map(Number));
  run = null;
  console.log(JSON.stringify(result));
}
process.exit(0);
