//! How scenes are ranked for a search: the parts of a rank, and how they are put together.

/// The mean radius of the earth.
const EARTH_KM: f64 = 6371.0088;
/// What `coarse_geohash` holds where nobody has said where the scene is.
const UNKNOWN_PLACE: &str = "s00000";
/// More characters than this say where something is to less than a hand's breadth.
const GEOHASH_CHARACTERS: usize = 12;

/// A place on earth, in degrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub longitude: f64,
    pub latitude: f64,
}

impl Place {
    /// Whether there is such a place.
    pub fn is_valid(&self) -> bool {
        (-180.0..=180.0).contains(&self.longitude) && (-90.0..=90.0).contains(&self.latitude)
    }

    /// The middle of a geohash; `None` if it is none, or the one that stands for "unknown".
    pub fn of_geohash(geohash: &str) -> Option<Place> {
        let code: String = geohash.chars().take(GEOHASH_CHARACTERS).collect::<String>().to_ascii_lowercase();
        if code.is_empty() || code == UNKNOWN_PLACE {
            return None;
        }
        let (middle, _, _) = geohash::decode(&code).ok()?;
        Some(Place { longitude: middle.x, latitude: middle.y })
    }

    /// The way along the surface of the earth (haversine).
    pub fn kilometres_to(&self, other: &Place) -> f64 {
        let half_angle = |from: f64, to: f64| ((to - from).to_radians() / 2.0).sin().powi(2);
        let across = half_angle(self.latitude, other.latitude);
        let along = half_angle(self.longitude, other.longitude);
        let chord = across + self.latitude.to_radians().cos() * other.latitude.to_radians().cos() * along;
        // Rounding must not lead out of the domain of the arcsine.
        2.0 * EARTH_KM * chord.clamp(0.0, 1.0).sqrt().asin()
    }
}

/// 1 at the place itself, a half at one kilometre.
pub fn proximity(kilometres: f64) -> f64 {
    1.0 / (1.0 + kilometres.max(0.0))
}

/// 1 now and in the future, a half after the half-life.
pub fn recency(age_days: f64, half_life_days: f64) -> f64 {
    (-age_days.max(0.0) / half_life_days).exp2()
}

/// The parts of a rank, each between 0 and 1; or how much each of them weighs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Parts {
    pub text: f64,
    pub proximity: f64,
    pub recency: f64,
    pub trust: f64,
}

impl Parts {
    /// The parts, weighed and added up.
    pub fn score(&self, weights: &Parts) -> f64 {
        let weighed = |part: f64, weight: f64| if part.is_nan() { 0.0 } else { part.clamp(0.0, 1.0) * weight };
        weighed(self.text, weights.text)
            + weighed(self.proximity, weights.proximity)
            + weighed(self.recency, weights.recency)
            + weighed(self.trust, weights.trust)
    }
}

/// What a flag in the environment says: true, 1, yes, on, or false, 0, no, off, in any case; `None` for anything else.
pub fn flag(value: &str) -> Option<bool> {
    let value = value.trim().to_ascii_lowercase();
    match value.as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}
