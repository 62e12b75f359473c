//! The router against the precedence text taken literally: rank every full match, take the best.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use http::HeaderName;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::super::*;
use super::precedence::{Request, exact, request};

/// How a path matches, best first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    /// For each segment of the request: 0 literal, 1 parameter, 2 below the pattern. Compared from
    /// the left; then a pattern without `/*` first.
    Segments(Vec<u8>, bool),
    Regex,
}

fn path_rank(pattern: &str, path: &str) -> Option<PathRank> {
    if let Some(expression) = pattern.strip_prefix('~') {
        let found = regex::Regex::new(expression).unwrap().find(path)?;
        return (found.start() == 0).then_some(PathRank::Regex);
    }
    if pattern == path {
        return Some(PathRank::Exact);
    }
    let prefix = pattern.strip_suffix("/*");
    let parts: Vec<&str> = prefix.unwrap_or(pattern).split('/').skip(1).collect();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    if segments.len() < parts.len() || (prefix.is_none() && segments.len() > parts.len()) {
        return None;
    }
    let mut kinds = vec![2; segments.len()];
    for ((part, segment), kind) in parts.iter().zip(&segments).zip(&mut kinds) {
        *kind = match part.starts_with('{') {
            true if !segment.is_empty() => 1,
            false if part == segment => 0,
            _ => return None,
        };
    }
    Some(PathRank::Segments(kinds, prefix.is_some()))
}

/// 0 exact, 1 wildcard by length, 2 any.
fn host_rank(route: &RouteMatch, host: Option<&str>) -> Vec<(u8, Reverse<usize>)> {
    if route.hosts.is_empty() {
        return vec![(2, Reverse(0))];
    }
    let covering = route.hosts.iter().filter(|pattern| host.is_some_and(|host| pattern.matches(host)));
    covering
        .map(|pattern| match pattern {
            HostPattern::Exact(_) => (0, Reverse(0)),
            HostPattern::Wildcard(suffix) => (1, Reverse(suffix.len())),
        })
        .collect()
}

fn oracle(routes: &[RouteMatch], request: &Request) -> Find {
    let view = request.view();
    let mut matches = Vec::new();
    let mut allow = Vec::new();
    for (number, route) in routes.iter().enumerate() {
        let hosts = host_rank(route, view.request.host);
        let path = request.path.matched();
        let mut paths: Vec<_> =
            route.paths.iter().filter_map(|pattern| path_rank(&pattern.to_string(), path)).collect();
        if route.paths.is_empty() {
            paths.extend(path_rank("/*", path));
        }
        let listener = route.listeners.as_ref().is_none_or(|list| list.contains(&request.listener));
        let rest = listener && route.conditions.unmet_beside_method(&view.request).is_none();
        let (Some(host), Some(path), true) = (hosts.into_iter().min(), paths.into_iter().min(), rest) else {
            continue;
        };
        let conditions = &route.conditions;
        if conditions.matches(&view.request) {
            let counts = (Reverse(conditions.count_headers_cookies()), Reverse(conditions.count_query()));
            matches.push((host, path, conditions.methods().is_empty(), counts, number));
        } else {
            allow.extend_from_slice(conditions.methods());
        }
    }
    allow.sort_by_key(Method::to_string);
    allow.dedup();
    match matches.into_iter().min() {
        Some((.., number)) => {
            Find::Route { id: RouteId(u32::try_from(number).unwrap()), captures: Captures::default() }
        }
        None if allow.is_empty() => Find::None,
        None => Find::MethodNotAllowed { allow },
    }
}

fn a_path() -> impl Strategy<Value = String> {
    let segment = select(vec!["a", "b", "c"]);
    let part = prop_oneof![3 => segment.prop_map(str::to_owned), 2 => Just("{}".to_owned())];
    let segments = (proptest::collection::vec(part, 0..4), select(vec!["", "/", "/*", "/*"]));
    let plain = segments.prop_map(|(parts, end)| {
        let names = ["{x}", "{y}", "{z}"];
        let parts = parts.iter().zip(names).map(|(part, name)| part.replace("{}", name));
        let text: String = parts.map(|part| format!("/{part}")).collect();
        if text.is_empty() && end.is_empty() { "/".to_owned() } else { text + end }
    });
    let regex = select(vec!["~^/a", "~/b", "~^/[ab]/", "~/a/b$", "~/./c", "~.*c", "~(?i)/A"]);
    prop_oneof![5 => plain, 1 => regex.prop_map(str::to_owned)]
}

fn a_route() -> impl Strategy<Value = RouteMatch> {
    let hosts = subsequence(vec!["x.y.z", "y.z", "*.y.z", "*.z"], 0..3);
    let methods = subsequence(vec!["GET", "POST", "PURGE"], 0..3);
    let names = || subsequence(vec![("k", "1"), ("l", "1")], 0..2);
    let listeners = proptest::option::weighted(0.2, 0_u16..2);
    let paths = proptest::collection::vec(a_path(), 0..3);
    (hosts, paths, methods, names(), names(), names(), listeners).prop_map(
        |(hosts, paths, methods, headers, query, cookies, listeners)| RouteMatch {
            hosts: hosts.iter().map(|host| HostPattern::parse(host).unwrap()).collect(),
            paths: paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect(),
            listeners: listeners.map(|number| vec![ListenerId(number)]),
            conditions: Conditions::new(
                methods.iter().map(|name| name.parse().unwrap()).collect(),
                headers.iter().map(|(name, value)| (HeaderName::from_static(name), exact(value))),
                values(&query),
                values(&cookies),
            ),
        },
    )
}

fn values(entries: &[(&str, &str)]) -> BTreeMap<String, tollhouse_filters::condition::ValueMatch> {
    entries.iter().map(|(name, value)| ((*name).to_owned(), exact(value))).collect()
}

fn a_request() -> impl Strategy<Value = Request> {
    let method = select(vec!["GET", "POST", "HEAD"]);
    let host = select(vec!["x.y.z", "y.z", "w.z", "v.x.y.z", "q", ""]);
    let path = proptest::collection::vec(select(vec!["a", "b", "c"]), 0..4);
    let end = select(vec!["", "/"]);
    let query = select(vec!["", "?k=1", "?l=1&k=1", "?k=2"]);
    let cookie = select(vec!["", "k=1", "l=1; k=1"]);
    (method, host, path, end, query, cookie, select(vec!["0", "1"]), 0_u16..2).prop_map(
        |(method, host, path, end, query, cookie, header, listener)| {
            let line = format!("{method} {host}/{}{end}{query}", path.join("/"));
            let request = request(&line).header("k", header).header("l", "1").header("cookie", cookie);
            Request { listener: ListenerId(listener), ..request }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_router_finds_what_the_precedence_says(
        routes in proptest::collection::vec(a_route(), 0..14),
        requests in proptest::collection::vec(a_request(), 8),
    ) {
        let router = Router::build(routes.clone());
        for request in requests {
            let mut found = router.find(&request.view());
            let explained = router.explain(&request.view());
            if let Find::Route { id, captures } = &mut found {
                *captures = Captures::default();
                prop_assert_eq!(explained.last(), Some(&Considered { id: *id, why_not: None }));
            } else {
                prop_assert!(explained.iter().all(|considered| considered.why_not.is_some()));
            }
            prop_assert_eq!(found, oracle(&routes, &request), "{:?}", request);
        }
    }

    #[test]
    fn a_shadowed_route_never_wins(
        routes in proptest::collection::vec(a_route(), 0..20),
        requests in proptest::collection::vec(a_request(), 8),
    ) {
        let shadows = shadowed(&routes);
        for request in requests {
            if let Find::Route { id, .. } = oracle(&routes, &request) {
                prop_assert!(shadows.iter().all(|shadow| shadow.route != id), "{:?} {:?}", id, request);
            }
        }
    }
}
