"""The stage on which every case runs: contestants that could be installed, fresh databases, taking turns, one kind of table."""

import statistics
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass

from benchkit.measure import Meter
from benchkit.report import Results, figure, ratio, table
from contestant import Database
from devkit.say import DevError, Step, note


@dataclass
class Run:
    """One measured run."""

    items: int
    seconds: float
    cpu_us: float         # of the server, per item, as all that follow
    client_us: float
    wal_bytes: float
    load: float

    @property
    def rate(self):
        """Items per second."""
        return self.items / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, items, seconds, spent):
        """What one item took."""
        return cls(items, seconds, spent.cpu_ms * 1000 / items, spent.client_ms * 1000 / items, spent.wal_bytes / items, spent.load)


def median(runs, part):
    """The median of one part of some runs."""
    return statistics.median(getattr(run, part) for run in runs)


class Stage:
    """What all cases share."""

    def __init__(self, server, options, contestants):
        self.server, self.options = server, options
        self.meter, self.results = Meter(server), Results("queue", server.machine())
        self.present, self.absent, self.failed = [], {}, []
        for contestant in contestants:
            self._admit(contestant)
        self._aged = {}

    def _admit(self, contestant):
        """Install a contestant and create its database once; fresh ones are copies of it."""
        try:
            version = contestant.install()
            with Step(f"create {contestant.name} ({version})"):
                template = f"template_{len(self.present)}"
                self.server.copy_database(template)
                contestant.create(Database(self.server, template))
            contestant.template = template
            self.present.append(contestant)
            self.results.content["machine"].setdefault("contestants", {})[contestant.name] = version
        except (DevError, OSError, self.server.Error) as error:
            self.absent[contestant.name] = " ".join(str(error).split())[:300]

    def families(self, *wanted):
        """The first form of each family: forms differ in how they finish, not in how they enqueue."""
        firsts = {contestant.family: contestant for contestant in reversed(self.present)}
        return [one for one in self.present if firsts[one.family] is one and (not wanted or one.family in wanted)]

    @contextmanager
    def fresh(self, contestant, name="run"):
        """A database with nothing in it. Dropping its predecessor is a checkpoint, so no run writes images of old pages."""
        self.server.copy_database(name, contestant.template)
        try:
            yield Database(self.server, name)
        finally:
            self.server.drop_database(name)

    def fill(self, contestant, database, items, batch):
        """Enqueue in bulk; returns what that has cost. Statistics are those that autovacuum would have gathered by now."""
        _, spent = self.meter.measure(lambda: contestant.fill(database, items, batch))
        with database.connect() as connection:
            connection.execute("ANALYZE")
        return Run.of(items, spent.wall_ms / 1000, spent)

    def drain(self, contestant, database, items, clients, batch):
        """Drain and check that nothing is left."""
        outcome, spent = self.meter.measure(lambda: contestant.drain(database, items, clients, batch))
        if contestant.sample is None:
            with database.connect() as connection:
                left = contestant.left(connection)
            if left:
                raise DevError(f"{left} of {items} items are left")
        return Run.of(outcome.count, outcome.seconds, spent)

    def turns(self, title, entries, work, repeat=None):
        """Measure every entry so many times, each round beginning with another; `entries` are by name. Returns lists by name."""
        repeat = repeat or self.options.repeat
        found, names = {name: [] for name in entries}, list(entries)
        for turn in range(repeat):
            for place in range(len(names)):
                name = names[(place + turn) % len(names)]
                if found[name] is None:
                    continue
                try:
                    with Step(f"{title}, {name}, {turn + 1} of {repeat}") as step:
                        result = work(entries[name])
                        found[name].append(result)
                        step.result = self.short(result)
                except (DevError, OSError, self.server.Error) as error:
                    note(f"error: {error}")
                    self.failed.append(f"{title}, {name}: {' '.join(str(error).split())[:300]}")
                    found[name] = None
        return {name: runs for name, runs in found.items() if runs}

    @staticmethod
    def short(result):
        """A word about a result, for the line of progress."""
        with suppress(AttributeError):
            return f"{result.rate:,.0f}/s"
        return ""

    def report(self, title, runs, base, extra=None, **facts):
        """Print the figures of a case beside those of `base`, more being better in every ratio, and keep them."""
        heads, rows = ["rate", "CPU", "WAL", "contestant", "items/s", "least", "most", "server us", "client us", "WAL B"], []
        for name, some in runs.items():
            own = {part: median(some, part) for part in ("rate", "cpu_us", "client_us", "wal_bytes")}
            rivals = {part: median(runs[base], part) for part in own} if base in runs else dict.fromkeys(own)
            ratios = [own["rate"] / rivals["rate"] if rivals["rate"] else None,
                      *(rivals[part] / own[part] if rivals[part] and own[part] else None for part in ("cpu_us", "wal_bytes"))]
            more = extra(name) if extra else {}
            rows.append([*map(ratio, ratios), name, figure(own["rate"]), figure(min(run.rate for run in some)), figure(max(run.rate for run in some)),
                         figure(own["cpu_us"]), figure(own["client_us"]), figure(own["wal_bytes"]), *(figure(value) for value in more.values()),
                         len(some), f"{median(some, 'load'):.1f}"])
            self.results.add(**facts, contestant=name, library=self.library, ratio_rate=ratios[0], ratio_cpu=ratios[1], ratio_wal=ratios[2], median=own, **more,
                             runs=[asdict(run) | {"rate": run.rate} for run in some])
        if rows:
            table(f"{title} (ratios to {base}, more is better)", [*heads, *more, "runs", "load"], rows)

    @property
    def library(self):
        """The build of the extension."""
        return self.server.library()

    def aged(self, contestant):
        """Two databases that stay for several runs: a fresh one, and one with many finished items."""
        if contestant.name not in self._aged:
            pair = []
            for place, finished in enumerate((0, self.options.finished)):
                name = f"aged_{contestant.template}_{place}"
                with Step(f"{contestant.name} with {finished:,} finished items"):
                    self.server.copy_database(name, contestant.template)
                    database = Database(self.server, name)
                    if finished:
                        contestant.add_finished(database, finished)
                    with database.connect() as connection:
                        connection.execute("VACUUM ANALYZE")
                        connection.execute("CHECKPOINT")
                pair.append(database)
            self._aged[contestant.name] = pair
        return self._aged[contestant.name]
