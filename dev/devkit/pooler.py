"""PgBouncer in transaction mode in front of a private cluster."""

from urllib.parse import quote

from .programs import Daemon, Program

PGBOUNCER = Program("pgbouncer", "usr/sbin/pgbouncer")
CONFIGURATION = """\
[databases]
* = host={socket_dir} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {folder}/users
pool_mode = transaction
default_pool_size = {sessions}
max_client_conn = 200
"""


class Pooler(Daemon):
    """A running pgbouncer; `users` are the roles that may log in, with their passwords, beside the superuser."""

    program = PGBOUNCER

    def __init__(self, cluster, sessions=4, users=None):
        super().__init__(cluster, "pooler")
        self._write("users", "".join(f'"{name}" "{word}"\n' for name, word in {"postgres": cluster.password, **(users or {})}.items()))
        self._write("pgbouncer.ini", CONFIGURATION.format(
            socket_dir=cluster.socket_dir, server_port=cluster.port, port=self.port, folder=self.folder, sessions=sessions))
        self._start(self.folder / "pgbouncer.ini")

    def url(self, database, user="postgres", password=None):
        """Return the URL of a database behind the pooler."""
        word = quote(password or self.cluster.password, safe="")
        return f"postgresql://{user}:{word}@127.0.0.1:{self.port}/{quote(database, safe='')}"
