use super::*;
use std::io::Write;

fn load(flags: &[(&'static str, &str)], env: &[(&str, &str)], file: Option<&str>) -> Result<Config, Problem> {
    let environment = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
    let flags = flags.iter().map(|(name, value)| (*name, value.to_string())).collect();
    let written = file.map(|text| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    });
    Config::load(flags, &environment, written.as_ref().map(|file| file.path()))
}

#[test]
fn defaults_are_valid_and_documented() {
    let config = load(&[], &[], None).unwrap();
    assert_eq!(config.trust_timeout, Duration::from_secs(30));
    assert_eq!(config.trust_interval, Duration::from_secs(30));
    assert_eq!(config.events.batch_size, 100);
    assert_eq!(config.drain_timeout, Duration::from_secs(25));
    assert_eq!(config.origins.len(), settings::ALL.len());
}

#[test]
fn flags_beat_environment_beats_file_beats_default() {
    let file = Some("queue_concurrency = 3\nlease_ttl = 33\npoll_interval = 0.5\n");
    let env = [("PGSTEWARD_QUEUE_CONCURRENCY", "4"), ("PGSTEWARD_LEASE_TTL", "44")];
    let config = load(&[("queue_concurrency", "5")], &env, file).unwrap();
    assert_eq!(config.events.concurrency, 5);
    assert_eq!(config.source(&settings::QUEUE_CONCURRENCY), &Source::Flag);
    assert_eq!(config.events.lease_ttl, 44);
    assert_eq!(config.source(&settings::LEASE_TTL), &Source::Environment("PGSTEWARD_LEASE_TTL"));
    assert_eq!(config.poll_interval, Duration::from_millis(500));
    assert!(matches!(config.source(&settings::POLL_INTERVAL), Source::File(_)));
    assert_eq!(config.source(&settings::DRAIN_TIMEOUT), &Source::Default);
}

#[test]
fn documented_variables_work() {
    let env = [
        ("TRUST_RECOMPUTE_TIMEOUT_SEC", "60"),
        ("TRUST_RECOMPUTE_INTERVAL_SEC", "15"),
        ("TRUST_RECOMPUTE_BATCH_SIZE", "1000"),
        ("DATABASE_URL", "postgres://h/d"),
        ("RUST_LOG", "debug"),
    ];
    let config = load(&[], &env, None).unwrap();
    assert_eq!(config.trust_timeout, Duration::from_secs(60));
    assert_eq!(config.trust_interval, Duration::from_secs(15));
    assert_eq!(config.trust_batch_size, 1000);
    assert_eq!(config.database_url.as_deref(), Some("postgres://h/d"));
    assert_eq!(config.log_level, "debug");
}

#[test]
fn the_pool_is_large_enough_for_all_tasks_unless_its_size_is_given() {
    let config = load(&[("trust_recompute_concurrency", "4")], &[("PGSTEWARD_QUEUE_CONCURRENCY", "3")], None).unwrap();
    assert_eq!((config.trust_concurrency, config.pool_size), (4, 3 + 1 + 4 + OTHER_TASKS));
    assert_eq!(load(&[("pool_size", "2")], &[], None).unwrap().pool_size, 2);
    assert!(load(&[("pool_size", "-1")], &[], None).is_err());
}

#[test]
fn metrics_have_an_address_unless_they_are_off() {
    assert_eq!(load(&[], &[], None).unwrap().metrics_listen.as_deref(), Some("127.0.0.1:9480"));
    assert_eq!(load(&[], &[("PGSTEWARD_METRICS_LISTEN", "off")], None).unwrap().metrics_listen, None);
    assert_eq!(load(&[("trust_region", "u33")], &[], None).unwrap().trust_region.as_deref(), Some("u33"));
    assert_eq!(load(&[], &[], None).unwrap().trust_region, None);
}

#[test]
fn a_timeout_that_is_none_is_refused_by_the_name_of_its_variable() {
    for value in ["0", "-1", "abc", "NaN", "inf"] {
        let refused = load(&[], &[("TRUST_RECOMPUTE_TIMEOUT_SEC", value)], None).unwrap_err();
        assert!(refused.message.contains("TRUST_RECOMPUTE_TIMEOUT_SEC") && refused.message.contains(value));
    }
}

#[test]
fn each_queue_has_its_own_settings() {
    let env = [("PGSTEWARD_DISCOVERY_CONCURRENCY", "3"), ("PGSTEWARD_DISCOVERY_LEASE_TTL", "7")];
    let config = load(&[("queue_batch_size", "11"), ("discovery_batch_size", "12")], &env, None).unwrap();
    let of = |queue| {
        let QueueConfig { concurrency, batch_size, lease_ttl } = config.queue(queue);
        (concurrency, batch_size, lease_ttl)
    };
    assert_eq!(of(Queue::Events), (2, 11, 60));
    assert_eq!(of(Queue::Discovery), (3, 12, 7));
}

#[test]
fn a_connection_of_its_own_for_listening_means_a_pooler_unless_told_otherwise() {
    let pooled = |env: &[(&str, &str)]| load(&[], env, None).unwrap().pooled;
    let listen = ("LISTEN_URL", "postgres://h/d");
    assert!(!pooled(&[]));
    assert!(pooled(&[listen]));
    assert!(!pooled(&[listen, ("PGSTEWARD_POOLER", "none")]));
    assert!(pooled(&[("PGSTEWARD_POOLER", "transaction")]));
}

#[test]
fn an_empty_variable_is_unset() {
    let config = load(&[], &[("TRUST_RECOMPUTE_TIMEOUT_SEC", "")], Some("trust_recompute_timeout = 7")).unwrap();
    assert_eq!(config.trust_timeout, Duration::from_secs(7));
}

#[test]
fn every_number_refuses_nonsense_and_says_where_it_came_from() {
    for setting in settings::ALL {
        let bad: &[&str] = match setting.kind {
            Kind::Whole(..) => &["0", "-1", "1.5", "ten", "99999999999999999999999999", "NaN", " "],
            Kind::Seconds(..) => &["0", "-1", "ten", "1e300", "NaN", "inf", "-inf"],
            Kind::Choice(_) => &["yaml"],
            _ => continue,
        };
        for value in bad {
            let problem = load(&[], &[(setting.env[0], value)], None).unwrap_err();
            assert_eq!(problem.exit_code(), std::process::ExitCode::from(2));
            assert!(problem.message.contains(setting.name), "{problem}");
            assert!(problem.message.contains(setting.env[0]), "{problem}");
            assert_eq!(problem.hint.unwrap(), format!("Give {}.", setting.range()));
        }
    }
}

#[test]
fn an_unknown_key_is_named() {
    let problem = load(&[], &[], Some("queue_concurency = 3")).unwrap_err();
    assert!(problem.message.contains("\"queue_concurency\""), "{problem}");
    assert!(problem.hint.unwrap().contains("queue_concurrency"));
}

#[test]
fn a_broken_file_shows_its_line_but_never_its_text() {
    let problem = load(&[], &[], Some("lease_ttl = 5\ndatabase_url = postgres://u:secret@h/d\n")).unwrap_err();
    assert!(problem.message.contains("line 2"), "{problem}");
    assert!(!problem.to_string().contains("secret"), "{problem}");
}

#[test]
fn a_missing_file_and_a_wrong_type_are_refused() {
    let missing = Config::load(BTreeMap::new(), &|_| None, Some(Path::new("/nonexistent/x.toml"))).unwrap_err();
    assert!(missing.message.contains("/nonexistent/x.toml"));
    let wrong = load(&[], &[], Some("lease_ttl = [1]")).unwrap_err();
    assert!(wrong.message.contains("lease_ttl"));
}

#[test]
fn a_bad_log_filter_is_refused() {
    assert!(load(&[("log_level", "loud")], &[], None).unwrap_err().message.contains("log_level"));
    assert!(load(&[("log_level", "info,tokio_postgres=debug")], &[], None).is_ok());
}
