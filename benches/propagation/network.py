"""The data of the benchmark: scenes and alliances, and a check of every result."""

from pathlib import Path

from devkit.layout import scratch
from devkit.say import DevError, Step

HERE = Path(__file__).parent
TABLES = ("scenes", "alliances")
EDGES = ("SELECT a.from_scene_id, a.to_scene_id, a.weight FROM alliances a JOIN scenes f ON f.id = a.from_scene_id JOIN scenes t ON t.id = a.to_scene_id "
         "WHERE a.status = 'active' AND a.deleted_at IS NULL "
         "AND f.deleted_at IS NULL AND f.moderation_status NOT IN ('hidden', 'suspended') AND t.deleted_at IS NULL AND t.moderation_status NOT IN ('hidden', 'suspended')")
SCENES = "SELECT id FROM scenes WHERE deleted_at IS NULL AND moderation_status NOT IN ('hidden', 'suspended')"


class Network:
    """A database with so many scenes, and so many alliances from each that vouches for any."""

    def __init__(self, server, count, degree):
        self.server, self.count, self.degree, self.name = server, count, degree, f"propagation_{count}"
        self.folder, self.edges = scratch(f"propagation-{count}"), 0

    def connect(self):
        """A new session."""
        return self.server.connect(self.name)

    def load(self):
        """Create the database and fill it, triggers off and indexes built afterwards."""
        with Step(f"load {self.count:,} scenes with {self.degree} alliances each"):
            self.server.create_database(self.name)
            listed = ", ".join(f"'{table}'::regclass" for table in TABLES)
            with self.connect() as connection:
                connection.execute(f"UPDATE pg_index SET indisready = false WHERE indrelid IN ({listed})")
            with self.connect() as connection:
                connection.execute("SET session_replication_role = replica")
                connection.execute("SET work_mem = '512MB'")
                for statement in (HERE / "load.sql").read_text().replace(":scenes", str(self.count)).replace(":degree", str(self.degree)).split(";"):
                    connection.execute(statement)
                connection.execute(f"UPDATE pg_index SET indisready = true WHERE indrelid IN ({listed})")
            with self.connect() as connection:
                for table in TABLES:
                    connection.execute(f"REINDEX TABLE {table}")
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
                self.edges = connection.execute("SELECT count(*) FROM alliances").fetchone()[0]

    def export(self, connection):
        """Write edges and scenes to files, as COPY does."""
        for name, query in (("edges", EDGES), ("scenes", SCENES)):
            with (self.folder / name).open("wb") as file, connection.cursor().copy(f"COPY ({query}) TO STDOUT") as copy:
                for block in copy:
                    file.write(block)

    def forget(self):
        """Leave no ranks, and nothing for the measured run to clean up or to write out."""
        with self.connect() as connection:
            connection.execute("TRUNCATE trust_ranks")
            connection.execute("CHECKPOINT")

    def check(self, ranks, limit):
        """Fail unless the stored ranks are those of a query (scene_id, rank), up to this sum of differences."""
        with self.connect() as connection:
            counted, apart = connection.execute(
                f"SELECT count(*), sum(abs(t.rank - o.rank)) FROM trust_ranks t FULL JOIN ({ranks}) o USING (scene_id)").fetchone()
        if counted != self.count or apart is None or apart > limit:
            raise DevError(f"wrong result: {counted} ranks of {self.count}, {apart} apart in sum")
