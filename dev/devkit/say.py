"""Progress lines and errors; everything goes to stderr, stdout is left to results."""

import subprocess
import sys
import threading
import time
from pathlib import Path


class DevError(Exception):
    """Something the developer has to know or do; shown without a traceback."""


def note(text):
    """Print one plain line."""
    print(text, file=sys.stderr, flush=True)


def megabytes(size):
    """Return a byte count as text."""
    return f"{size / 1e6:.1f} MB"


def folder_size(folder):
    """Return the number of bytes in all files below a folder."""
    total = 0
    for path in Path(folder).rglob("*"):
        try:
            total += 0 if path.is_symlink() else path.stat().st_size
        except OSError:  # renamed by the downloader in the meantime
            continue
    return total


class Step:
    """Context manager around one long action: prints its title, then its duration."""

    def __init__(self, title, watch=None, total=0):
        self.title, self.watch, self.total = title, watch, total
        self.result = ""

    def __enter__(self):
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()
        self.finished = threading.Event()
        self.painter = threading.Thread(target=self._paint, daemon=True)
        if self.live:
            self.painter.start()
        else:
            print(f"{self.title} ...", end="", file=sys.stderr, flush=True)
        return self

    def __exit__(self, kind, error, trace):
        self.finished.set()
        outcome = "failed" if kind else self.result or "done"
        tail = f"{outcome}, {time.monotonic() - self.started:.1f} s"
        if self.live:
            self.painter.join()
            print(f"\r\033[K{self.title} ... {tail}", file=sys.stderr, flush=True)
        else:
            print(f" {tail}", file=sys.stderr, flush=True)

    def _paint(self):
        """Repaint the line of a terminal until the step ends."""
        while not self.finished.wait(0.2):
            state = f"{time.monotonic() - self.started:.0f} s"
            if self.watch and self.total:
                done = min(folder_size(self.watch), self.total)
                state = f"{100 * done // self.total:3d} % of {megabytes(self.total)}, {state}"
            print(f"\r\033[K{self.title} ... {state}", end="", file=sys.stderr, flush=True)


def run(command, failure, **options):
    """Run a command quietly and return its stdout; on failure raise with its last lines."""
    command = [str(word) for word in command]
    options.setdefault("input", "")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, **options)
    except OSError as error:
        raise DevError(f"{failure}\n  tried: {' '.join(command)}\n  {error}") from None
    if done.returncode:
        lines = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip().splitlines()
        tail = "".join(f"\n  | {line[:160]}" for line in lines[-15:])
        raise DevError(f"{failure}\n  tried: {' '.join(command)}{tail}")
    return done.stdout


def main_guard(main):
    """Run a script's main function; show what went wrong as one message and exit 1."""
    try:
        sys.exit(main())
    except (DevError, OSError) as error:
        note(f"error: {error}")
        sys.exit(1)
    except KeyboardInterrupt:
        note("interrupted; run the same command again to go on")
        sys.exit(130)
