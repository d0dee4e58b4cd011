"""procrastinate: enqueued by its SQL function, worked on by its own client."""

from pathlib import Path

from benchkit import packages
from benchkit.programs import Outcome, attend, script
from contestant import Contestant, produce

VERSION = "3.10.0"
CLIENT = Path(__file__).parents[1] / "clients/in_procrastinate.py"
JOB = "('bench', 'bench', 0, NULL, NULL, {}, NULL)::procrastinate_job_to_defer_v1"


class Procrastinate(Contestant):
    """One worker process, one statement for each job; finished jobs are deleted."""

    family, name = "procrastinate", "procrastinate"
    batches = False
    sample = 2000

    def install(self):
        """An environment of its own."""
        self.python = packages.python("procrastinate", f"procrastinate=={VERSION}", "psycopg[binary,pool]==3.3.9") / "python"
        return VERSION

    def create(self, database):
        """By its own schema."""
        script(database.server, database.name, self.python, CLIENT, "migrate")

    def one(self, payload):
        """An array of one."""
        return f"SELECT procrastinate_defer_jobs_v1(ARRAY[{JOB.format(payload)}])"

    def many(self, payloads):
        """An array of jobs."""
        return f"SELECT cardinality(procrastinate_defer_jobs_v1(ARRAY(SELECT {JOB.format('payload')} FROM unnest({payloads}) AS payload)))"

    def left(self, connection):
        """Finished jobs are deleted."""
        return connection.execute("SELECT count(*) FROM procrastinate_jobs").fetchone()[0]

    def drain(self, database, items, clients, batch):
        """So many jobs at the same time."""
        return Outcome(**script(database.server, database.name, self.python, CLIENT, "drain", items, clients))

    def latency(self, database, samples, rate):
        """Its worker listens by itself."""
        with attend(database.server, database.name, self.python, CLIENT, "wait", samples) as result, database.connect() as connection:
            produce(connection, self, samples, rate)
            return result()
