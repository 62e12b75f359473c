//! The engine on made-up requests, for what no filter's own tests can show.

use std::sync::Arc;

use http::Version;
use pingora::http::RequestHeader;
use tollhouse_filters::builtin;
use tollhouse_filters::world::World;

use super::dry::{self, MadeUp, Outcome};
use super::explain::{self, Explanation, Question};
use super::*;
use crate::snapshot::{Compiler, Mode};
use crate::source;

const DOCUMENT: &str = "
version: 1
server: {trusted_proxies: [10.0.0.0/8]}
listeners: [{name: main, address: '127.0.0.1:0'}]
upstreams: [{name: u, backends: [{address: '127.0.0.1:9'}]}]
";

async fn send(routes: &str, peer: &str, lines: &[(&'static str, &str)], method: &str) -> Outcome {
    let loaded = source::load_str(&format!("{DOCUMENT}{routes}"), "test", None, &|_| None).expect("loads");
    let snapshot = dry::snapshot(&Arc::new(loaded), &builtin()).expect("compiles");
    let mut head = RequestHeader::build(method, b"/a", None).expect("valid");
    head.set_version(Version::HTTP_11);
    for (name, value) in lines {
        let value = HeaderValue::from_bytes(value.as_bytes()).expect("valid");
        head.append_header(*name, value).expect("valid");
    }
    let peer = Some(SocketAddr::new(peer.parse().expect("an address"), 50_000));
    let connection = Connection { listener: ListenerId(0), peer, tls: None };
    dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await
}

fn status(outcome: &Outcome) -> Option<u16> {
    outcome.answer.as_ref().map(|(head, _)| head.status.as_u16())
}

const HOST: (&str, &str) = ("host", "a.test");

#[tokio::test]
async fn a_proxys_address_is_no_alias_for_a_client_that_sends_bytes_it_cannot_read() {
    let any = "routes: [{name: any, upstream: u}]";
    for list in ["é, 192.0.2.9", "192.0.2.9", "x, 192.0.2.9", "203.0.113.1, 192.0.2.9, 10.1.1.1"] {
        let outcome = send(any, "10.0.0.1", &[HOST, ("x-forwarded-for", list)], "GET").await;
        assert_eq!(outcome.exchange.ctx.client.address.to_string(), "192.0.2.9", "{list}");
    }
}

#[tokio::test]
async fn a_preflight_that_no_filter_answers_is_of_a_method_that_is_not_allowed() {
    let routes = "routes: [{name: r, match: {methods: [GET]}, upstream: u, filters: [{cors: {origins: ['https://a.test']}}]}]";
    let asked = [HOST, ("origin", "https://a.test"), ("access-control-request-method", "GET")];
    assert_eq!(status(&send(routes, "192.0.2.1", &asked, "OPTIONS").await), Some(204));
    let two_origins = [&asked[..], &[("origin", "https://b.test")]].concat();
    let outcome = send(routes, "192.0.2.1", &two_origins, "OPTIONS").await;
    assert!(outcome.upstream_request.is_none());
    assert_eq!(status(&outcome), Some(405));
}

#[tokio::test]
async fn a_split_between_versions_needs_no_default_for_requests_that_name_none() {
    let services = "services: [{name: s, versioning: {from: ['header:x-v']}, versions: {'1': {upstream: u}, '2': {upstream: u}}}]";
    let split =
        format!("{services}\nroutes: [{{name: r, service: s, split: {{versions: {{'1': 0, '2': 1}}}}}}]");
    let plain = format!("{services}\nroutes: [{{name: r, service: s}}]");
    let outcome = send(&split, "192.0.2.1", &[HOST], "GET").await;
    assert!(outcome.upstream_request.is_some());
    assert_eq!(outcome.exchange.ctx.version.as_deref(), Some("2"));
    let outcome = send(&split, "192.0.2.1", &[HOST, ("x-v", "1")], "GET").await;
    assert_eq!(outcome.exchange.ctx.version.as_deref(), Some("1"));
    assert_eq!(status(&send(&split, "192.0.2.1", &[HOST, ("x-v", "9")], "GET").await), Some(406));
    assert_eq!(status(&send(&plain, "192.0.2.1", &[HOST], "GET").await), Some(406));
}

fn compiled(listeners: &str, previous: Option<&Snapshot>) -> Arc<Snapshot> {
    let text =
        format!("{{version: 1, listeners: [{listeners}], routes: [{{name: r, respond: {{status: 200}}}}]}}");
    let loaded = Arc::new(source::load_str(&text, "test", None, &|_| None).expect("loads"));
    let (registry, world) = (builtin(), World::dry());
    let compiler = Compiler { registry: &registry, world: &world, previous, mode: Mode::Dry, roster: None };
    Arc::new(compiler.compile(&loaded).expect("compiles"))
}

#[tokio::test]
async fn a_socket_keeps_its_listener_when_a_reload_moves_or_removes_that() {
    const SHUT: &str = "{name: shut, address: '127.0.0.1:0', filters: [{respond: {status: 401}}]}";
    const OPEN: &str = "{name: open, address: '127.0.0.1:0'}";
    let first = compiled(&format!("{SHUT}, {OPEN}"), None);
    let swapped = compiled(&format!("{OPEN}, {SHUT}"), Some(&first));
    let shut_only = compiled(SHUT, Some(&swapped));
    let both_again = compiled(&format!("{OPEN}, {SHUT}"), Some(&shut_only));
    for (snapshot, shut, open) in
        [(first, 401, 200), (swapped, 401, 200), (shut_only, 401, 404), (both_again, 401, 200)]
    {
        for (id, expected) in [(0, shut), (1, open)] {
            let mut head = RequestHeader::build("GET", b"/a", None).expect("valid");
            head.insert_header("host", "a.test").expect("valid");
            let connection = Connection { listener: ListenerId(id), peer: None, tls: None };
            let outcome = dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await;
            assert_eq!(status(&outcome), Some(expected), "listener {id}");
        }
    }
}

#[tokio::test]
async fn forged_fields_are_dropped_in_every_spelling_that_cgi_takes_for_theirs() {
    let forged = [
        HOST,
        ("x_forwarded_for", "192.0.2.9"),
        ("x-forwarded_host", "evil.test"),
        ("x_real_ip", "192.0.2.9"),
        ("x_tollhouse_user", "root"),
        ("x-tollhouse-user", "root"),
        // lighttpd makes `_` of all that is neither a letter nor a digit.
        ("x.forwarded+for", "192.0.2.9"),
        ("x~tollhouse.user", "root"),
        ("content.length", "3"),
        ("x_kept", "1"),
    ];
    for peer in ["192.0.2.1", "10.0.0.1"] {
        let outcome = send("routes: [{name: any, upstream: u}]", peer, &forged, "GET").await;
        let sent = &outcome.upstream_request.as_ref().expect("forwarded").headers;
        let plain = |name: &&str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let odd: Vec<_> = sent.keys().map(|name| name.as_str()).filter(|name| !plain(name)).collect();
        assert_eq!(odd, ["x_kept"]);
        assert!(!sent.contains_key("x-tollhouse-user"));
    }
}

#[tokio::test]
async fn a_field_that_begins_with_x_forwarded_is_a_trusted_proxys_to_say_whatever_it_is() {
    let said = ["x-forwarded-prefix", "x-forwarded-user", "x-forwarded-ssl", "x_forwarded_server"];
    let lines = [&[HOST][..], &said.map(|name| (name, "made-up"))].concat();
    // A proxy's own fields are spelt as they are known; what only looks like one is a client's.
    for (peer, kept) in [("192.0.2.1", 0), ("10.0.0.1", 3)] {
        let outcome = send("routes: [{name: any, upstream: u}]", peer, &lines, "GET").await;
        let sent = &outcome.upstream_request.as_ref().expect("forwarded").headers;
        let left: Vec<&str> = said.into_iter().filter(|name| sent.contains_key(*name)).collect();
        assert_eq!(left, said[..kept], "{peer}");
    }
}

#[tokio::test]
async fn what_filters_say_of_the_caller_no_client_says_on_any_route_in_any_spelling() {
    let filter =
        "{headers: {request: {set: {x-caller: '${consumer}'}, add: {x-mail: 'of ${claims.email}'}}}}";
    let told = format!("{{name: told, match: {{paths: [/told]}}, upstream: u, filters: [{filter}]}}");
    let routes = format!("routes: [{told}, {{name: any, upstream: u}}]");
    let forged = ["x-caller", "x_caller", "x-mail", "x.mail"];
    let lines = [&[HOST, ("x-other", "1")][..], &forged.map(|name| (name, "root"))].concat();
    let outcome = send(&routes, "192.0.2.1", &lines, "GET").await;
    assert_eq!(&*outcome.exchange.route.name, "any");
    let sent = &outcome.upstream_request.as_ref().expect("forwarded").headers;
    assert!(sent.contains_key("x-other") && !forged.iter().any(|name| sent.contains_key(*name)), "{sent:?}");
}

#[tokio::test]
async fn filters_see_the_body_they_wait_for_before_a_route_answers_by_itself() {
    let text = format!(
        "{DOCUMENT}routes: [{{name: r, filters: [{{buffer: {{max: 4B}}}}], respond: {{status: 200}}}}]"
    );
    let snapshot = snapshot_of(&text);
    for (body, expected) in [("four", 200), ("fives", 413)] {
        let mut head = RequestHeader::build("POST", b"/a", None).expect("valid");
        head.insert_header("host", "a.test").expect("valid");
        head.insert_header("content-length", body.len()).expect("valid");
        let connection = Connection { listener: ListenerId(0), peer: None, tls: None };
        let body = Bytes::from_static(body.as_bytes());
        let outcome = dry::run(&snapshot, MadeUp { head, body, connection }).await;
        assert_eq!(status(&outcome), Some(expected), "RFC 9110 s15.5.14");
    }
}

#[test]
fn a_document_from_afar_makes_nobody_read_a_file() {
    let text = "
version: 1
listeners: [{name: main, address: '127.0.0.1:0'}]
upstreams: [{name: u, backends: [{address: 'a.test:443'}], tls: {ca: /no/such/file}}]
routes: [{name: any, upstream: u}]
";
    let loaded = Arc::new(source::load_str(text, "test", None, &|_| None).expect("loads"));
    let (registry, world) = (builtin(), World::dry());
    let compile = |mode| {
        Compiler { registry: &registry, world: &world, previous: None, mode, roster: None }.compile(&loaded)
    };
    assert!(compile(Mode::Afar).is_ok() && compile(Mode::Dry).is_err());
}

#[tokio::test]
async fn an_absolute_target_is_its_path_and_its_host() {
    let routes = "routes: [{name: any, upstream: u}, {name: a, match: {hosts: [a.test]}, upstream: u}]";
    for (target, sent) in [("http://a.test/x?q=1", "/x?q=1"), ("http://a.test", "/")] {
        let loaded =
            source::load_str(&format!("{DOCUMENT}{routes}"), "test", None, &|_| None).expect("loads");
        let snapshot = dry::snapshot(&Arc::new(loaded), &builtin()).expect("compiles");
        let mut head = RequestHeader::build("GET", target.as_bytes(), None).expect("valid");
        head.set_version(Version::HTTP_10);
        let connection = Connection { listener: ListenerId(0), peer: None, tls: None };
        let outcome = dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await;
        let head = outcome.upstream_request.as_ref().expect("forwarded");
        assert_eq!((&*outcome.exchange.route.name, head.raw_path()), ("a", sent.as_bytes()));
    }
}

/// What the reload of a document with this filter is refused with, as its test expects something else.
fn failing(filter: &str, expected: &str, key: &str) -> String {
    let text = format!(
        "{DOCUMENT}routes: [{{name: any, upstream: u, filters: [{filter}]}}]
tests: [{{name: t, request: {{path: /}}, expect: {{{expected}}}}}]
"
    );
    let text = text.replace("10.0.0.0/8]", "10.0.0.0/8], threads: '${env:THREADS}'");
    let environment = |name: &str| match name {
        "KEY" => Some(key.to_owned()),
        "THREADS" => Some("2".to_owned()),
        _ => None,
    };
    let loaded = Arc::new(source::load_str(&text, "test", None, &environment).expect("loads"));
    dry::verify(&loaded, &builtin(), None).expect_err("the test fails").to_string()
}

#[test]
fn a_failing_test_tells_nothing_that_came_from_outside_the_document() {
    let expected = "headers_to_upstream: {x-key: other}";
    for value in ["${env:KEY}", "a ${env:KEY} b", "${env:KEY}/${client.address}", "${route}${env:KEY}"] {
        let filter = format!("{{headers: {{request: {{set: {{x-key: '{value}'}}}}}}}}");
        let said = failing(&filter, expected, "hunter2secret");
        assert!(said.contains("x-key: `other`, got") && said.contains("***"), "{value}: {said}");
        // Nor a part of it, where another text is one.
        assert!(!said.contains("hunter") && !said.contains("secret"), "{value}: {said}");
    }
}

#[test]
fn a_failing_test_tells_no_target_that_was_made_of_what_came_from_outside_the_document() {
    for filter in ["{rewrite: {add_prefix: '/${env:KEY}'}}", "{rewrite: {path: '/a/${env:KEY}/${route}'}}"] {
        // RFC 3986 s6.2.2.2: `%6E` is `n`.
        let said = failing(filter, "path_to_upstream: /other", "hu%6Eter");
        assert!(said.contains("/other, got ***") && !said.contains("hunter"), "{filter}: {said}");
    }
    let said = failing("{rewrite: {add_prefix: /mine}}", "path_to_upstream: /other", "hunter");
    assert!(said.contains("got /mine/"), "{said}");
}

#[tokio::test]
async fn of_two_fields_only_the_one_that_proxies_write_says_who_the_client_is() {
    for (from, expected) in [("any", "6.6.6.6"), ("x_forwarded_for", "6.6.6.6"), ("forwarded", "203.0.113.9")]
    {
        let text = SECURE.replace("10.0.0.0/8]", &format!("10.0.0.0/8], client_from: {from}"));
        let snapshot = snapshot_of(&text);
        let mut head = RequestHeader::build("GET", b"/a", None).expect("valid");
        head.insert_header("host", "a.test").expect("valid");
        head.insert_header("x-forwarded-for", "6.6.6.6").expect("valid");
        head.insert_header("forwarded", "for=203.0.113.9").expect("valid");
        let connection =
            dry::connection(&snapshot, ListenerId(0), "10.0.0.1".parse().expect("an address"), None);
        let outcome = dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await;
        assert_eq!(outcome.exchange.ctx.client.address.to_string(), expected, "{from}");
        let sent = outcome.upstream_request.expect("it is sent on");
        let told = |name: &str| sent.headers.get(name).map(|value| value.to_str().expect("text").to_owned());
        let forged = told("x-forwarded-for").is_some_and(|list| list.contains("6.6.6.6"));
        assert_eq!(forged, from != "forwarded", "{from}");
        let listed = told("forwarded").is_some_and(|list| list.contains("203.0.113.9"));
        assert_eq!(listed, from != "x_forwarded_for", "{from}");
    }
}

#[tokio::test]
async fn of_a_proxy_that_writes_forwarded_no_other_field_is_believed() {
    let snapshot = snapshot_of(&SECURE.replace("10.0.0.0/8]", "10.0.0.0/8], client_from: forwarded"));
    for (told, made_up) in [("https", "http"), ("http", "https")] {
        let mut head = RequestHeader::build("GET", b"/a", None).expect("valid");
        let forwarded = format!("for=203.0.113.9;proto={told}");
        for (name, value) in [
            ("host", "a.test"),
            ("forwarded", forwarded.as_str()),
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-proto", made_up),
            ("x-forwarded-host", "evil.test"),
            ("x-forwarded-port", "666"),
            ("x-real-ip", "6.6.6.6"),
        ] {
            head.insert_header(name, value).expect("valid");
        }
        let connection =
            dry::connection(&snapshot, ListenerId(0), "10.0.0.1".parse().expect("an address"), None);
        let outcome = dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await;
        assert_eq!(outcome.exchange.ctx.scheme.as_str(), told);
        let sent = outcome.upstream_request.expect("it is sent on");
        let all = |name: &str| {
            let lines = sent.headers.get_all(name).iter().map(|line| line.to_str().expect("text").to_owned());
            lines.collect::<Vec<_>>()
        };
        assert_eq!(all("x-forwarded-for"), ["10.0.0.1"]);
        assert_eq!(all("x-forwarded-proto"), [told]);
        assert_eq!(all("x-forwarded-host"), ["a.test"]);
        assert!(all("x-forwarded-port").is_empty() && all("x-real-ip").is_empty(), "{sent:?}");
    }
}

#[tokio::test]
async fn who_says_in_forwarded_who_the_client_is_says_there_what_it_spoke() {
    let any = "routes: [{name: any, upstream: u}]";
    let (list, proto) = ("x-forwarded-for", "x-forwarded-proto");
    for (peer, forwarded, further, scheme) in [
        ("10.0.0.1", "for=203.0.113.9;proto=https", None, "https"),
        ("10.0.0.1", "for=203.0.113.9;proto=https, for=10.0.0.2;proto=http", None, "https"),
        ("10.0.0.1", "for=203.0.113.9;proto=https, for=10.0.0.2", None, "https"),
        ("10.0.0.1", "for=unknown;proto=https, for=10.0.0.2", None, "https"),
        // A proxy spoke it to the next one.
        ("10.0.0.1", "for=203.0.113.9, for=10.0.0.2;proto=https", None, "http"),
        // The client itself says so.
        ("10.0.0.1", "for=6.6.6.6;proto=https, for=203.0.113.9;proto=http", None, "http"),
        ("10.0.0.1", "for=6.6.6.6;proto=https, for=203.0.113.9", None, "http"),
        ("192.0.2.1", "for=203.0.113.9;proto=https", None, "http"),
        ("10.0.0.1", "for=203.0.113.9;proto=https", Some((list, "203.0.113.9")), "http"),
        ("10.0.0.1", "for=203.0.113.9;proto=https", Some((proto, "http")), "http"),
    ] {
        let fields: Vec<_> = [HOST, ("forwarded", forwarded)].into_iter().chain(further).collect();
        let outcome = send(any, peer, &fields, "GET").await;
        assert_eq!(outcome.exchange.ctx.scheme.as_str(), scheme, "{peer} {fields:?}");
    }
}

const SECURE: &str = "
version: 1
server: {trusted_proxies: [10.0.0.0/8]}
listeners:
  - {name: plain, address: '127.0.0.1:0'}
  - {name: secure, address: '127.0.0.1:0', tls: {certificates: [{cert: a.pem, key: a.key}]}}
upstreams: [{name: u, backends: [{address: '127.0.0.1:9'}]}]
routes: [{name: all, upstream: u}]
";

fn secure_snapshot() -> Arc<Snapshot> {
    snapshot_of(SECURE)
}

fn snapshot_of(text: &str) -> Arc<Snapshot> {
    let loaded = source::load_str(text, "test", None, &|_| None).expect("loads");
    let (registry, world) = (builtin(), World::dry());
    // From afar no file is read.
    let compiler =
        Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Afar, roster: None };
    Arc::new(compiler.compile(&Arc::new(loaded)).expect("compiles"))
}

#[tokio::test]
async fn explain_takes_the_listener_that_speaks_what_the_url_begins_with() {
    let snapshot = secure_snapshot();
    for (url, listener, proto) in [
        ("https://a.test/x", "secure", "https"),
        ("http://a.test/x", "plain", "http"),
        ("/x", "plain", "http"),
    ] {
        let question = Question {
            method: String::new(),
            url: url.to_owned(),
            headers: Vec::new(),
            listener: None,
            client: None,
        };
        let explained = explain::explain(&snapshot, &question).await.expect("explains");
        assert_eq!(explained.listener, listener, "{url}");
        assert!(explained.upstream_request.contains(&format!("x-forwarded-proto: {proto}")), "{explained:?}");
    }
}

/// What becomes of a request by this document's routes.
async fn explained(routes: &str, method: &str, url: &str, headers: &[(&str, &str)]) -> Explanation {
    let snapshot = snapshot_of(&format!("{DOCUMENT}{routes}"));
    let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let question =
        Question { method: method.to_owned(), url: url.to_owned(), headers, ..Question::default() };
    explain::explain(&snapshot, &question).await.expect("explains")
}

#[tokio::test]
async fn explain_says_why_a_route_is_passed_over_by_the_fields_that_were_left_when_it_was_looked_for() {
    let routes = "routes: [{name: a, match: {headers: {x-forwarded-proto: https}}, upstream: u}, \
                  {name: b, upstream: u, filters: [{headers: {request: {set: {x-forwarded-proto: https}}}}]}]";
    let told = explained(routes, "GET", "/", &[("x-forwarded-proto", "https")]).await;
    let passed: Vec<_> = told.passed_over.iter().map(|passed| (&*passed.route, &*passed.why)).collect();
    assert_eq!(passed, [("a", "the header field `x-forwarded-proto` does not match")]);
    assert_eq!(told.route, "b");
}

#[tokio::test]
async fn explain_passes_over_neither_the_route_that_is_taken_nor_any_of_a_request_that_is_refused_first() {
    let routes = "routes: [{name: r, match: {methods: [GET]}, upstream: u, \
                  filters: [{cors: {origins: ['https://a.test']}}]}, {name: s, upstream: u, match: {methods: [PUT]}}]";
    let asked = [("origin", "https://a.test"), ("access-control-request-method", "GET")];
    let told = explained(routes, "OPTIONS", "/", &asked).await;
    assert_eq!((told.route.as_str(), told.status), ("r", Some(204)));
    assert!(told.passed_over.is_empty(), "{:?}", told.passed_over);
    let told = explained(routes, "POST", "/%zz", &[]).await;
    assert_eq!((told.passed_over.len(), told.status), (0, Some(400)));
    assert_eq!(explained(routes, "POST", "/", &[]).await.passed_over.len(), 2);
}

#[tokio::test]
async fn a_host_that_is_asked_about_is_the_only_one() {
    let routes = "routes: [{name: a, match: {hosts: [a.test]}, upstream: u}]";
    for (url, fields, host) in [
        ("/", &[("Host", "a.test")][..], "a.test"),
        ("http://b.test/", &[("host", "a.test:80")][..], "a.test:80"),
        ("http://a.test/", &[("x-a", "1")][..], "a.test"),
    ] {
        let told = explained(routes, "GET", url, fields).await;
        assert!(told.upstream_request.contains(&format!("host: {host}")), "{url} {fields:?}: {told:?}");
    }
    let both = [("host", "a.test"), ("host", "a.test")];
    assert_eq!(explained(routes, "GET", "/", &both).await.status, Some(400));
}

#[tokio::test]
async fn what_a_cache_fetches_to_store_it_is_what_the_upstream_gets() {
    let cached = |options: &str, more: &str| {
        let cache = format!("{{cache: {{key: {{query: {{except: [utm]}}}}{options}}}}}");
        format!("routes: [{{name: a, upstream: u, filters: [{more}{cache}]}}]")
    };
    let known = [("if-none-match", "\"1\"")];
    let part = [("range", "bytes=0-1")];
    let none = [("x-a", "1")];
    for (routes, method, fields, sent) in [
        (cached("", ""), "GET", &known[..], "GET /a?b=2"),
        (cached("", "{rewrite: {add_prefix: /v1}}, "), "GET", &none[..], "GET /v1/a?b=2"),
        // These go on as they are; in the first, another cache stands before, which counts all of the query.
        (cached("", "{cache: {}}, "), "GET", &none[..], "GET /a?utm=1&b=2"),
        (cached("", ""), "HEAD", &none[..], "HEAD /a?utm=1&b=2"),
        (cached("", ""), "GET", &part[..], "GET /a?utm=1&b=2"),
        (cached(", min_uses: 2", ""), "GET", &none[..], "GET /a?utm=1&b=2"),
    ] {
        let told = explained(&routes, method, "/a?utm=1&b=2", fields).await;
        assert_eq!(told.upstream_request[0], sent, "{routes}");
        let has_condition = told.upstream_request.iter().any(|line| line.starts_with("if-none-match"));
        assert!(!has_condition, "{told:?}");
    }
    let stored_alone = [("cache-control", "only-if-cached")];
    let told = explained(&cached(", client_control: true", ""), "GET", "/a", &stored_alone).await;
    // RFC 9111 s5.2.1.7.
    assert_eq!((told.upstream_request.len(), told.status), (0, Some(504)));
}

#[tokio::test]
async fn over_tls_the_scheme_is_https_unless_a_trusted_proxy_says_otherwise() {
    let snapshot = secure_snapshot();
    for (client, said, scheme) in [
        ("192.0.2.1", None, "https"),
        ("192.0.2.1", Some("http"), "https"),
        ("10.0.0.1", None, "https"),
        ("10.0.0.1", Some("http"), "http"),
    ] {
        let mut head = RequestHeader::build("GET", b"/a", None).expect("valid");
        head.insert_header("host", "a.test").expect("valid");
        if let Some(said) = said {
            head.insert_header("x-forwarded-proto", said).expect("valid");
        }
        let connection =
            dry::connection(&snapshot, ListenerId(1), client.parse().expect("an address"), Some("a.test"));
        let outcome = dry::run(&snapshot, MadeUp { head, body: Bytes::new(), connection }).await;
        assert_eq!(outcome.exchange.ctx.scheme.as_str(), scheme, "{client} {said:?}");
    }
}

#[tokio::test]
async fn filters_see_no_version_of_a_request_for_which_a_split_chooses_one() {
    let document = "services: [{name: s, versioning: {from: ['header:x-v'], default: '1'}, \
                    versions: {'1': {upstream: u}, '2': {upstream: u}}}]\n\
                    routes: [{name: r, service: s, split: {versions: {'1': 0, '2': 1}}, \
                    filters: [{respond: {status: 418}, when: {version: ['1']}}]}]";
    assert!(
        send(document, "192.0.2.1", &[HOST], "GET").await.upstream_request.is_some(),
        "it goes to version 2"
    );
    assert_eq!(status(&send(document, "192.0.2.1", &[HOST, ("x-v", "1")], "GET").await), Some(418));
}
