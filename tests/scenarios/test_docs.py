"""README.md and docs/: every SQL block runs, fails where it says so, prints what is shown below it; nothing is left out.

A fence is ```sql, followed by words that readers do not see:
  error=SQLSTATE   a statement of the block fails with this code
  undo             runs in a transaction that is rolled back, for what would outlive the database
  example=pg_cron  runs only where there is pg_cron, in the database that it works in
A ```text block directly after a ```sql block is what psql prints.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import MAJOR, ROOT, Database
from devkit.clusters import Cluster

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MARK = "@@ end of block"
VOLATILE_COLUMN = re.compile(r"(_ms|_sec|_bytes)$")
VOLATILE = ((re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?([+-]\d\d(:\d\d)?)?"), "<time>"),
            (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b"), "<random uuid>"))


@dataclass
class Block:
    """A ```sql block of a page."""

    where: str
    body: str
    words: dict
    shown: str | None = None
    faults: list = field(default_factory=list)

    def script(self, number):
        """The block for psql, and marks that tell its output from the next one's."""
        body = f"BEGIN;\n{self.body}\nROLLBACK;" if "undo" in self.words else self.body
        return f"\\set LAST_ERROR_SQLSTATE 00000\n{body}\n\\echo '{MARK} {number}' :LAST_ERROR_SQLSTATE\n\\warn '{MARK} {number}'\n"

    def judge(self, sqlstate, printed, complaints):
        """Note what is not as the page says."""
        wanted = self.words.get("error", "00000")
        complaints = re.sub(r"^psql:\S+?:\d+: ", "", complaints, flags=re.M).strip()
        if sqlstate != wanted or (wanted == "00000" and re.search(r"^(ERROR|FATAL|error|invalid command|\\)", complaints, re.M)):
            self.faults.append(f"{self.where}: SQLSTATE {sqlstate}, not {wanted}: {complaints}")
        printed = f"{printed}\n{complaints}" if wanted != "00000" else printed
        if self.shown is not None and tidy(printed) != tidy(self.shown):
            self.faults.append(f"{self.where}: psql does not print what is shown but\n{printed.strip()}")


def blocks(page):
    """The SQL blocks of a page in order, with the output shown below each."""
    text, found, end = page.read_text(), [], None
    for fence in re.finditer(r"^```(\w+)([^\n]*)\n(.*?)^```$", text, re.M | re.S):
        language, words, body = fence[1], fence[2].split(), fence[3]
        if language == "text" and end is not None and not text[end:fence.start()].strip():
            found[-1].shown = body
        end = fence.end() if language == "sql" else None
        if language != "sql":
            continue
        where = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, fence.start()) + 1}"
        given = dict(word.partition("=")[::2] for word in words)
        assert given.keys() <= {"error", "undo", "example"} and given.get("example", "pg_cron") == "pg_cron", f"{where}: unknown word in {words}"
        assert re.search(r"(;|^\\.*)$", body.rstrip().splitlines()[-1]), f"{where}: the last statement has no end"
        found.append(Block(where, body.rstrip(), given))
    return found


def tidy(printed):
    """psql's output without what differs from run to run, and without the widths that follow from it."""
    for pattern, word in VOLATILE:
        printed = pattern.sub(word, printed)
    lines, volatile, previous = [], [], ""
    for line in printed.strip().splitlines():
        if re.fullmatch(r"-+(\+-+)*", line):
            volatile = [bool(VOLATILE_COLUMN.search(name.strip())) for name in previous.split("|")]
            continue
        if re.fullmatch(r"\(\d+ rows?\)", line):
            volatile = []
        previous = line
        cells = line.split("|")
        if len(cells) == len(volatile):
            cells = [re.sub(r"\d+(\.\d+)?(e-?\d+)?", "<n>", cell) if changes else cell for cell, changes in zip(cells, volatile)]
        lines.append(" | ".join(" ".join(cell.split()) for cell in cells).rstrip())
    return [line for line in lines if line]


def faults(database, examples, folder):
    """Run blocks in one psql session; what is not as the page says."""
    script = folder / "page.sql"
    script.write_text("\\set SHOW_CONTEXT never\n" + "".join(block.script(number) for number, block in enumerate(examples)))
    done = database.psql("-v", "ON_ERROR_STOP=0", "-f", str(script))
    printed = re.split(rf"^{MARK} \d+ (\w+)\n", done.stdout, flags=re.M)
    complaints = re.split(rf"^{MARK} \d+\n", done.stderr, flags=re.M)
    assert (len(printed) - 1) // 2 == len(complaints) - 1 == len(examples), f"psql did not run to the end: {done.stdout}{done.stderr}"
    for number, block in enumerate(examples):
        block.judge(printed[2 * number + 1], printed[2 * number], complaints[number])
    return [fault for block in examples for fault in block.faults]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_run(db, page, tmp_path):
    examples = [block for block in blocks(page) if "example" not in block.words]
    found = faults(db, examples, tmp_path)
    assert not found, "\n\n".join(found)


def test_the_check_of_the_examples_can_fail(db, tmp_path):
    ends_well = Block("the same", "SELECT 1 AS one;", {}, " one \n-----\n   1\n(1 row)\n")
    wrong = [
        Block("unexpected error", "SELECT 1/0;", {}),
        Block("error in the middle", "SELECT 1/0; SELECT 1;", {}),
        Block("no error", "SELECT 1;", {"error": "22012"}),
        Block("another error", "SELECT * FROM lease_events(max_events => 0);", {"error": "22012"}),
        Block("another value", "SELECT 2 AS one;", {}, ends_well.shown),
        Block("another column", "SELECT 1 AS two;", {}, ends_well.shown),
        Block("another message", "SELECT 1/0;", {"error": "22012"}, "ERROR:  division by one"),
        Block("unknown command", "\\nonsense", {}),
    ]
    right = [
        ends_well,
        Block("as announced", "SELECT 1/0;", {"error": "22012"}, "ERROR:  division by zero"),
        Block("a duration", "SELECT 12.5 AS duration_ms;", {}, " duration_ms \n---\n 3.25\n(1 row)"),
        Block("undone", "CREATE TABLE undone ();", {"undo": ""}),
        Block("so it is gone", "TABLE undone;", {"error": "42P01"}),
    ]
    found = faults(db, [*wrong, *right], tmp_path)
    assert [fault.split(":")[0] for fault in found] == [block.where for block in wrong]


def test_the_readme_shows_the_output_of_ten_statements():
    assert sum(block.shown is not None for block in blocks(ROOT / "README.md")) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text())
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost


def documented():
    """All pages below docs/."""
    return "\n".join(page.read_text() for page in PAGES[1:])


def test_every_function_table_view_and_setting_is_documented(db):
    with db.connect() as connection:
        connection.execute("LOAD 'pgsteward'")  # its settings are known from then on
        rows = connection.execute("""
            SELECT DISTINCT proname AS name FROM pg_proc WHERE pronamespace = steward_schema()::regnamespace AND prorettype <> 'trigger'::regtype
            UNION ALL
            SELECT relname FROM pg_class WHERE relnamespace = steward_schema()::regnamespace AND relkind IN ('r', 'p', 'v') AND relname NOT LIKE 'health\\_%'
            UNION ALL
            SELECT name FROM pg_settings WHERE name LIKE 'pgsteward.%'""").fetchall()
    assert "pgsteward.user_id" in {row.name for row in rows}
    text = documented()
    assert [row.name for row in rows if not re.search(rf"\b{re.escape(row.name)}\b", text)] == []


def test_every_health_check_is_documented():
    checks = {name for path in (ROOT / "views").glob("*.sql") for name in re.findall(r"SELECT '([a-z_]+\.[a-z_]+)'", path.read_text())}
    text = (ROOT / "docs/operations.md").read_text()
    assert checks and [name for name in sorted(checks) if f"`{name}`" not in text] == []


def test_every_setting_of_the_worker_is_documented(pgsteward):
    settings = json.loads(pgsteward("config", "--json").stdout)
    text = (ROOT / "docs/worker.md").read_text()
    assert settings and [row["setting"] for row in settings if f"`{row['setting']}`" not in text] == []


def has_pg_cron():
    """Whether the server of these tests brings pg_cron."""
    pg_config = Cluster(major=MAJOR, name=os.environ.get("PGSTEWARD_TEST_CLUSTER", f"test{MAJOR}")).pg_config
    folder = subprocess.run([pg_config, "--sharedir"], capture_output=True, text=True, check=True).stdout.strip()
    return (Path(folder) / "extension/pg_cron.control").exists()


if has_pg_cron():
    def test_the_pg_cron_examples_run(cluster, tmp_path):
        """In the only database that pg_cron works in; jobs that the examples schedule are removed again."""
        database = Database(cluster, "pgsteward")
        database.run("CREATE EXTENSION IF NOT EXISTS pg_cron")
        database.run("CREATE EXTENSION IF NOT EXISTS pgsteward")
        database.run("SELECT * FROM steward_migrate()")
        before = [row.jobid for row in database.run("SELECT jobid FROM cron.job")]
        examples = [block for page in PAGES for block in blocks(page) if block.words.get("example") == "pg_cron"]
        try:
            found = faults(database, examples, tmp_path)
        finally:
            database.run("SELECT cron.unschedule(jobid) FROM cron.job WHERE jobid <> ALL (%s)", (before,))
        assert examples and not found, "\n\n".join(found)
