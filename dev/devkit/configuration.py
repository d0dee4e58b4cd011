"""The settings of a private server."""

import re
from pathlib import Path

from .say import DevError

DATABASE = "pgsteward"
OWN_SETTINGS = {"port", "listen_addresses", "unix_socket_directories", "data_directory",
                "hba_file", "ident_file", "external_pid_file"}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "max_worker_processes": "24",
    "shared_buffers": "256MB",
    "wal_level": "replica",
    "password_encryption": "scram-sha-256",
    "log_min_messages": "notice",
    "log_lock_waits": "on",
    "log_line_prefix": "%m [%p] %q%u@%d/%a ",
}
CRON_SETTINGS = {
    "cron.database_name": DATABASE,
    "cron.use_background_workers": "on",
}


def check_names(settings):
    """Refuse what is not a setting, and what the tool chooses by itself."""
    for key in settings:
        if not re.fullmatch(r"[a-z_][a-z0-9_.]*", key, re.I):
            raise DevError(f"not a setting's name: {key}")
        if key.lower() in OWN_SETTINGS:
            raise DevError(f"{key} is chosen by the tool itself")


def text(library_dir, share_dir, port, socket_dir, preload, settings):
    """Return the configuration file; pg_cron is loaded where the server has it."""
    values, libraries = dict(SETTINGS), list(preload)
    if (Path(library_dir) / "pg_cron.so").exists():
        libraries.insert(0, "pg_cron")
        values |= CRON_SETTINGS
    if any(path.exists() for path in (Path(share_dir) / "timezone/UTC", Path("/usr/share/zoneinfo/UTC"))):
        values |= {"timezone": "UTC", "log_timezone": "UTC"}
    values |= {"port": port, "unix_socket_directories": _list_element(str(socket_dir)),
               "shared_preload_libraries": ",".join(libraries)}
    values |= settings
    lines = [f"{key} = '{str(value).replace(chr(39), 2 * chr(39))}'" for key, value in values.items()]
    return "\n".join(["# written at every start by dev/cluster.py", *lines, ""])


def _list_element(path):
    """Return a path as an element of a list of folders."""
    return f'"{path}"' if "," in path else path
