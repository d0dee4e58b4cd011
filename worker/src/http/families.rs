//! From lines of `vw_trust_metrics` to Prometheus families and their text.

use crate::sql::Sample;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, Metric, MetricFamily, MetricType};

/// The families of these samples, in their order.
pub fn families(samples: &[Sample]) -> Vec<MetricFamily> {
    let of_one = |lines: &[Sample]| {
        let mut family = MetricFamily::default();
        if let Some(first) = lines.first() {
            family.set_name(first.metric.clone());
            family.set_help(first.help.clone());
            family.set_field_type(kind(&first.kind));
            family.set_metric(vec![metric(lines, kind(&first.kind))]);
        }
        family
    };
    samples.chunk_by(|a, b| a.metric == b.metric).map(of_one).collect()
}

/// What these families are, without their values.
pub fn headers(families: &[MetricFamily]) -> String {
    let header = |family: &MetricFamily| {
        let (name, kind) = (family.name(), format!("{:?}", family.get_field_type()).to_lowercase());
        let help = family.help().replace('\\', "\\\\").replace('\n', "\\n");
        format!("# HELP {name} {help}\n# TYPE {name} {kind}\n")
    };
    families.iter().map(header).collect()
}

fn kind(name: &str) -> MetricType {
    match name {
        "counter" => MetricType::COUNTER,
        "histogram" => MetricType::HISTOGRAM,
        _ => MetricType::GAUGE,
    }
}

fn metric(lines: &[Sample], kind: MetricType) -> Metric {
    let mut metric = Metric::default();
    let value = lines.first().map_or(0.0, |line| line.value);
    match kind {
        MetricType::COUNTER => {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        }
        MetricType::HISTOGRAM => metric.set_histogram(histogram(lines)),
        _ => {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

fn histogram(lines: &[Sample]) -> Histogram {
    let (mut histogram, mut buckets) = (Histogram::default(), Vec::new());
    for line in lines {
        match line.le.as_deref() {
            Some("sum") => histogram.set_sample_sum(line.value),
            Some("count") => histogram.set_sample_count(line.value as u64),
            // The encoder adds the last bucket, which has no bound, from the count.
            Some(bound) => {
                if let Some(bound) = bound.parse::<f64>().ok().filter(|bound| bound.is_finite()) {
                    let mut bucket = Bucket::default();
                    bucket.set_upper_bound(bound);
                    bucket.set_cumulative_count(line.value as u64);
                    buckets.push(bucket);
                }
            }
            None => (),
        }
    }
    histogram.set_bucket(buckets);
    histogram
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::TextEncoder;

    fn line(metric: &str, kind: &str, le: Option<&str>, value: f64) -> Sample {
        let help = format!("what {metric} is\nand \\ more");
        Sample { metric: metric.into(), kind: kind.into(), le: le.map(str::to_string), value, help }
    }

    #[test]
    fn lines_of_a_family_become_one_family() {
        let samples = [
            line("t_total", "counter", None, 3.0),
            line("t_seconds", "histogram", Some("0.25"), 1.0),
            line("t_seconds", "histogram", Some("1"), 2.0),
            line("t_seconds", "histogram", Some("+Inf"), 4.0),
            line("t_seconds", "histogram", Some("sum"), 7.5),
            line("t_seconds", "histogram", Some("count"), 4.0),
            line("t_now", "gauge", None, 0.5),
        ];
        let text = TextEncoder::new().encode_to_string(&families(&samples)).unwrap();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            lines,
            [
                "t_total 3",
                "t_seconds_bucket{le=\"0.25\"} 1",
                "t_seconds_bucket{le=\"1\"} 2",
                "t_seconds_bucket{le=\"+Inf\"} 4",
                "t_seconds_sum 7.5",
                "t_seconds_count 4",
                "t_now 0.5"
            ]
        );
        let described: String =
            text.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
        assert_eq!(headers(&families(&samples)), described);
    }
}
