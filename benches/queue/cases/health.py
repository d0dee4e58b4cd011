"""What it costs to look: the health views with millions of finished items, and with hardly any."""

import statistics
import time

from benchkit.report import figure, ratio, table

VIEWS = {
    "vw_events_queue_health": "SELECT * FROM vw_events_queue_health",
    "steward_health": "SELECT * FROM steward_health",
    "vw_dead_letter_queue LIMIT 20": "SELECT * FROM vw_dead_letter_queue LIMIT 20",
}


def look(database, statement):
    """Milliseconds of one look, the second of its session."""
    with database.connect() as connection:
        connection.execute(statement).fetchall()
        began = time.perf_counter()
        connection.execute(statement).fetchall()
        return (time.perf_counter() - began) * 1000


def run(stage):
    """Ours alone."""
    for contestant in stage.families("ours"):
        databases, rows = stage.aged(contestant), []
        for name, statement in VIEWS.items():
            runs = stage.turns(f"health {name}", dict(zip(("few", "many"), databases)), lambda database, statement=statement: look(database, statement))
            if len(runs) < 2:
                continue
            few, many = (statistics.median(runs[which]) for which in ("few", "many"))
            rows.append([ratio(few / many), name, figure(few), figure(many), len(runs["many"])])
            stage.results.add(case="health", view=name, library=stage.library, finished=stage.options.finished, few_ms=few, many_ms=many, runs=runs)
        if rows:
            table(f"Health views: {stage.options.finished:,} finished items against next to none (more is better)",
                  ["few/many", "view", "few ms", "many ms", "runs"], rows)
