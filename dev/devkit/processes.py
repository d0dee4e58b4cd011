"""The processes of one server, recognised by the data folder they work in and by nothing else."""

import os
import signal
import time

from .say import DevError

PATIENCE = 60


def _works_in(pid, data):
    """Tell whether a process works in a data folder, as every process of its server does."""
    try:
        return os.readlink(f"/proc/{pid}/cwd") == str(data)
    except OSError:
        return False


def _all_in(data):
    """Return the ids of all processes that work in a data folder."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and _works_in(name, data)]


def _pid_file(data):
    """Return the lines of the server's pid file."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except OSError:
        return []


def postmaster(data):
    """Return the process id of the running postmaster, or None; a stale pid file is seen through."""
    lines = _pid_file(data)
    pid = int(lines[0]) if lines and lines[0].strip().isdigit() else None
    return pid if pid and _works_in(pid, data) else None


def ready(data):
    """Tell whether the server accepts connections."""
    lines = _pid_file(data)
    return postmaster(data) is not None and len(lines) > 7 and lines[7].strip() == "ready"


def wait_until_ready(data):
    """Wait while a running server starts or recovers; tell whether it accepts connections."""
    end = time.monotonic() + PATIENCE
    while postmaster(data) and not ready(data) and time.monotonic() < end:
        time.sleep(0.1)
    return ready(data)


def _wait_for_exit(data, seconds):
    """Wait until no process works in a data folder; tell whether that happened."""
    end = time.monotonic() + seconds
    while _all_in(data):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def stop(data, how):
    """Signal the postmaster, if any, and wait; a shutdown that hangs becomes an immediate one."""
    pid = postmaster(data)
    if pid is None:
        return
    for number in (how, signal.SIGQUIT):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if _wait_for_exit(data, PATIENCE):
            return
    raise DevError(f"the server with process id {pid} does not stop")


def clear_away(data):
    """End what a killed postmaster left behind; its process id may be someone else's by now."""
    if not _wait_for_exit(data, 3):
        for pid in _all_in(data):
            os.kill(pid, signal.SIGQUIT)
        if not _wait_for_exit(data, 10):
            raise DevError(f"processes of a killed server still work in {data}: "
                           f"{', '.join(map(str, _all_in(data)))}; end them first")
    (data / "postmaster.pid").unlink(missing_ok=True)
