//! The schema mechanism: applying the files that the extension carries, and comparing the catalogue with what they make.

mod files;

use pgrx::prelude::*;

/// The version of the extension's library.
#[pg_extern(immutable, parallel_safe)]
fn steward_version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

/// Every SQL file of the extension, in the order in which they are applied.
#[pg_extern(immutable, parallel_safe)]
fn steward_files() -> TableIterator<
    'static,
    (name!(name, String), name!(kind, &'static str), name!(checksum, String), name!(body, String)),
> {
    TableIterator::new(files::all().into_iter().map(|file| {
        let checksum = file.checksum();
        (file.name, file.kind, checksum, file.body)
    }))
}

/// What those files make: the catalogue that `steward_schema_validate()` compares with.
#[pg_extern(immutable, parallel_safe)]
fn steward_catalogue_expected()
-> TableIterator<'static, (name!(kind, &'static str), name!(object, &'static str), name!(definition, &'static str))> {
    TableIterator::new(files::CATALOGUE.lines().filter_map(|line| {
        let mut fields = line.splitn(3, '\t');
        Some((fields.next()?, fields.next()?, fields.next().unwrap_or_default()))
    }))
}

// Each requires the one before, so that the install script comes out the same every time.
extension_sql_file!("migrate.sql", name = "schema_migrate", requires = [steward_files, steward_version]);
extension_sql_file!("catalogue.sql", name = "schema_catalogue", requires = ["schema_migrate"]);
extension_sql_file!(
    "validate.sql",
    name = "schema_validate",
    requires = ["schema_catalogue", steward_catalogue_expected]
);
extension_sql_file!("report.sql", name = "schema_report", requires = ["schema_validate"]);
extension_sql_file!("access.sql", name = "schema_access", finalize);
