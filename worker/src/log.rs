//! Log lines on stderr: flat JSON objects (time, level, msg, and the fields beside them) or plain text.

use crate::config::LogFormat;
use serde_json::{Map, Value};
use std::fmt::{Debug, Write as _};
use std::io::{IsTerminal, Write};
use std::time::SystemTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// Reads a filter such as `info` or `warn,pgsteward=debug`; libraries stay at warn unless named.
pub fn filter(text: &str) -> Option<Targets> {
    let levels = text.split(',').filter(|directive| !directive.contains('='));
    for level in levels {
        level.trim().parse::<LevelFilter>().ok()?;
    }
    let given: Targets = text.parse().ok()?;
    let default = given.default_level().unwrap_or(LevelFilter::INFO);
    let libraries = Targets::new()
        .with_target("tokio_postgres", default.min(LevelFilter::WARN))
        .with_target("deadpool", LevelFilter::OFF);
    Some(libraries.with_targets(given).with_default(default))
}

/// Whether log lines are JSON.
pub fn is_json(format: LogFormat) -> bool {
    match format {
        LogFormat::Json => true,
        LogFormat::Plain => false,
        LogFormat::Auto => !std::io::stderr().is_terminal(),
    }
}

/// Sends all log lines to stderr, above the progress bars if there are any.
pub fn start(format: LogFormat, level: &str, bars: indicatif::MultiProgress) {
    let filter = filter(level).unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = Lines { json: is_json(format), bars };
    // Fails only if logging was started before; then that one stays.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).try_init();
}

struct Lines {
    json: bool,
    bars: indicatif::MultiProgress,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = render(event, SystemTime::now(), self.json);
        // A log that cannot be written cannot be reported either.
        self.bars.suspend(|| {
            let _ = std::io::stderr().lock().write_all(line.as_bytes());
        });
    }
}

fn render(event: &Event<'_>, time: SystemTime, json: bool) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let time = humantime::format_rfc3339_millis(time).to_string();
    let level = *event.metadata().level();
    if json {
        let mut line = Map::new();
        line.insert("time".into(), time.into());
        line.insert("level".into(), level.as_str().into());
        line.insert("msg".into(), fields.message.into());
        line.extend(fields.others);
        return format!("{}\n", Value::Object(line));
    }
    plain(&time, level, &fields)
}

fn plain(time: &str, level: Level, fields: &Fields) -> String {
    let mut line = format!("{time} {:<5} {}", level.as_str(), fields.message);
    for (name, value) in &fields.others {
        // Writing to a String cannot fail.
        let _ = match value {
            Value::String(text) if !text.is_empty() && !text.contains(char::is_whitespace) => {
                write!(line, " {name}={text}")
            }
            value => write!(line, " {name}={value}"),
        };
    }
    line.push('\n');
    line
}

/// The message and the fields of an event, with their types.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        // The bridge from the `log` crate adds where in its source a library logged.
        if field.name().starts_with("log.") {
            return;
        }
        self.others.insert(field.name().to_string(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
        } else {
            self.put(field, text.into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message = value.to_string();
        } else {
            self.put(field, value.into());
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    struct Caught {
        json: bool,
        lines: Arc<Mutex<Vec<String>>>,
    }

    impl<S: Subscriber> Layer<S> for Caught {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            self.lines.lock().unwrap().push(render(event, SystemTime::UNIX_EPOCH, self.json));
        }
    }

    fn caught(json: bool, log: impl FnOnce()) -> String {
        let lines = Arc::default();
        let layer = Caught { json, lines: Arc::clone(&lines) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let lines = lines.lock().unwrap();
        lines.concat()
    }

    #[test]
    fn json_lines_are_flat_and_numbers_are_numbers() {
        let line = caught(true, || {
            tracing::info!(
                duration_seconds = 1.234,
                scenes_processed = 150i64,
                scenes_failed = 0i64,
                avg_weight_variance = 0.05,
                "trust recompute completed"
            );
        });
        assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            json!({"time": "1970-01-01T00:00:00.000Z", "level": "INFO", "msg": "trust recompute completed", "duration_seconds": 1.234,
                   "scenes_processed": 150, "scenes_failed": 0, "avg_weight_variance": 0.05})
        );
    }

    #[test]
    fn text_fields_are_json_strings_on_one_line() {
        let line =
            caught(true, || tracing::error!(scene_id = "s", error = "a \"b\"\nc", "failed to recompute trust score"));
        let value: Value = serde_json::from_str(line.trim_end()).unwrap();
        assert_eq!(value["error"], "a \"b\"\nc");
        assert_eq!(value["level"], "ERROR");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn plain_lines_name_their_fields() {
        let line = caught(false, || tracing::warn!(topic = "a.b", error = "two words", n = 3, "event failed"));
        assert_eq!(line, "1970-01-01T00:00:00.000Z WARN  event failed topic=a.b error=\"two words\" n=3\n");
    }

    #[test]
    fn a_number_that_json_lacks_is_null() {
        assert!(caught(true, || tracing::info!(x = f64::NAN, "m")).contains("\"x\":null"));
    }

    #[test]
    fn libraries_stay_quiet_unless_named() {
        let quiet = filter("debug").unwrap();
        assert!(quiet.would_enable("pgsteward::run", &Level::DEBUG));
        assert!(quiet.would_enable("tokio_postgres", &Level::WARN));
        assert!(!quiet.would_enable("tokio_postgres::connection", &Level::INFO));
        assert!(filter("info,tokio_postgres=debug").unwrap().would_enable("tokio_postgres", &Level::DEBUG));
        assert!(!filter("off").unwrap().would_enable("tokio_postgres", &Level::ERROR));
        assert!(filter("loud").is_none());
    }
}
