"""Progress of one long step: a bar on a terminal, a plain line elsewhere; on stderr, as the developer tools do it."""

import shutil
import sys
import time

from devkit import say

WIDTH = 20


class Step(say.Step):
    """Context manager around a step; say how far it is with `at(done, total)`."""

    done = 0

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
