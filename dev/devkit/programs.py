"""Programs of the distribution's packages, unpacked below `.dev/` and never installed, and how they run beside a cluster."""

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from . import apt, elf, private
from .layout import dev_dir, locked, private_folder, scratch, server_user
from .say import DevError

PATIENCE = 10
NOT_NEEDED = "libjs-"  # what web pages are made of


class Program:
    """A program of a package of the same name."""

    def __init__(self, package, *places):
        self.package, self.places = package, places

    def offered(self):
        """Tell whether it can be fetched here."""
        return apt.available()

    def found(self):
        """Return the program that is there already, or None."""
        own = [private_folder() / self.package / place for place in self.places]
        system = [shutil.which(Path(place).name) for place in self.places]
        for candidates in (own, system):
            if all(candidate and Path(candidate).exists() for candidate in candidates):
                return Path(candidates[0])
        return None

    def provide(self):
        """Return the program; fetch the distribution's package when it is not there."""
        with locked(self.package):
            if self.found():
                return self.found()
            if not self.offered():
                raise DevError(f"{self.package} comes from the packages of Debian and Ubuntu; install it with this system's package manager")
            apt.refresh()
            fresh = scratch(self.package)
            libraries = apt.missing_libraries([self.package], NOT_NEEDED)
            apt.unpack([self.package, *libraries], fresh)
            elf.add_search_path(fresh, [fresh / place for place in self.places], libraries)
            home = dev_dir() / self.package
            shutil.rmtree(home, ignore_errors=True)
            fresh.rename(home)
        return self.found()


class Daemon:
    """A program that runs as the server's user, in a private folder of a cluster, on a free port of 127.0.0.1."""

    program = None

    def __init__(self, cluster, name):
        self.cluster, self._user = cluster, server_user()
        self.folder = cluster.folder / name
        private.make_folder(self.folder, self._user)
        self.port = private.port(None)
        self._process = None

    def _write(self, name, text):
        """Write a file that only the server's user can read."""
        private.write(self.folder / name, text, self._user)

    def _start(self, *arguments):
        """Start the program and wait until its port is taken."""
        identity = {}
        if os.geteuid() != self._user.pw_uid:
            identity = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        command = [self.program.provide(), *arguments]
        with open(self.folder / "output", "wb") as output:
            self._process = subprocess.Popen(command, cwd=self.folder, env={"LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL,
                                             stdout=output, stderr=subprocess.STDOUT, **identity)
        self._wait(self._listens)

    def _listens(self):
        """Tell whether the port is taken."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def _wait(self, condition):
        """Wait for a condition while the program runs."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self._process.poll() is not None or time.monotonic() > end:
                said = (self.folder / "output").read_text(errors="replace")[-2000:]
                self.stop()
                raise DevError(f"{self.program.package} does not start: {said or 'it said nothing'}")
            time.sleep(0.05)

    def stop(self):
        """End the program and remove its files."""
        if self._process and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
