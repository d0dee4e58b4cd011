"""Aligned tables on stdout, and a results file."""

import json
from datetime import UTC, datetime

from devkit.layout import dev_dir


def table(title, heads, rows):
    """Print rows below heads; the first column of text stays left, figures go right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [heads, *cells]) for i in range(len(heads))]
    left = [all(not cell[:1].isdigit() and cell != "-" for cell in column) for column in zip(*cells)]
    print(f"\n{title}")
    for row in [heads, *cells]:
        print("  ".join(cell.ljust(width) if is_left else cell.rjust(width)
                        for cell, width, is_left in zip(row, widths, left)).rstrip())
    print(flush=True)


def figure(value):
    """A figure with three significant digits, or all before the point."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def ratio(value):
    """How many times faster."""
    return "-" if value is None else f"{figure(value)}x"


class Results:
    """The results file of one run, rewritten as it grows."""

    def __init__(self, name, machine):
        began = datetime.now(UTC)
        folder = dev_dir() / "bench"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{name}-{began:%Y%m%dT%H%M%SZ}.json"
        self.content = {"benchmark": name, "began": began.isoformat(timespec="seconds"), "machine": machine, "figures": []}

    def add(self, **figures):
        """Keep some figures."""
        self.content["figures"].append(figures)
        self.path.write_text(json.dumps(self.content, indent=1) + "\n")
