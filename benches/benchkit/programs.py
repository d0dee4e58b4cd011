"""Clients of the server that run as programs of their own: pgbench, and scripts that print JSON."""

import json
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass

from devkit.layout import scratch
from devkit.say import DevError

# A client of pgbench that has nothing left to do stops by a fault of its own script, which costs the server nothing.
STOP = "\\set nothing_left 1 / 0"


@dataclass
class Outcome:
    """What a client did, by its own account."""

    count: int
    seconds: float


def _number(pattern, text):
    """The number that a line of pgbench's summary names."""
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0


def pgbench(server, database, script, clients, *limit, protocol="prepared"):
    """Run a script; `limit` is of pgbench, as in "--time=3". Returns the number of transactions and the seconds without connecting."""
    path = scratch(f"pgbench-{database}") / "script.sql"
    path.write_text(script)
    command = [server.cluster.bindir / "pgbench", "--no-vacuum", f"--client={clients}", f"--jobs={min(clients, 2)}", f"--protocol={protocol}", f"--file={path}",
               *(limit or ["--transactions=1000000"])]
    done = subprocess.run([str(word) for word in command], env=os.environ | server.environment(database), stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=False)
    faults = [line for line in done.stderr.splitlines() if "error:" in line and "division by zero" not in line and "(set) of script 0" not in line
              and "Run was aborted" not in line]
    if faults or done.returncode not in (0, 2):
        raise DevError("pgbench: " + "\n  ".join(faults[:5] or [f"exit status {done.returncode}", done.stderr[-500:]]))
    count, rate = _number(r"actually processed: (\d+)", done.stdout), _number(r"tps = ([\d.]+)", done.stdout)
    return Outcome(int(count), count / rate if rate else 0.0)


def script(server, database, *command, timeout=1800, **variables):
    """Run a program and return what it prints as the last line, read as JSON."""
    try:
        done = subprocess.run([str(word) for word in command], env=os.environ | server.environment(database) | variables, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, check=False, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise DevError(f"{command[1]} did not end within {timeout} s") from None
    if done.returncode:
        raise DevError(f"{command[1]} failed:\n  " + "\n  ".join(done.stderr.splitlines()[-8:]))
    return json.loads((done.stdout.splitlines() or ["null"])[-1])


@contextmanager
def attend(server, database, *command, patience=60, **variables):
    """Run a program beside something else, once it has printed `ready`; the value waits for its end and returns its last line, read as JSON."""
    process = subprocess.Popen([str(word) for word in command], env=os.environ | server.environment(database) | variables, stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def result():
        output, errors = process.communicate(timeout=patience)
        if process.returncode:
            raise DevError(f"{command[1]} failed:\n  " + "\n  ".join(errors.splitlines()[-8:]))
        return json.loads(output.splitlines()[-1])

    try:
        if process.stdout.readline().strip() != "ready":
            raise DevError(f"{command[1]} did not get ready:\n  " + "\n  ".join(process.communicate(timeout=patience)[1].splitlines()[-8:]))
        yield result
    except subprocess.TimeoutExpired:
        raise DevError(f"{command[1]} did not end within {patience} s") from None
    finally:
        process.kill()
        process.wait()
