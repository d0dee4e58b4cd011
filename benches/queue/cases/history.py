"""Whether finished items slow the queue down: the same backlog with millions of finished items beside it, and without."""

CLIENTS, BATCH = 4, 100


def run(stage):
    """Ours alone: the baseline deletes what is finished."""
    for contestant in stage.families("ours"):
        fresh, aged = stage.aged(contestant)
        few, many = f"{contestant.name}, no history", f"{contestant.name}, {stage.options.finished:,} finished"

        def work(database, contestant=contestant):
            stage.fill(contestant, database, stage.options.items, BATCH)
            return stage.drain(contestant, database, stage.options.items, CLIENTS, BATCH)

        runs = stage.turns("history", {few: fresh, many: aged}, work)
        stage.report(f"History: {stage.options.items:,} items, {CLIENTS} clients, batches of {BATCH}", runs, few, case="history", finished=stage.options.finished)
