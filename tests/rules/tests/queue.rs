//! How long failed items wait.

use proptest::prelude::*;
use rules_tests::queue::{RetryPolicy, retry_delay_seconds};

const DEFAULT: RetryPolicy = RetryPolicy { base: 2.0, factor: 2.0, cap: 3_600.0, jitter: 0.125 };

fn policy() -> impl Strategy<Value = RetryPolicy> {
    (0.0..86_400.0, 1.0..100.0, 0.0..2_592_000.0, 0.0..=1.0).prop_map(|(base, factor, cap, jitter)| RetryPolicy {
        base,
        factor,
        cap,
        jitter,
    })
}

#[test]
fn doubles_up_to_the_cap() {
    let waits: Vec<f64> = (1..=14).map(|attempt| retry_delay_seconds(attempt, 0.5, &DEFAULT)).collect();
    assert_eq!(&waits[..5], &[2.0, 4.0, 8.0, 16.0, 32.0]);
    assert_eq!(waits[13], DEFAULT.cap);
}

#[test]
fn no_base_is_no_wait() {
    assert_eq!(retry_delay_seconds(1_000, 1.0, &RetryPolicy { base: 0.0, ..DEFAULT }), 0.0);
}

proptest! {
    #[test]
    fn is_finite_and_not_negative_whatever_the_arguments(
        attempt in any::<i32>(), random in any::<f64>(), base in any::<f64>(), factor in any::<f64>(), cap in any::<f64>(), jitter in any::<f64>()
    ) {
        let wait = retry_delay_seconds(attempt, random, &RetryPolicy { base, factor, cap, jitter });
        prop_assert!(wait >= 0.0 && (wait.is_finite() || cap > f64::MAX / 4.0), "{wait}");
    }

    #[test]
    fn stays_within_the_jitter_of_base_and_cap(attempt in 1..10_000_i32, random in 0.0..=1.0_f64, policy in policy()) {
        let wait = retry_delay_seconds(attempt, random, &policy);
        prop_assert!(wait >= policy.base.min(policy.cap) * (1.0 - policy.jitter) - 1e-6);
        prop_assert!(wait <= policy.cap * (1.0 + policy.jitter) + 1e-6);
    }

    #[test]
    fn never_shrinks_with_attempts(attempt in 1..1_000_i32, random in 0.0..=1.0_f64, policy in policy()) {
        prop_assert!(retry_delay_seconds(attempt + 1, random, &policy) >= retry_delay_seconds(attempt, random, &policy));
    }

    #[test]
    fn jitter_spreads_evenly_around_the_wait(attempt in 1..60_i32, random in 0.0..=1.0_f64, policy in policy()) {
        let (low, high) = (retry_delay_seconds(attempt, random, &policy), retry_delay_seconds(attempt, 1.0 - random, &policy));
        prop_assert!((low + high - 2.0 * retry_delay_seconds(attempt, 0.5, &policy)).abs() < 1e-3);
    }
}
