//! Routes that can never match, because others take everything before them.
//!
//! Never a false alarm: a route is reported only if each of its hosts and paths is taken whole by
//! one other route. Not noticed is what only several routes together take, and a regular expression
//! that covers another one.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use tollhouse_filters::host::HostPattern;
use tollhouse_filters::path::{PathPattern, Segment};

use super::{RouteId, RouteMatch};

/// Routes compared with each host and path at most, which keeps the search linear.
const COMPARED: usize = 64;

/// Stand for `{name}` and `/*`: no segment of a normalised path holds a control character.
const PARAMETER: char = '\u{1}';
const REST: char = '\u{2}';

/// A route that can never match, and the one that takes all its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shadow {
    /// The route that never matches.
    pub route: RouteId,
    /// The route that takes what its first host and path would.
    pub by: RouteId,
}

/// The routes that can never match, in file order; in time linear in the number of hosts and paths.
#[must_use]
pub fn shadowed(routes: &[RouteMatch]) -> Vec<Shadow> {
    let mut index = Index { routes, alike: HashMap::default(), everything: HashMap::default() };
    let everything = REST.to_string();
    for (route, id) in routes.iter().zip(0u32..) {
        for (host, path) in places(route) {
            let place = place_of(path);
            if place == everything {
                index.everything.entry(host).or_default().push(id);
            }
            index.alike.entry((host, place)).or_default().push(id);
        }
    }
    (0u32..).take(routes.len()).filter_map(|id| index.shadow(id)).collect()
}

/// Which routes stand where, in file order.
struct Index<'a> {
    routes: &'a [RouteMatch],
    /// By host and path; here only conditions and file order decide.
    alike: HashMap<(Option<&'a HostPattern>, String), Vec<u32>, RandomState>,
    /// Routes for every path of a host, which go before its regular expressions.
    everything: HashMap<Option<&'a HostPattern>, Vec<u32>, RandomState>,
}

impl<'a> Index<'a> {
    fn shadow(&self, id: u32) -> Option<Shadow> {
        // One on no listener is meant to match nothing: fallbacks lead to it.
        if self.route(id).listeners.as_ref().is_some_and(Vec::is_empty) {
            return None;
        }
        let mut first = None;
        for (host, path) in places(self.route(id)) {
            let by = self.taken_by_everything(id, host, path).or_else(|| self.taken_by_alike(id, host, path));
            first = first.or(Some(by?));
        }
        first.map(|by| Shadow { route: RouteId(id), by: RouteId(by) })
    }

    /// A route at the same place that covers this one and ranks before it.
    fn taken_by_alike(
        &self,
        id: u32,
        host: Option<&'a HostPattern>,
        path: Option<&'a PathPattern>,
    ) -> Option<u32> {
        let route = self.route(id);
        let before = |other: u32| (self.route(other).rank(), other) < (route.rank(), id);
        let others = self.alike.get(&(host, place_of(path)))?.iter().copied().take(COMPARED);
        others.filter(|other| *other != id && before(*other)).find(|other| self.route(*other).covers(route))
    }

    /// A route for every path, where this one has a regular expression.
    fn taken_by_everything(
        &self,
        id: u32,
        host: Option<&'a HostPattern>,
        path: Option<&'a PathPattern>,
    ) -> Option<u32> {
        path?.regex()?;
        let mut others = self.everything.get(&host)?.iter().copied().take(COMPARED);
        others.find(|other| *other != id && self.route(*other).covers(self.route(id)))
    }

    fn route(&self, id: u32) -> &'a RouteMatch {
        &self.routes[id as usize]
    }
}

impl RouteMatch {
    /// Whether this route takes every listener, method and condition of a narrower one.
    fn covers(&self, narrow: &Self) -> bool {
        let listeners = match (&self.listeners, &narrow.listeners) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(wide), Some(narrow)) => narrow.iter().all(|listener| wide.contains(listener)),
        };
        listeners && self.conditions.are_implied_by(&narrow.conditions)
    }
}

/// Each host and path of a route; `None` stands for any.
fn places(route: &RouteMatch) -> impl Iterator<Item = (Option<&HostPattern>, Option<&PathPattern>)> {
    let hosts = route.hosts.iter().map(Some).chain(route.hosts.is_empty().then_some(None));
    hosts.flat_map(|host| {
        let paths = route.paths.iter().map(Some).chain(route.paths.is_empty().then_some(None));
        paths.map(move |path| (host, path))
    })
}

/// The same for patterns that match the same paths; parameter names do not matter.
fn place_of(path: Option<&PathPattern>) -> String {
    let Some(path) = path else { return REST.to_string() };
    let Some((segments, rest)) = path.segments() else { return path.to_string() };
    let mut place = String::new();
    for segment in segments {
        place.push('/');
        match segment {
            Segment::Literal(text) => place.push_str(text),
            Segment::Parameter(_) => place.push(PARAMETER),
        }
    }
    if rest {
        place.push(REST);
    }
    place
}
