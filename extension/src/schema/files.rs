//! The SQL files that the extension carries, in the order in which they are applied.

use include_dir::{Dir, include_dir};
use sha2::{Digest, Sha256};

static SQL: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../sql");
static VIEWS: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../views");

/// What the migrations, functions, views and access rules make, one object a line; see `catalogue.sql`.
pub static CATALOGUE: &str = include_str!("../../../sql/catalogue.tsv");

/// The file that is made once for each queue, and what stands in the place of its names in braces.
const QUEUE_TEMPLATE: &str = "functions/queue.sql";
const QUEUES: [&[(&str, &str)]; 2] = [
    &[
        ("{queue}", "events_queue"),
        ("{items}", "events"),
        ("{leased}", "leased"),
        ("{wakes}", "events"),
        ("{columns}", "payload"),
        ("{own_columns}", "q.payload"),
        ("{ended_columns}", "e.payload"),
        ("{lease_returns}", "topic_name text, payload jsonb"),
        ("{lease_takes}", "q.topic, q.payload"),
        ("{lease_selects}", "l.topic, l.payload"),
        ("{hold_returns}", "topic text, payload jsonb"),
        ("{hold_selects}", "q.topic, q.payload"),
    ],
    &[
        ("{queue}", "marketplace_discovery_queue"),
        ("{items}", "discovery_items"),
        ("{leased}", "processing"),
        ("{wakes}", "discovery"),
        ("{columns}", "interest_id, category_id, reason, created_by"),
        ("{own_columns}", "q.interest_id, q.category_id, q.reason, q.created_by"),
        ("{ended_columns}", "e.interest_id, e.category_id, e.reason, e.created_by"),
        ("{lease_returns}", "interest_id uuid, category_id uuid, reason text"),
        ("{lease_takes}", "q.interest_id, q.category_id, q.reason"),
        ("{lease_selects}", "l.interest_id, l.category_id, l.reason"),
        ("{hold_returns}", "interest_id uuid, category_id uuid, reason text"),
        ("{hold_selects}", "q.interest_id, q.category_id, q.reason"),
    ],
];

pub struct File {
    pub name: String,
    pub kind: &'static str,
    pub body: String,
}

impl File {
    /// The files that this one makes: itself, or one for each queue.
    fn expand(self) -> Vec<File> {
        if self.name != QUEUE_TEMPLATE {
            return vec![self];
        }
        let of_queue = |words: &&[(&str, &str)]| File {
            name: format!("{} ({})", self.name, words[0].1),
            kind: self.kind,
            body: words.iter().fold(self.body.clone(), |body, (name, value)| body.replace(name, value)),
        };
        QUEUES.iter().map(of_queue).collect()
    }
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
                Some(File { name: format!("{folder}/{name}"), kind, body: file.contents_utf8()?.to_string() })
            })
            .flat_map(File::expand)
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        files.append(&mut found);
    };
    add(SQL.get_dir("migrations"), "migrations", "migration");
    add(SQL.get_dir("functions"), "functions", "function");
    add(Some(&VIEWS), "views", "view");
    for (name, kind) in [("health.sql", "view"), ("access.sql", "access")] {
        if let Some(body) = SQL.get_file(name).and_then(|file| file.contents_utf8()) {
            files.push(File { name: name.to_string(), kind, body: body.to_string() });
        }
    }
    files
}
