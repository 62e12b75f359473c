//! Which parameters of a query make a difference.

use std::borrow::Cow;

use crate::path::decode_segment;

/// Which parameters of a query make a difference; all of them, as they stand, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counted {
    /// Only these.
    pub only: Option<Vec<String>>,
    /// All but these.
    pub except: Vec<String>,
    /// Whether parameters in another order are the same.
    pub sort: bool,
}

impl Counted {
    /// A query as it counts.
    #[must_use]
    pub fn of<'a>(&self, asked: Option<&'a str>) -> Option<Cow<'a, str>> {
        let asked = asked?;
        if self.only.is_none() && self.except.is_empty() && !self.sort {
            return Some(asked.into());
        }
        let mut kept: Vec<(Cow<'_, str>, &str)> = asked
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| (name(pair), pair))
            .filter(|(name, _)| self.counts(name))
            .collect();
        if self.sort {
            kept.sort_by(|(one, _), (two, _)| one.cmp(two));
        }
        let pairs: Vec<&str> = kept.into_iter().map(|(_, pair)| pair).collect();
        (!pairs.is_empty()).then(|| pairs.join("&").into())
    }

    fn counts(&self, name: &str) -> bool {
        match &self.only {
            Some(only) => only.iter().any(|counts| counts == name),
            None => !self.except.iter().any(|ignored| ignored == name),
        }
    }
}

/// The name of a parameter, decoded.
fn name(pair: &str) -> Cow<'_, str> {
    let name = pair.split_once('=').map_or(pair, |(name, _)| name);
    if name.contains('+') {
        decode_segment(&name.replace('+', " ")).into_owned().into()
    } else {
        decode_segment(name)
    }
}
