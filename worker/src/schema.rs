//! The commands of an operator: each asks the database one question and prints the answer.

use crate::config::{Config, Environment};
use crate::connection::address::Address;
use crate::connection::failure::Failure;
use crate::connection::{Database, Session, Usage};
use crate::problem::Problem;
use crate::ready;
use crate::settings::DATABASE_URL;
use crate::sql::{self, Question};
use crate::table::{self, Row};

/// How the answer is wanted.
pub struct Asked<'a> {
    pub config: &'a Config,
    pub environment: Environment<'a>,
    pub json: bool,
}

/// Installs or updates the extension, then applies the schema.
pub async fn migrate(asked: &Asked<'_>, schema: Option<&str>) -> Result<(), Problem> {
    let (database, mut session) = open(asked).await?;
    let found = sql::installation(&mut session).await.map_err(|failure| failure.problem())?;
    let explain = |failure: Failure| match failure.forbidden() {
        true => failure.problem().hint("Migrate as the role that owns the extension, or as a superuser."),
        false => failure.problem(),
    };
    let mut done = None;
    match (&found.schema, schema) {
        (Some(there), Some(wanted)) if there != wanted => {
            return Err(Problem::failure(format!("pgsteward is installed in the schema {there}, not in {wanted}"))
                .hint("Leave --schema out; the extension cannot be moved."));
        }
        (Some(_), _) => {
            if newer(found.available.as_deref(), found.version.as_deref()) {
                sql::update_extension(&mut session).await.map_err(explain)?;
                done = Some("updated");
            }
        }
        (None, _) if found.available.is_none() => return Err(ready::unavailable(&database.address.place())),
        (None, _) => {
            let created = sql::create_extension(&mut session, schema).await;
            created.map_err(|failure| match failure.forbidden() {
                true => failure
                    .problem()
                    .hint("Creating the extension takes a superuser; once it is there, steward_migrate() does not."),
                false => failure.problem(),
            })?;
            done = Some("created");
            // This session was set up before there was a schema to find names in.
            session = ready::connect(&fresh(asked)?, asked.config.connect_timeout).await?;
        }
    }
    let rows = sql::ask(&mut session, Question::Migrate).await.map_err(explain)?;
    let count = |action: &str| rows.iter().filter(|row| text(row, "action") == action).count();
    let (applied, reapplied, unchanged) = (count("applied"), count("reapplied"), count("unchanged"));
    if asked.json || applied + reapplied > 0 {
        table::print(&rows, asked.json);
    }
    if let (Some(done), false) = (done, asked.json) {
        table::say(&format!("extension {done}: version {}", found.available.as_deref().unwrap_or_default()));
    }
    if !asked.json {
        table::say(&match applied + reapplied {
            0 => format!("nothing to do: {unchanged} files unchanged"),
            _ => format!("{applied} applied, {reapplied} reapplied, {unchanged} unchanged"),
        });
    }
    Ok(())
}

/// Which files of the schema are applied; a problem if one is not.
pub async fn status(asked: &Asked<'_>) -> Result<(), Problem> {
    let mut rows = answer(asked, Question::Status, "steward_readonly").await?;
    if !asked.json {
        // The start of a checksum tells enough to a person.
        for checksum in rows.iter_mut().flat_map(|row| row.values_mut()).filter(|value| is_checksum(value)) {
            *checksum = checksum.as_str().and_then(|text| text.get(..12)).into();
        }
    }
    table::print(&rows, asked.json);
    let open = rows.iter().filter(|row| text(row, "state") != "applied").count();
    match open {
        0 => Ok(()),
        _ => Err(Problem::failure(format!("files not as the extension has them: {open} of {}", rows.len()))
            .hint("Run: pgsteward migrate")),
    }
}

/// Compares the catalogue with what the schema should be; a problem if there is an error.
pub async fn validate(asked: &Asked<'_>) -> Result<(), Problem> {
    let rows = answer(asked, Question::Validate, "steward_admin").await?;
    table::print(&rows, asked.json);
    if rows.is_empty() && !asked.json {
        table::say("schema is valid");
    }
    errors(&rows, "faults in the schema that are errors")
}

/// Every check of every domain; a problem if there is an error.
pub async fn health(asked: &Asked<'_>) -> Result<(), Problem> {
    let rows = answer(asked, Question::Health, "steward_readonly").await?;
    table::print(&rows, asked.json);
    errors(&rows, "checks that failed")
}

/// Prints what the schema is made of, or how it is used.
pub async fn show(asked: &Asked<'_>, question: Question) -> Result<(), Problem> {
    table::print(&answer(asked, question, "steward_admin").await?, asked.json);
    Ok(())
}

fn is_checksum(value: &serde_json::Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn errors(rows: &[Row], what: &str) -> Result<(), Problem> {
    match rows.iter().filter(|row| text(row, "level") == "error").count() {
        0 => Ok(()),
        errors => Err(Problem::failure(format!("{what}: {errors}"))),
    }
}

async fn answer(asked: &Asked<'_>, question: Question, role: &str) -> Result<Vec<Row>, Problem> {
    let (database, mut session) = open(asked).await?;
    let found = ready::installed(&mut session, &database).await?;
    if !matches!(question, Question::Status) {
        ready::migrated(&found)?;
    }
    let rows = sql::ask(&mut session, question).await;
    rows.map_err(|failure| ready::explain(&failure, &found.user, role))
}

async fn open(asked: &Asked<'_>) -> Result<(Database, Session), Problem> {
    let database = fresh(asked)?;
    let session = ready::connect(&database, asked.config.connect_timeout).await?;
    Ok((database, session))
}

fn fresh(asked: &Asked<'_>) -> Result<Database, Problem> {
    let origin = asked.config.describe(&DATABASE_URL);
    let address = Address::resolve(asked.config.database_url.as_deref(), &origin, asked.environment)?;
    let usage = Usage { sessions: 1, statement_timeout: None, pooled: asked.config.pooled };
    Database::new(address, &format!("pgsteward/{}", env!("CARGO_PKG_VERSION")), usage)
}

fn text<'a>(row: &'a Row, column: &str) -> &'a str {
    row.get(column).and_then(serde_json::Value::as_str).unwrap_or_default()
}

/// Compares versions such as 0.10.2 number by number.
fn newer(available: Option<&str>, installed: Option<&str>) -> bool {
    let numbers = |version: Option<&str>| -> Vec<u64> {
        version.unwrap_or_default().split(['.', '-']).map(|part| part.parse().unwrap_or_default()).collect()
    };
    numbers(available) > numbers(installed)
}

#[cfg(test)]
mod tests {
    use super::newer;

    #[test]
    fn versions_compare_by_number() {
        assert!(newer(Some("0.10.0"), Some("0.9.9")));
        assert!(newer(Some("1.0"), Some("0.99")));
        assert!(!newer(Some("0.1.0"), Some("0.1.0")));
        assert!(!newer(Some("0.1.0"), Some("0.2.0")));
        assert!(!newer(None, Some("0.1.0")));
    }
}
