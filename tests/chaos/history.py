"""What each client saw, written outside the database: a line before and after each step."""

import json
import os
import time
from pathlib import Path


class History:
    """The log of one process. A step without an end is one whose outcome nobody knows."""

    def __init__(self, folder, client):
        self.client, self._step = client, 0
        self._file = os.open(Path(folder) / f"{client}.ndjson", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)

    def _write(self, **line):
        os.write(self._file, (json.dumps(line | {"at": time.time(), "client": self.client}) + "\n").encode())
        os.fsync(self._file)

    def begin(self, op, **what):
        """Note that a step begins; returns its number."""
        self._step += 1
        self._write(op=op, step=self._step, **what)
        return self._step

    def end(self, step, outcome, **what):
        """Note how a step ended."""
        self._write(step=step, outcome=outcome, **what)


def read(folder):
    """The steps of every log in a folder, each with `began`, `ended` (None: never) and `outcome` (unknown without an end)."""
    steps = []
    for path in sorted(Path(folder).glob("*.ndjson")):
        begun = {}
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # killed while writing
                continue
            if "op" in line:
                step = {"ended": None, "outcome": "unknown"} | line | {"began": line["at"]}
                begun[line["step"]] = step
                steps.append(step)
            else:
                begun[line["step"]].update(line | {"ended": line["at"]})
    return steps
