"""Machines of their own for workers, as far as this system permits: host name, network, address."""

import contextlib
import os
import socket
import subprocess
import threading

from conftest import WORKER, clean_environment

NAMESPACES = ["unshare", "--uts", "--net", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]


def may_unshare():
    """Whether processes may get a host name and a network of their own here."""
    try:
        return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class Host:
    """A machine with workers: its own name and network, and one way to the server, by TCP from an address of its own.

    A socket file leads out of the network namespace to a relay, which connects from `address`. Where namespaces are not
    permitted, the workers run without; the relay and its address stay.
    """

    def __init__(self, name, address, db, folder):
        self.name, self.address, self.db, self.folder = name, address, db, folder
        self.isolated = may_unshare()
        self.processes, self._sockets = [], []
        folder.mkdir()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self.db.cluster.port), source_address=(self.address, 0))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    @staticmethod
    def _pass_on(source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def start(self, *arguments, **environment):
        """Start a worker on this machine."""
        url = f"host={self.folder} port=5432 user=postgres password={self.db.cluster.password} dbname={self.db.name}"
        command = [WORKER, "run", *arguments]
        if self.isolated:
            command = [*NAMESPACES, "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *command]
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(command, env=clean_environment() | {"DATABASE_URL": url} | environment,
                                       stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    @property
    def output(self):
        """What its workers have printed."""
        return (self.folder / "log").read_text()

    def lose_power(self):
        """End its workers at once; of their connections the server hears only that they are gone."""
        for process in self.processes:
            process.kill()
            process.wait()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def close(self):
        """Clear everything away."""
        self._listener.close()
        self.lose_power()
