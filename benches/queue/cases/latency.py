"""From enqueueing to the handler at light load: an idle worker, about 17 items a second."""

import statistics

from benchkit.measure import percentile
from benchkit.report import figure, ratio, table
from devkit.say import DevError

RATE = 17
SHARES = (50, 95, 99)


def latency(stage, contestant):
    """One run in a fresh database: its percentiles in milliseconds."""
    samples = stage.options.samples
    with stage.fresh(contestant) as database:
        seen = contestant.latency(database, samples, RATE)
    if len(seen) < samples:
        raise DevError(f"{len(seen)} of {samples} items came")
    return [percentile(seen, share) for share in SHARES]


def run(stage):
    """Every family with its own way of waking."""
    runs = stage.turns("latency", {one.name: one for one in stage.families()}, lambda one: latency(stage, one))
    medians = {name: [statistics.median(column) for column in zip(*some)] for name, some in runs.items()}
    base, rows = medians.get(stage.present[0].name), []
    for name, own in medians.items():
        rows.append([*(ratio(base[i] / own[i]) if base and own[i] else "-" for i in (0, 1)), name, *map(figure, own), len(runs[name])])
        stage.results.add(case="latency", contestant=name, library=stage.library, rate=RATE, samples=stage.options.samples,
                          median=dict(zip(("p50", "p95", "p99"), own)), runs=runs[name])
    if rows:
        table(f"Latency: {RATE} items a second, ms (ratios to {stage.present[0].name}, more is better)",
              ["p50", "p95", "contestant", "p50 ms", "p95 ms", "p99 ms", "runs"], rows)
