use super::*;
use tokio_postgres::config::Host;

fn resolve(text: Option<&str>, env: &[(&str, &str)]) -> Result<Address, Problem> {
    let environment = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string());
    Address::resolve(text, "DATABASE_URL", &environment)
}

fn tcp(host: &str) -> Host {
    Host::Tcp(host.into())
}

#[test]
fn a_url_says_all() {
    let url = "postgresql://ann:s%40cret@db.example:6543/app%20x?sslmode=verify-full&sslrootcert=/ca.pem&options=-c%20geqo%3Doff";
    let address = resolve(Some(url), &[("PGUSER", "bob"), ("PGSSLMODE", "disable")]).unwrap();
    assert_eq!(address.config.get_hosts(), [tcp("db.example")]);
    assert_eq!(address.config.get_ports(), [6543]);
    assert_eq!(address.user(), "ann");
    assert_eq!(address.config.get_password(), Some(&b"s@cret"[..]));
    assert_eq!(address.database(), "app x");
    assert_eq!(address.config.get_options(), Some("-c geqo=off"));
    assert_eq!(address.tls, TlsMode::VerifyFull);
    assert_eq!(address.root_certificates.as_deref(), Some(Path::new("/ca.pem")));
    assert!(!address.to_string().contains("s@cret"), "{address}");
    assert!(address.to_string().contains("password=********"));
    assert_eq!(address.place(), "db.example:6543");
}

#[test]
fn key_value_pairs_say_the_same() {
    let text = r"host = 'db.example' port=6543 user=ann password='a \'b\\' dbname=app sslmode=require";
    let address = resolve(Some(text), &[]).unwrap();
    assert_eq!(address.config.get_password(), Some(&br"a 'b\"[..]));
    assert_eq!(address.tls, TlsMode::Require);
    assert_eq!(address.config.get_ports(), [6543]);
}

#[test]
fn libpq_variables_fill_what_is_missing() {
    let env = [
        ("PGHOST", "db"),
        ("PGPORT", "7777"),
        ("PGUSER", "ann"),
        ("PGPASSWORD", "pw"),
        ("PGDATABASE", "app"),
        ("PGSSLMODE", "require"),
        ("PGCONNECT_TIMEOUT", "3"),
        ("PGOPTIONS", "-c x=y"),
    ];
    let address = resolve(None, &env).unwrap();
    assert_eq!(address.config.get_hosts(), [tcp("db")]);
    assert_eq!(address.config.get_ports(), [7777]);
    assert_eq!(address.database(), "app");
    assert_eq!(address.config.get_connect_timeout(), Some(&Duration::from_secs(3)));
    assert_eq!(address.tls, TlsMode::Require);
    let address = resolve(Some("postgres://other/base"), &env).unwrap();
    assert_eq!((address.database(), address.user()), ("base", "ann"));
    assert_eq!(address.config.get_password(), Some(&b"pw"[..]));
}

#[test]
fn sockets_need_no_tls() {
    for address in [
        resolve(None, &[("PGHOST", "/run/pg"), ("PGUSER", "u"), ("PGSSLMODE", "verify-full")]),
        resolve(Some("postgres://u@%2Frun%2Fpg/d?sslmode=require"), &[]),
        resolve(Some("postgres:///d?host=/run/pg&user=u"), &[]),
    ] {
        let address = address.unwrap();
        assert_eq!(address.config.get_hosts(), [Host::Unix("/run/pg".into())]);
        assert_eq!(address.tls, TlsMode::Disable);
        assert_eq!(address.place(), "/run/pg/.s.PGSQL.5432");
    }
}

#[test]
fn several_hosts_prefer_the_one_that_writes() {
    let address = resolve(Some("postgres://u@a:1,[::1]:2/d"), &[]).unwrap();
    assert_eq!(address.config.get_hosts(), [tcp("a"), tcp("::1")]);
    assert_eq!(address.config.get_ports(), [1, 2]);
    assert_eq!(address.config.get_target_session_attrs(), TargetSessionAttrs::ReadWrite);
    assert!(resolve(Some("host=a,b port=1,2,3"), &[]).is_err());
}

#[test]
fn a_root_certificate_turns_require_into_verify_ca() {
    let address = resolve(Some("host=h user=u sslmode=require sslrootcert=/ca.pem"), &[]).unwrap();
    assert_eq!(address.tls, TlsMode::VerifyCa);
}

#[test]
fn the_user_names_the_database() {
    assert_eq!(resolve(Some("host=h user=ann"), &[]).unwrap().database(), "ann");
}

#[test]
fn the_password_file_is_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "h:5432:d:u:from-file\n").unwrap();
    let passfile = file.path().to_str().unwrap();
    let address = resolve(Some("postgres://u@h/d"), &[("PGPASSFILE", passfile)]).unwrap();
    assert_eq!(address.config.get_password(), Some(&b"from-file"[..]));
    let address = resolve(Some("postgres://u:own@h/d"), &[("PGPASSFILE", passfile)]).unwrap();
    assert_eq!(address.config.get_password(), Some(&b"own"[..]));
}

#[test]
fn faults_are_named_and_passwords_are_not() {
    for (text, part) in [
        ("mysql://u:secret@h/d", "must begin with postgres://"),
        ("postgres://u:secret%zz@h/d", "hexadecimal"),
        ("postgres://u:secret@h:abc/d", "port"),
        ("postgres://u:secret@h:0/d", "port"),
        ("postgres://u:secret@h/d?sslmode=maybe", "sslmode"),
        ("postgres://u:secret@h/d?sslcert=x", "sslcert"),
        ("postgres://u:secret@h/d?nonsense", "\"=\""),
        ("password=secret nonsense", "key=value"),
        ("password='secret", "not closed"),
        ("host=h password=secret connect_timeout=soon", "connect_timeout"),
    ] {
        let problem = resolve(Some(text), &[]).err().unwrap();
        assert!(problem.to_string().contains(part), "{text}: {problem}");
        assert!(!problem.to_string().contains("secret"), "{problem}");
        assert_eq!(problem.exit_code(), std::process::ExitCode::from(2));
    }
}
