// pg-boss's own client: pgboss.mjs migrate | drain ITEMS CLIENTS BATCH | latency SAMPLES RATE
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";
const require = createRequire(`${process.env.PEER}/`);
const { PgBoss } = require("pg-boss");

const [mode, ...numbers] = process.argv.slice(2);
const [items, second = 1, batchSize = 1] = numbers.map(Number);
const { PGHOST: host, PGPORT: port, PGUSER: user, PGDATABASE: database } = process.env;
const boss = new PgBoss({
  host, port: Number(port), user, database, max: Math.max(second, 2),
  supervise: false, schedule: false, useListenNotify: mode === "latency",
});
boss.on("error", (error) => console.error(error));
await boss.start();
let answer = {};

if (mode === "migrate") {
  await boss.createQueue("bench", { notify: false });
} else if (mode === "drain") {
  const began = performance.now();
  await Promise.all(Array.from({ length: second }, async () => {
    for (;;) {
      const jobs = await boss.fetch("bench", { batchSize });
      if (jobs.length === 0) return;
      await boss.complete("bench", jobs.map((job) => job.id));
    }
  }));
  answer = { count: items, seconds: (performance.now() - began) / 1000 };
} else {
  const seen = [];
  await boss.updateQueue("bench", { notify: true });
  await boss.work("bench", { batchSize: 100, pollingIntervalSeconds: 0.5, burstWhenBatchFull: true }, async (jobs) => {
    for (const { data } of jobs) seen.push(performance.now() - data.sent);
  });
  await sleep(500);
  for (let number = 0; number < items; number++) {
    await sleep((0.5 + (number * 0.618) % 1) / second * 1000);
    await boss.send("bench", { sent: performance.now() });
  }
  while (seen.length < items) await sleep(50);
  answer = seen;
}
await boss.stop({ graceful: false });
console.log(JSON.stringify(answer));
process.exit(0);
