"""What waking a worker costs those who enqueue: 32 clients commit one item each, with nobody waiting and with a worker that waits."""

from contextlib import nullcontext

from cases.enqueue import enqueue

SESSIONS = 32


def run(stage):
    """Each family that can do both, against itself with nobody waiting."""
    for one in stage.families("baseline", "ours"):
        entries = {one.name: nullcontext, f"{one.name}, worker waiting": one.waiting}
        if one.family == "ours":
            entries[f"{one.name}, worker working"] = one.worker
        runs = stage.turns("wake-up", entries, lambda beside, one=one: enqueue(stage, one, "single", SESSIONS, beside))
        stage.report(f"Wake-up: one item per commit, {SESSIONS} sessions", runs, one.name, case="wakeup", sessions=SESSIONS)
