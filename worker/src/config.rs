//! The effective configuration: flags before environment before file before defaults, each value checked.

use crate::connection::address::Address;
use crate::problem::Problem;
use crate::queue::Queue;
use crate::settings::{self, Kind, Setting};
use crate::table;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A statement may take this much longer than a recompute is asked to.
const BEYOND_RECOMPUTE: Duration = Duration::from_secs(30);

/// Tasks that want a connection beside those of the queues and of trust: progress, and removing what is old.
const OTHER_TASKS: usize = 2;

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq)]
pub enum Source {
    Flag,
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => write!(f, "the command line"),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => write!(f, "the default"),
        }
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogFormat {
    Auto,
    Plain,
    Json,
}

/// How one queue is worked on.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    pub concurrency: usize,
    pub batch_size: i32,
    /// In seconds.
    pub lease_ttl: i32,
}

/// All settings, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub database_url: Option<String>,
    pub listen_url: Option<String>,
    /// Whether `database_url` leads to a pooler that gives a session for one transaction only.
    pub pooled: bool,
    pub connect_timeout: Duration,
    pub statement_timeout: Duration,
    pub events: QueueConfig,
    pub discovery: QueueConfig,
    pub poll_interval: Duration,
    pub heartbeat_interval: Duration,
    pub expire_interval: Duration,
    pub drain_timeout: Duration,
    pub trust_interval: Duration,
    pub trust_timeout: Duration,
    pub trust_batch_size: i32,
    pub trust_concurrency: usize,
    /// What the geohash of the scenes begins with that are recomputed; None for all.
    pub trust_region: Option<String>,
    /// Connections for work.
    pub pool_size: usize,
    /// Where HTTP is served; None if nowhere.
    pub metrics_listen: Option<String>,
    pub log_format: LogFormat,
    pub log_level: String,
    /// The text of each setting and where it comes from, in the order of `settings::ALL`.
    pub origins: Vec<(&'static Setting, Option<String>, Source)>,
}

/// The environment, as a function so that tests can make one up.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Config {
    /// Reads the settings; `file` is the configuration file given as a flag.
    pub fn load(
        flags: BTreeMap<&'static str, String>,
        environment: Environment<'_>,
        file: Option<&Path>,
    ) -> Result<Self, Problem> {
        let file = match file {
            Some(path) => Some(path.to_path_buf()),
            None => environment("PGSTEWARD_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from),
        };
        let from_file = match &file {
            Some(path) => read_file(path)?,
            None => BTreeMap::new(),
        };
        let origins = settings::ALL.iter().map(|setting| {
            let name = setting.name;
            let given = flags.get(name).map(|value| (value.clone(), Source::Flag));
            let given = given.or_else(|| {
                setting.env.iter().find_map(|variable| {
                    let value = environment(variable).filter(|value| !value.is_empty())?;
                    Some((value, Source::Environment(variable)))
                })
            });
            let given =
                given.or_else(|| Some((from_file.get(name)?.clone(), Source::File(file.clone().unwrap_or_default()))));
            match given {
                Some((value, source)) => (*setting, Some(value), source),
                None => (*setting, setting.default.map(str::to_string), Source::Default),
            }
        });
        Self::check(origins.collect())
    }

    fn check(origins: Vec<(&'static Setting, Option<String>, Source)>) -> Result<Self, Problem> {
        let given = Given(&origins);
        let format = given.text(&settings::LOG_FORMAT)?.unwrap_or_default();
        let listen_url = given.text(&settings::LISTEN_URL)?;
        let trust_timeout = given.seconds(&settings::TRUST_TIMEOUT)?;
        let events = given.queue([&settings::QUEUE_CONCURRENCY, &settings::QUEUE_BATCH_SIZE, &settings::LEASE_TTL])?;
        let discovery = given.queue([
            &settings::DISCOVERY_CONCURRENCY,
            &settings::DISCOVERY_BATCH_SIZE,
            &settings::DISCOVERY_LEASE_TTL,
        ])?;
        let trust_concurrency = given.whole(&settings::TRUST_CONCURRENCY)? as usize;
        let busy = events.concurrency + discovery.concurrency + trust_concurrency + OTHER_TASKS;
        let pooler = given.text(&settings::POOLER)?.unwrap_or_default();
        Ok(Self {
            database_url: given.text(&settings::DATABASE_URL)?,
            pooled: pooler == "transaction" || (pooler == "auto" && listen_url.is_some()),
            listen_url,
            connect_timeout: given.seconds(&settings::CONNECT_TIMEOUT)?,
            statement_timeout: given.seconds(&settings::STATEMENT_TIMEOUT)?.max(trust_timeout + BEYOND_RECOMPUTE),
            events,
            discovery,
            poll_interval: given.seconds(&settings::POLL_INTERVAL)?,
            heartbeat_interval: given.seconds(&settings::HEARTBEAT_INTERVAL)?,
            expire_interval: given.seconds(&settings::EXPIRE_INTERVAL)?,
            drain_timeout: given.seconds(&settings::DRAIN_TIMEOUT)?,
            trust_interval: given.seconds(&settings::TRUST_INTERVAL)?,
            trust_timeout,
            trust_batch_size: given.whole(&settings::TRUST_BATCH_SIZE)? as i32,
            trust_concurrency,
            trust_region: given.text(&settings::TRUST_REGION)?,
            pool_size: match given.text(&settings::POOL_SIZE)? {
                None => busy,
                Some(_) => given.whole(&settings::POOL_SIZE)? as usize,
            },
            metrics_listen: given.text(&settings::METRICS_LISTEN)?.filter(|address| address != "off"),
            log_format: match format.as_str() {
                "json" => LogFormat::Json,
                "plain" => LogFormat::Plain,
                _ => LogFormat::Auto,
            },
            log_level: given.text(&settings::LOG_LEVEL)?.unwrap_or_default(),
            origins,
        })
    }

    /// How this queue is worked on.
    pub fn queue(&self, queue: Queue) -> QueueConfig {
        match queue {
            Queue::Events => self.events,
            Queue::Discovery => self.discovery,
        }
    }

    /// How messages name a setting: the way it was given.
    pub fn describe(&self, setting: &Setting) -> String {
        match self.source(setting) {
            Source::Flag => setting.flag(),
            Source::Environment(name) => (*name).to_string(),
            Source::File(path) => format!("{} in {}", setting.name, path.display()),
            Source::Default => "the environment".into(),
        }
    }

    /// Prints every setting with its source, and the connection that follows from them; no password.
    pub fn print(&self, environment: Environment<'_>, json: bool) -> Result<(), Problem> {
        let mut rows = Vec::new();
        for (setting, value, source) in &self.origins {
            let value = match (setting.kind, value) {
                (Kind::Connection, None) if setting.name != settings::DATABASE_URL.name => None,
                (Kind::Connection, value) => {
                    Some(Address::resolve(value.as_deref(), &self.describe(setting), environment)?.to_string())
                }
                (_, value) => value.clone(),
            };
            let row =
                [("setting", Some(setting.name.to_string())), ("value", value), ("source", Some(source.to_string()))];
            rows.push(row.into_iter().map(|(name, value)| (name.to_string(), value.into())).collect());
        }
        table::print(&rows, json);
        Ok(())
    }

    /// Where the value of a setting comes from.
    pub fn source(&self, setting: &Setting) -> &Source {
        let found = self.origins.iter().find(|(candidate, ..)| candidate.name == setting.name);
        found.map_or(&Source::Default, |(.., source)| source)
    }
}

fn read_file(path: &Path) -> Result<BTreeMap<String, String>, Problem> {
    let shown = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Problem::configuration(format!("cannot read the configuration file {shown}: {error}")))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        // The error's own display quotes the line, which may hold a password.
        let line = error.span().map_or(1, |span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        Problem::configuration(format!("{shown}, line {line}: {}", error.message()))
    })?;
    let mut values = BTreeMap::new();
    for (key, value) in table {
        let known = settings::ALL.iter().any(|setting| setting.name == key);
        let text = match value {
            _ if !known => {
                let names: Vec<_> = settings::ALL.iter().map(|setting| setting.name).collect();
                return Err(Problem::configuration(format!("unknown setting \"{key}\" in {shown}"))
                    .hint(format!("The settings are: {}.", names.join(", "))));
            }
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            _ => {
                return Err(Problem::configuration(format!("{key} in {shown} is neither a number nor text")));
            }
        };
        values.insert(key, text);
    }
    Ok(values)
}

struct Given<'a>(&'a [(&'static Setting, Option<String>, Source)]);

impl Given<'_> {
    fn find(&self, setting: &Setting) -> (&str, &Source) {
        let found = self.0.iter().find(|(candidate, ..)| candidate.name == setting.name);
        found.map_or(("", &Source::Default), |(_, value, source)| (value.as_deref().unwrap_or_default(), source))
    }

    fn refuse(&self, setting: &Setting, fault: &str) -> Problem {
        let (value, source) = self.find(setting);
        Problem::configuration(format!("{} = \"{value}\" from {source} {fault}", setting.name))
            .hint(format!("Give {}.", setting.range()))
    }

    fn text(&self, setting: &Setting) -> Result<Option<String>, Problem> {
        let (value, _) = self.find(setting);
        if let Kind::Choice(words) = setting.kind
            && !words.contains(&value)
        {
            return Err(self.refuse(setting, "is not known"));
        }
        if setting.name == settings::LOG_LEVEL.name && crate::log::filter(value).is_none() {
            return Err(self
                .refuse(setting, "is not a log filter")
                .hint("Give error, warn, info, debug, trace or off, or target=level pairs with commas."));
        }
        Ok(Some(value.to_string()).filter(|value| !value.is_empty()))
    }

    fn whole(&self, setting: &Setting) -> Result<i64, Problem> {
        let (value, _) = self.find(setting);
        let Ok(number) = value.trim().parse::<i128>() else {
            return Err(self.refuse(setting, "is not a whole number"));
        };
        let range = match setting.kind {
            Kind::Whole(min, max) => i128::from(min)..=i128::from(max),
            _ => i128::MIN..=i128::MAX,
        };
        match i64::try_from(number) {
            Ok(whole) if range.contains(&number) => Ok(whole),
            _ => Err(self.refuse(setting, "is out of range")),
        }
    }

    fn queue(&self, [concurrency, batch_size, lease_ttl]: [&Setting; 3]) -> Result<QueueConfig, Problem> {
        Ok(QueueConfig {
            concurrency: self.whole(concurrency)? as usize,
            batch_size: self.whole(batch_size)? as i32,
            lease_ttl: self.whole(lease_ttl)? as i32,
        })
    }

    fn seconds(&self, setting: &Setting) -> Result<Duration, Problem> {
        let (value, _) = self.find(setting);
        let Ok(number) = value.trim().parse::<f64>() else {
            return Err(self.refuse(setting, "is not a number of seconds"));
        };
        let range = match setting.kind {
            Kind::Seconds(min, max) => min..=max,
            _ => 0.0..=f64::MAX,
        };
        if !range.contains(&number) {
            return Err(self.refuse(setting, "is out of range"));
        }
        Duration::try_from_secs_f64(number).map_err(|_| self.refuse(setting, "is out of range"))
    }
}

#[cfg(test)]
mod tests;
