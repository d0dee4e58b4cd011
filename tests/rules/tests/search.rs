//! The rank of a scene: places and distances that are known, and what must hold for all inputs.

use proptest::prelude::*;
use rules_tests::search::{Parts, Place, flag, proximity, recency};

fn place(longitude: f64, latitude: f64) -> Place {
    Place { longitude, latitude }
}

fn close(a: f64, b: f64, tolerance: f64) {
    assert!((a - b).abs() <= tolerance, "{a} is not {b}");
}

#[test]
fn distances_that_are_known() {
    let berlin = place(13.405, 52.52);
    let vectors = [
        (berlin, berlin, 0.0),
        (berlin, place(2.3522, 48.8566), 877.5),
        (place(-0.1278, 51.5074), place(-74.006, 40.7128), 5570.2),
        (place(0.0, 0.0), place(180.0, 0.0), 20015.1),
        (place(0.0, 90.0), place(123.0, -90.0), 20015.1),
        (place(179.5, 0.0), place(-179.5, 0.0), 111.2),
    ];
    for (from, to, kilometres) in vectors {
        close(from.kilometres_to(&to), kilometres, 0.1);
    }
}

#[test]
fn geohashes() {
    let jutland = Place::of_geohash("u4pruydqqvj").unwrap();
    close(jutland.longitude, 10.40744, 1e-5);
    close(jutland.latitude, 57.64911, 1e-5);
    assert_eq!(Place::of_geohash("U4PRUYDQQVJ"), Some(jutland));
    assert_eq!(Place::of_geohash("u4pruydqqvj00000000"), Place::of_geohash("u4pruydqqvj0"));
    for unknown in ["", "s00000", "S00000", "a", "u4pra", "ü4p", "u4 r", "🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀🦀"]
    {
        assert_eq!(Place::of_geohash(unknown), None, "{unknown}");
    }
    assert!(Place::of_geohash("s00001").is_some());
}

#[test]
fn parts() {
    assert_eq!([proximity(0.0), proximity(1.0), proximity(9.0), proximity(-5.0)], [1.0, 0.5, 0.1, 1.0]);
    assert_eq!(proximity(f64::INFINITY), 0.0);
    assert_eq!(
        [recency(0.0, 30.0), recency(30.0, 30.0), recency(60.0, 30.0), recency(-7.0, 30.0)],
        [1.0, 0.5, 0.25, 1.0]
    );
    assert_eq!(recency(f64::INFINITY, 30.0), 0.0);
}

const DESIGN: Parts = Parts { text: 0.4, proximity: 0.3, recency: 0.2, trust: 0.1 };

#[test]
fn scores_with_the_weights_of_the_design() {
    let vectors = [
        ((1.0, 1.0, 1.0, 1.0), 1.0),
        ((1.0, 1.0, 1.0, 0.0), 0.9),
        ((0.5, 0.0, 0.0, 0.0), 0.2),
        ((0.0, 0.5, 0.25, 0.8), 0.28),
        ((0.0, 0.0, 0.0, 0.0), 0.0),
        ((2.0, -1.0, f64::NAN, 0.5), 0.45),
    ];
    for ((text, proximity, recency, trust), score) in vectors {
        close(Parts { text, proximity, recency, trust }.score(&DESIGN), score, 1e-12);
    }
}

#[test]
fn flags() {
    for on in ["true", "1", "yes", "on", "TRUE", "Yes", "oN", " on\n"] {
        assert_eq!(flag(on), Some(true), "{on}");
    }
    for off in ["false", "0", "no", "off", "FALSE", "No", "oFF"] {
        assert_eq!(flag(off), Some(false), "{off}");
    }
    for neither in ["", "t", "2", "enabled", "yes!", "ja"] {
        assert_eq!(flag(neither), None, "{neither}");
    }
}

fn places() -> impl Strategy<Value = Place> {
    (-180.0..=180.0_f64, -90.0..=90.0_f64).prop_map(|(longitude, latitude)| place(longitude, latitude))
}

fn share() -> impl Strategy<Value = f64> {
    0.0..=1.0_f64
}

fn all_parts() -> impl Strategy<Value = Parts> {
    (share(), share(), share(), share()).prop_map(|(text, proximity, recency, trust)| Parts {
        text,
        proximity,
        recency,
        trust,
    })
}

proptest! {
    #[test]
    fn a_distance_is_the_same_both_ways_and_at_most_half_around(from in places(), to in places()) {
        let way = from.kilometres_to(&to);
        prop_assert!((0.0..=20_016.0).contains(&way));
        prop_assert!((way - to.kilometres_to(&from)).abs() < 1e-6);
    }

    #[test]
    fn a_detour_is_not_shorter(from in places(), over in places(), to in places()) {
        prop_assert!(from.kilometres_to(&to) <= from.kilometres_to(&over) + over.kilometres_to(&to) + 1e-6);
    }

    #[test]
    fn a_geohash_leads_back_to_its_place(at in places(), length in 6..=12_usize) {
        let code = geohash::encode(geohash::Coord { x: at.longitude, y: at.latitude }, length).unwrap();
        prop_assume!(code != "s00000");
        prop_assert!(at.kilometres_to(&Place::of_geohash(&code).unwrap()) < 1.0);
    }

    #[test]
    fn no_text_is_a_bug(text in ".*") {
        if let Some(place) = Place::of_geohash(&text) {
            prop_assert!(place.is_valid());
        }
        flag(&text);
    }

    #[test]
    fn nearer_and_newer_are_better(near in 0.0..1e5_f64, further in 1e-3..1e4_f64, half_life in 0.01..3650.0_f64) {
        prop_assert!(proximity(near) > proximity(near + further));
        prop_assert!(recency(near, half_life) >= recency(near + further, half_life));
    }

    #[test]
    fn a_score_is_between_0_and_the_sum_of_the_weights(parts in all_parts(), weights in all_parts()) {
        let most = weights.text + weights.proximity + weights.recency + weights.trust;
        prop_assert!((0.0..=most + 1e-12).contains(&parts.score(&weights)));
    }

    #[test]
    fn more_trust_is_a_better_rank_and_no_trust_changes_nothing(parts in all_parts(), more in share()) {
        let better = Parts { trust: parts.trust.max(more), ..parts };
        prop_assert!(better.score(&DESIGN) >= parts.score(&DESIGN));
        let without = Parts { trust: 0.0, ..DESIGN };
        prop_assert_eq!(better.score(&without), parts.score(&without));
    }
}
