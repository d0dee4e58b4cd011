"""How fast a backlog is worked off with a handler that does nothing, and what an item has cost from enqueueing to its end."""

import statistics


def drain(stage, contestant, clients, batch, lives):
    """One run in a fresh database; the WAL of enqueueing goes to `lives`."""
    with stage.fresh(contestant) as database:
        filled = stage.fill(contestant, database, stage.options.items, batch)
        run = stage.drain(contestant, database, contestant.sample or stage.options.items, clients, batch)
    lives.setdefault(contestant.name, []).append(filled.wal_bytes + run.wal_bytes)
    return run


def run(stage):
    """Each number of clients with each size of a batch."""
    for batch in stage.options.batches:
        for clients in stage.options.clients:
            lives = {}
            entries = {one.name: one for one in stage.present if clients <= one.most_clients and (one.batches or batch == stage.options.batches[0])}
            title = f"drain {clients} x {batch}"
            runs = stage.turns(title, entries, lambda one, clients=clients, batch=batch, lives=lives: drain(stage, one, clients, batch, lives))
            life = {name: statistics.median(values) for name, values in lives.items()}
            stage.report(f"Drain: {stage.options.items:,} items, {clients} client{'s' * (clients > 1)}, batches of {batch}", runs, stage.present[0].name,
                         lambda name, life=life: {"life WAL B": life[name]}, case="drain", clients=clients, batch=batch)
