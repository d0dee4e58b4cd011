//! What went wrong with a connection or a statement, and whose fault it is.

use crate::connection::address::Address;
use crate::problem::Problem;
use deadpool_postgres::{HookError, PoolError};
use std::error::Error as _;
use std::fmt;
use std::time::Duration;
use tokio_postgres::error::SqlState;

const DETAIL_LENGTH: usize = 400;
const LOGIN: &str =
    "Check the user and the password (DATABASE_URL, PGPASSWORD or ~/.pgpass) and the server's pg_hba.conf.";

/// A failed connection or statement.
#[derive(Debug, Clone)]
pub struct Failure {
    /// None if the server never answered, or the connection broke.
    pub code: Option<SqlState>,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    cause: Cause,
}

/// Who failed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cause {
    /// The server said so.
    Server,
    /// Nobody answers, or the connection broke.
    Network,
    /// No TLS that may be trusted.
    Tls,
    /// This side could not do its part, such as give a password.
    Client,
}

impl Failure {
    /// The server did not answer in time.
    pub fn timeout(limit: Duration) -> Self {
        Self::without_code(Cause::Network, format!("no answer within {:.1} s", limit.as_secs_f64()))
    }

    /// The session lost its connection before.
    pub fn closed() -> Self {
        Self::without_code(Cause::Network, "the connection is closed".into())
    }

    /// A statement returned no row where one was due.
    pub fn no_row() -> Self {
        Self::without_code(Cause::Client, "the statement returned no row".into())
    }

    fn without_code(cause: Cause, message: String) -> Self {
        Self { code: None, message, detail: None, hint: None, cause }
    }

    /// True if the connection or the server is gone, so that nothing can be said about the statement.
    pub fn lost(&self) -> bool {
        match self.code.as_ref().map(SqlState::code) {
            Some(code) => code.starts_with("08") || code.starts_with("57P") || code == "53300",
            None => self.cause != Cause::Client,
        }
    }

    /// True if another connection may fare better: this one is gone, leads to a server that takes no writes, or looks
    /// for the extension where it is no more.
    pub fn ends_connection(&self) -> bool {
        const ELSEWHERE: [SqlState; 4] = [
            SqlState::READ_ONLY_SQL_TRANSACTION,
            SqlState::UNDEFINED_FUNCTION,
            SqlState::UNDEFINED_TABLE,
            SqlState::INVALID_SCHEMA_NAME,
        ];
        self.lost() || self.code.as_ref().is_some_and(|code| ELSEWHERE.contains(code))
    }

    /// True if the statement was cancelled: by its timeout, an administrator or ourselves.
    pub fn cancelled(&self) -> bool {
        self.code.as_ref() == Some(&SqlState::QUERY_CANCELED)
    }

    /// What ended the work, in few words.
    pub fn reason(&self) -> &'static str {
        match self.code.as_ref().map(SqlState::code) {
            Some("57014") => "statement cancelled",
            Some("57P01") => "session terminated by an administrator",
            _ if self.lost() => "lost connection",
            _ => "failed statement",
        }
    }

    /// True if less at a time may fare better: it took too long, or stood in the way of others.
    pub fn too_much(&self) -> bool {
        const IN_THE_WAY: [SqlState; 2] = [SqlState::LOCK_NOT_AVAILABLE, SqlState::T_R_DEADLOCK_DETECTED];
        self.cancelled() || self.code.as_ref().is_some_and(|code| IN_THE_WAY.contains(code))
    }

    /// True if no event of the batch is to blame: conflicts, permissions, resources, a broken schema, bugs.
    pub fn blameless(&self) -> bool {
        let class = self.code.as_ref().map(|code| &code.code()[..2]);
        class.is_none_or(|class| ["08", "25", "28", "40", "42", "53", "55", "58", "XX"].contains(&class)) || self.lost()
    }

    /// True if the role may not do this.
    pub fn forbidden(&self) -> bool {
        self.code.as_ref() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// As a problem of reaching this database, with a hint.
    pub fn connecting(&self, address: &Address) -> Problem {
        let (database, user, place) = (address.database(), address.user(), address.place());
        let code = self.code.as_ref().map(SqlState::code).unwrap_or_default();
        let problem = match code {
            "3D000" => Problem::failure(format!("database \"{database}\" does not exist at {place}"))
                .hint(format!("Create it with: createdb {database}; or name another in DATABASE_URL or PGDATABASE.")),
            "28P01" | "28000" => {
                Problem::failure(format!("the server at {place} does not let \"{user}\" in: {}", self.message))
                    .hint(LOGIN)
            }
            "" if self.cause == Cause::Tls => {
                Problem::failure(format!("no trusted TLS connection to {place}: {}", self.message))
                    .hint("Check sslmode and sslrootcert: the file must hold the certificate that signed the server's.")
            }
            "" if self.cause == Cause::Client => {
                Problem::failure(format!("cannot log in to {place} as \"{user}\": {}", self.message)).hint(LOGIN)
            }
            "" => Problem::failure(format!("cannot reach the database at {place}: {}", self.message))
                .hint("Is the server running? Check DATABASE_URL, or PGHOST and PGPORT."),
            "42501" => return self.problem(),
            _ => Problem::failure(format!("cannot use database \"{database}\" at {place}: {self}")),
        };
        match &self.detail {
            Some(detail) => problem.detail(shortened(detail)),
            None => problem,
        }
    }

    /// True if trying again later may help to connect.
    pub fn transient(&self) -> bool {
        self.cause != Cause::Tls && self.lost()
    }

    /// As a problem of a statement.
    pub fn problem(&self) -> Problem {
        let mut problem = Problem::failure(self.to_string());
        problem.detail = self.detail.as_deref().map(shortened);
        problem.hint.clone_from(&self.hint);
        problem.transient = self.transient();
        problem
    }
}

/// The server may add a whole file as context.
fn shortened(detail: &str) -> String {
    let short: String = detail.chars().take(DETAIL_LENGTH).collect();
    match short.len() < detail.len() {
        true => format!("{short}..."),
        false => short,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} (SQLSTATE {})", self.message, code.code()),
            None => write!(f, "{}", self.message),
        }
    }
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(server) = error.as_db_error() {
            return Self {
                code: Some(server.code().clone()),
                message: server.message().to_string(),
                detail: server.detail().map(str::to_string),
                hint: server.hint().map(str::to_string),
                cause: Cause::Server,
            };
        }
        // The innermost cause tells; what wraps it says only that something failed.
        let mut message = error.to_string();
        let mut cause = match error.is_closed() {
            true => Cause::Network,
            false => Cause::Client,
        };
        if message.contains("TLS") {
            cause = Cause::Tls;
        }
        let mut source = error.source();
        while let Some(inner) = source {
            message = inner.to_string();
            if let Some(network) = inner.downcast_ref::<std::io::Error>() {
                let tls = network.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
                cause = if tls || cause == Cause::Tls { Cause::Tls } else { Cause::Network };
            }
            source = inner.source();
        }
        Self::without_code(cause, message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::without_code(Cause::Network, error.to_string())
    }
}

impl From<PoolError> for Failure {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => error.into(),
            PoolError::Timeout(_) => Self::without_code(Cause::Network, "no connection in time".into()),
            other => Self::without_code(Cause::Client, other.to_string()),
        }
    }
}
