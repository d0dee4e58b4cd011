#!/usr/bin/env python3
"""Provide what building and testing need, below `.dev/`, without root and without touching the system."""

import argparse
import shlex

from devkit.say import DevError, main_guard


def postgres(options):
    """Print the pg_config of a major version, or the version to prefer."""
    from devkit import servers
    if options.default:
        print(servers.default_major())
    elif options.major in servers.MAJORS:
        print(servers.provide(options.major))
    else:
        raise DevError(f"name a major version from {servers.MAJORS[0]} to {servers.MAJORS[-1]}")
    return 0


def libclang(_options):
    """Print the shell lines that let bindgen work."""
    from devkit import clang
    for key, value in clang.environment().items():
        print(f"export {key}={shlex.quote(value)}")
    return 0


def venv(_options):
    """Print the python of the environment with the test packages."""
    from devkit import venv as environment
    print(environment.provide())
    return 0


def pgbouncer(_options):
    """Print the pgbouncer that the tests use."""
    from devkit import pooler
    print(pooler.PGBOUNCER.provide())
    return 0


def prometheus(_options):
    """Print the Prometheus that the tests use; promtool is beside it."""
    from devkit import prometheus as monitoring
    print(monitoring.PROMETHEUS.provide())
    return 0


def check(options):
    """Print one line per need; exit status 1 when something cannot be provided."""
    from devkit import needs, servers
    found = needs.check(options.majors or [servers.default_major()])
    for name, state, detail in found:
        print(f"{name:<22} {state:<15} {detail}".rstrip())
    return 1 if any(state == needs.MISSING for _, state, _ in found) else 0


def main():
    """Read the command line and provide one thing."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="WHAT")
    verb = verbs.add_parser("postgres", help="a server with headers; prints its pg_config")
    verb.add_argument("major", type=int, nargs="?")
    verb.add_argument("--default", action="store_true", help="print the major version to prefer")
    verb.set_defaults(run=postgres)
    verb = verbs.add_parser("libclang", help="what bindgen needs; prints shell exports")
    verb.set_defaults(run=libclang)
    verb = verbs.add_parser("venv", help="Python with the packages of the tests; prints its path")
    verb.set_defaults(run=venv)
    verb = verbs.add_parser("pgbouncer", help="the pooler of the tests; prints its path")
    verb.set_defaults(run=pgbouncer)
    verb = verbs.add_parser("prometheus", help="the Prometheus of the tests; prints its path, promtool is beside it")
    verb.set_defaults(run=prometheus)
    verb = verbs.add_parser("check", help="look at what is there and what is missing; changes nothing")
    verb.add_argument("majors", type=int, nargs="*", metavar="MAJOR")
    verb.set_defaults(run=check)
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    main_guard(main)
