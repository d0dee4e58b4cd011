"""The data of the benchmark: scenes with ten memberships and three alliances each, and the ways in which they get dirty."""

import random
import time
from contextlib import contextmanager
from pathlib import Path

from devkit.say import DevError, Step

HERE = Path(__file__).parent
TABLES = ("scenes", "memberships", "alliances", "trust_scores", "trust_dirty")
MARK = "INSERT INTO trust_dirty (scene_id) SELECT id FROM scenes"
SAMPLE = 200


class Scenes:
    """A database with so many scenes."""

    def __init__(self, server, count):
        self.server, self.count, self.name = server, count, f"trust_{count}"

    @contextmanager
    def connect(self):
        """A new session. It is gone when this ends, so that what it cost is not counted to whoever comes next."""
        with self.server.connect(self.name) as connection:
            backend = Path(f"/proc/{connection.info.backend_pid}")
            yield connection
        while backend.exists():
            time.sleep(0.005)

    def load(self):
        """Create the database and fill it, triggers off and indexes built afterwards."""
        with Step(f"load {self.count:,} scenes"):
            self.server.create_database(self.name)
            listed = ", ".join(f"'{table}'::regclass" for table in TABLES)
            with self.connect() as connection:
                connection.execute(f"UPDATE pg_index SET indisready = false WHERE indrelid IN ({listed})")
            with self.connect() as connection:
                connection.execute("SET session_replication_role = replica")
                for statement in (HERE / "load.sql").read_text().replace(":scenes", str(self.count)).split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute(f"UPDATE pg_index SET indisready = true WHERE indrelid IN ({listed})")
            with self.connect() as connection:
                for table in TABLES:
                    connection.execute(f"REINDEX TABLE {table}")
                connection.execute("VACUUM ANALYZE")
                connection.execute((HERE / "plain/few.sql").read_text())
                connection.execute(MARK)
                connection.execute("SELECT trust_recompute(1000000, '1 hour')")
                connection.execute("TRUNCATE trust_score_history")
                self._settle(connection)

    @staticmethod
    def _settle(connection):
        """Leave nothing for the measured run to clean up or to write out."""
        for table in ("memberships", "trust_scores", "trust_dirty"):
            connection.execute(f"VACUUM ANALYZE {table}")
        connection.execute("CHECKPOINT")

    def clean(self):
        """Leave nothing to do, and what only pgsteward keeps beside a score as it must be: others leave it as it was."""
        with self.connect() as connection:
            connection.execute("TRUNCATE trust_dirty")
            connection.execute("SELECT trust_mark_all_dirty()")
            connection.execute("SELECT trust_recompute(1000000, '1 hour')")
            connection.execute("TRUNCATE trust_dirty, trust_score_history")
            connection.execute("VACUUM trust_scores")

    def prepare(self, case):
        """Bring the database into the state from which the case is measured; the same for every contestant."""
        with self.connect() as connection:
            if case in ("changed", "one"):
                # As an application does it: the triggers mark what has changed.
                connection.execute((HERE / "change.sql").read_text())
            if case == "one":
                connection.execute((HERE / "change_back.sql").read_text())
            if case in ("same", "first"):
                connection.execute("SET session_replication_role = replica")
                connection.execute("TRUNCATE trust_scores" if case == "first" else "SELECT")
                connection.execute(MARK)
            self._settle(connection)

    def write(self, connection):
        """Change a membership of every scene, as `changed` does."""
        connection.execute((HERE / "change.sql").read_text())

    @contextmanager
    def marked_by(self, who):
        """A session whose changes are marked by our triggers, by a plain one, or by nobody; it has written before, and nothing is left to clean up."""
        with self.connect() as connection:
            connection.execute((HERE / "plain/mark.sql").read_text())
            connection.execute(f"ALTER TABLE memberships {'ENABLE REPLICA' if who == 'plain' else 'DISABLE'} TRIGGER plain_mark")
            connection.execute(f"SET session_replication_role = {'origin' if who == 'ours' else 'replica'}")
            connection.execute("TRUNCATE trust_dirty")
            self._settle(connection)
            yield connection
            connection.execute("DROP TRIGGER plain_mark ON memberships")

    def dirty_many(self, connection, many):
        """Change one membership of so many scenes beside each other, from a random one on."""
        first = random.randint(1, max(1, self.count - many))
        connection.execute("UPDATE memberships SET role = CASE role WHEN 'owner' THEN 'guest' ELSE 'owner' END WHERE user_did = 'did:1' AND scene_id IN "
                           "(SELECT md5(i::text)::uuid FROM generate_series(%s::int, %s::int) AS i)", [first, first + min(many, self.count) - 1])

    def dirty_few(self, connection, few):
        """Change and mark a few scenes at random, as an application does: by the trigger."""
        connection.execute("UPDATE memberships SET role = CASE role WHEN 'owner' THEN 'guest' ELSE 'owner' END WHERE user_did = 'did:1' AND scene_id IN "
                           "(SELECT md5((1 + floor(random() * %s))::int::text)::uuid FROM generate_series(1, %s))", [self.count, few])

    def check(self, whole=True):
        """Fail unless no mark is left and stored scores are right; of a sample, unless all of it was done."""
        with self.connect() as connection:
            marks, scores = connection.execute("SELECT (SELECT count(*) FROM trust_dirty), (SELECT count(*) FROM trust_scores)").fetchone()
            wrong = connection.execute(
                "SELECT count(*) FROM trust_compute(ARRAY(SELECT id FROM scenes s WHERE NOT EXISTS (SELECT FROM trust_dirty d WHERE d.scene_id = s.id) "
                "ORDER BY md5(id::text || random()) LIMIT %s)) c LEFT JOIN trust_scores t USING (scene_id) "
                "WHERE NOT coalesce(abs(t.score - c.score) < 1e-9 AND abs(t.alliance_factor - c.alliance_factor) < 1e-9 "
                "AND abs(t.membership_mean - c.membership_mean) < 1e-9 AND (t.memberships, t.alliances) = (c.memberships, c.alliances), false)", [SAMPLE]).fetchone()[0]
        if wrong or (whole and (marks or scores != self.count)):
            raise DevError(f"wrong result: {marks} marks left, {scores} scores of {self.count}, {wrong} of {SAMPLE} wrong")
