//! What each membership and alliance does to the score of its scene.

use super::rules::Inputs;
use super::{Counted, counted};
use pgrx::prelude::*;

/// The score minus the score without it, for each membership and then each alliance of a scene.
#[pg_extern(immutable, parallel_safe)]
fn trust_effects(
    roles: default!(Option<Vec<Option<String>>>, "'{}'"),
    trust_weights: default!(Option<Vec<Option<f64>>>, "'{}'"),
    alliance_weights: default!(Option<Vec<Option<f64>>>, "'{}'"),
) -> Vec<f64> {
    let rows = counted(roles, trust_weights, alliance_weights);
    let score = all_of(Inputs::default(), &rows).trust().score;
    let mut effects = Vec::with_capacity(rows.len());
    leave_out_each(Inputs::default(), &rows, &mut |without| effects.push(score - without.trust().score));
    effects
}

fn all_of(mut inputs: Inputs, rows: &[Counted]) -> Inputs {
    rows.iter().for_each(|row| row.add_to(&mut inputs));
    inputs
}

/// Visits, for each row in order, `others` and all rows but this one. Halving keeps it at n × log n additions.
fn leave_out_each(others: Inputs, rows: &[Counted], visit: &mut impl FnMut(Inputs)) {
    match rows {
        [] => {}
        [_] => visit(others),
        _ => {
            let (first, second) = rows.split_at(rows.len() / 2);
            leave_out_each(all_of(others, second), first, visit);
            leave_out_each(all_of(others, first), second, visit);
        }
    }
}

extension_sql!(
    r#"
COMMENT ON FUNCTION trust_effects(text[], double precision[], double precision[]) IS 'What each membership (roles and trust weights, in step) and then each alliance (weights) of a scene does to its score: the score minus the score without it.';
"#,
    name = "trust_effects_comments",
    requires = ["trust_comments", trust_effects]
);
