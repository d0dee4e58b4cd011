//! Ranking scenes for a search. See `docs/search.md`.
//!
//! Finding the scenes is set-based SQL in `sql/functions/search.sql`.

mod rules;

pub use rules::flag;

use crate::error::refuse;
use crate::settings;
use pgrx::pg_sys::Point;
use pgrx::prelude::*;
use rules::{Parts, Place};

/// Whether scenes are ranked by trust too.
#[pg_extern(stable, parallel_safe)]
fn trust_ranking_enabled() -> bool {
    settings::rank_trust_enabled().get()
}

/// The middle of a geohash as longitude and latitude.
#[pg_extern(immutable, strict, parallel_safe)]
fn search_place(geohash: &str) -> Option<Point> {
    Place::of_geohash(geohash).map(|place| Point { x: place.longitude, y: place.latitude })
}

/// Kilometres between two places, given as longitude and latitude.
#[pg_extern(immutable, strict, parallel_safe)]
fn search_distance(place: Point, other: Point) -> f64 {
    valid_place(place).kilometres_to(&valid_place(other))
}

fn valid_place(point: Point) -> Place {
    let place = Place { longitude: point.x, latitude: point.y };
    if !place.is_valid() {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("({},{}) is not a place", point.x, point.y),
            "A point is (longitude, latitude) in degrees: -180 to 180, -90 to 90.",
        );
    }
    place
}

/// How near is near: 1 at the place itself, a half at one kilometre; 0 if the distance is not known.
#[pg_extern(immutable, parallel_safe)]
fn search_proximity(kilometres: Option<f64>) -> f64 {
    match kilometres {
        Some(kilometres) if !kilometres.is_nan() => rules::proximity(kilometres),
        _ => 0.0,
    }
}

/// How new is new: 1 now, a half after the half-life.
#[pg_extern(immutable, strict, parallel_safe)]
fn search_recency(age_days: f64, half_life_days: f64) -> f64 {
    if !(half_life_days > 0.0 && half_life_days.is_finite()) || age_days.is_nan() {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("an age of {age_days} days with a half-life of {half_life_days} days has no recency"),
            "Give an age in days, and a half-life greater than 0.",
        );
    }
    rules::recency(age_days, half_life_days)
}

/// The rank of a scene: its parts, weighed and added up.
#[pg_extern(immutable, strict, parallel_safe)]
fn search_score(text: f64, proximity: f64, recency: f64, trust: f64, weights: Vec<Option<f64>>) -> f64 {
    let weights: Vec<f64> = weights.into_iter().flatten().filter(|w| (0.0..=1.0).contains(w)).collect();
    let [of_text, of_proximity, of_recency, of_trust] = weights[..] else {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "weights must be four numbers between 0 and 1".to_string(),
            "Give those of text, proximity, recency and trust, in this order.",
        );
    };
    let weights = Parts { text: of_text, proximity: of_proximity, recency: of_recency, trust: of_trust };
    Parts { text, proximity, recency, trust }.score(&weights)
}

extension_sql!(
    r#"
COMMENT ON FUNCTION trust_ranking_enabled() IS 'Whether search_scenes() ranks by trust too: the setting pgsteward.rank_trust_enabled, by default the environment variable RANK_TRUST_ENABLED of the server.';
COMMENT ON FUNCTION search_place(text) IS 'The middle of a geohash as (longitude, latitude). NULL if it is no geohash, and for s00000, which stands for an unknown place.';
COMMENT ON FUNCTION search_distance(point, point) IS 'Kilometres along the surface of the earth between two points (longitude, latitude). A point that is no place is an error (22023).';
COMMENT ON FUNCTION search_proximity(double precision) IS 'How near is near: 1 / (1 + kilometres); 0 if the distance is NULL.';
COMMENT ON FUNCTION search_recency(double precision, double precision) IS 'How new is new: halved with every half-life; 1 for an age of 0 and less. A half-life that is not greater than 0 is an error (22023).';
COMMENT ON FUNCTION search_score(double precision, double precision, double precision, double precision, double precision[]) IS 'The rank of a scene: the parts text, proximity, recency and trust, each brought within 0 and 1, times the four weights in this order. Weights outside 0 to 1 are an error (22023).';
"#,
    name = "search_comments",
    requires = [
        "discovery_comments",
        trust_ranking_enabled,
        search_place,
        search_distance,
        search_proximity,
        search_recency,
        search_score
    ]
);
