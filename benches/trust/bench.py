"""Recompute trust: pgsteward beside plain SQL and beside the per-scene loop, in one run, taking turns."""

import argparse
import os
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from benchkit.measure import Cost, measure, median, percentile  # noqa: E402
from benchkit.report import Results, figure, ratio, table  # noqa: E402
from benchkit.server import BenchServer, require_disk  # noqa: E402
from contestants import LOOPS, PLAIN_VARIANTS, UNSAFE, read, recompute  # noqa: E402
from devkit.say import DevError, Step, note  # noqa: E402
from scenes import Scenes  # noqa: E402

BULK, LEAN, BATCHES = "pgsteward, one batch", "pgsteward, one batch, no history", "pgsteward, batches of 500"
READ = "(merely counting the rows)"
BEST_PLAIN = ["plain SQL, update from", "plain SQL, update from, parallel"]
CASES = {"changed": "all dirty, every score changes", "one": "all dirty, one score in a hundred changes",
         "same": "all marked by hand, counted anew", "first": "first computation, no scores stored"}
OTHER_CASES = {"few": "latency of a call for ten scenes", "cycle": "cycles of 10k scenes", "write": "what marking costs the writer",
               "workers": "many callers share the scenes"}
MARKERS = {"ours": "pgsteward's triggers", "plain": "plain trigger that notes the scenes", "nobody": "no trigger"}
CYCLE = 10_000
CALLERS, SHARE = (1, 2, 4, 8), 2_000
GIGABYTES_PER_MILLION, WAL_GIGABYTES = 8, 9
FEW, FEW_CALLS = 10, 50


def sizes(text):
    """Read numbers of scenes such as 1k,10k,1M."""
    found = []
    for word in text.split(","):
        factor = {"k": 1_000, "m": 1_000_000}.get(word[-1:].lower(), 1)
        digits = word[:-1] if factor > 1 else word
        if not digits.isdigit() or not 40 <= int(digits) * factor <= 1_000_000:
            raise argparse.ArgumentTypeError(f"not a number of scenes from 40 to 1M: {word}")
        found.append(int(digits) * factor)
    return found


def short(count):
    """10000 as 10k."""
    return f"{count // 1_000_000}M" if count % 1_000_000 == 0 else f"{count // 1000}k" if count % 1000 == 0 else str(count)


class Bench:
    """One run over some sizes."""

    def __init__(self, server, options):
        self.server, self.options = server, options
        self.results = Results("trust", server.machine())
        self.contestants = {BULK: recompute("1000000, '10 min'"), LEAN: recompute("1000000, '10 min'", history=False), BATCHES: recompute("500, '10 min'")}
        self.contestants |= {name: work for name, work in PLAIN_VARIANTS.items() if options.variants or name in BEST_PLAIN}

    def measured(self, scenes, case, name, work):
        """Prepare, run once, check the result."""
        with scenes.connect() as connection:
            # The session is warm, as a worker's is: it has done the same before, with nothing to do.
            scenes.clean()
            work(connection)
            scenes.prepare(case)
            done, cost = measure(connection, self.server.cluster.pid, work)
        scenes.check(whole=name not in LOOPS)
        return done, cost

    def all_dirty(self, scenes):
        """The cases in which every scene is dirty; contestants take turns, each round begins with another one."""
        whole = self.options.rounds or (5 if scenes.count < 1_000_000 else 3)
        for case in self.options.cases:
            rounds = whole if case == "changed" or scenes.count < 1_000_000 or self.options.rounds else 1
            costs, names = {name: [] for name in self.contestants}, list(self.contestants)
            with Step(f"{short(scenes.count)}, {CASES[case]}, {rounds} rounds"):
                for turn in range(rounds):
                    for i in range(len(names)):
                        name = names[(i + turn) % len(names)]
                        costs[name].append(self.measured(scenes, case, name, self.contestants[name])[1])
                for name, work in LOOPS.items() if case == "changed" else ():
                    sample, cost = self.measured(scenes, case, name, work)
                    share = scenes.count / sample
                    costs[name] = [Cost(cost.wall_ms * share, cost.cpu_ms * share, cost.load)]
            self.report(scenes, case, costs, self.reading(scenes, rounds))

    def report(self, scenes, case, costs, reading):
        """Print the figures of a case and keep them."""
        costs = {**costs, READ: reading}
        medians = {name: median(some) for name, some in costs.items()}
        floor = medians[READ].wall_ms
        rivals = [name for name in medians if name in PLAIN_VARIANTS and name != UNSAFE]
        base = min(rivals, key=lambda name: medians[name].wall_ms)
        base_cpu = min(medians[name].cpu_ms for name in rivals)
        slow, rows = min((medians[name].wall_ms for name in LOOPS if name in medians), default=None), []
        for name, cost in medians.items():
            to_plain, cpu = medians[base].wall_ms / cost.wall_ms, base_cpu / cost.cpu_ms if cost.cpu_ms else None
            to_loop = slow / cost.wall_ms if slow else None
            rows.append([ratio(to_plain), ratio(cpu), ratio(to_loop), ratio(cost.wall_ms / floor), name + (" *" if name == base else ""), figure(cost.wall_ms), figure(cost.cpu_ms),
                         f"{scenes.count / cost.wall_ms * 1000:,.0f}", figure(cost.wall_ms / scenes.count * 1000), figure(cost.cpu_ms / scenes.count * 1000),
                         len(costs[name]), f"{cost.load:.1f}"])
            self.results.add(scenes=scenes.count, case=case, contestant=name, library=self.server.library(), ratio_to_plain_wall=round(to_plain, 3), ratio_to_plain_cpu=cpu and round(cpu, 3),
                             ratio_to_loop=to_loop and round(to_loop, 3), median=cost.as_json(), runs=[run.as_json() for run in costs[name]])
        table(f"{short(scenes.count)} scenes, {CASES[case]} (* is 1x in wall; CPU against the plain SQL that needs least)",
              ["wall", "CPU", "to loop", "x reading", "contestant", "wall ms", "CPU ms", "scenes/s", "ms/1k", "CPU ms/1k", "runs", "load"], rows)

    def reading(self, scenes, rounds):
        """How long the server takes merely to read the rows, in the same state as before a recompute."""
        costs = []
        for _ in range(rounds):
            with scenes.connect() as connection:
                read(connection)
                costs.append(measure(connection, self.server.cluster.pid, read)[1])
        return costs

    def cycles(self, scenes):
        """How long a cycle of 10k scenes takes, again and again, with a writer between."""
        taken, cycle = [], min(CYCLE, scenes.count)
        with Step(f"{short(scenes.count)}, {self.options.cycles} cycles of {short(cycle)}"), scenes.connect() as connection, scenes.connect() as application:
            for turn in range(-3, self.options.cycles):
                scenes.dirty_many(application, cycle)
                began = time.perf_counter()
                processed = connection.execute("SELECT processed FROM trust_recompute(%s)", [cycle], prepare=True).fetchone()[0]
                if turn >= 0:
                    taken.append((time.perf_counter() - began) * 1000)
                if turn % 2 == 0:
                    # As often as autovacuum, which is off here: cycles are half a minute apart, its rounds a minute.
                    connection.execute("VACUUM trust_dirty, trust_scores")
                if processed != cycle:
                    raise DevError(f"a cycle has done {processed} scenes of {cycle}")
            load = os.getloadavg()[0]
        scenes.check()
        late, later = percentile(taken, 95), percentile(taken, 99)
        self.results.add(scenes=scenes.count, case="cycle", contestant="pgsteward", library=self.server.library(), load=load, p95_ms=round(late, 3),
                         p99_ms=round(later, 3), median_ms=round(statistics.median(taken), 3), runs=[round(one, 3) for one in taken])
        table(f"cycles of {short(cycle)} dirty scenes of {short(scenes.count)}", ["p95 ms", "p99 ms", "median ms", "scenes/s", "cycles", "load"],
              [[figure(late), figure(later), figure(statistics.median(taken)), f"{cycle / statistics.median(taken) * 1000:,.0f}", len(taken), f"{load:.1f}"]])

    def workers(self, scenes):
        """How fast callers are that share the dirty scenes."""
        taken, rounds = {number: [] for number in CALLERS}, self.options.rounds or 3

        def share(_):
            with self.server.connect(scenes.name) as connection:
                return connection.execute("SELECT processed FROM trust_recompute(%s, '10 min')", [SHARE]).fetchone()[0]

        with Step(f"{short(scenes.count)}, {OTHER_CASES['workers']}, {rounds} rounds"):
            for turn in range(rounds):
                for i in range(len(CALLERS)):
                    number = CALLERS[(i + turn) % len(CALLERS)]
                    scenes.prepare("changed")
                    began = time.perf_counter()
                    with ThreadPoolExecutor(number) as pool:
                        processed = list(pool.map(share, range(number)))
                    taken[number].append((time.perf_counter() - began) * 1000)
                    if sum(processed) != scenes.count:
                        raise DevError(f"{number} callers have done {sum(processed)} scenes of {scenes.count}")
                    scenes.check()
        base, load = statistics.median(taken[1]), os.getloadavg()[0]
        for number, times in taken.items():
            self.results.add(scenes=scenes.count, case="workers", contestant=f"{number} callers", library=self.server.library(), load=load,
                             median_ms=round(statistics.median(times), 3), runs=[round(one, 3) for one in times])
        table(f"{short(scenes.count)} dirty scenes shared by callers, {short(SHARE)} at a time", ["to one", "callers", "wall ms", "scenes/s", "runs"],
              [[ratio(base / statistics.median(times)), number, figure(statistics.median(times)), f"{scenes.count / statistics.median(times) * 1000:,.0f}", len(times)]
               for number, times in taken.items()])

    def writing(self, scenes):
        """What it costs a statement that changes a membership of every scene to have it marked."""
        costs, rounds = {name: [] for name in MARKERS}, self.options.rounds or 3
        with Step(f"{short(scenes.count)}, {OTHER_CASES['write']}, {rounds} rounds"):
            for turn in range(rounds):
                for i in range(len(MARKERS)):
                    who = list(MARKERS)[(i + turn) % len(MARKERS)]
                    with scenes.marked_by(who) as connection:
                        costs[who].append(measure(connection, self.server.cluster.pid, scenes.write)[1])
        # What nobody has marked is made good.
        with scenes.connect() as connection:
            connection.execute("SELECT trust_mark_all_dirty()")
            connection.execute("SELECT trust_recompute(1000000, '10 min')")
        scenes.check()
        base, rows = median(costs["plain"]), []
        for who, name in MARKERS.items():
            cost = median(costs[who])
            rows.append([ratio(base.wall_ms / cost.wall_ms), ratio(base.cpu_ms / cost.cpu_ms), name, figure(cost.wall_ms), figure(cost.cpu_ms), len(costs[who]), f"{cost.load:.1f}"])
            self.results.add(scenes=scenes.count, case="write", contestant=name, library=self.server.library(), median=cost.as_json(), runs=[run.as_json() for run in costs[who]])
        table(f"one UPDATE of a membership of each of {short(scenes.count)} scenes", ["wall", "CPU", "who marks", "wall ms", "CPU ms", "runs", "load"], rows)

    def few_dirty(self, scenes):
        """Latency of one call when a few scenes are dirty."""
        calls = {"pgsteward": "SELECT processed FROM trust_recompute()", "plain SQL, kept plans": "SELECT plain_recompute_few()"}
        taken = {name: [] for name in calls}
        with Step(f"{short(scenes.count)}, {FEW} dirty, {FEW_CALLS} calls"), scenes.connect() as connection, scenes.connect() as application:
            for turn in range(-3, FEW_CALLS):
                for name, call in calls.items():
                    scenes.dirty_few(application, FEW)
                    began = time.perf_counter()
                    connection.execute(call, prepare=True).fetchone()
                    if turn >= 0:
                        taken[name].append((time.perf_counter() - began) * 1000)
            load = os.getloadavg()[0]
        scenes.check()
        scenes.clean()
        base, rows = statistics.median(taken["plain SQL, kept plans"]), []
        for name, times in taken.items():
            middle, late = statistics.median(times), percentile(times, 95)
            rows.append([ratio(base / middle), name, figure(middle), figure(late), figure(min(times)), len(times), f"{load:.1f}"])
            self.results.add(scenes=scenes.count, case="few", contestant=name, library=self.server.library(), ratio_to_plain_wall=round(base / middle, 3), load=load,
                             median_ms=round(middle, 3), p95_ms=round(late, 3), runs=[round(one, 3) for one in times])
        table(f"{FEW} dirty scenes of {short(scenes.count)}, one call", ["wall", "contestant", "median ms", "p95 ms", "best ms", "calls", "load"], rows)


def main():
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="benches/run.py trust", description=__doc__)
    parser.add_argument("--sizes", type=sizes, default=[1_000, 10_000, 100_000, 1_000_000], help="numbers of scenes, as in 1k,10k,100k,1M (the default)")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=[*CASES, *OTHER_CASES], help=f"some of {','.join([*CASES, *OTHER_CASES])}")
    parser.add_argument("--rounds", type=int, help="runs per contestant (default: 5; at 1M 3, and 1 where nothing or everything is stored)")
    parser.add_argument("--cycles", type=int, default=200, help="cycles of the case cycle (default: 200)")
    parser.add_argument("--variants", action="store_true", help="measure every variant of the plain SQL")
    parser.add_argument("--installed", action="store_true", help="measure the extension as it is installed, do not build it")
    parser.add_argument("--keep", action="store_true", help="leave the server and its databases")
    options = parser.parse_args()
    unknown = set(options.cases) - set(CASES) - set(OTHER_CASES)
    if unknown or (options.rounds is not None and options.rounds < 1):
        parser.error(f"unknown case: {', '.join(sorted(unknown))}" if unknown else "at least one round")
    others, options.cases = set(options.cases) & set(OTHER_CASES), [case for case in options.cases if case in CASES]
    require_disk(WAL_GIGABYTES + GIGABYTES_PER_MILLION * max(options.sizes) / 1e6)
    server = BenchServer().start(install=not options.installed)
    try:
        bench = Bench(server, options)
        machine = bench.results.content["machine"]
        print(f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, PostgreSQL {machine['postgresql']}, pgsteward {machine['revision']}; "
              + ", ".join(f"{key} {value}" for key, value in machine["settings"].items()), flush=True)
        for count in options.sizes:
            scenes = Scenes(server, count)
            scenes.load()
            if "few" in others:
                bench.few_dirty(scenes)
            bench.all_dirty(scenes)
            if "cycle" in others:
                bench.cycles(scenes)
            if "workers" in others:
                bench.workers(scenes)
            if "write" in others:
                bench.writing(scenes)
            if not options.keep:
                server.drop_database(scenes.name)
        note(f"figures in {bench.results.path}")
    finally:
        if not options.keep:
            server.cluster.destroy()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DevError as error:
        sys.exit(f"error: {error}")
