// Both contracts, from their deployment to the block that the benchmark names.
import { createConfig } from "ponder";
import { abiOf, setting } from "./src/settings";

const blocks = { startBlock: Number(setting("BENCH_FROM")), endBlock: Number(setting("BENCH_TO")) };

export default createConfig({
  database: { kind: "postgres" },
  chains: { local: { id: 31337, rpc: setting("BENCH_RPC_URL") } },
  contracts: {
    JobEscrow: { abi: abiOf("JobEscrow"), chain: "local", address: setting("BENCH_ESCROW") as `0x${string}`, ...blocks },
    NodeRegistry: { abi: abiOf("NodeRegistry"), chain: "local", address: setting("BENCH_REGISTRY") as `0x${string}`, ...blocks },
  },
});
