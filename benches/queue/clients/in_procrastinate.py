"""procrastinate's own client: in_procrastinate.py migrate | drain ITEMS CLIENTS | wait SAMPLES."""

import asyncio
import json
import sys
import time

import procrastinate

app = procrastinate.App(connector=procrastinate.PsycopgConnector(kwargs={}, min_size=2, max_size=25))
seen, finished = [], asyncio.Event()


@app.task(name="bench", queue="bench")
async def bench(sent=0.0, **_):
    """Does nothing but count."""
    seen.append((time.time() - sent) * 1000)
    if len(seen) == wanted:
        finished.set()


async def main():
    """One verb."""
    async with app.open_async():
        if mode == "migrate":
            await app.schema_manager.apply_schema_async()
            return {}
        began = time.perf_counter()
        worker = asyncio.create_task(app.run_worker_async(queues=["bench"], concurrency=clients, install_signal_handlers=False, delete_jobs="always"))
        if mode == "wait":
            await asyncio.sleep(1)
            print("ready", flush=True)
        await finished.wait()
        seconds = time.perf_counter() - began
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)
        return {"count": len(seen), "seconds": seconds} if mode == "drain" else seen


if __name__ == "__main__":
    mode, numbers = sys.argv[1], [int(word) for word in sys.argv[2:]]
    wanted, clients = [*numbers, 1, 1][:2]
    print(json.dumps(asyncio.run(main())))
