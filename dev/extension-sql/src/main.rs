//! Prints the extension's install script: `extension-sql LIBRARY CONTROL_FILE VERSION`.
//!
//! pgrx embeds a description of every SQL entity in a section of the built library; reading it back with pgrx's
//! own graph gives the same script as `cargo pgrx schema`, without the three hundred crates of cargo-pgrx.

use eyre::{Result, WrapErr, eyre};
use object::{Object, ObjectSection};
use pgrx_sql_entity_graph::section::{decode_entities, is_schema_section_name};
use pgrx_sql_entity_graph::{ControlFile, PgrxSql, SqlGraphEntity};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let [_, library, control, version] = args.as_slice() else {
        return Err(eyre!("usage: extension-sql LIBRARY CONTROL_FILE VERSION"));
    };
    let data = std::fs::read(library).wrap_err_with(|| format!("reading {library}"))?;
    let section = schema_section(&data)?;
    let control = ControlFile::from_path_with_cargo_version(Path::new(control), version)
        .wrap_err_with(|| format!("reading {control}"))?;
    // The linker's order of the entities changes from build to build; the script must not.
    let mut entities = decode_entities(section).wrap_err("decoding the embedded schema")?;
    entities.sort();
    entities.insert(0, SqlGraphEntity::ExtensionRoot(control));
    let sql = PgrxSql::build(entities.into_iter(), "pgsteward".to_string(), false)
        .wrap_err("ordering the SQL entities")?
        .to_sql()
        .wrap_err("writing the SQL")?;
    // Source line numbers would make the committed script change with every unrelated edit.
    for line in sql.lines() {
        let line = line.trim_end();
        match line.strip_prefix("-- ").and_then(|rest| rest.rsplit_once(':')) {
            Some((file, number)) if file.ends_with(".rs") && number.parse::<u32>().is_ok() => {
                println!("-- {file}");
            }
            _ => println!("{line}"),
        }
    }
    Ok(())
}

fn schema_section(data: &[u8]) -> Result<&[u8]> {
    let library = object::File::parse(data).wrap_err("parsing the library")?;
    for section in library.sections() {
        if is_schema_section_name(section.name().wrap_err("reading a section name")?) {
            return section.data().wrap_err("reading the schema section");
        }
    }
    Err(eyre!("no embedded schema: build the extension without stripping it"))
}
