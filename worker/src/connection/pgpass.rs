//! The password file: lines `host:port:database:user:password`, `*` for any, backslash before a colon.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// The password of the first line that fits. A file that others may read is ignored, as libpq does.
pub fn look_up(file: &Path, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let about = std::fs::metadata(file).ok()?;
    if !about.is_file() {
        return None;
    }
    if about.permissions().mode() & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "password file ignored: others may read it; chmod 0600 it");
        return None;
    }
    let text = std::fs::read_to_string(file).ok()?;
    find(&text, host, port, database, user)
}

fn find(text: &str, host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    // libpq looks sockets in its default folder up as localhost.
    let host = match host {
        "/var/run/postgresql" | "/tmp" => "localhost",
        host => host,
    };
    let wanted = [host, &port.to_string(), database, user].map(str::to_string);
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (fields, password) = split(line)?;
        let fits = fields.iter().zip(&wanted).all(|(field, wanted)| *field == "*" || unescape(field) == *wanted);
        fits.then(|| unescape(password)).filter(|password| !password.is_empty())
    })
}

/// The four fields, still escaped, and the rest of the line.
fn split(line: &str) -> Option<([&str; 4], &str)> {
    let mut fields = [""; 4];
    let mut rest = line;
    for field in &mut fields {
        let mut escaped = false;
        let end = rest.char_indices().find_map(|(at, c)| {
            let colon = c == ':' && !escaped;
            escaped = c == '\\' && !escaped;
            colon.then_some(at)
        })?;
        *field = &rest[..end];
        rest = &rest[end + 1..];
    }
    Some((fields, rest))
}

fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        plain.push(if c == '\\' { rest.next().unwrap_or('\\') } else { c });
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "# comment\nother:*:*:*:no\nlocalhost:5432:app:ann:first\n*:*:*:ann:pass\\:word\\\\\n::1\n*:*:*:empty:\nfe80\\:\\:1:*:*:*:six";

    #[test]
    fn the_first_fitting_line_counts() {
        assert_eq!(find(FILE, "localhost", 5432, "app", "ann").as_deref(), Some("first"));
        assert_eq!(find(FILE, "localhost", 5433, "app", "ann").as_deref(), Some("pass:word\\"));
        assert_eq!(find(FILE, "/var/run/postgresql", 5432, "app", "ann").as_deref(), Some("first"));
        assert_eq!(find(FILE, "localhost", 5432, "app", "bob"), None);
        assert_eq!(find(FILE, "localhost", 5432, "app", "empty"), None);
        assert_eq!(find(FILE, "fe80::1", 5432, "app", "bob").as_deref(), Some("six"));
    }

    #[test]
    fn a_readable_file_is_ignored() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "*:*:*:*:secret").unwrap();
        let chmod = |mode| std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        chmod(0o600);
        assert_eq!(look_up(file.path(), "h", 1, "d", "u").as_deref(), Some("secret"));
        chmod(0o640);
        assert_eq!(look_up(file.path(), "h", 1, "d", "u"), None);
        assert_eq!(look_up(Path::new("/nonexistent"), "h", 1, "d", "u"), None);
    }
}
