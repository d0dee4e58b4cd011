"""What a session does to the queue that holds an old snapshot: passes of filling and draining beside it, the last against the first."""

import statistics
import time

from benchkit.report import figure, ratio, table

FAMILIES = ("baseline", "ours", "pgmq", "pgq", "pgboss")
PASSES, CLIENTS, BATCH = 8, 4, 100


def passes(stage, contestant):
    """The rates of all passes beside one snapshot that is older than every item."""
    rates, apart = [], stage.options.hold / (PASSES - 1)
    with stage.fresh(contestant) as database, database.connect() as holder:
        holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        holder.execute("SELECT count(*) FROM pg_class")
        began = time.monotonic()
        for number in range(PASSES):
            time.sleep(max(0, began + number * apart - time.monotonic()))
            stage.fill(contestant, database, stage.options.pass_items, BATCH)
            clients = min(CLIENTS, contestant.most_clients)
            rates.append(stage.drain(contestant, database, stage.options.pass_items, clients, BATCH).rate)
        holder.execute("COMMIT")
    return rates


def run(stage):
    """The families that drain fast enough to be hurt; ours with both ways of finishing."""
    entries = {one.name: one for one in stage.present
               if one in stage.families(*FAMILIES) or (one.family == "ours" and one.name == "pgsteward, not kept")}
    runs, rows = stage.turns("old snapshot", entries, lambda one: passes(stage, one)), []
    medians = {name: [statistics.median(column) for column in zip(*some)] for name, some in runs.items()}
    base = medians.get(stage.present[0].name)
    for name, own in medians.items():
        rows.append([ratio(own[-1] / own[0]), ratio(own[-1] / base[-1] if base else None), name, *map(figure, own), len(runs[name])])
        stage.results.add(case="snapshot", contestant=name, library=stage.library, items=stage.options.pass_items, hold=stage.options.hold, median=own, runs=runs[name])
    if rows:
        table(f"Old snapshot: items/s in passes of {stage.options.pass_items:,} items, {CLIENTS} clients, batches of {BATCH} (ratios: more is better)",
              ["last/first", f"last to {stage.present[0].family}", "contestant", *(f"pass {n + 1}" for n in range(PASSES)), "runs"], rows)
