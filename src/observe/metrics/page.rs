//! The text format 0.0.4: the only file that names the `prometheus` crate besides tests, so that it can be swapped.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use prometheus::TextEncoder;
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

use super::cells::Distribution;

/// The media type of the text format.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        value: &Distribution,
    ) {
        let bucket = |(bound, count): &(f64, u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        };
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(value.within.iter().map(bucket).collect());
        histogram.set_sample_count(value.count);
        histogram.set_sample_sum(value.sum);
        let mut metric = Metric::from_label(pairs(labels));
        metric.set_histogram(histogram);
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
    use std::time::Duration;

    use super::super::cells::Histogram;
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
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(2));
        histogram.observe(Duration::from_secs(90));
        let mut page = Page::default();
        page.histogram("seconds", "Seconds.", &[("route", "a")], &histogram.read());
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
