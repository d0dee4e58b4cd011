"""Prometheus beside a private cluster, and promtool, which checks and tests rule files."""

import json
import subprocess
import urllib.error
import urllib.request
from urllib.parse import urlencode

from .programs import Daemon, Program
from .say import DevError

PROMETHEUS = Program("prometheus", "usr/bin/prometheus", "usr/bin/promtool")
KEPT = "2h"


def promtool(*arguments, **options):
    """Run promtool and return the finished process."""
    program = PROMETHEUS.provide().parent / "promtool"
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **options)


class Prometheus(Daemon):
    """A running Prometheus that scrapes `targets` (host:port) and evaluates the rule files every `interval` seconds."""

    program = PROMETHEUS

    def __init__(self, cluster, targets, rules=(), interval=1):
        super().__init__(cluster, "prometheus")
        copies = []
        for path in rules:
            self._write(path.name, path.read_text())
            copies.append(str(self.folder / path.name))
        pace = f"{round(interval * 1000)}ms"
        self._write("prometheus.yml", json.dumps({  # JSON is YAML
            "global": {"scrape_interval": pace, "scrape_timeout": pace, "evaluation_interval": pace},
            "rule_files": copies,
            "scrape_configs": [{"job_name": "pgsteward", "static_configs": [{"targets": list(targets)}]}]}))
        self._start(f"--config.file={self.folder}/prometheus.yml", f"--storage.tsdb.path={self.folder}/data", f"--storage.tsdb.retention.time={KEPT}",
                    f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=warn")
        self._wait(self._ready)

    def _ready(self):
        """Tell whether it answers queries."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def ask(self, path, **parameters):
        """Return the data of an answer of the HTTP API, such as `query`; what it refuses raises with its words."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise DevError(json.load(error)["error"]) from None

    def query(self, expression):
        """Return the series of an instant query: (labels, value) pairs."""
        return [(series["metric"], float(series["value"][1])) for series in self.ask("query", query=expression)["result"]]
