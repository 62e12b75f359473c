use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName, HeaderValue};
use tollhouse_filters::condition::ValueMatch;
use tollhouse_filters::path::{NormalPath, PathRules, normalize};

use super::super::*;

/// A request that owns its parts.
#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) host: Option<String>,
    pub(super) path: NormalPath,
    pub(super) query: Option<String>,
    pub(super) headers: HeaderMap,
    pub(super) listener: ListenerId,
}

impl Request {
    pub(super) fn view(&self) -> View<'_> {
        let Self { method, host, path, query, headers, listener } = self;
        let request = RequestView { method, path, query: query.as_deref(), headers, host: host.as_deref() };
        View { request, listener: *listener }
    }

    pub(super) fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        self.headers.append(name, HeaderValue::from_str(value).unwrap());
        self
    }
}

/// `GET a.example/x?q`.
pub(super) fn request(line: &str) -> Request {
    let (method, rest) = line.split_once(' ').unwrap();
    let (host, target) = rest.split_at(rest.find(['/', '*']).unwrap());
    let (path, query) = target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
    Request {
        method: method.parse().unwrap(),
        host: (!host.is_empty()).then(|| host.to_owned()),
        path: normalize(path, &PathRules::default()).unwrap(),
        query: query.map(str::to_owned),
        headers: HeaderMap::new(),
        listener: ListenerId(0),
    }
}

/// A route whose conditions are still to be put together.
#[derive(Clone, Default)]
struct Conditioned {
    methods: Vec<Method>,
    headers: Vec<(HeaderName, ValueMatch)>,
    query: BTreeMap<String, ValueMatch>,
    cookies: BTreeMap<String, ValueMatch>,
}

impl Conditioned {
    fn done(self) -> Conditions {
        Conditions::new(self.methods, self.headers, self.query, self.cookies)
    }
}

/// `GET,POST *.example /a/* /b`; a dash for every method, every host.
fn route(line: &str) -> Written {
    let mut words = line.split(' ');
    let list = |word: Option<&str>| -> Vec<String> {
        word.unwrap_or("-").split(',').filter(|item| *item != "-").map(str::to_owned).collect()
    };
    let methods = list(words.next()).iter().map(|name| name.parse().unwrap()).collect();
    Written {
        hosts: list(words.next()).iter().map(|host| HostPattern::parse(host).unwrap()).collect(),
        paths: words.map(|path| PathPattern::parse(path).unwrap()).collect(),
        listeners: None,
        conditions: Conditioned { methods, ..Conditioned::default() },
    }
}

#[derive(Clone)]
struct Written {
    hosts: Vec<HostPattern>,
    paths: Vec<PathPattern>,
    listeners: Option<Vec<ListenerId>>,
    conditions: Conditioned,
}

impl Written {
    fn headers(mut self, entries: &[(&'static str, &str)]) -> Self {
        let entries = entries.iter().map(|(name, value)| (HeaderName::from_static(name), exact(value)));
        self.conditions.headers.extend(entries);
        self
    }

    fn query(mut self, entries: &[(&str, &str)]) -> Self {
        self.conditions.query.extend(entries.iter().map(|(name, value)| ((*name).to_owned(), exact(value))));
        self
    }

    fn cookies(mut self, entries: &[(&str, &str)]) -> Self {
        self.conditions
            .cookies
            .extend(entries.iter().map(|(name, value)| ((*name).to_owned(), exact(value))));
        self
    }

    fn on(mut self, listener: u16) -> Self {
        self.listeners = Some(vec![ListenerId(listener)]);
        self
    }
}

impl From<Written> for RouteMatch {
    fn from(Written { hosts, paths, listeners, conditions }: Written) -> Self {
        Self { hosts, paths, listeners, conditions: conditions.done() }
    }
}

pub(super) fn exact(text: &str) -> ValueMatch {
    ValueMatch::Exact(text.to_owned())
}

fn all(routes: &[Written]) -> Vec<RouteMatch> {
    routes.iter().cloned().map(RouteMatch::from).collect()
}

fn find(routes: &[Written], request: &Request) -> Option<u32> {
    match Router::build(all(routes)).find(&request.view()) {
        Find::Route { id, .. } => Some(id.0),
        Find::MethodNotAllowed { .. } | Find::None => None,
    }
}

/// Each line but the last goes before the next one, for this request, whatever the file order.
fn ranks(line: &str, best_first: &[Written]) {
    let request = request(line).header("x-a", "1").header("x-b", "2").header("cookie", "c=1");
    for pair in best_first.windows(2) {
        let reversed = [pair[1].clone(), pair[0].clone()];
        assert_eq!(find(pair, &request), Some(0), "{line}: {:?}", all(pair));
        assert_eq!(find(&reversed, &request), Some(1), "{line}: {:?}", all(&reversed));
    }
}

#[test]
fn an_exact_host_goes_before_the_longest_wildcard_before_any_host() {
    let hosts = ["- x.b.example", "- *.b.example", "- *.example", "-"];
    ranks(
        "GET x.b.example/a",
        &hosts.map(|line| if line == "-" { route("- - /a") } else { route(&format!("{line} /a")) }),
    );
    ranks("GET x.b.example/a", &[route("- x.b.example /*"), route("- *.example /a"), route("GET - /a")]);
}

#[test]
fn paths_go_from_exact_to_expressions() {
    ranks(
        "GET h.example/a/b/c",
        &[
            route("- - /a/b/c"),
            route("- - /a/b/c/*"),
            route("- - /a/b/{z}"),
            route("- - /a/b/{z}/*"),
            route("- - /a/b/*"),
            route("- - /a/{y}/c"),
            route("- - /a/{y}/{z}"),
            route("- - /a/{y}/*"),
            route("- - /a/*"),
            route("- - /{x}/b/c"),
            route("- - /{x}/*"),
            route("- - /*"),
            route("- - ~^/a/b/c$"),
        ],
    );
}

#[test]
fn a_route_without_paths_is_one_for_every_path() {
    ranks("GET h.example/a", &[route("- - /{x}"), route("- -"), route("- - ~^/a$")]);
    for pair in [[route("- -"), route("- - /*")], [route("- - /*"), route("- -")]] {
        assert_eq!(find(&pair, &request("GET h.example/a")), Some(0), "only file order decides");
    }
}

#[test]
fn expressions_are_ranked_by_conditions_and_file_order_alone() {
    let routes = [route("- - ~^/a"), route("- - ~^/a/b/c$"), route("GET - ~^/")];
    assert_eq!(find(&routes, &request("GET h.example/a/b/c")), Some(2));
    assert_eq!(find(&routes, &request("PUT h.example/a/b/c")), Some(0));
}

#[test]
fn expressions_too_large_to_be_tried_at_once_are_tried_one_by_one() {
    // Each is within the limit of one expression; together they are beyond that of the set.
    let texts: Vec<String> = (0..25).map(|number| format!("~^/{number}/(\\w{{10}})$")).collect();
    let set = regex::RegexSetBuilder::new(texts.iter().map(|text| &text[1..])).size_limit(10 << 20).build();
    assert!(set.is_err(), "the premise of this test");
    let routes: Vec<Written> = texts.iter().map(|text| route(&format!("- - {text}"))).collect();
    assert_eq!(find(&routes, &request("GET h.example/24/abcdefghij")), Some(24));
    assert_eq!(find(&routes, &request("GET h.example/24/abc")), None);
}

#[test]
fn among_equal_paths_methods_then_headers_then_query_decide() {
    ranks(
        "GET h.example/a?q=1&r=1",
        &[
            route("GET - /a").headers(&[("x-a", "1")]),
            route("GET,PUT - /a").query(&[("q", "1")]),
            route("- - /a").headers(&[("x-a", "1")]).cookies(&[("c", "1")]),
            route("- - /a").headers(&[("x-b", "2")]).query(&[("q", "1")]),
            route("- - /a").cookies(&[("c", "1")]),
            route("- - /a").query(&[("q", "1"), ("r", "1")]),
            route("- - /a").query(&[("r", "1")]),
            route("- - /a"),
        ],
    );
}

#[test]
fn file_order_decides_the_rest() {
    let routes = [route("- - /{a}"), route("- - /{b}"), route("- - ~^/a"), route("- - ~^/.")];
    assert_eq!(find(&routes, &request("GET h.example/a")), Some(0));
    assert_eq!(find(&routes[2..], &request("GET h.example/a")), Some(0));
}

#[test]
fn a_host_whose_routes_do_not_match_falls_through() {
    let routes = [
        route("- a.b.example /x"),
        route("POST *.b.example /y"),
        route("- *.example /y").headers(&[("x-a", "1")]),
        route("- - /*"),
    ];
    for (line, expected) in [("GET a.b.example/x", 0), ("POST a.b.example/y", 1), ("GET a.b.example/y", 3)] {
        assert_eq!(find(&routes, &request(line)), Some(expected), "{line}");
    }
    assert_eq!(find(&routes, &request("GET a.b.example/y").header("x-a", "1")), Some(2));
    assert_eq!(find(&routes, &request("GET /x")), Some(3));
}

#[test]
fn the_trie_backtracks() {
    let routes = [route("- - /a/b/x"), route("- - /a/{p}/y"), route("- - /{o}/b/z"), route("- - /a/*")];
    for (line, expected) in [("GET h/a/b/x", 0), ("GET h/a/b/y", 1), ("GET h/a/b/z", 3), ("GET h/c/b/z", 2)] {
        assert_eq!(find(&routes, &request(line)), Some(expected), "{line}");
    }
}

#[test]
fn a_route_is_only_for_its_listeners() {
    let routes = [route("- - /a").on(1), route("- - /*").on(0)];
    assert_eq!(find(&routes, &request("GET h/a")), Some(1));
    assert_eq!(find(&routes, &Request { listener: ListenerId(1), ..request("GET h/a") }), Some(0));
    assert_eq!(find(&routes, &Request { listener: ListenerId(2), ..request("GET h/a") }), None);
}

#[test]
fn captures_are_those_of_the_pattern_that_won() {
    let router =
        Router::build(all(&[route("- - /u/{id}/x"), route("- - /u/{user}/*"), route("- - ~^/v(?<v>.)")]));
    for (line, expected) in
        [("GET h/u/7/x", ("id", "7")), ("GET h/u/%37/y", ("user", "7")), ("GET h/v2", ("v", "2"))]
    {
        let request = request(line);
        let Find::Route { captures, .. } = router.find(&request.view()) else { panic!("{line}") };
        assert_eq!(captures.iter().collect::<Vec<_>>(), [expected], "{line}");
    }
}

#[test]
fn another_method_is_not_allowed_only_where_all_else_matches() {
    let routes = vec![
        route("POST,GET - /a"),
        route("PUT,GET *.example /*"),
        route("DELETE - /a").headers(&[("x-a", "1")]),
        route("PATCH - /a").on(1),
        route("- - /b"),
    ];
    let router = Router::build(all(&routes));
    let allow = |line: &str| match router.find(&request(line).view()) {
        Find::MethodNotAllowed { allow } => {
            allow.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        }
        found => format!("{found:?}"),
    };
    assert_eq!(allow("HEAD h.example/a"), "GET POST PUT");
    assert_eq!(allow("DELETE h/a"), "GET POST");
    assert_eq!(allow("HEAD h/c"), "None");
    let preflight = request("OPTIONS h.example/c");
    assert!(matches!(router.find(&preflight.view()), Find::MethodNotAllowed { .. }));
    let put = router.find_for_method(&preflight.view(), &Method::PUT);
    assert!(matches!(put, Find::Route { id: RouteId(1), .. }));
}

#[test]
fn the_asterisk_is_taken_by_what_takes_everything() {
    assert_eq!(find(&[route("- - /*")], &request("OPTIONS h*")), Some(0));
    assert_eq!(find(&[route("- -")], &request("OPTIONS h*")), Some(0));
    assert_eq!(find(&[route("- - /"), route("- - /{a}")], &request("OPTIONS h*")), None);
}

#[test]
fn explain_names_why_each_candidate_was_passed_over() {
    let router = Router::build(all(&[
        route("- - /a").headers(&[("x-a", "1"), ("x-b", "2")]),
        route("- - /a").on(3),
        route("POST - /a /{x}"),
        route("- - /a").cookies(&[("c", "1")]),
        route("- - /a").query(&[("q", "1")]),
        route("- - /*"),
        route("- - ~^/"),
    ]));
    let request = request("GET h/a").header("x-a", "1");
    let list = router.explain(&request.view());
    let reasons: Vec<_> = list
        .iter()
        .map(|seen| (seen.id.0, seen.why_not.as_ref().map_or("wins".to_owned(), ToString::to_string)))
        .collect();
    let expected = [
        (2, "the method does not match"),
        (0, "the header field `x-b` does not match"),
        (3, "the cookie `c` does not match"),
        (4, "the query parameter `q` does not match"),
        (1, "it is not on this listener"),
        (5, "wins"),
    ];
    assert_eq!(reasons, expected.map(|(id, reason)| (id, reason.to_owned())));
}

#[test]
fn a_host_of_very_many_labels_costs_little() {
    let routes = [route("- *.example /a"), route("- - /*")];
    let host = format!("{}example", "a.".repeat(100_000));
    assert_eq!(find(&routes, &Request { host: Some(host), ..request("GET h/a") }), Some(0));
}

#[test]
fn a_route_behind_one_that_takes_everything_is_shadowed() {
    let pairs = |routes: &[Written]| -> Vec<_> {
        shadowed(&all(routes)).into_iter().map(|shadow| (shadow.route.0, shadow.by.0)).collect()
    };
    let same = |path: &str| route(&format!("- - {path}"));
    assert_eq!(pairs(&[same("/{a}/*"), same("/{b}/*"), same("/{c}")]), [(1, 0)]);
    assert_eq!(pairs(&[same("~^/a"), route("- -"), same("/*")]), [(0, 1), (2, 1)]);
    assert_eq!(pairs(&[same("/a"), same("/b"), route("- - /b /a")]), [(2, 1)]);
    assert_eq!(pairs(&[route("GET,PUT - /a"), route("PUT - /a")]), [(1, 0)]);
    let header = [("x-a", "1")];
    assert_eq!(pairs(&[same("/*"), same("~^/a").headers(&header), same("/a").headers(&header)]), [(1, 0)]);
}

#[test]
fn a_route_that_can_match_is_never_called_shadowed() {
    for routes in [
        vec![route("- - /a"), route("GET - /a")],
        vec![route("- - /a"), route("- - /a").query(&[("q", "1")])],
        vec![route("- - /a").headers(&[("x-a", "1")]), route("- - /a").headers(&[("x-a", "2")])],
        vec![route("- - /a").on(1), route("- - /a")],
        vec![route("- - /*"), route("- h.example ~^/a")],
        vec![route("- *.example /a"), route("- - /a"), route("- x.example /a")],
        vec![route("- - /a"), route("- - /a /b")],
        vec![route("GET - /a"), route("- - /a")],
        vec![route("- - /%7Bx%7D"), route("- - /{x}"), route("- - /*")],
        vec![route("- - /{x}"), route("- - /%7B%7D")],
        vec![route("- - /*"), route("- - /%2A")],
        vec![route("- - /a /a")],
    ] {
        let routes = all(&routes);
        assert_eq!(shadowed(&routes), [], "{routes:?}");
    }
}

#[test]
fn ten_thousand_routes_are_searched_for_shadows_at_once() {
    let same = vec![route("GET - /a"); 10_000];
    assert_eq!(shadowed(&all(&same)).len(), 9_999);
    let apart: Vec<_> = (0..10_000_u16).map(|number| route("- - /*").on(number)).collect();
    assert_eq!(shadowed(&all(&apart)), []);
}
