//! Whether the database can be reached and is fit for work; what to do if not.

use crate::backoff::Backoff;
use crate::connection::failure::Failure;
use crate::connection::{Database, Session};
use crate::problem::Problem;
use crate::sql::{self, Installation, Question};
use std::time::{Duration, Instant};

/// Opens the first session; a server that does not answer gets this long.
pub async fn connect(database: &Database, limit: Duration) -> Result<Session, Problem> {
    let mut backoff = Backoff::default();
    let deadline = Instant::now() + limit;
    let mut told = false;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let failure = match tokio::time::timeout(left, database.session()).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::timeout(limit),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if !failure.transient() || left.is_zero() {
            return Err(failure.connecting(&database.address));
        }
        if !std::mem::replace(&mut told, true) {
            let place = database.address.place();
            tracing::warn!(place, error = failure.to_string(), "database out of reach, retrying");
        }
        let wait = backoff.next();
        if wait >= left {
            // Too late for another try: what failed last is the better message.
            tokio::time::sleep(left).await;
            return Err(failure.connecting(&database.address));
        }
        tokio::time::sleep(wait).await;
    }
}

/// Connects and checks that the database is fit for work; a server that fails on the way gets the same time.
pub async fn start(database: &Database, limit: Duration) -> Result<Installation, Problem> {
    let deadline = Instant::now() + limit;
    let mut backoff = Backoff::default();
    loop {
        let mut session = connect(database, deadline.saturating_duration_since(Instant::now())).await?;
        match check(&mut session, database).await {
            Err(problem) if problem.transient && Instant::now() < deadline => {
                tracing::warn!(error = problem.message, "connection lost at start, retrying");
                tokio::time::sleep(backoff.next()).await;
            }
            checked => return checked,
        }
    }
}

/// The extension, which must be installed; the schema it is in.
pub async fn installed(session: &mut Session, database: &Database) -> Result<Installation, Problem> {
    let found = sql::installation(session).await.map_err(|failure| failure.problem())?;
    let (name, place) = (database.address.database(), database.address.place());
    match (&found.schema, &found.available) {
        (Some(_), _) => Ok(found),
        (None, Some(_)) => Err(Problem::failure(format!(
            "the extension pgsteward is not installed in database \"{name}\""
        ))
        .hint(
            "Run: pgsteward migrate; or in SQL: CREATE EXTENSION pgsteward CASCADE; SELECT * FROM steward_migrate();",
        )),
        (None, None) => Err(unavailable(&place)),
    }
}

/// Refuses a database whose schema has not been created.
pub fn migrated(found: &Installation) -> Result<(), Problem> {
    match found.migrated {
        true => Ok(()),
        false => Err(Problem::failure("the schema of pgsteward has not been created").hint("Run: pgsteward migrate")),
    }
}

/// The server has no files of the extension.
pub fn unavailable(place: &str) -> Problem {
    Problem::failure(format!("the extension pgsteward is not available on the server at {place}"))
        .hint("Install its files on the server (make install), then run: pgsteward migrate")
}

/// Everything the worker needs: extension, schema and rights.
async fn check(session: &mut Session, database: &Database) -> Result<Installation, Problem> {
    let found = installed(session, database).await?;
    migrated(&found)?;
    let files = sql::ask(session, Question::Status)
        .await
        .map_err(|failure| explain(&failure, &found.user, "steward_worker"))?;
    let in_state = |wanted: &[&str]| {
        let state =
            |file: &serde_json::Map<_, _>| file.get("state").and_then(|state| state.as_str().map(str::to_string));
        files.iter().filter(|file| state(file).is_some_and(|state| wanted.contains(&state.as_str()))).count()
    };
    let (missing, newer) = (in_state(&["pending", "changed"]), in_state(&["newer"]));
    let version = found.version.as_deref().unwrap_or_default();
    if newer > 0 {
        let problem = format!("the schema is newer than the extension {version}; files unknown to it: {newer}");
        return Err(
            Problem::failure(problem).hint("Install the newer extension on the server, then run: pgsteward migrate")
        );
    }
    if missing > 0 {
        let problem = format!(
            "the schema is older than the extension {version}; files not applied: {missing} of {}",
            files.len()
        );
        return Err(Problem::failure(problem).hint("Run: pgsteward migrate"));
    }
    if found.available.is_some() && found.available != found.version {
        let available = found.available.as_deref().unwrap_or_default();
        tracing::warn!(
            installed = version,
            available,
            "the server has another version of the extension: pgsteward migrate updates it"
        );
    }
    match sql::may_work(session).await {
        Ok(true) => Ok(found),
        Ok(false) => Err(forbidden(&found.user, "steward_worker")),
        Err(failure) => Err(explain(&failure, &found.user, "steward_worker")),
    }
}

/// A failed statement as a problem; a missing right names the role to grant.
pub fn explain(failure: &Failure, user: &str, role: &str) -> Problem {
    match failure.forbidden() {
        true => forbidden(user, role).detail(failure.to_string()),
        false => failure.problem(),
    }
}

fn forbidden(user: &str, role: &str) -> Problem {
    let quoted = user.replace('"', "\"\"");
    Problem::failure(format!("the role \"{user}\" may not do this"))
        .hint(format!("As an administrator: GRANT {role} TO \"{quoted}\";"))
}
