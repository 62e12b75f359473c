//! From a request to the routes that match it, best first.
//!
//! Precedence is that of the Kubernetes Gateway API: host, path, method, headers, query, file order.

mod host;
mod path;
mod shadow;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use http::Method;
use tollhouse_filters::condition::{Conditions, RequestView, Unmet};
use tollhouse_filters::host::HostPattern;
use tollhouse_filters::path::{Captures, PathPattern, Segment};

use host::Hosts;
pub use shadow::{Shadow, shadowed};

/// A listener's place in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerId(pub u16);

/// A route's place in the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u32);

/// Which requests a route takes.
#[derive(Debug, Clone, Default)]
pub struct RouteMatch {
    /// Hosts; none means any.
    pub hosts: Vec<HostPattern>,
    /// Path patterns; none means any path.
    pub paths: Vec<PathPattern>,
    /// Listeners; `None` means any.
    pub listeners: Option<Vec<ListenerId>>,
    /// Method, headers, query, cookies.
    pub conditions: Conditions,
}

/// A request as the router sees it.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// The listener it came through.
    pub listener: ListenerId,
    /// The request itself.
    pub request: RequestView<'a>,
}

/// What the router found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Find {
    /// The best route.
    Route {
        /// Its id.
        id: RouteId,
        /// What its pattern captured.
        captures: Captures,
    },
    /// Only the method is wrong.
    MethodNotAllowed {
        /// Methods that would do, sorted.
        allow: Vec<Method>,
    },
    /// Nothing matches.
    None,
}

/// A route that was looked at, and why it was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// The route.
    pub id: RouteId,
    /// Why not; `None` for the one that was taken.
    pub why_not: Option<WhyNot>,
}

/// Why a route whose host and path match was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhyNot {
    /// It is not on this listener.
    Listener,
    /// A condition does not hold.
    Condition(Unmet),
}

impl std::fmt::Display for WhyNot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Listener => f.write_str("it is not on this listener"),
            Self::Condition(unmet) => unmet.fmt(f),
        }
    }
}

/// One path pattern of one route, as it stands in the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    route: RouteId,
    /// Which of the route's patterns; `None` when it has none and takes any path.
    pattern: Option<u16>,
    /// Whoever has this host and path is the route's, and nothing is captured: the route need not be looked at,
    /// which among many thousand is seldom in a processor's cache.
    plain: bool,
}

impl Entry {
    fn new(id: RouteId, route: &RouteMatch, pattern: Option<u16>) -> Self {
        let captures = pattern.is_some_and(|at| route.paths[usize::from(at)].captures());
        let plain = !captures && route.listeners.is_none() && route.conditions.is_empty();
        Self { route: id, pattern, plain }
    }
}

/// Finds the best route of a request.
#[derive(Debug)]
pub struct Router {
    routes: Box<[RouteMatch]>,
    hosts: Hosts,
}

impl Router {
    /// Indexes routes, in file order.
    #[must_use]
    pub fn build(mut routes: Vec<RouteMatch>) -> Self {
        for route in &mut routes {
            route.hosts.shrink_to_fit();
            route.paths.shrink_to_fit();
        }
        let hosts = Hosts::build(&routes);
        Self { routes: routes.into(), hosts }
    }

    /// The best route of a request.
    #[must_use]
    pub fn find(&self, view: &View<'_>) -> Find {
        self.find_for_method(view, view.request.method)
    }

    /// The best route of a request, were its method this one.
    #[must_use]
    pub fn find_for_method(&self, view: &View<'_>, method: &Method) -> Find {
        let mut other_method = false;
        let request = RequestView { method, ..view.request };
        let found = self.hosts.visit(&request, &mut |entry| {
            if entry.plain {
                return true;
            }
            let route = self.route(entry);
            let allowed = route.conditions.allows(method);
            other_method |= !allowed;
            allowed && route.takes_any_method(view)
        });
        match found {
            Some(entry) => Find::Route { id: entry.route, captures: self.captures(entry, view) },
            // Only then is it worth asking which methods would have done.
            None if other_method => self.other_methods(view),
            None => Find::None,
        }
    }

    fn other_methods(&self, view: &View<'_>) -> Find {
        let mut allow: Vec<Method> = Vec::new();
        self.hosts.visit(&view.request, &mut |entry| {
            let route = self.route(entry);
            if route.takes_any_method(view) {
                allow.extend_from_slice(route.conditions.methods());
            }
            false
        });
        if allow.is_empty() {
            return Find::None;
        }
        allow.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        allow.dedup();
        Find::MethodNotAllowed { allow }
    }

    /// The routes whose host and path match, best first and each once, up to the one that is taken.
    #[must_use]
    pub fn explain(&self, view: &View<'_>) -> Vec<Considered> {
        let mut considered = Vec::new();
        let mut seen = HashSet::new();
        self.hosts.visit(&view.request, &mut |entry| {
            if !seen.insert(entry.route) {
                return false;
            }
            let route = self.route(entry);
            let why_not = if route.is_on(view.listener) {
                route.conditions.unmet(&view.request).map(WhyNot::Condition)
            } else {
                Some(WhyNot::Listener)
            };
            let taken = why_not.is_none();
            considered.push(Considered { id: entry.route, why_not });
            taken
        });
        considered
    }

    /// Whether a pattern of this route spells out the first segment of paths as this.
    #[must_use]
    pub fn begins_with(&self, id: RouteId, segment: &str) -> bool {
        let first = |pattern: &PathPattern| match pattern.segments()?.0.first()? {
            Segment::Literal(text) => Some(**text == *segment),
            Segment::Parameter(_) => None,
        };
        self.routes[id.0 as usize].paths.iter().any(|pattern| first(pattern).unwrap_or(false))
    }

    fn route(&self, entry: Entry) -> &RouteMatch {
        &self.routes[entry.route.0 as usize]
    }

    fn captures(&self, entry: Entry, view: &View<'_>) -> Captures {
        if entry.plain {
            return Captures::default();
        }
        let pattern = entry.pattern.map(|at| &self.route(entry).paths[usize::from(at)]);
        pattern.map_or_else(Captures::default, |pattern| pattern.capture(view.request.path))
    }
}

impl RouteMatch {
    /// Whether everything holds besides host, path and method.
    fn takes_any_method(&self, view: &View<'_>) -> bool {
        self.is_on(view.listener) && self.conditions.unmet_beside_method(&view.request).is_none()
    }

    fn is_on(&self, listener: ListenerId) -> bool {
        self.listeners.as_ref().is_none_or(|list| list.contains(&listener))
    }

    /// Ranks routes of equal host and path: a given method, more header and cookie conditions, more
    /// query conditions. Smaller is better; file order decides the rest.
    fn rank(&self) -> impl Ord + use<> {
        use std::cmp::Reverse;
        let conditions = &self.conditions;
        (
            conditions.methods().is_empty(),
            Reverse(conditions.count_headers_cookies()),
            Reverse(conditions.count_query()),
        )
    }
}
