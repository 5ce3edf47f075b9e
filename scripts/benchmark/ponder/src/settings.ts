// What the benchmark hands over, and the ABIs as forge wrote them.
import { readFileSync } from "node:fs";
import type { Abi } from "viem";

export function setting(name: string): string {
  const value = process.env[name];
  if (value === undefined) throw new Error(`${name} is not set`);
  return value;
}

export function abiOf(contract: string): Abi {
  return JSON.parse(readFileSync(`${setting("BENCH_ARTIFACTS")}/${contract}.sol/${contract}.json`, "utf8")).abi;
}

export function eventsOf(contract: string): string[] {
  return abiOf(contract).flatMap((item) => (item.type === "event" ? [item.name] : []));
}
