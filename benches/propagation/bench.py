"""Propagate trust: pgsteward beside the same iteration in plain memory, and beside iterated SQL, in one run."""

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from benchkit.measure import measure  # noqa: E402
from benchkit.report import Results, figure, ratio, table  # noqa: E402
from benchkit.server import BenchServer, require_disk  # noqa: E402
from devkit.layout import scratch  # noqa: E402
from devkit.say import DevError, Step, note, run  # noqa: E402
from network import HERE, Network  # noqa: E402

DAMPING, TOLERANCE, MOST = 0.85, 1e-9, 1000
GIGABYTES_PER_MILLION_EDGES = 1.2


def sizes(text):
    """Read pairs of scenes and alliances for each, such as 100kx10,1Mx10."""
    found = []
    for word in text.split(","):
        parts = re.fullmatch(r"(\d+)([kM]?)x(\d+)", word)
        if not parts:
            raise argparse.ArgumentTypeError(f"not scenes x alliances, as in 100kx10: {word}")
        found.append((int(parts[1]) * {"": 1, "k": 1_000, "M": 1_000_000}[parts[2]], int(parts[3])))
    return found


def statements(name):
    """The statements of a file of the iterated SQL."""
    text = re.sub(r"^--.*\n", "", (HERE / f"iterated/{name}.sql").read_text(), flags=re.M)
    return [part.strip() for part in text.split(";")]


def build():
    """Compile the program that iterates in plain memory."""
    program = scratch("propagation-memory") / "memory"
    run(["rustc", "--edition=2024", "-Copt-level=3", "-Ccodegen-units=1", "-o", program, HERE / "memory.rs"], "the program does not compile")
    return program


class Bench:
    """One run over some sizes."""

    def __init__(self, server, options):
        self.server, self.options, self.program = server, options, build()
        self.results = Results("propagation", server.machine())

    def ours(self, network):
        """One propagation from nothing; what its parts took."""
        network.forget()
        with network.connect() as connection:
            call = f"SELECT iterations, converged, duration_ms FROM trust_propagate({DAMPING}, NULL, {MOST}, {TOLERANCE})"
            (iterations, converged, took), cost = measure(connection, self.server.cluster.pid, lambda session: session.execute(call).fetchone())
            read, write = connection.execute("SELECT read_ms, write_ms FROM trust_propagation_runs ORDER BY id DESC LIMIT 1").fetchone()
        if not converged:
            raise DevError("the ranks have not settled")
        return {"iterations": iterations, "read": read, "loop": took - read - write, "write": write, "all": cost.wall_ms, "cpu": cost.cpu_ms, "load": cost.load}

    def again(self, network):
        """One propagation after a thousandth of the alliances has changed."""
        with network.connect() as connection:
            connection.execute("SET session_replication_role = replica")
            connection.execute("UPDATE alliances SET weight = 1 - weight * 0.5 WHERE left(md5(id::text), 3) IN ('123', '456', '789', 'abc')")
            connection.execute("VACUUM ANALYZE alliances")
            connection.execute("VACUUM ANALYZE trust_ranks")
            connection.execute("CHECKPOINT")
        with network.connect() as connection:
            began = time.perf_counter()
            iterations, changed = connection.execute(f"SELECT iterations, changed FROM trust_propagate({DAMPING}, NULL, {MOST}, {TOLERANCE})").fetchone()
            return {"iterations": iterations, "changed": changed, "all": (time.perf_counter() - began) * 1000}

    def memory(self, network):
        """Export, read, iterate."""
        with network.connect() as connection:
            began = time.perf_counter()
            network.export(connection)
            export = (time.perf_counter() - began) * 1000
        printed = run([self.program, network.folder / "edges", network.folder / "scenes", str(DAMPING), str(TOLERANCE), str(MOST), network.folder / "ranks"], "the program failed")
        found = json.loads(printed)
        return {"iterations": found["iterations"], "export": export, "read": found["read_ms"] + found["build_ms"], "loop": found["loop_ms"]}

    def compare(self, network):
        """Stored ranks must be those of the program in plain memory."""
        with network.connect() as connection:
            connection.execute("CREATE UNLOGGED TABLE IF NOT EXISTS plain_ranks (scene_id uuid, rank float8)")
            connection.execute("TRUNCATE plain_ranks")
            with connection.cursor().copy("COPY plain_ranks FROM STDIN") as copy, (network.folder / "ranks").open("rb") as file:
                while block := file.read(1 << 20):
                    copy.write(block)
        network.check("SELECT scene_id, rank FROM plain_ranks", 2e-9)

    def iterated(self, network):
        """Some iterations in SQL; what one takes, and what preparing takes."""
        with network.connect() as connection:
            for setting in ("work_mem = '1GB'", "max_parallel_workers_per_gather = 2", "synchronous_commit = off"):
                connection.execute(f"SET {setting}")
            began = time.perf_counter()
            for statement in statements("begin"):
                connection.execute(statement)
            prepared, taken = (time.perf_counter() - began) * 1000, []
            for _ in range(self.options.steps):
                began = time.perf_counter()
                with connection.transaction():
                    for statement in statements("step"):
                        connection.execute(statement)
                taken.append((time.perf_counter() - began) * 1000)
            connection.execute("TRUNCATE trust_ranks")
            connection.execute(f"SELECT * FROM trust_propagate({DAMPING}, NULL, {self.options.steps}, {TOLERANCE})")
        network.check("SELECT scene_id, rank FROM ranks JOIN nodes USING (node)", 1e-9)
        return prepared, min(taken)

    def measure(self, network):
        """All contestants on one network, taking turns."""
        ours, plain = [], []
        for turn in range(self.options.rounds):
            with Step(f"round {turn + 1} of {self.options.rounds}"):
                for work, costs in ((self.ours, ours), (self.memory, plain))[:: 1 if turn % 2 == 0 else -1]:
                    costs.append(work(network))
        self.compare(network)
        with Step("after a change"):
            again = self.again(network)
        with Step(f"iterated SQL, {self.options.steps} iterations"):
            prepared, step = self.iterated(network)
        # The best of each part: what else the machine does only ever adds to it.
        best = {key: min(cost[key] for cost in ours) for key in ours[0]}
        memory = {key: min(cost[key] for cost in plain) for key in plain[0]}
        if best["iterations"] != memory["iterations"]:
            raise DevError(f"{best['iterations']} iterations, not {memory['iterations']}")
        sql = step * best["iterations"]
        rows = [["pgsteward", figure(best["loop"]), figure(best["read"]), figure(best["write"]), figure(best["all"]), "1x", "1x"],
                ["plain memory", figure(memory["loop"]), figure(memory["export"] + memory["read"]), "-", "-",
                 ratio(memory["loop"] / best["loop"]), ratio((memory["export"] + memory["read"] + memory["loop"]) / (best["read"] + best["loop"]))],
                ["iterated SQL", figure(sql), figure(prepared), "-", "-", ratio(sql / best["loop"]), ratio((sql + prepared) / (best["read"] + best["loop"]))]]
        table(f"{network.count:,} scenes, {network.edges:,} alliances, {best['iterations']:.0f} iterations, load {min(cost['load'] for cost in ours):.1f} to {max(cost['load'] for cost in ours):.1f}; iterated SQL: {figure(step)} ms an iteration",
              ["contestant", "iterating ms", "reading ms", "storing ms", "whole call ms", "iterating", "with reading"], rows)
        print(f"after a change of a thousandth of the alliances: {again['iterations']} iterations, {again['changed']:,} ranks stored, {figure(again['all'])} ms for the whole call\n", flush=True)
        self.results.add(scenes=network.count, edges=network.edges, library=self.server.library(), ours=ours, memory=plain, iterated={"prepare_ms": prepared, "step_ms": step}, again=again)


def main():
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(prog="benches/run.py propagation", description=__doc__)
    parser.add_argument("--sizes", type=sizes, default=sizes("100kx10,1Mx10"), help="scenes x alliances of each, as in 100kx10,1Mx10 (the default)")
    parser.add_argument("--rounds", type=int, default=3, help="runs of pgsteward and of plain memory (default 3)")
    parser.add_argument("--steps", type=int, default=3, help="iterations of the iterated SQL that are measured (default 3)")
    parser.add_argument("--installed", action="store_true", help="measure the extension as it is installed, do not build it")
    options = parser.parse_args()
    if options.rounds < 1 or options.steps < 1:
        parser.error("at least one round and one step")
    require_disk(9 + GIGABYTES_PER_MILLION_EDGES * max(count * degree for count, degree in options.sizes) / 1e6)
    server = BenchServer("bench-propagation").start(install=not options.installed)
    try:
        bench = Bench(server, options)
        machine = bench.results.content["machine"]
        print(f"{machine['cores']} cores ({machine['cpu']}), {machine['memory_gib']} GiB, PostgreSQL {machine['postgresql']}, pgsteward {machine['revision']}", flush=True)
        for count, degree in options.sizes:
            network = Network(server, count, degree)
            network.load()
            bench.measure(network)
            server.drop_database(network.name)
        note(f"figures in {bench.results.path}")
    finally:
        server.cluster.destroy()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DevError as error:
        sys.exit(f"error: {error}")
