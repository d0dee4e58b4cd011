#!/usr/bin/env python3
"""Private PostgreSQL clusters below `.dev/` for development, demo and tests."""

import argparse
import os
import shlex

from devkit.clusters import Cluster
from devkit.configuration import DATABASE
from devkit.layout import dev_dir
from devkit.say import DevError, main_guard

__all__ = ["Cluster", "DevError"]


def start(cluster, options):
    """Start the cluster and print its URL."""
    settings = {}
    for word in options.set:
        key, equals, value = word.partition("=")
        if not equals:
            raise DevError(f"--set takes key=value, not {word}")
        settings[key.strip()] = value.strip()
    print(cluster.start(settings, options.extra_preload).url())


def stop(cluster, _options):
    """Stop the cluster."""
    cluster.stop()


def restart(cluster, options):
    """Restart the cluster and print its URL."""
    print(cluster.restart(options.immediate).url())


def status(cluster, _options):
    """Print what runs where; exit status 3 when the cluster is stopped, 4 when it does not exist."""
    if not cluster.exists:
        print(f"{cluster.folder.name}: not created")
        return 4
    pid = cluster.pid
    state = f"{'running' if cluster.ready else 'starting'}, process {pid}" if pid else "stopped"
    print(f"{cluster.folder.name}: {state}\n"
          f"server  PostgreSQL {cluster.major}, {cluster.pg_config}\n"
          f"data    {cluster.data}\n"
          f"log     {cluster.log}\n"
          f"socket  {cluster.socket_dir}\n"
          f"port    {cluster.port}")
    return 0 if cluster.ready else 3


def url(cluster, options):
    """Print the URL of a database."""
    print(cluster.url(options.database))


def psql(cluster, options):
    """Become psql; everything but --major, --pg-config and --name is passed on to it."""
    command = cluster.psql_command(*options.arguments)
    os.execve(command[0], command, os.environ | cluster.environment())


def destroy(cluster, _options):
    """Remove the cluster."""
    cluster.destroy()


def destroy_all(_cluster, _options):
    """Remove every private cluster of this checkout."""
    for folder in sorted(dev_dir().glob("cluster*")):
        major, name = folder.name.removeprefix("cluster"), folder.name.removeprefix("cluster-")
        (Cluster(major=int(major)) if major.isdigit() else Cluster(name=name)).destroy()


def env(cluster, _options):
    """Print shell exports for clients of the cluster."""
    for key, value in cluster.environment().items():
        print(f"export {key}={shlex.quote(value)}")
    print(f'export PATH={shlex.quote(str(cluster.bindir))}:"$PATH"')


def main():
    """Read the command line and run one verb."""
    which = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    which.add_argument("--major", type=int, help="the provided server of this major version")
    which.add_argument("--pg-config", metavar="PATH", help="the server of this pg_config")
    which.add_argument("--name", help="a cluster of its own, kept beside the one of the major version")
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(function):
        verb = verbs.add_parser(function.__name__.replace("_", "-"), parents=[which], allow_abbrev=False,
                                help=function.__doc__, description=function.__doc__)
        verb.set_defaults(run=function)
        return verb

    verb = add(start)
    verb.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                      help="a setting; kept until the cluster is destroyed")
    verb.add_argument("--extra-preload", action="append", default=[], metavar="LIB",
                      help="a library for shared_preload_libraries; kept as well")
    add(stop)
    add(restart).add_argument("--immediate", action="store_true", help="crash the server first")
    add(status)
    add(url).add_argument("--database", default=DATABASE)
    add(psql).usage = "cluster.py psql [--major MAJOR] [--pg-config PATH] [--name NAME] [PSQL ARGUMENTS]"
    add(destroy)
    add(destroy_all)
    add(env)
    options, arguments = parser.parse_known_args()
    if options.run is psql:
        options.arguments = arguments
    elif arguments:
        parser.error(f"unknown arguments: {' '.join(arguments)}")
    if options.major and options.pg_config:
        raise DevError("give either --major or --pg-config")
    return options.run(Cluster(options.major, options.name, options.pg_config), options)


if __name__ == "__main__":
    main_guard(main)
