//! Every setting: its name, where it may come from, what it may be. Flags, environment, file and `--help` follow this list.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeMap;

/// What a setting accepts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// A connection string; it may hold a password and is never shown as it is.
    Connection,
    /// Any text.
    Text,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A whole number in this range.
    Whole(i64, i64),
    /// Seconds in this range; decimals are allowed.
    Seconds(f64, f64),
}

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the configuration file; the flag is the same with dashes.
    pub name: &'static str,
    /// Environment variables, the first that is set counts.
    pub env: &'static [&'static str],
    pub default: Option<&'static str>,
    pub kind: Kind,
    /// Whether only the running worker heeds it.
    pub worker: bool,
    pub help: &'static str,
}

const fn general(
    name: &'static str,
    env: &'static [&'static str],
    default: Option<&'static str>,
    kind: Kind,
    help: &'static str,
) -> Setting {
    Setting { name, env, default, kind, worker: false, help }
}

const fn worker(
    name: &'static str,
    env: &'static [&'static str],
    default: &'static str,
    kind: Kind,
    help: &'static str,
) -> Setting {
    Setting { name, env, default: Some(default), kind, worker: true, help }
}

const DAY: f64 = 86_400.0;

pub static DATABASE_URL: Setting = general(
    "database_url",
    &["DATABASE_URL"],
    None,
    Kind::Connection,
    "Database, as a URL or key=value string; without it libpq's PGHOST, PGUSER, ... count",
);
pub static CONNECT_TIMEOUT: Setting = general(
    "connect_timeout",
    &["PGSTEWARD_CONNECT_TIMEOUT"],
    Some("30"),
    Kind::Seconds(0.1, 3600.0),
    "Seconds to keep trying to reach the database at the start",
);
pub static LOG_FORMAT: Setting = general(
    "log_format",
    &["PGSTEWARD_LOG_FORMAT"],
    Some("auto"),
    Kind::Choice(&["auto", "plain", "json"]),
    "Log lines on stderr: auto is plain on a terminal and json elsewhere",
);
pub static LOG_LEVEL: Setting = general(
    "log_level",
    &["PGSTEWARD_LOG_LEVEL", "RUST_LOG"],
    Some("info"),
    Kind::Text,
    "error, warn, info, debug, trace or off; also target=level,...",
);
pub static POOLER: Setting = general(
    "pooler",
    &["PGSTEWARD_POOLER"],
    Some("auto"),
    Kind::Choice(&["auto", "none", "transaction"]),
    "Whether DATABASE_URL leads to a pooler in transaction mode; auto: if LISTEN_URL is given",
);
pub static LISTEN_URL: Setting = Setting {
    worker: true,
    ..general(
        "listen_url",
        &["LISTEN_URL"],
        None,
        Kind::Connection,
        "Direct connection for LISTEN, if DATABASE_URL leads to a pooler",
    )
};
pub static QUEUE_CONCURRENCY: Setting = worker(
    "queue_concurrency",
    &["PGSTEWARD_QUEUE_CONCURRENCY"],
    "2",
    Kind::Whole(1, 64),
    "Batches of events processed at the same time",
);
pub static QUEUE_BATCH_SIZE: Setting = worker(
    "queue_batch_size",
    &["PGSTEWARD_QUEUE_BATCH_SIZE"],
    "100",
    Kind::Whole(1, 10_000),
    "Events leased and processed at a time, at most",
);
pub static LEASE_TTL: Setting = worker(
    "lease_ttl",
    &["PGSTEWARD_LEASE_TTL"],
    "60",
    Kind::Whole(1, 86_400),
    "Seconds after which another worker takes over the events that this one leased",
);
pub static DISCOVERY_CONCURRENCY: Setting = worker(
    "discovery_concurrency",
    &["PGSTEWARD_DISCOVERY_CONCURRENCY"],
    "1",
    Kind::Whole(1, 64),
    "Batches of discovery items processed at the same time",
);
pub static DISCOVERY_BATCH_SIZE: Setting = worker(
    "discovery_batch_size",
    &["PGSTEWARD_DISCOVERY_BATCH_SIZE"],
    "20",
    Kind::Whole(1, 10_000),
    "Discovery items leased and processed at a time, at most",
);
pub static DISCOVERY_LEASE_TTL: Setting = worker(
    "discovery_lease_ttl",
    &["PGSTEWARD_DISCOVERY_LEASE_TTL"],
    "120",
    Kind::Whole(1, 86_400),
    "Seconds after which another worker takes over the discovery items that this one leased",
);
pub static POLL_INTERVAL: Setting = worker(
    "poll_interval",
    &["PGSTEWARD_POLL_INTERVAL"],
    "1",
    Kind::Seconds(0.01, 3600.0),
    "Longest time in seconds between looks at an empty queue; a notification comes sooner",
);
pub static HEARTBEAT_INTERVAL: Setting = worker(
    "heartbeat_interval",
    &["PGSTEWARD_HEARTBEAT_INTERVAL"],
    "5",
    Kind::Seconds(0.1, 30.0),
    "Seconds between signs of life",
);
pub static EXPIRE_INTERVAL: Setting = worker(
    "expire_interval",
    &["PGSTEWARD_EXPIRE_INTERVAL"],
    "300",
    Kind::Seconds(0.1, DAY),
    "Seconds between looks for ended items that are older than their topic keeps them",
);
pub static DRAIN_TIMEOUT: Setting = worker(
    "drain_timeout",
    &["PGSTEWARD_DRAIN_TIMEOUT"],
    "25",
    Kind::Seconds(0.1, 3600.0),
    "Seconds to finish work after SIGTERM, before it is given back",
);
pub static STATEMENT_TIMEOUT: Setting = worker(
    "statement_timeout",
    &["PGSTEWARD_STATEMENT_TIMEOUT"],
    "300",
    Kind::Seconds(1.0, DAY),
    "Seconds until a statement is cancelled; at least 30 more than a recompute may take",
);
pub static TRUST_INTERVAL: Setting = worker(
    "trust_recompute_interval",
    &["TRUST_RECOMPUTE_INTERVAL_SEC"],
    "30",
    Kind::Seconds(0.1, DAY),
    "Seconds between recomputes of trust; a notification comes sooner",
);
pub static TRUST_TIMEOUT: Setting = worker(
    "trust_recompute_timeout",
    &["TRUST_RECOMPUTE_TIMEOUT_SEC"],
    "30",
    Kind::Seconds(0.001, DAY),
    "Seconds that one recompute may take; what it has done then is kept",
);
pub static TRUST_BATCH_SIZE: Setting = worker(
    "trust_recompute_batch_size",
    &["TRUST_RECOMPUTE_BATCH_SIZE"],
    "500",
    Kind::Whole(1, 1_000_000),
    "Scenes claimed at a time; up to 16 times as many while the backlog is large",
);
pub static TRUST_CONCURRENCY: Setting = worker(
    "trust_recompute_concurrency",
    &["TRUST_RECOMPUTE_CONCURRENCY"],
    "1",
    Kind::Whole(1, 64),
    "Recomputes at the same time while there is work for more than one",
);
pub static TRUST_REGION: Setting = worker(
    "trust_region",
    &["TRUST_REGION"],
    "",
    Kind::Text,
    "Recompute only scenes whose coarse_geohash begins so; empty: all",
);
pub static POOL_SIZE: Setting = Setting {
    worker: true,
    ..general(
        "pool_size",
        &["PGSTEWARD_POOL_SIZE"],
        None,
        Kind::Whole(1, 1000),
        "Connections for work; unless given, one for each task that may be busy at the same time",
    )
};
pub static METRICS_LISTEN: Setting = worker(
    "metrics_listen",
    &["PGSTEWARD_METRICS_LISTEN"],
    "127.0.0.1:9480",
    Kind::Text,
    "Address and port of /metrics over HTTP; off: none",
);

/// All settings, in the order of `pgsteward config`.
pub static ALL: &[&Setting] = &[
    &DATABASE_URL,
    &LISTEN_URL,
    &POOLER,
    &CONNECT_TIMEOUT,
    &STATEMENT_TIMEOUT,
    &POOL_SIZE,
    &QUEUE_CONCURRENCY,
    &QUEUE_BATCH_SIZE,
    &LEASE_TTL,
    &DISCOVERY_CONCURRENCY,
    &DISCOVERY_BATCH_SIZE,
    &DISCOVERY_LEASE_TTL,
    &POLL_INTERVAL,
    &HEARTBEAT_INTERVAL,
    &EXPIRE_INTERVAL,
    &DRAIN_TIMEOUT,
    &TRUST_INTERVAL,
    &TRUST_TIMEOUT,
    &TRUST_BATCH_SIZE,
    &TRUST_CONCURRENCY,
    &TRUST_REGION,
    &METRICS_LISTEN,
    &LOG_FORMAT,
    &LOG_LEVEL,
];

impl Setting {
    /// The flag, with its dashes.
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace('_', "-"))
    }

    /// What the setting accepts, in words.
    pub fn range(&self) -> String {
        match self.kind {
            Kind::Connection => "a URL such as postgres://user@host/database, or key=value pairs".into(),
            Kind::Text => "text".into(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Whole(min, max) => format!("a whole number from {min} to {max}"),
            Kind::Seconds(min, max) => format!("{min} to {max} seconds"),
        }
    }

    fn argument(&self) -> Arg {
        let value_name = match self.kind {
            Kind::Connection => "URL",
            Kind::Text => "TEXT",
            Kind::Choice(_) => "WORD",
            Kind::Whole(..) => "N",
            Kind::Seconds(..) => "SECONDS",
        };
        let mut help = format!("{} [env: {}]", self.help, self.env.join(", "));
        if let Some(default) = self.default {
            help.push_str(&format!(" [default: {default}]"));
        }
        Arg::new(self.name)
            .long(self.name.replace('_', "-"))
            .value_name(value_name)
            .allow_negative_numbers(true)
            .global(!self.worker)
            .help_heading(if self.worker { "Worker" } else { "General" })
            .help(help)
    }
}

/// Values given as flags, by the name of their setting: those of the worker, or those of all commands.
#[derive(Debug, Clone, Default)]
pub struct Flags<const WORKER: bool>(pub BTreeMap<&'static str, String>);

impl<const WORKER: bool> Flags<WORKER> {
    fn settings() -> impl Iterator<Item = &'static Setting> {
        ALL.iter().copied().filter(|setting| setting.worker == WORKER)
    }
}

impl<const WORKER: bool> FromArgMatches for Flags<WORKER> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in Self::settings() {
            if let Some(value) = matches.get_one::<String>(setting.name) {
                self.0.insert(setting.name, value.clone());
            }
        }
        Ok(())
    }
}

impl<const WORKER: bool> Args for Flags<WORKER> {
    fn augment_args(command: Command) -> Command {
        command.args(Self::settings().map(Setting::argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
