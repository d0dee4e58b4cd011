"""Progress of one long step: a bar on a terminal, a plain line elsewhere; on stderr, as the developer tools do it."""

import shutil
import sys
import threading
import time

WIDTH = 20


class Step:
    """Context manager around a step; say how far it is with `at(done, total)`."""

    def __init__(self, title):
        self.title, self.done, self.total = title, 0, 0
        self.live, self.finished = sys.stderr.isatty(), threading.Event()
        self.painter = threading.Thread(target=self._paint, daemon=True)

    def __enter__(self):
        self.started = time.monotonic()
        if self.live:
            self.painter.start()
        else:
            print(f"{self.title} ...", end="", file=sys.stderr, flush=True)
        return self

    def __exit__(self, kind, error, trace):
        self.finished.set()
        tail = f"{'failed' if kind else 'done'}, {time.monotonic() - self.started:.1f} s"
        if self.live:
            self.painter.join()
            print(f"\r\033[K{self.title} ... {tail}", file=sys.stderr, flush=True)
        else:
            print(f" {tail}", file=sys.stderr, flush=True)

    def at(self, done, total):
        """Note how much is done."""
        self.done, self.total = done, total

    def _paint(self):
        """Repaint the line until the step ends."""
        while not self.finished.wait(0.2):
            bar = ""
            if self.total:
                full = WIDTH * self.done // self.total
                bar = f"[{'#' * full}{'.' * (WIDTH - full)}] {100 * self.done // self.total:3d} %  "
            line = f"{self.title} ... {bar}{time.monotonic() - self.started:.0f} s"
            print(f"\r\033[K{line[:shutil.get_terminal_size().columns - 1]}", end="", file=sys.stderr, flush=True)
