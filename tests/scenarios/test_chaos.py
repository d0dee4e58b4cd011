"""Nothing is lost or done twice under fault; and the checker that says so can tell."""

import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).resolve().parents[1] / "chaos"
sys.path.append(str(CHAOS))
import history  # noqa: E402
import run  # noqa: E402
import stage  # noqa: E402
from checker import KINDS, Row, check  # noqa: E402
from conftest import drop_database  # noqa: E402


UNFENCED = r"""DO $$
DECLARE
    broken text;
BEGIN
    FOR broken IN
        SELECT regexp_replace(pg_get_functiondef(oid), 'AND q.lease_token = (ack|hold)_\w+.lease_token AND q.lease_expires_at >= \w+.now', '', 'g')
          FROM pg_proc WHERE proname ~ '^(ack|hold)_(events|discovery_items)$'
    LOOP
        ASSERT broken !~ 'q.lease_token = (ack|hold)';
        EXECUTE broken;
    END LOOP;
END $$"""


def test_a_short_run_of_every_fault(own_cluster, tmp_path):
    told = []
    assert run.run(own_cluster, tmp_path / "chaos", 7, run.SHORT, told.append), "\n".join(told)


def test_a_queue_that_does_not_check_leases_is_found_out(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "SETUP", (*stage.SETUP, UNFENCED))
    told = []
    assert not run.run(cluster, tmp_path / "chaos", 7, {"processes stopped": {"process stopped": 16}}, told.append)
    assert "stale accepted: " in "\n".join(told), "\n".join(told)
    for name in ("chaos_clients", "chaos_workers", stage.TEMPLATE):
        drop_database(cluster, name)


class Story:
    """Steps as clients would have logged them, one after another."""

    def __init__(self):
        self.steps, self.now = [], 1000.0

    def step(self, op, outcome="ok", lasting=0.01, **what):
        began, self.now = self.now, self.now + lasting
        ended = None if outcome == "killed" else self.now
        self.steps.append({"op": op, "outcome": "unknown" if outcome == "killed" else outcome, "began": began, "ended": ended} | what)
        return self

    def enqueue(self, item=1, key="key", outcome="ok", lane=None):
        return self.step("enqueue", outcome, keys=[key], lanes=[lane], ids=[item])

    def claim(self, *items, token="a", attempt=1, key="key", asked=1):
        return self.step("claim", token=token if items else None, asked=asked, items=[(item, key, attempt, self.now + 2) for item in items])

    def complete(self, item=1, token="a", outcome="ok", held=True, way="ack"):
        return self.step("complete", outcome, ids=[item], token=token, held=[item] if held else [], way=way)

    def fail(self, item=1, token="a", retryable=False):
        return self.step("fail", ids=[item], token=token, held=[item], retryable=retryable, run_at={str(item): self.now})

    def extend(self, item=1, token="a"):
        return self.step("extend", ids=[item], token=token, held=[item], expires={str(item): self.now + 2})

    def wait(self, seconds):
        self.now += seconds
        return self


def found(story, rows, effects=(), **options):
    verdict = check(story.steps, rows, effects, **options)
    return {kind for kind, texts in verdict.violations.items() if texts}


DONE = Row(1, "key", "done", 1)


def test_an_ordinary_life_violates_nothing():
    assert found(Story().enqueue().claim(1).complete(), [DONE]) == set()
    assert found(Story().enqueue().claim(1).extend().complete(way="hold"), [DONE], [(1, "a")]) == set()
    assert found(Story().enqueue().claim(1).fail(retryable=True).claim(1, token="b", attempt=2).complete(token="b"), [Row(1, "key", "done", 2)]) == set()
    assert found(Story().enqueue(key="0").claim(1, key="0").fail(), [Row(1, "0", "error", 1)]) == set()
    assert found(Story().enqueue(), [DONE], [(1, None)], logged=False) == set()


def test_what_nobody_knows_may_have_happened_or_not_but_once():
    taken_over = Story().enqueue().claim(1).complete(outcome="unknown").wait(2.5).claim(1, token="b", attempt=2)
    assert found(taken_over.complete(token="b"), [Row(1, "key", "done", 2)]) == set()
    assert found(Story().enqueue().claim(1).complete(outcome="killed"), [DONE]) == set()
    assert found(Story().enqueue(outcome="unknown"), []) == set()
    assert found(Story().enqueue(outcome="unknown").claim(1).complete(), [DONE]) == set()
    assert found(Story().enqueue(outcome="unknown").enqueue(outcome="unknown").claim(1).claim(2, token="b").complete().complete(2, "b"),
                 [DONE, Row(2, "key", "done", 1)]) == {"phantom"}


LOST = {
    "enqueued and gone": (Story().enqueue(), []),
    "accepted and gone": (Story().enqueue().claim(1).complete(), []),
    "claimed after an unknown enqueue and gone": (Story().enqueue(outcome="unknown").claim(1), []),
    "accepted as done and now in error": (Story().enqueue().claim(1).complete(), [Row(1, "key", "error", 1)]),
    "in error though nobody failed it": (Story().enqueue().claim(1).complete(outcome="unknown"), [Row(1, "key", "error", 1)]),
    "its committed effect gone": (Story().enqueue().claim(1).complete(way="hold"), [DONE]),
}
TWICE = {
    "by the same lease": (Story().enqueue().claim(1).complete().complete(), [DONE]),
    "by two leases": (Story().enqueue().claim(1).complete().claim(1, token="b", attempt=2).complete(token="b"), [Row(1, "key", "done", 2)]),
    "done and failed": (Story().enqueue().claim(1).complete().fail(), [DONE]),
    "two effects": (Story().enqueue().claim(1).complete(way="hold"), [DONE], [(1, "a"), (1, "a")]),
    "the effect of another lease": (Story().enqueue().claim(1).claim(1, token="b", attempt=2).complete(token="b"), [Row(1, "key", "done", 2)], [(1, "a")]),
}
STALE = {
    "completion": (Story().enqueue().claim(1).wait(3).claim(1, token="b", attempt=2).complete(token="a"), [Row(1, "key", "done", 2)]),
    "claimed again after its end": (Story().enqueue().claim(1).complete().claim(1, token="b", attempt=2), [DONE]),
    "failure": (Story().enqueue().claim(1).claim(1, token="b", attempt=2).fail(token="a", retryable=True).complete(token="b"), [Row(1, "key", "done", 2)]),
    "extension": (Story().enqueue().claim(1).claim(1, token="b", attempt=2).extend(token="a").complete(token="b"), [Row(1, "key", "done", 2)]),
    "token that nobody was given": (Story().enqueue().claim(1).complete(token="x"), [DONE]),
}
PHANTOM = {
    "never enqueued": (Story().claim(1).complete(), [DONE]),
    "rolled back": (Story().enqueue(outcome="rolled back").claim(1).complete(), [DONE]),
    "refused": (Story().enqueue(outcome="refused").claim(1).complete(), [DONE]),
    "two ids of one key": (Story().enqueue(1).enqueue(2).claim(1).claim(2, token="b").complete().complete(2, "b"), [DONE, Row(2, "key", "done", 1)]),
    "done by nobody": (Story().enqueue().claim(1), [DONE]),
    "done by a completion that was refused": (Story().enqueue().claim(1).complete(held=False), [DONE]),
    "an effect without its end": (Story().enqueue(), [Row(1, "key", "error", 1)], [(1, "a")]),
}
STUCK = {
    "waiting at the end": (Story().enqueue(), [Row(1, "key", "queued", 0)]),
    "leased at the end": (Story().enqueue().claim(1), [Row(1, "key", "leased", 1)]),
    "not found when it was new": (Story().enqueue().wait(1.5).claim().wait(0.1).claim(1).complete(), [DONE]),
    "not found when its lease was over": (Story().enqueue().claim(1).wait(3.5).claim().wait(0.1).claim(1, token="b", attempt=2).complete(token="b"), [Row(1, "key", "done", 2)]),
    "not found after a failure": (Story().enqueue().claim(1).fail(retryable=True).wait(1.5).claim().claim(1, token="b", attempt=2).complete(token="b"),
                                  [Row(1, "key", "done", 2)]),
}


@pytest.mark.parametrize("kind, case", [(kind, case) for kind, cases in zip(KINDS, (LOST, TWICE, STALE, PHANTOM, STUCK)) for case in cases.items()],
                         ids=lambda value: value if isinstance(value, str) else value[0].replace(" ", "-"))
def test_the_checker_finds(kind, case):
    assert kind in found(*case[1])


def test_the_checker_finds_what_overtakes_in_a_lane():
    story = Story().enqueue(1, "first", lane="l").enqueue(2, "second", lane="l").claim(2, token="b", key="second").claim(1, key="first").complete(1).complete(2, "b")
    rows = [Row(1, "first", "done", 1), Row(2, "second", "done", 1)]
    assert found(story, rows) == {"out of order"}
    story = Story().enqueue(1, "first", lane="l").enqueue(2, "second", lane="l").claim(1, key="first").complete(1).claim(2, token="b", key="second").complete(2, "b")
    assert found(story, rows) == set()


def test_the_checker_finds_what_workers_did_wrong():
    assert found(Story().enqueue(), [DONE], logged=False) == {"lost"}
    assert found(Story().enqueue(), [DONE], [(1, None)] * 2, logged=False) == {"completed twice"}
    assert found(Story().enqueue(), [Row(1, "key", "leased", 1)], logged=False) == {"stuck"}


def test_waiting_is_not_stuck_while_nobody_could_have_taken_it():
    late = Story().enqueue().claim(1).wait(9).claim(1, token="b", attempt=2).complete(token="b")
    assert found(late, [Row(1, "key", "done", 2)]) == set()  # nobody asked in between
    busy = Story().enqueue().claim(1).wait(3.5).claim(2, token="c", key="other", asked=1).claim(1, token="b", attempt=2).complete(token="b")
    assert "stuck" not in found(busy, [Row(1, "key", "done", 2)])  # whoever asked got as many as asked for
    unseen = Story().enqueue().claim(1).wait(3.5).claim().wait(0.1).claim(1, token="b", attempt=3).complete(token="b")
    assert found(unseen, [Row(1, "key", "done", 3)]) == set()  # attempt 2 was granted to somebody who was killed before it was logged


def test_logs_are_read_as_written(tmp_path):
    log = history.History(tmp_path, "client")
    log.end(log.begin("complete", ids=[1], token="a", way="ack"), "ok", held=[1])
    log.begin("complete", ids=[2], token="a", way="ack")
    with open(tmp_path / "client.ndjson", "a", encoding="utf-8") as half:
        half.write('{"step": 2, "outc')  # killed while writing
    known, unknown = history.read(tmp_path)
    assert (known["outcome"], known["held"]) == ("ok", [1]) and known["ended"] >= known["began"]
    assert (unknown["outcome"], unknown["ended"], unknown["ids"]) == ("unknown", None, [2])
