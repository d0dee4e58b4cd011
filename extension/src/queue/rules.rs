//! How long a failed item waits for its next attempt.

/// The policy of a topic.
#[derive(Debug, Clone, Copy)]
pub struct RetryPolicy {
    /// Wait after the first failure, in seconds.
    pub base: f64,
    /// Each further wait is so many times longer.
    pub factor: f64,
    /// No wait is longer than this, in seconds, before it is spread.
    pub cap: f64,
    /// Waits are spread by this share either way, so that items that failed together do not return together.
    pub jitter: f64,
}

/// Seconds to wait after the given attempt (1 is the first) has failed; `random` is in 0..1.
///
/// Exponential, capped, and spread evenly by the jitter. Whatever the arguments, the result is finite and not negative.
pub fn retry_delay_seconds(attempt: i32, random: f64, policy: &RetryPolicy) -> f64 {
    let finite = |value: f64, otherwise: f64| if value.is_finite() { value.max(0.0) } else { otherwise };
    let exponent = f64::from(attempt.clamp(1, 1_000) - 1);
    let cap = finite(policy.cap, 0.0);
    // A base of nothing stays nothing, however large the factor has become.
    let wait = match finite(policy.base, 0.0) {
        0.0 => 0.0,
        base => (base * finite(policy.factor, 1.0).max(1.0).powf(exponent)).min(cap),
    };
    let jitter = finite(policy.jitter, 0.0).min(1.0);
    let random = finite(random, 0.5).min(1.0);
    wait * (1.0 + jitter * (2.0 * random - 1.0))
}
