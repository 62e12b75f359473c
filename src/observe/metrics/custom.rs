//! Metrics that filters make by name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use parking_lot::Mutex;
use tollhouse_filters::world::{Counter, Gauge};

use super::Live;
use super::page::Page;
use crate::observe::labels::{Budget, Family};

/// Most names that filters may use together.
const MAX_NAMES: usize = 1000;

/// All metrics made by name.
pub(super) struct CustomFamilies {
    budget: Arc<Budget>,
    reserved: &'static [&'static str],
    by_name: Mutex<BTreeMap<Box<str>, Custom>>,
}

struct Custom {
    help: Box<str>,
    names: Vec<Box<str>>,
    cells: Cells,
}

enum Cells {
    Counters(Family<Arc<AtomicU64>>),
    Gauges(Family<Arc<AtomicI64>>),
}

impl CustomFamilies {
    pub(super) fn new(budget: &Arc<Budget>, reserved: &'static [&'static str]) -> Self {
        Self { budget: budget.clone(), reserved, by_name: Mutex::default() }
    }

    /// A counter, or one that nobody reads when the name is taken for something else.
    pub(super) fn counter(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Counter {
        let make = |budget, width| Cells::Counters(Family::new(budget, width));
        let cell = self.with(name, help, labels, make, |cells, values| match cells {
            Cells::Counters(family) => Some(family.series(values, |_| Arc::default())),
            Cells::Gauges(_) => None,
        });
        cell.map(Counter::from).unwrap_or_default()
    }

    /// A gauge, or one that nobody reads when the name is taken for something else.
    pub(super) fn gauge(&self, name: &str, help: &str, labels: &[(&str, &str)]) -> Gauge {
        let make = |budget, width| Cells::Gauges(Family::new(budget, width));
        let cell = self.with(name, help, labels, make, |cells, values| match cells {
            Cells::Gauges(family) => Some(family.series(values, |_| Arc::default())),
            Cells::Counters(_) => None,
        });
        cell.map(Gauge::from).unwrap_or_default()
    }

    fn with<T>(
        &self,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        make: impl FnOnce(Arc<Budget>, usize) -> Cells,
        find: impl FnOnce(&Cells, &[&str]) -> Option<T>,
    ) -> Option<T> {
        let mut labels = labels.to_vec();
        labels.sort_unstable();
        let (names, values): (Vec<&str>, Vec<&str>) = labels.into_iter().unzip();
        if let Some(problem) = self.problem(name, &names) {
            log::warn!(metric = name; "a filter's metric is not exported: {problem}");
            return None;
        }
        let mut by_name = self.by_name.lock();
        if !by_name.contains_key(name) && by_name.len() >= MAX_NAMES {
            log::warn!(metric = name; "a filter's metric is not exported: there are too many names");
            return None;
        }
        let family = by_name.entry(name.into()).or_insert_with(|| Custom {
            help: help.into(),
            names: names.iter().map(|name| (*name).into()).collect(),
            cells: make(self.budget.clone(), names.len()),
        });
        let same_names = family.names.iter().map(|name| &**name).eq(names);
        let found = same_names.then(|| find(&family.cells, &values)).flatten();
        if found.is_none() {
            log::warn!(metric = name; "a filter's metric is not exported: it exists with other labels or another kind");
        }
        found
    }

    fn problem(&self, name: &str, labels: &[&str]) -> Option<&'static str> {
        if self.reserved.contains(&name) {
            return Some("the name belongs to the gateway");
        }
        if !is_name(name) || !labels.iter().all(|label| is_name(label) && !label.starts_with("__")) {
            return Some("a name may hold letters, digits and `_` and starts with no digit");
        }
        labels.windows(2).any(|pair| pair[0] == pair[1]).then_some("a label is given twice")
    }

    /// Drops series that no filter holds any more, in two sweeps in a row. Counts of a route stay with it: who makes
    /// them with the first request may be built anew before the next one.
    pub(super) fn sweep(&self, live: &Live<'_>) {
        self.by_name.lock().retain(|_, Custom { names, cells, .. }| {
            let route = names.iter().position(|name| &**name == "route");
            let of_route = |values: &[Arc<str>]| route.is_some_and(|at| live.routes.contains(&*values[at]));
            match cells {
                Cells::Counters(family) => {
                    family.sweep(|values, cell| Arc::strong_count(cell) > 1 || of_route(values));
                }
                // Without a holder nobody says any more what it is now.
                Cells::Gauges(family) => family.sweep(|_, cell| Arc::strong_count(cell) > 1),
            }
            !cells.is_empty()
        });
    }

    pub(super) fn write(&self, page: &mut Page) {
        for (name, Custom { help, names, cells }) in &*self.by_name.lock() {
            let labels = |values: &[&str]| -> Vec<(String, String)> {
                names
                    .iter()
                    .zip(values)
                    .map(|(name, value)| (name.to_string(), (*value).to_owned()))
                    .collect()
            };
            match cells {
                Cells::Counters(family) => family.each(|values, cell| {
                    let labels = labels(values);
                    page.counter(name, help, &borrowed(&labels), cell.load(Ordering::Relaxed));
                }),
                Cells::Gauges(family) => family.each(|values, cell| {
                    let labels = labels(values);
                    page.gauge(name, help, &borrowed(&labels), cell.load(Ordering::Relaxed));
                }),
            }
        }
    }
}

impl Cells {
    fn is_empty(&self) -> bool {
        match self {
            Self::Counters(family) => family.is_empty(),
            Self::Gauges(family) => family.is_empty(),
        }
    }
}

fn borrowed(labels: &[(String, String)]) -> Vec<(&str, &str)> {
    labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// Whether this is a metric or label name (without colons, which are for recording rules).
fn is_name(name: &str) -> bool {
    let starts_well = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    starts_well && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}
