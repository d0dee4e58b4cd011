//! The SQL files that the extension carries, in the order in which they are applied.

use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};

static SQL: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../sql");
static VIEWS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../views");

/// What the migrations, functions, views and access rules make, one object a line; see `catalogue.sql`.
pub static CATALOGUE: &str = include_str!("../../../sql/catalogue.tsv");

pub struct File {
    pub name: String,
    pub kind: &'static str,
    pub body: &'static str,
}

impl File {
    /// SHA-256 in hexadecimal.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.body.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Migrations by number, then functions, views, the health view over them, and access last.
pub fn all() -> Vec<File> {
    let mut files = Vec::new();
    let mut add = |dir: Option<&Dir<'static>>, folder: &str, kind: &'static str| {
        let mut found: Vec<File> = dir
            .into_iter()
            .flat_map(|dir| dir.files())
            .filter_map(|file| {
                let name = file.path().file_name()?.to_str()?;
                name.ends_with(".sql").then_some(())?;
                Some(File { name: format!("{folder}/{name}"), kind, body: file.contents_utf8()? })
            })
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        files.append(&mut found);
    };
    add(SQL.get_dir("migrations"), "migrations", "migration");
    add(SQL.get_dir("functions"), "functions", "function");
    add(Some(&VIEWS), "views", "view");
    for (name, kind) in [("health.sql", "view"), ("access.sql", "access")] {
        if let Some(body) = SQL.get_file(name).and_then(|file| file.contents_utf8()) {
            files.push(File { name: name.to_string(), kind, body });
        }
    }
    files
}
