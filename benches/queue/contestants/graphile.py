"""graphile-worker: enqueued by its SQL, worked on by its own client."""

from pathlib import Path

from benchkit import packages
from benchkit.programs import Outcome, attend, script
from contestant import Contestant, produce

VERSION = "0.18.0"
CLIENT = Path(__file__).parents[1] / "clients/graphile.mjs"


class Graphile(Contestant):
    """One worker process with a local queue."""

    family, name = "graphile", "graphile-worker"

    def install(self):
        """The package and its own node."""
        self.node, self.home = packages.npm("graphile-worker", f"graphile-worker@{VERSION}")
        return VERSION

    def client(self, *words):
        """A command line of its client."""
        return [self.node, CLIENT, *words]

    def create(self, database):
        """By its own migrations; the first job makes the task known."""
        script(database.server, database.name, *self.client("migrate"), PEER=str(self.home))

    def one(self, payload):
        """With its notification, as always."""
        return f"SELECT graphile_worker.add_job('bench', ({payload})::json)"

    def many(self, payloads):
        """An array of specifications."""
        return ("SELECT count(*) FROM graphile_worker.add_jobs(ARRAY(SELECT ('bench', payload::json, NULL, NULL, NULL, NULL, NULL, NULL)::graphile_worker.job_spec "
                f"FROM unnest({payloads}) AS payload))")

    def left(self, connection):
        """Finished jobs are deleted."""
        return connection.execute("SELECT count(*) FROM graphile_worker._private_jobs").fetchone()[0]

    def drain(self, database, items, clients, batch):
        """Local queue of a batch, so many jobs at the same time."""
        return Outcome(**script(database.server, database.name, *self.client("drain", items, clients, batch), PEER=str(self.home)))

    def latency(self, database, samples, rate):
        """Its worker listens by itself."""
        with attend(database.server, database.name, *self.client("wait", samples), PEER=str(self.home)) as result, database.connect() as connection:
            produce(connection, self, samples, rate)
            return result()
