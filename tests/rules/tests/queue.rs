//! How long failed events wait.

use proptest::prelude::*;
use rules_tests::queue::{BASE_SECONDS, CAP_SECONDS, JITTER, retry_delay_seconds};

#[test]
fn doubles_up_to_the_cap() {
    let waits: Vec<f64> = (1..=14).map(|attempt| retry_delay_seconds(attempt, 0.5)).collect();
    assert_eq!(&waits[..5], &[2.0, 4.0, 8.0, 16.0, 32.0]);
    assert_eq!(waits[13], CAP_SECONDS);
}

proptest! {
    #[test]
    fn stays_between_base_and_cap(attempt in any::<i32>(), random in any::<f64>()) {
        let wait = retry_delay_seconds(attempt, random);
        prop_assert!(wait >= BASE_SECONDS * (1.0 - JITTER / 2.0) - 1e-9);
        prop_assert!(wait <= CAP_SECONDS * (1.0 + JITTER / 2.0) + 1e-9);
    }

    #[test]
    fn never_shrinks_with_attempts(attempt in 1..60_i32, random in 0.0..=1.0_f64) {
        prop_assert!(retry_delay_seconds(attempt + 1, random) >= retry_delay_seconds(attempt, random));
    }

    #[test]
    fn jitter_spreads_evenly_around_the_wait(attempt in 1..60_i32, random in 0.0..=1.0_f64) {
        let (low, high) = (retry_delay_seconds(attempt, random), retry_delay_seconds(attempt, 1.0 - random));
        prop_assert!((low + high - 2.0 * retry_delay_seconds(attempt, 0.5)).abs() < 1e-6);
    }
}
