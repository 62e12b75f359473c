use std::sync::Arc;

use parking_lot::Mutex;

use crate::caching::Ask;
use crate::context::{Consumer, Principal};
use crate::testing::{Request, chain, get, refused, send};

fn of(host: &str, target: &str) -> Request {
    let authority = host.to_owned();
    get(target).header("host", &authority).with(move |ctx| {
        ctx.host = crate::host::host_of(&authority).map(|host| Box::from(&*host));
    })
}

async fn ask(options: &str, request: Request) -> Option<Box<Ask>> {
    chain(&format!("- cache: {options}")).send(request).await.continues().ask
}

async fn key(options: &str, request: Request) -> Vec<u8> {
    ask(options, request).await.expect("it is for the cache").key
}

async fn differ(options: &str, one: Request, two: Request) -> bool {
    key(options, one).await != key(options, two).await
}

fn known(request: Request, consumer: &'static str, subject: &'static str) -> Request {
    request.with(move |ctx| {
        let name = consumer.into();
        ctx.consumer = Some(Arc::new(Consumer { name, groups: Arc::from([]), plan: None }));
        ctx.principal = Some(Arc::new(Principal { subject: subject.to_owned(), claims: Default::default() }));
    })
}

#[tokio::test]
async fn a_key_begins_with_the_url_and_a_nul() {
    let key = key("{}", of("A.test:80", "/x?b=1")).await;
    assert!(key.starts_with(b"http://a.test/x?b=1\0"), "{}", String::from_utf8_lossy(&key));
}

#[tokio::test]
async fn hosts_ports_schemes_tenants_and_routes_never_share() {
    let plain = || of("a.test", "/x");
    assert!(!differ("{}", plain(), of("a.test:80", "/x")).await);
    assert!(differ("{}", plain(), of("b.test", "/x")).await);
    assert!(differ("{}", plain(), of("a.test:8080", "/x")).await);
    assert!(differ("{}", plain(), plain().with(|ctx| ctx.scheme = crate::context::Scheme::Https)).await);
    assert!(differ("{}", plain(), plain().with(|ctx| ctx.tenant = crate::world::TenantId(7))).await);
    assert!(differ("{}", plain(), plain().with(|ctx| ctx.route = "other".into())).await);
    let rewritten = plain().with(|ctx| ctx.policies.upstream_path = Some("/y".into()));
    assert!(differ("{}", plain(), rewritten).await, "what an earlier filter made of the path");
}

#[tokio::test]
async fn who_routes_by_one_host_and_is_sent_another_is_not_cached() {
    let forged = of("a.test", "/").with(|ctx| ctx.host = Some("b.test".into()));
    assert!(ask("{}", forged).await.is_none());
}

#[tokio::test]
async fn encoded_delimiters_and_case_make_other_keys() {
    for (one, two) in
        [("/a:b", "/a%3Ab"), ("/a?b", "/a%3Fb"), ("/a", "/A"), ("/a?", "/a"), ("/a?b&c", "/a?c&b")]
    {
        assert!(differ("{}", of("a.test", one), of("a.test", two)).await, "{one} {two}");
    }
}

#[tokio::test]
async fn known_callers_do_not_share_unless_they_are_told_to() {
    let (acme, globex) = (known(of("a.test", "/"), "acme", "1"), known(of("a.test", "/"), "globex", "1"));
    assert!(differ("{}", acme, globex).await);
    let (one, two) = (known(of("a.test", "/"), "acme", "1"), known(of("a.test", "/"), "acme", "2"));
    assert!(differ("{}", one, two).await, "two users of one application");
    let (one, two) = (known(of("a.test", "/"), "acme", "1"), of("a.test", "/"));
    assert!(differ("{}", one, two).await, "and nobody in particular");
    let (one, two) = (known(of("a.test", "/"), "acme", "1"), known(of("a.test", "/"), "globex", "1"));
    assert!(!differ("{shared: true}", one, two).await);
    let by = "{per: 'header:x-tenant'}";
    let with = |tenant: &str| of("a.test", "/").header("x-tenant", tenant);
    assert!(differ(by, with("1"), with("2")).await && !differ(by, with("1"), with("1")).await);
    assert!(differ(by, with(""), of("a.test", "/")).await, "without it, it is another");
}

#[tokio::test]
async fn fields_that_applications_take_for_the_url_are_in_the_key() {
    for name in [
        "x-forwarded-host",
        "x-original-url",
        "x-rewrite-url",
        "x-host",
        "x-forwarded-prefix",
        "x-forwarded-uri",
        "x-http-host-override",
        "x_original_url",
        "x-rewrite_url",
    ] {
        let forged = of("a.test", "/").header(name, "evil.test");
        assert!(differ("{}", of("a.test", "/"), forged).await, "{name}");
    }
    // What proxies write of clients makes no difference, but of hosts and schemes it does.
    let forwarded = |value: &str| of("a.test", "/").header("forwarded", value);
    let from_one = || forwarded("for=192.0.2.1;proto=https");
    assert!(!differ("{}", from_one(), forwarded("For=\"[2001:db8::1]:7\"; proto=https")).await);
    for other in
        ["for=192.0.2.1;proto=http", "for=192.0.2.1;proto=https;host=evil", "proto=https, host=\"a;b\""]
    {
        assert!(differ("{}", from_one(), forwarded(other)).await, "{other}");
    }
    assert!(!differ("{}", forwarded("for=192.0.2.1"), of("a.test", "/")).await);
}

#[tokio::test]
async fn what_the_cache_is_not_for_goes_on() {
    let plain = || of("a.test", "/");
    for (request, reason) in [
        (plain().header("content-length", "3"), "body"),
        (plain().header("transfer-encoding", "chunked"), "body"),
        (plain().header("upgrade", "websocket"), "upgrade"),
        (plain().header("x-http-method-override", "DELETE"), "method-override"),
        (plain().header("x_http_method_override", "DELETE"), "method-override"),
        (plain().header("connection", "close, X-Country").header("x-country", "us"), "connection"),
        (plain().header("connection", "cookie").header("cookie", "currency=eur"), "connection"),
        (plain().header("if-match", "\"a\""), "condition"),
        (plain().header("if-unmodified-since", "Sun, 06 Nov 1994 08:49:37 GMT"), "condition"),
        (plain().header("cache-control", "no-store"), "request-no-store"),
        (plain().header("accept", "text/event-stream"), "events"),
        (plain().header("accept", "application/json, Text/Event-Stream;q=0.9"), "events"),
        (plain().header("x-debug", "1"), "configured"),
        (send("POST", "/").header("host", "a.test"), "method"),
    ] {
        let sent = chain("- cache: {bypass: [{headers: {x-debug: {present: true}}}]}").send(request).await;
        let detail = sent.ctx.cache.as_ref().and_then(|status| status.detail.as_deref());
        assert_eq!((detail, sent.ask.is_none()), (Some(reason), true));
    }
    for fine in [
        plain().header("content-length", "0"),
        plain().header("connection", "keep-alive, TE").header("te", "trailers"),
        plain().header("connection", "x-absent, , ,@"),
    ] {
        assert!(ask("{}", fine).await.is_some());
    }
}

#[tokio::test]
async fn clients_can_be_kept_from_asking_for_something_fresher() {
    let asked = || of("a.test", "/").header("cache-control", "no-cache");
    assert!(ask("{}", asked()).await.unwrap().directives.no_cache);
    assert!(!ask("{client_control: false}", asked()).await.unwrap().directives.no_cache);
    let forbidden = of("a.test", "/").header("cache-control", "no-store");
    assert!(ask("{client_control: false}", forbidden).await.is_some());
}

#[tokio::test]
async fn parameters_that_are_not_in_the_key_are_not_sent_either() {
    let except = "{key: {query: {except: [utm_source], sort: true}}}";
    let asked = ask(except, of("a.test", "/x?b=2&utm_source=evil&a=1&b=1")).await.unwrap();
    assert!(asked.key.starts_with(b"http://a.test/x?a=1&b=2&b=1\0"));
    assert_eq!(asked.target.unwrap(), "/x?a=1&b=2&b=1");
    let encoded = ask(except, of("a.test", "/x?utm%5Fsource=1")).await.unwrap();
    assert!(encoded.key.starts_with(b"http://a.test/x\0") && encoded.target.unwrap() == "/x");
    let cloaked = ask(except, of("a.test", "/x?utm_source=1;a=evil")).await.unwrap();
    assert_eq!(cloaked.target.unwrap(), "/x", "who splits at `;` does not see it either");
    let only = "{key: {query: {only: [id]}}}";
    assert!(!differ(only, of("a.test", "/x?id=1&z=2"), of("a.test", "/x?y&id=1")).await);
    assert!(differ(only, of("a.test", "/x?id=1&id=2"), of("a.test", "/x?id=1")).await);
    assert!(ask("{}", of("a.test", "/x?b&a")).await.unwrap().target.is_none());
}

#[tokio::test]
async fn what_an_earlier_filter_made_of_the_target_has_no_more_of_the_query_than_the_key() {
    let made = |target: &str, made: &str| {
        of("a.test", target).with(|ctx| ctx.policies.upstream_path = Some(made.into()))
    };
    let except = "{key: {query: {except: [utm_source], sort: true}}}";
    for (target, counted) in [
        ("/x?a=1", "/x?a=1"),
        ("/x?utm_source=1&a=1", "/x?a=1"),
        ("/x?b=1&a=1&utm_source=1", "/x?a=1&b=1"),
        ("/x?utm_source=1", "/x"),
    ] {
        let asked = ask(except, made(&format!("/api{target}"), target)).await.unwrap();
        let plain = made(&format!("/api{counted}"), counted);
        assert_eq!(asked.key, key(except, plain).await, "{target}");
        assert_eq!(asked.upstream_path.as_deref(), Some(counted).filter(|made| *made != target));
    }
    assert!(differ(except, made("/api/x", "/x"), made("/api/x", "/y")).await);
    assert!(ask("{}", made("/api/x?b&a", "/x?b&a")).await.unwrap().upstream_path.is_none());
}

#[tokio::test]
async fn further_parts_of_requests_can_be_in_the_key() {
    let with = |currency: &str| of("a.test", "/").header("cookie", currency);
    let options = "{key: {parts: ['cookie:currency']}}";
    assert!(differ(options, with("currency=eur"), with("currency=usd")).await);
    assert!(!differ(options, with("currency=eur; x=1"), with("currency=eur; x=2")).await);
    assert!(!differ("{}", with("currency=eur"), with("currency=usd")).await);
}

#[tokio::test]
async fn of_what_stands_twice_each_is_in_the_key_in_order_and_as_it_stands() {
    let cookies =
        |lines: &[&str]| lines.iter().fold(of("a.test", "/"), |request, line| request.header("cookie", line));
    let options = "{key: {parts: ['cookie:c']}}";
    for (one, other) in [
        (&["c=1"][..], &["c=1; c=2"][..]),
        (&["c=1; c=2"], &["c=2; c=1"]),
        (&["c=1"], &["c=1", "c=2"]),
        (&["c=\"1; c=2\""], &["c=1; c=2"]),
        (&["x=1"], &["c="]),
    ] {
        assert!(differ(options, cookies(one), cookies(other)).await, "{one:?} {other:?}");
    }
    let fields =
        |lines: &[&str]| lines.iter().fold(of("a.test", "/"), |request, line| request.header("x-f", line));
    let options = "{key: {parts: ['header:x-f']}}";
    for (one, other) in [(&["a"][..], &["a", "b"][..]), (&["a", "b"], &["a, b"]), (&["a", "b"], &["b", "a"])]
    {
        assert!(differ(options, fields(one), fields(other)).await, "{one:?} {other:?}");
    }
    // With the rest of the query left out, only the part of the key tells.
    let options = "{key: {query: {only: []}, parts: ['query:q']}}";
    for (one, other) in
        [("/?q=1", "/?q=1&q=2"), ("/?q=1&q=2", "/?q=2&q=1"), ("/?q=1", "/?q=%31"), ("/?%71=1", "/?q=2")]
    {
        assert!(differ(options, of("a.test", one), of("a.test", other)).await, "{one} {other}");
    }
    assert!(!differ(options, of("a.test", "/?q=1&x"), of("a.test", "/?y&q=1")).await);
    let options = "{key: {parts: [['query:a', 'cookie:c'], {all: ['header:x-f', 'cookie:c']}]}}";
    assert!(differ(options, cookies(&["c=1"]), cookies(&["c=1; c=1"])).await);
}

#[test]
fn only_what_can_work_is_taken() {
    for (options, message) in [
        ("{methods: [POST]}", "methods: answers to POST cannot be stored; GET and HEAD can"),
        ("{per: ip, shared: true}", "shared: `per` says whose answers are kept apart; remove one of both"),
        (
            "{key: {query: {only: [a], except: [b]}}}",
            "key.query: `only` names all that count; remove `except`",
        ),
        ("{ttl: 500ms}", "ttl: expected whole seconds, such as `1s`"),
        ("{statuses: {404: 1900ms}}", "statuses.404: expected whole seconds, such as `1s`"),
        ("{stale_while_revalidate: 1500ms}", "stale_while_revalidate: expected whole seconds, such as `1s`"),
        ("{stale_if_error: 999ms}", "stale_if_error: expected whole seconds, such as `1s`"),
        ("{stale_if_unreachable: 1ms}", "stale_if_unreachable: expected whole seconds, such as `1s`"),
        ("{statuses: {429: 1s}}", "statuses.429: answers with this status are never stored"),
        ("{statuses: {206: 0s}}", "statuses.206: answers with this status are never stored"),
        (
            "{statuses: {400-450: 1s, 404: 1s, 404-499: 1s}}",
            "statuses.404-499: overlaps `400-450`; write ranges that do not, or one within the other",
        ),
        ("{statuses: {100-199: 1s}}", "statuses.100-199: answers with this status are never stored"),
    ] {
        assert_eq!(refused(&format!("- cache: {options}")), message);
    }
    // Of a range, those count that are stored.
    let fine = "{ttl: 1000ms, statuses: {404: 1s, 400-499: 1s, 500-599: 0s}, stale_if_unreachable: 0s}";
    let _ = chain(&format!("- cache: {fine}"));
}

#[tokio::test]
async fn of_ranges_that_hold_a_status_the_narrowest_counts() {
    let asked = ask("{statuses: {400-599: 5s, 404: 60s, 400-499: 0s}}", of("a.test", "/")).await.unwrap();
    let ttl = |status| {
        let mut statuses = asked.plan.rules.statuses.iter();
        statuses.find(|(range, _)| range.contains(status)).map(|(_, ttl)| *ttl)
    };
    assert_eq!([404, 400, 500, 200].map(ttl), [Some(60), Some(0), Some(5), None]);
}

/// Notes what is purged, and could not tell others.
#[derive(Default)]
struct Noted(Mutex<Vec<(String, bool)>>);

#[async_trait::async_trait]
impl crate::world::Cached for Noted {
    async fn purge_url(&self, url: &[u8], soft: bool) -> crate::world::Purged {
        self.0.lock().push((String::from_utf8_lossy(url).into_owned(), soft));
        crate::world::Purged { hits: 1, shared: Some(false) }
    }

    fn invalidate(&self, url: Vec<u8>) {
        panic!("the core does that: {url:?}");
    }
}

#[tokio::test]
async fn a_purge_says_how_much_it_hit_and_whether_others_know() {
    let noted = Arc::<Noted>::default();
    let filters = "- cache: {purge: {token: secret-of-purging, soft: true}}";
    let chain = crate::testing::chain_caching(noted.clone(), filters);
    let request = send("PURGE", "/x").header("host", "a.test").with(|ctx| ctx.host = Some("a.test".into()));
    let answer = chain.send(request.header("authorization", "Bearer secret-of-purging")).await.responds(200);
    let _ = answer.body("{\"purged\":1,\"shared\":false}\n");
    assert_eq!(*noted.0.lock(), [("http://a.test/x".to_owned(), true)]);
}

#[tokio::test]
async fn only_who_has_the_token_purges() {
    let purge = |token: &str| {
        let request =
            send("PURGE", "/x").header("host", "a.test").with(|ctx| ctx.host = Some("a.test".into()));
        if token.is_empty() { request } else { request.header("authorization", token) }
    };
    let options = "- cache: {purge: {token: secret-of-purging}}";
    for wrong in ["", "Bearer", "Bearer x", "Basic secret-of-purging", "Bearer secret-of-purging2"] {
        let refused = chain(options).send(purge(wrong)).await.responds(401);
        let _ = refused.header("www-authenticate", "Bearer realm=\"purge\"");
    }
    let _ = chain(options).send(purge("bearer secret-of-purging")).await.responds(200);
    let sent = chain("- cache: {}").send(purge("")).await.continues();
    assert!(sent.ask.is_none(), "without the option it is a method like others");
}
