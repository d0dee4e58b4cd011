// graphile-worker's own client: graphile.mjs migrate | drain ITEMS CLIENTS BATCH | wait SAMPLES
import { createRequire } from "node:module";
const require = createRequire(`${process.env.PEER}/`);
const { run, runMigrations, Logger } = require("graphile-worker");
const { Pool } = require("pg");

const [mode, ...numbers] = process.argv.slice(2);
const [items, clients = 1, batch = 1] = numbers.map(Number);
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));
const now = () => performance.timeOrigin + performance.now();
const pgPool = new Pool({ max: clients + 5 });
pgPool.on("error", () => {});

if (mode === "migrate") {
  await runMigrations({ pgPool, logger });
} else {
  const seen = [];
  let finished;
  const all = new Promise((resolve) => { finished = resolve; });
  const bench = (payload) => {
    seen.push(now() - payload.sent * 1000);
    if (seen.length === items) finished();
  };
  // As its guide to performance advises: for throughput a local queue and batched completion, for latency neither.
  const batching = { localQueue: { size: batch }, completeJobBatchDelay: 0, failJobBatchDelay: 0 };
  const began = performance.now();
  const runner = await run({
    pgPool, logger, noHandleSignals: true, taskList: { bench },
    preset: { worker: { concurrentJobs: clients, pollInterval: 2000, ...(mode === "drain" ? batching : {}) } },
  });
  if (mode === "wait") setTimeout(() => console.log("ready"), 500);
  await all;
  await runner.stop();
  console.log(JSON.stringify(mode === "drain" ? { count: items, seconds: (performance.now() - began) / 1000 } : seen));
}
await pgPool.end();
process.exit(0);
