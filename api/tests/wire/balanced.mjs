// Stock clients of one address, as applications write them: each follows the job, comes back by itself when its server is gone,
// and goes on after the last message it saw. Says "ready" once all follow, and as JSON how much each saw once all have seen it all.
//   API, TOKEN, JOB, CLIENTS, COUNT
import { io } from "socket.io-client";

const { API, TOKEN, JOB } = process.env;
const [clients, count] = [Number(process.env.CLIENTS), Number(process.env.COUNT)];
const follow = () => new Promise((began) => {
  const client = { seen: [], connects: 0, lost: 0, unrecovered: 0, errors: [], last: null };
  // Without stickiness only one connection is one instance's.
  const socket = io(`${API}/lit-compute`, { transports: ["websocket"], auth: { token: TOKEN } });
  socket.on("connect", () => {
    client.connects += 1;
    const since = client.last;
    socket.emit("subscribe:job", since ? { jobId: JOB, since } : JOB, ({ ok, recovered, epoch, offset }) => {
      if (!ok) throw new Error("not subscribed");
      if (since && !recovered) client.unrecovered += 1;
      client.last ??= { epoch, offset };
      began(client);
    });
  });
  socket.on("connect_error", (error) => client.errors.push(error.message));
  socket.on("history:lost", () => { client.lost += 1; });
  socket.on("job:update", ({ event, epoch, offset }) => {
    client.last = { epoch, offset };
    client.seen.push(event);
  });
});

const all = await Promise.all(Array.from({ length: clients }, follow));
console.log("ready");
const deadline = Date.now() + 60_000;
while (Date.now() < deadline && all.some(({ seen }) => seen.length < count)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
}
const said = all.map(({ seen, connects, lost, unrecovered, errors }) => ({
  seen: seen.length, misplaced: seen.findIndex((event, n) => event !== `job.event${n}`), connects, lost, unrecovered, errors,
}));
process.stdout.write(`${JSON.stringify(said)}\n`, () => process.exit(0));
