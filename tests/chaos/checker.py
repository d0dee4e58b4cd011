"""Compares what the clients saw with what the database holds at the end."""

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from queues import LEASE_SECONDS, doomed

TERMINAL = ("done", "error")
GRACE = 1.0  # an item must be claimed this long after it could be
RETRY_CAP = 1.0  # the topics of a run retry within this
IDLE_LIMIT = 0.5  # a transaction that lost its client holds its rows this long
KINDS = ("lost", "completed twice", "stale accepted", "phantom", "stuck", "out of order")


@dataclass(frozen=True)
class Row:
    """An item in the database after the run."""

    id: int
    key: str
    status: str
    attempts: int


@dataclass
class Verdict:
    """What was found: explanations by kind of violation, and what was looked at."""

    violations: dict = field(default_factory=lambda: {kind: [] for kind in KINDS})
    enqueued: int = 0
    ended: int = 0
    unknown: int = 0
    refused_as_stale: int = 0

    @property
    def clean(self):
        """True if nothing was violated."""
        return not any(self.violations.values())

    def add(self, kind, text):
        """Note a violation."""
        self.violations[kind].append(text)

    def __str__(self):
        return "\n".join(f"{kind}: {text}" for kind, texts in self.violations.items() for text in texts[:10]) or "no violation"


class _Item:
    """All that happened to one id."""

    def __init__(self):
        self.claims, self.completions, self.fails, self.extends, self.effects = [], [], [], [], []

    def attempt_of(self, token):
        return next((claim["attempts"] for claim in self.claims if claim["token"] == token), None)


def check(steps, rows, effects=(), *, logged=True):
    """Check one queue. steps: from history.read(); effects: (id, token) that were committed together with a completion.

    logged=False: the consumers were workers without a log, so only enqueueing, effects and final states can be compared, and each item that
    is done must have had exactly one effect.
    """
    return _Check(steps, rows, effects, logged).run()


class _Check:
    def __init__(self, steps, rows, effects, logged):
        self.verdict, self.logged = Verdict(), logged
        self.rows = {row.id: row for row in rows}
        self.by_key = defaultdict(list)
        for row in rows:
            self.by_key[row.key].append(row)
        self.items, self.enqueues, self.lanes = defaultdict(_Item), defaultdict(list), {}
        self.polls = []
        for step in steps:
            getattr(self, f"_read_{step['op']}")(step)
        for item, token in effects:
            self.items[item].effects.append(token)
        for item in self.items.values():
            item.claims.sort(key=lambda claim: claim["attempts"])
        self.polls.sort()
        self.first_end_after, soonest = [], float("inf")  # the soonest end of any poll that began then or later
        for _, ended in reversed(self.polls):
            soonest = min(soonest, ended)
            self.first_end_after.append(soonest)
        self.first_end_after.reverse()

    def _read_enqueue(self, step):
        ids = step["ids"] if step["outcome"] == "ok" else [None] * len(step["keys"])
        for key, item, lane in zip(step["keys"], ids, step.get("lanes") or [None] * len(ids)):
            self.enqueues[key].append((step["outcome"], item, step["ended"]))
            if lane:
                self.lanes[key] = lane

    def _read_claim(self, step):
        if step["outcome"] != "ok":
            return
        for item, key, attempts, expires in step["items"]:
            self.items[item].claims.append({"token": step["token"], "attempts": attempts, "expires": expires, "key": key,
                                            "began": step["began"], "ended": step["ended"]})
        if len(step["items"]) < step["asked"]:
            self.polls.append((step["began"], step["ended"]))

    def _read_effect(self, step):
        pass  # effects outside the database may happen again; the log is for whoever studies a failure

    def _read_complete(self, step):
        for item in step["ids"]:
            self.items[item].completions.append(_answer(step, item, status="done"))

    def _read_fail(self, step):
        for item in step["ids"]:
            answer = _answer(step, item, status="queued" if step["retryable"] else "error")
            (self.items[item].fails if step["retryable"] else self.items[item].completions).append(
                answer | {"run_at": step.get("run_at", {}).get(str(item))})

    def _read_extend(self, step):
        for item in step["ids"]:
            self.items[item].extends.append(_answer(step, item, status="leased") | {"expires": step.get("expires", {}).get(str(item))})

    def run(self):
        """Look for every kind of violation."""
        self._check_enqueued()
        for number, item in self.items.items():
            if self.logged:
                self._check_tokens(number, item)
                self._check_late(number, item)
            self._check_ends(number, item)
        for row in self.rows.values():
            self._check_row(row)
        self._check_order()
        return self.verdict

    def _check_enqueued(self):
        for key, outcomes in self.enqueues.items():
            known = {item for outcome, item, _ in outcomes if outcome == "ok"}
            self.verdict.enqueued += bool(known)
            self.verdict.unknown += not known and any(outcome == "unknown" for outcome, _, _ in outcomes)
            for item in known:
                if item not in self.rows:
                    self.verdict.add("lost", f"{item} ({key}) was enqueued and is gone")
            if len(known | {row.id for row in self.by_key[key]}) > 1:
                self.verdict.add("phantom", f"the key {key} has several ids: {sorted(known | {row.id for row in self.by_key[key]})}")

    def _check_row(self, row):
        outcomes = {outcome for outcome, _, _ in self.enqueues.get(row.key, ())}
        if not outcomes & {"ok", "unknown"}:
            self.verdict.add("phantom", f"{row.id} ({row.key}): nobody enqueued it" + (f", it was {', '.join(outcomes)}" if outcomes else ""))
        if row.status not in TERMINAL:
            self.verdict.add("stuck", f"{row.id} ({row.key}) is still {row.status} after {row.attempts} attempts")
            return
        self.verdict.ended += 1
        item = self.items.get(row.id) or _Item()
        if self.logged:
            if not any(answer["status"] == row.status and answer["outcome"] in ("ok", "unknown") for answer in item.completions):
                self.verdict.add("phantom", f"{row.id} is {row.status}, and nobody can have ended it so")
            if (row.status == "error") != doomed(row.key):
                self.verdict.add("lost", f"{row.id} ({row.key}) ended in {row.status}")
        elif row.status == "done" and not item.effects:
            self.verdict.add("lost", f"{row.id} is done without its effect")
        elif row.status == "error":
            self.verdict.add("lost", f"{row.id} ended in error")

    def _check_ends(self, number, item):
        row, accepted = self.rows.get(number), [answer for answer in item.completions if answer["outcome"] == "ok"]
        self.verdict.refused_as_stale += sum(answer["outcome"] == "stale" for answer in item.completions)
        if len(accepted) > 1:
            self.verdict.add("completed twice", f"{number}: {len(accepted)} completions were accepted")
        if len(item.effects) > 1:
            self.verdict.add("completed twice", f"{number}: {len(item.effects)} effects were committed")
        for answer in accepted:
            if row is None or row.status != answer["status"]:
                self.verdict.add("lost", f"{number}: accepted as {answer['status']}, and now {row.status if row else 'gone'}")
            if any(token != answer["token"] for token in item.effects):
                self.verdict.add("completed twice", f"{number}: completed by one lease, its effect committed by another")
            if answer["way"] == "hold" and not item.effects:
                self.verdict.add("lost", f"{number}: its effect and completion were committed, and the effect is gone")
        if item.effects and (row is None or row.status != "done"):
            self.verdict.add("phantom", f"{number} had an effect and is {row.status if row else 'gone'}")
        if row is None and item.claims and not any(known == number for outcomes in (self.enqueues.get(item.claims[0]["key"], ()),) for _, known, _ in outcomes):
            self.verdict.add("lost", f"{number} was claimed and is gone")

    def _check_tokens(self, number, item):
        for answer in item.completions + item.fails + item.extends:
            if answer["outcome"] != "ok":
                continue
            attempt = item.attempt_of(answer["token"])
            newer = [claim for claim in item.claims if attempt is not None and claim["attempts"] > attempt]
            if answer["status"] == "queued" or answer["status"] == "leased":
                newer = [claim for claim in newer if claim["ended"] <= answer["began"]]
            if attempt is None:
                self.verdict.add("stale accepted", f"{number}: {answer['op']} by a lease that was never granted")
            elif newer:
                self.verdict.add("stale accepted", f"{number}: {answer['op']} of attempt {attempt} was accepted, and attempt {newer[-1]['attempts']} was granted")

    def _check_late(self, number, item):
        """Somebody asked for more than was found, while this item had been claimable for more than the grace."""
        if not item.claims:
            return
        first = item.claims[0]
        enqueued = [ended for outcome, known, ended in self.enqueues.get(first["key"], ()) if outcome == "ok" and known == number]
        waits = [] if first["key"] in self.lanes or not enqueued else [(min(enqueued), first["attempts"] - 1, first)]
        waits += [(self._claimable(item, claim), then["attempts"] - claim["attempts"] - 1, then) for claim, then in zip(item.claims, item.claims[1:])]
        for since, unseen, then in waits:
            # A lease whose grant nobody saw counts as an attempt as well, and lasts as long as any other.
            limit = since + GRACE + unseen * (LEASE_SECONDS + GRACE + RETRY_CAP)
            poll = bisect_left(self.polls, (limit, 0.0))
            if poll < len(self.polls) and self.first_end_after[poll] <= then["began"]:
                self.verdict.add("stuck", f"{number} was claimable for {then['began'] - since:.1f} s before attempt {then['attempts']}, and somebody asked meanwhile")

    @staticmethod
    def _claimable(item, claim):
        """When this claim's lease was over."""
        moment = claim["expires"]
        for answer in item.extends:
            if answer["token"] == claim["token"] and answer["outcome"] == "ok":
                moment = max(moment, answer["expires"])
            elif answer["token"] == claim["token"] and answer["outcome"] == "unknown":
                moment += LEASE_SECONDS
        for answer in item.fails:
            if answer["token"] == claim["token"] and answer["outcome"] == "ok":
                moment = answer["run_at"]
            elif answer["token"] == claim["token"] and answer["outcome"] == "unknown":
                moment += RETRY_CAP
        if any(answer["token"] == claim["token"] and answer["way"] == "hold" for answer in item.completions):
            moment += IDLE_LIMIT
        return moment

    def _check_order(self):
        """Items of a lane are claimed one after another: none before the end of the one before it was tried."""
        lanes = defaultdict(list)
        for key, lane in self.lanes.items():
            lanes[lane] += [row.id for row in self.by_key[key]]
        for lane, numbers in lanes.items():
            numbers.sort()
            for before, after in zip(numbers, numbers[1:]):
                claims, ends = self.items[after].claims, [answer["began"] for answer in self.items[before].completions]
                if claims and ends and min(claim["ended"] for claim in claims) < min(ends):
                    self.verdict.add("out of order", f"{after} was claimed before the end of {before} in the lane {lane}")


def _answer(step, item, status):
    """What a step said about one id."""
    outcome = step["outcome"]
    if outcome == "ok":
        outcome = "ok" if item in step["held"] else "stale"
    return {"op": step["op"], "token": step["token"], "outcome": outcome, "status": status, "way": step.get("way"), "began": step["began"]}
