//! Rows as aligned text for people, or as JSON for programs.

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table};
use serde_json::{Map, Value};
use std::io::{IsTerminal, Write};

/// A row: values by column, in the order of the columns.
pub type Row = Map<String, Value>;

/// Prints rows to stdout, as a JSON array if asked.
pub fn print(rows: &[Row], json: bool) {
    if json {
        say(&Value::Array(rows.iter().cloned().map(Value::Object).collect()).to_string());
    } else if !rows.is_empty() {
        let width = std::io::stdout().is_terminal().then(|| console::Term::stdout().size().1);
        say(&render(rows, width));
    }
}

/// Prints a line to stdout; a closed pipe is not an error.
pub fn say(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

/// Aligned columns, wrapped to the width if there is one. Columns without any value are left out.
fn render(rows: &[Row], width: Option<u16>) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let columns: Vec<&String> = first
        .keys()
        .filter(|column| rows.iter().any(|row| row.get(*column).is_some_and(|value| !value.is_null())))
        .collect();
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|column| column.replace('_', " ")));
    if let Some(width) = width {
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    }
    for row in rows {
        table.add_row(columns.iter().map(|column| shown(row.get(*column).unwrap_or(&Value::Null))));
    }
    for (n, column) in columns.iter().enumerate() {
        let Some(cells) = table.column_mut(n) else { continue };
        cells.set_padding((0, 2));
        if rows.iter().all(|row| row.get(*column).is_none_or(|value| value.is_number() || value.is_null())) {
            cells.set_cell_alignment(CellAlignment::Right);
        }
        if ["check_name", "level", "state", "action"].contains(&column.as_str()) {
            cells.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
    let lines = table.lines().map(|line| line.trim_end().to_string());
    lines.collect::<Vec<_>>().join("\n")
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Number(number) if number.is_f64() => {
            let text = format!("{:.3}", number.as_f64().unwrap_or_default());
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn columns_keep_their_order_and_numbers_stand_right() {
        let rows = rows(
            r#"[{"name": "a", "duration_ms": 1.23456, "z": null}, {"name": "longer", "duration_ms": 12.0, "z": null}]"#,
        );
        assert_eq!(render(&rows, None), "name    duration ms\na             1.235\nlonger           12");
    }

    #[test]
    fn long_text_wraps_on_a_terminal_only() {
        let rows =
            rows(r#"[{"check_name": "queue.waiting", "hint": "one two three four five six seven eight nine ten"}]"#);
        assert!(render(&rows, Some(40)).lines().count() > 2);
        assert!(render(&rows, Some(40)).lines().all(|line| line.len() <= 40));
        assert_eq!(render(&rows, None).lines().count(), 2);
    }

    #[test]
    fn no_rows_print_nothing() {
        assert_eq!(render(&[], None), "");
    }
}
