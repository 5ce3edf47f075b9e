// What ours is measured against: the npm server, which passes on what it hears from the same Redis to those in the room.
//   PORT, REDIS_URL
import { createServer } from "node:http";
import { Redis } from "ioredis";
import { Server } from "socket.io";

const http = createServer((_, answer) => answer.end("well"));
const io = new Server(http, { serveClient: false });
const namespace = io.of("/lit-compute");
const heard = new Redis(process.env.REDIS_URL);

namespace.on("connection", (socket) => {
  socket.on("subscribe:job", async ({ jobId }, told) => {
    const channel = `channel:job:${jobId}:updates`;
    await heard.subscribe(channel);
    socket.join(channel);
    told({ ok: true });
  });
});
heard.on("message", (channel, text) => namespace.to(channel).emit("job:update", JSON.parse(text)));
http.listen(Number(process.env.PORT), "127.0.0.1");
