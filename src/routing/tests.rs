mod model;
mod precedence;

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};
use tollhouse_filters::condition::ValueMatch;
use tollhouse_filters::path::{NormalPath, PathRules, normalize};

use super::*;

#[derive(Default, Clone)]
struct Made(RouteMatch, Vec<Method>, Vec<(HeaderName, ValueMatch)>, BTreeMap<String, ValueMatch>);

fn route(paths: &[&str]) -> Made {
    let paths = paths.iter().map(|path| PathPattern::parse(path).unwrap()).collect();
    Made(RouteMatch { paths, ..RouteMatch::default() }, Vec::new(), Vec::new(), BTreeMap::new())
}

impl Made {
    fn host(mut self, host: &str) -> Self {
        self.0.hosts.push(HostPattern::parse(host).unwrap());
        self
    }
    fn method(mut self, method: Method) -> Self {
        self.1.push(method);
        self
    }
    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.2.push((HeaderName::from_static(name), ValueMatch::Exact(value.to_owned())));
        self
    }
    fn query(mut self, name: &str, value: &str) -> Self {
        self.3.insert(name.to_owned(), ValueMatch::Exact(value.to_owned()));
        self
    }
    fn done(self) -> RouteMatch {
        let conditions = Conditions::new(self.1, self.2, self.3, BTreeMap::new());
        RouteMatch { conditions, ..self.0 }
    }
}

fn router(routes: &[Made]) -> Router {
    Router::build(routes.iter().cloned().map(Made::done).collect())
}

fn path(text: &str) -> NormalPath {
    normalize(text, &PathRules::default()).unwrap()
}

fn ask(router: &Router, host: Option<&str>, target: &str, method: &Method, headers: &HeaderMap) -> Find {
    let (target, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    let path = path(target);
    router.find(&View {
        listener: ListenerId(0),
        request: RequestView { method, path: &path, query, headers, host },
    })
}

fn best(routes: &[Made], host: &str, target: &str) -> Option<u32> {
    match ask(&router(routes), Some(host), target, &Method::GET, &HeaderMap::new()) {
        Find::Route { id, .. } => Some(id.0),
        _ => None,
    }
}

#[test]
fn hosts_go_from_exact_over_the_longest_wildcard_to_any() {
    let routes =
        [route(&[]), route(&[]).host("*.test"), route(&[]).host("*.b.test"), route(&[]).host("a.b.test")];
    for (host, id) in
        [("a.b.test", 3), ("x.b.test", 2), ("x.y.b.test", 2), ("b.test", 1), ("test", 0), ("other", 0)]
    {
        assert_eq!(best(&routes, host, "/"), Some(id), "{host}");
    }
}

#[test]
fn a_host_whose_routes_do_not_match_falls_through() {
    let routes = [route(&["/any"]), route(&["/wild"]).host("*.test"), route(&["/exact"]).host("a.test")];
    assert_eq!(best(&routes, "a.test", "/wild"), Some(1));
    assert_eq!(best(&routes, "a.test", "/any"), Some(0));
    assert_eq!(best(&routes, "a.test", "/none"), None);
}

#[test]
fn paths_go_from_exact_over_literal_segments_and_longer_prefixes_to_expressions() {
    let routes = [
        route(&["~/a/.*"]),
        route(&["/*"]),
        route(&["/a/*"]),
        route(&["/a/b/*"]),
        route(&["/a/{x}"]),
        route(&["/a/b"]),
        route(&["/{x}/b"]),
    ];
    for (target, id) in
        [("/a/b", 5), ("/a/b/c", 3), ("/a/x", 4), ("/a/x/y", 2), ("/x/b", 6), ("/x", 1), ("/a", 2)]
    {
        assert_eq!(best(&routes, "h", target), Some(id), "{target}");
    }
    assert_eq!(best(&[route(&["~/a/.*"]), route(&["/b"])], "h", "/a/x"), Some(0));
}

#[test]
fn a_narrow_pattern_with_unmet_conditions_gives_way_to_a_wider_one() {
    let routes = [route(&["/a/b"]).header("x-v", "2"), route(&["/a/{x}"]).query("q", "1"), route(&["/*"])];
    assert_eq!(best(&routes, "h", "/a/b"), Some(2));
    assert_eq!(best(&routes, "h", "/a/b?q=1"), Some(1));
}

#[test]
fn equal_paths_are_ranked_by_method_headers_query_and_order() {
    let routes = [
        route(&["/a"]),
        route(&["/a"]).query("q", "1"),
        route(&["/a"]).header("x-v", "1"),
        route(&["/a"]).method(Method::GET),
        route(&["/a"]),
    ];
    assert_eq!(best(&routes, "h", "/a?q=1"), Some(3));
    assert_eq!(best(&routes[..3], "h", "/a?q=1"), Some(1));
    assert_eq!(best(&[routes[0].clone(), routes[4].clone()], "h", "/a"), Some(0));
}

#[test]
fn another_method_is_405_only_when_nothing_matches_fully() {
    let get = route(&["/a"]).method(Method::GET).method(Method::HEAD);
    let both = router(&[get.clone(), route(&["/*"]).method(Method::PUT)]);
    let found = ask(&both, None, "/a", &Method::POST, &HeaderMap::new());
    assert_eq!(found, Find::MethodNotAllowed { allow: vec![Method::GET, Method::HEAD, Method::PUT] });
    let with_fallback = router(&[get, route(&["/*"])]);
    assert!(matches!(
        ask(&with_fallback, None, "/a", &Method::POST, &HeaderMap::new()),
        Find::Route { id: RouteId(1), .. }
    ));
    assert_eq!(
        ask(&both, None, "/b", &Method::GET, &HeaderMap::new()),
        Find::MethodNotAllowed { allow: vec![Method::PUT] }
    );
}

#[test]
fn the_winning_pattern_captures() {
    let routes = router(&[route(&["/x/{no}", "/u/{id}/*"])]);
    let Find::Route { captures, .. } = ask(&routes, None, "/u/7/y", &Method::GET, &HeaderMap::new()) else {
        panic!()
    };
    assert_eq!(captures.get("id"), Some("7"));
}

#[test]
fn explaining_names_what_was_passed_over() {
    let routes = router(&[route(&["/a"]).header("x-v", "2"), route(&["/a"])]);
    let (method, headers, path) = (Method::GET, HeaderMap::new(), path("/a"));
    let request = RequestView { method: &method, path: &path, query: None, headers: &headers, host: None };
    let considered = routes.explain(&View { listener: ListenerId(0), request });
    let unmet = Unmet::Header(HeaderName::from_static("x-v"));
    assert_eq!(considered[0], Considered { id: RouteId(0), why_not: Some(WhyNot::Condition(unmet)) });
    assert_eq!(considered[1], Considered { id: RouteId(1), why_not: None });
}

#[test]
fn a_route_behind_one_that_takes_everything_is_shadowed() {
    let list: Vec<RouteMatch> = [
        route(&["/u/{id}"]),
        route(&["/u/{name}"]),
        route(&["/u/{id}"]).method(Method::GET),
        route(&["/u/*"]),
        route(&["/u/{id}", "/v"]),
    ]
    .map(Made::done)
    .into();
    assert_eq!(shadowed(&list), [Shadow { route: RouteId(1), by: RouteId(0) }]);
}
