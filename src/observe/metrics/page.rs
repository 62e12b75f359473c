//! The text format 0.0.4 and the histogram: the only file that names the `prometheus` crate, so that it can be
//! swapped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use prometheus::core::Metric as _;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{HistogramOpts, TextEncoder};

/// The media type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the duration buckets in seconds: 1 ms to 60 s.
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// A distribution of durations; clones share it.
#[derive(Clone)]
pub(super) struct Histogram(prometheus::Histogram);

impl Histogram {
    /// An empty distribution over buckets from 1 ms to 60 s.
    #[must_use]
    pub(super) fn new() -> Self {
        let opts = HistogramOpts::new("duration", "duration").buckets(BUCKETS.to_vec());
        Self(prometheus::Histogram::with_opts(opts).expect("the name is valid and the buckets rise"))
    }

    /// Counts one duration.
    pub(super) fn observe(&self, elapsed: Duration) {
        self.0.observe(elapsed.as_secs_f64());
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// What one scrape returns, put together number by number.
#[derive(Default)]
pub(super) struct Page(BTreeMap<String, MetricFamily>);

impl Page {
    /// Adds a number that only rises.
    pub(super) fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        let mut counter = proto::Counter::default();
        counter.set_value(float(value.into()));
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_counter(counter);
        self.push(name, help, MetricType::COUNTER, metric);
    }

    /// Adds a number that rises and falls.
    pub(super) fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: i64) {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(float(value.into()));
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_gauge(gauge);
        self.push(name, help, MetricType::GAUGE, metric);
    }

    /// Adds a distribution.
    pub(super) fn histogram(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: &Histogram) {
        let mut metric = value.0.metric();
        metric.set_label(pairs(labels));
        self.push(name, help, MetricType::HISTOGRAM, metric);
    }

    /// The page as text, metrics in the order of their names.
    #[must_use]
    pub(super) fn render(self) -> String {
        let families: Vec<MetricFamily> = self.0.into_values().collect();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            log::error!("metrics cannot be written: {error}");
            String::new()
        })
    }

    /// The first kind and help of a name win; a page with two kinds under one name is refused by collectors.
    fn push(&mut self, name: &str, help: &str, kind: MetricType, metric: Metric) {
        match self.0.entry(name.to_owned()) {
            Entry::Occupied(mut family) if family.get().get_field_type() == kind => {
                family.get_mut().mut_metric().push(metric);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(vacant) => {
                let mut family = MetricFamily::default();
                family.set_name(name.to_owned());
                family.set_help(help.to_owned());
                family.set_field_type(kind);
                family.set_metric(vec![metric]);
                vacant.insert(family);
            }
        }
    }
}

/// The text format knows only doubles: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the format has no integers")]
fn float(value: i128) -> f64 {
    value as f64
}

fn pairs(labels: &[(&str, &str)]) -> Vec<LabelPair> {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    labels.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_value_cannot_break_out_of_its_line() {
        let mut page = Page::default();
        page.counter("hits_total", "Hits.\nTwice", &[("route", "a\"} 9\nevil 1\\")], 1);
        let text = page.render();
        assert_eq!(
            text,
            "# HELP hits_total Hits.\\nTwice\n# TYPE hits_total counter\nhits_total{route=\"a\\\"} 9\\nevil 1\\\\\"} 1\n"
        );
    }

    #[test]
    fn names_come_in_order_and_one_kind_each() {
        let mut page = Page::default();
        page.gauge("b", "B.", &[], -2);
        page.counter("a", "A.", &[("x", "1")], 1);
        page.counter("b", "Another.", &[], 1);
        page.counter("a", "A.", &[("x", "2")], 2);
        let text = page.render();
        let numbers: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(numbers, ["a{x=\"1\"} 1", "a{x=\"2\"} 2", "b -2"]);
    }

    #[test]
    fn a_histogram_has_cumulative_buckets_sum_and_count() {
        let histogram = Histogram::new();
        histogram.observe(Duration::from_millis(2));
        histogram.observe(Duration::from_secs(90));
        let mut page = Page::default();
        page.histogram("seconds", "Seconds.", &[("route", "a")], &histogram);
        let text = page.render();
        for line in [
            "seconds_bucket{route=\"a\",le=\"0.001\"} 0",
            "seconds_bucket{route=\"a\",le=\"0.0025\"} 1",
            "seconds_bucket{route=\"a\",le=\"60\"} 1",
            "seconds_bucket{route=\"a\",le=\"+Inf\"} 2",
            "seconds_sum{route=\"a\"} 90.002",
            "seconds_count{route=\"a\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "no line `{line}` in\n{text}");
        }
    }

    #[test]
    fn an_empty_page_is_empty_text() {
        assert_eq!(Page::default().render(), "");
    }
}
