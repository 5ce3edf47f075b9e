// BullMQ doing nothing with many jobs, as scripts/bench queue asks. Takes a command a line on standard input, answers a JSON
// object a line. One process adds and works; its settings are BullMQ's own but for the concurrency.
import { createInterface } from 'node:readline';
import { Queue, Worker } from 'bullmq';

const [, , host, port] = process.argv;
const connection = { host, port: Number(port), maxRetriesPerRequest: null };
let names = 0;

async function withQueue(body) {
  const queue = new Queue(`bench${names++}`, { connection });
  await queue.waitUntilReady();
  try {
    return await body(queue);
  } finally {
    await queue.obliterate({ force: true });
    await queue.close();
  }
}

const options = { removeOnComplete: true, removeOnFail: true };

// Single adds, as many at once as the connection takes, and adds in bulk: whichever is faster.
async function add(queue, jobs) {
  const half = Math.floor(jobs / 2);
  let started = performance.now();
  for (let done = 0; done < half; ) {
    const count = Math.min(500, half - done);
    await Promise.all(Array.from({ length: count }, (_, n) => queue.add('job', { n: done + n }, options)));
    done += count;
  }
  const singly = half / ((performance.now() - started) / 1000);
  started = performance.now();
  for (let done = half; done < jobs; ) {
    const count = Math.min(500, jobs - done);
    await queue.addBulk(Array.from({ length: count }, (_, n) => ({ name: 'job', data: { n: done + n }, opts: options })));
    done += count;
  }
  const bulk = (jobs - half) / ((performance.now() - started) / 1000);
  return { singly, bulk };
}

function run({ jobs, concurrency }) {
  return withQueue(async (queue) => {
    const added = await add(queue, jobs);
    let left = jobs;
    const started = performance.now();
    await new Promise((resolve, reject) => {
      const worker = new Worker(queue.name, async () => {}, { connection, concurrency });
      worker.on('error', reject);
      worker.on('completed', () => {
        left -= 1;
        if (left === 0) resolve(worker.close());
      });
    });
    const process_per_s = jobs / ((performance.now() - started) / 1000);
    return { add_per_s: Math.max(added.singly, added.bulk), add_singly_per_s: added.singly, process_per_s };
  });
}

// From the call that adds a job to the processor's first line, with `held` jobs in the hands of the same worker.
function assign({ held, samples, everyMs }) {
  return withQueue(async (queue) => {
    const began = new Map();
    const times = [];
    let release;
    const over = new Promise((resolve) => (release = resolve));
    let holding = 0;
    const worker = new Worker(
      queue.name,
      async (job) => {
        if (job.data.held) {
          holding += 1;
          await over;
          return;
        }
        times.push(performance.now() - began.get(job.data.n));
      },
      { connection, concurrency: held + 50 },
    );
    worker.on('error', () => {});
    await worker.waitUntilReady();
    for (let n = 0; n < held; n += 100) {
      const count = Math.min(100, held - n);
      await queue.addBulk(Array.from({ length: count }, () => ({ name: 'job', data: { held: true }, opts: options })));
    }
    while (holding < held) await new Promise((resolve) => setTimeout(resolve, 20));
    for (let n = 0; n < samples; n += 1) {
      began.set(n, performance.now());
      await queue.add('job', { n }, options);
      await new Promise((resolve) => setTimeout(resolve, everyMs));
    }
    while (times.length < samples) await new Promise((resolve) => setTimeout(resolve, 20));
    release();
    await worker.close();
    times.sort((a, b) => a - b);
    const at = (share) => times[Math.min(times.length - 1, Math.floor(times.length * share))];
    return { assign_p50_ms: at(0.5), assign_p99_ms: at(0.99) };
  });
}

const commands = { run, assign };
for await (const line of createInterface({ input: process.stdin })) {
  const { command, ...rest } = JSON.parse(line);
  try {
    console.log(JSON.stringify(await commands[command](rest)));
  } catch (error) {
    console.log(JSON.stringify({ error: String(error?.stack ?? error) }));
  }
}
process.exit(0);
