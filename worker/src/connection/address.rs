//! Where the database is and who asks: a URL or key=value string, and libpq's environment for what it leaves out.

use crate::config::Environment;
use crate::connection::{conninfo, pgpass};
use crate::problem::Problem;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, LoadBalanceHosts, SslMode, SslNegotiation, TargetSessionAttrs};

/// How much TLS is asked for, as libpq's `sslmode`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// A database and a user, ready to connect. The password is inside, and never shown.
pub struct Address {
    pub config: Config,
    pub tls: TlsMode,
    /// File of certificates to trust, or `system`.
    pub root_certificates: Option<PathBuf>,
    hosts: Vec<String>,
    shown: BTreeMap<&'static str, String>,
}

/// libpq's parameters that we know, and the environment variable of each.
const PARAMETERS: &[(&str, &str)] = &[
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("port", "PGPORT"),
    ("user", "PGUSER"),
    ("password", "PGPASSWORD"),
    ("passfile", "PGPASSFILE"),
    ("dbname", "PGDATABASE"),
    ("options", "PGOPTIONS"),
    ("sslmode", "PGSSLMODE"),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("keepalives", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("keepalives_count", ""),
    ("tcp_user_timeout", ""),
    // Accepted, and of no effect here.
    ("application_name", ""),
    ("fallback_application_name", ""),
    ("client_encoding", ""),
    ("gssencmode", ""),
];

impl Address {
    /// Resolves a connection string; `origin` names the setting in messages.
    pub fn resolve(text: Option<&str>, origin: &str, environment: Environment<'_>) -> Result<Self, Problem> {
        let mut given = match text {
            Some(text) => conninfo::parse(text)
                .map_err(|fault| Problem::configuration(format!("{origin} is not a connection string: {fault}")))?,
            None => BTreeMap::new(),
        };
        if let Some(unknown) = given.keys().find(|key| !PARAMETERS.iter().any(|(name, _)| name == key)) {
            let known: Vec<_> = PARAMETERS.iter().map(|(name, _)| *name).collect();
            return Err(Problem::configuration(format!("{origin}: the parameter \"{unknown}\" is not supported"))
                .hint(format!("Supported are: {}.", known.join(", "))));
        }
        if environment("PGSERVICE").is_some_and(|service| !service.is_empty()) && text.is_none() {
            return Err(Problem::configuration("PGSERVICE is not supported")
                .hint("Give DATABASE_URL, or PGHOST, PGUSER, ... instead."));
        }
        for (name, variable) in PARAMETERS {
            if let Some(value) = environment(variable).filter(|value| !value.is_empty()) {
                given.entry(name.to_string()).or_insert(value);
            }
        }
        Parameters { given, origin }.build(environment)
    }

    /// The hosts with their ports, for messages.
    pub fn place(&self) -> String {
        self.hosts.join(", ")
    }

    /// The name of the database.
    pub fn database(&self) -> &str {
        self.config.get_dbname().unwrap_or_default()
    }

    /// The name of the user.
    pub fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<_> = self.shown.iter().map(|(name, value)| format!("{name}={value}")).collect();
        write!(f, "{}", pairs.join(" "))
    }
}

struct Parameters<'a> {
    given: BTreeMap<String, String>,
    origin: &'a str,
}

impl Parameters<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.given.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn refuse(&self, name: &str, hint: &str) -> Problem {
        let value = self.text(name).unwrap_or_default();
        Problem::configuration(format!("{}: {name} = \"{value}\" is not valid", self.origin)).hint(hint)
    }

    fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>, Problem> {
        let number = self.text(name).map(|text| text.trim().parse::<T>());
        number.transpose().map_err(|_| self.refuse(name, "Give a whole number that is not negative."))
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)], default: T) -> Result<T, Problem> {
        let Some(text) = self.text(name) else { return Ok(default) };
        let found = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        found.ok_or_else(|| self.refuse(name, &format!("Give one of {}.", words.join(", "))))
    }

    fn list(&self, name: &str) -> Vec<String> {
        self.text(name).map(|text| text.split(',').map(str::to_string).collect()).unwrap_or_default()
    }

    fn build(&self, environment: Environment<'_>) -> Result<Address, Problem> {
        let mut config = Config::new();
        let user = match self.text("user") {
            Some(user) => user.to_string(),
            None => whoami::username().map_err(|error| {
                Problem::configuration(format!("no user is given, and the system's name for you is unknown: {error}"))
            })?,
        };
        let database = self.text("dbname").unwrap_or(&user).to_string();
        config.user(&user).dbname(&database);
        let places = self.places(&mut config)?;
        let tls = self.tls_mode(&places)?;
        config.ssl_mode(match tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            _ => SslMode::Require,
        });
        self.session(&mut config, places.len())?;

        let mut shown = BTreeMap::from([("user", user.clone()), ("dbname", database.clone())]);
        shown.insert("host", places.iter().map(|(host, _)| host.as_str()).collect::<Vec<_>>().join(","));
        shown.insert("port", places.iter().map(|(_, port)| port.to_string()).collect::<Vec<_>>().join(","));
        for name in ["sslmode", "sslrootcert", "options", "hostaddr", "target_session_attrs"] {
            if let Some(value) = self.text(name) {
                shown.insert(name, value.to_string());
            }
        }
        let password = match (self.text("password"), places.first()) {
            (Some(password), _) => Some(password.to_string()),
            (None, Some((host, port))) => {
                let file = self.text("passfile").map(PathBuf::from).or_else(|| in_home(environment, ".pgpass"));
                file.and_then(|file| pgpass::look_up(&file, host, *port, &database, &user))
            }
            (None, None) => None,
        };
        if let Some(password) = password {
            config.password(password);
            shown.insert("password", "********".into());
        }
        let default_roots = || in_home(environment, ".postgresql/root.crt").filter(|path| path.exists());
        Ok(Address {
            config,
            tls,
            root_certificates: self.text("sslrootcert").map(PathBuf::from).or_else(default_roots),
            hosts: places.iter().map(|(host, port)| place(host, *port)).collect(),
            shown,
        })
    }

    /// The hosts and ports, also entered into the configuration.
    fn places(&self, config: &mut Config) -> Result<Vec<(String, u16)>, Problem> {
        let ports = self.list("port").into_iter().map(|port| match port.trim() {
            "" => Ok(5432),
            port => port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(()),
        });
        let ports: Vec<u16> =
            ports.collect::<Result<_, _>>().map_err(|()| self.refuse("port", "Give a port from 1 to 65535."))?;
        let addresses = self.list("hostaddr");
        let mut hosts = self.list("host");
        if hosts.is_empty() {
            hosts = match addresses.is_empty() {
                true => vec![default_host(ports.first().copied().unwrap_or(5432))],
                false => addresses.clone(),
            };
        }
        for host in &mut hosts {
            if host.is_empty() {
                *host = default_host(ports.first().copied().unwrap_or(5432));
            }
            config.host(host.as_str());
        }
        for address in &addresses {
            config.hostaddr(address.parse().map_err(|_| self.refuse("hostaddr", "Give an IP address."))?);
        }
        if !addresses.is_empty() && addresses.len() != hosts.len() {
            return Err(self.refuse("hostaddr", "Give as many addresses as hosts."));
        }
        if ports.len() > 1 && ports.len() != hosts.len() {
            return Err(self.refuse("port", "Give one port, or as many as hosts."));
        }
        for port in &ports {
            config.port(*port);
        }
        let port_of = |n: usize| ports.get(n).or(ports.first()).copied().unwrap_or(5432);
        Ok(hosts.into_iter().enumerate().map(|(n, host)| (host, port_of(n))).collect())
    }

    fn tls_mode(&self, places: &[(String, u16)]) -> Result<TlsMode, Problem> {
        let choices = [
            ("disable", TlsMode::Disable),
            ("allow", TlsMode::Prefer),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-ca", TlsMode::VerifyCa),
            ("verify-full", TlsMode::VerifyFull),
        ];
        let mode = self.choice("sslmode", &choices, TlsMode::Prefer)?;
        // As libpq: a root certificate turns require into verify-ca, and sockets never use TLS.
        Ok(match mode {
            _ if places.iter().all(|(host, _)| host.starts_with('/')) => TlsMode::Disable,
            TlsMode::Require if self.text("sslrootcert").is_some() => TlsMode::VerifyCa,
            mode => mode,
        })
    }

    fn session(&self, config: &mut Config, hosts: usize) -> Result<(), Problem> {
        if let Some(options) = self.text("options") {
            config.options(options);
        }
        let timeout = self.number::<u64>("connect_timeout")?.filter(|seconds| *seconds > 0);
        config.connect_timeout(Duration::from_secs(timeout.unwrap_or(10)));
        config.keepalives(self.number::<u8>("keepalives")? != Some(0));
        config.keepalives_idle(Duration::from_secs(self.number("keepalives_idle")?.unwrap_or(30)));
        config.keepalives_interval(Duration::from_secs(self.number("keepalives_interval")?.unwrap_or(10)));
        config.keepalives_retries(self.number("keepalives_count")?.unwrap_or(3));
        config.tcp_user_timeout(Duration::from_millis(self.number("tcp_user_timeout")?.unwrap_or(60_000)));
        // With several hosts the worker wants the one that takes writes.
        let default = if hosts > 1 { TargetSessionAttrs::ReadWrite } else { TargetSessionAttrs::Any };
        let choices = [
            ("any", TargetSessionAttrs::Any),
            ("read-write", TargetSessionAttrs::ReadWrite),
            ("primary", TargetSessionAttrs::ReadWrite),
            ("read-only", TargetSessionAttrs::ReadOnly),
        ];
        config.target_session_attrs(self.choice("target_session_attrs", &choices, default)?);
        let choices = [
            ("disable", ChannelBinding::Disable),
            ("prefer", ChannelBinding::Prefer),
            ("require", ChannelBinding::Require),
        ];
        config.channel_binding(self.choice("channel_binding", &choices, ChannelBinding::Prefer)?);
        let choices = [("disable", LoadBalanceHosts::Disable), ("random", LoadBalanceHosts::Random)];
        config.load_balance_hosts(self.choice("load_balance_hosts", &choices, LoadBalanceHosts::Disable)?);
        let choices = [("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)];
        config.ssl_negotiation(self.choice("sslnegotiation", &choices, SslNegotiation::Postgres)?);
        Ok(())
    }
}

fn place(host: &str, port: u16) -> String {
    match host.starts_with('/') {
        true => format!("{host}/.s.PGSQL.{port}"),
        false => format!("{host}:{port}"),
    }
}

/// A local socket where servers usually have one, as libpq would; else localhost.
fn default_host(port: u16) -> String {
    let sockets = ["/var/run/postgresql", "/tmp"];
    let found = sockets.into_iter().find(|folder| Path::new(&place(folder, port)).exists());
    found.unwrap_or("localhost").to_string()
}

fn in_home(environment: Environment<'_>, name: &str) -> Option<PathBuf> {
    environment("HOME").filter(|home| !home.is_empty()).map(|home| Path::new(&home).join(name))
}

#[cfg(test)]
mod tests;
