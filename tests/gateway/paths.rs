//! One path has one spelling: what is guarded cannot be reached by another.

use http::Request;

use crate::harness::{Gateway, H2c, Origin, Wire, get};

/// `/admin` is guarded; everything else goes to the origin.
async fn guarded(origin: &Origin, more: &str) -> Gateway {
    Gateway::start(&format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
         - {{name: admin, match: {{paths: [\"/admin/*\"]}}, respond: {{status: 403, body: guarded}}}}\n\
         - {{name: all, match: {{paths: [\"/*\"]}}, upstream: origin}}\n{more}",
        origin.address
    ))
    .await
}

/// Spellings that some server takes for `/admin` or below it.
const SPELLINGS: &[&str] = &[
    "/admin",
    "/admin/",
    "/admin/x",
    "//admin",
    "///admin//x",
    "/./admin",
    "/x/../admin",
    "/x/./../admin",
    "/../admin",
    "/../../admin",
    "/%61dmin",
    "/%61%64%6d%69%6e",
    "/%41dmin/../admin",
    "/admin;x",
    "/admin;a=b/x",
    "/;/admin",
    "/;x/admin",
    "/x/..;/admin",
    "/x/..;a=b/admin",
    "/..;/admin",
    "/%2e/admin",
    "/%2e%2e/admin",
    "/x/%2e%2e/admin",
    "/x/.%2e/admin",
    "/x/%2e./admin",
    "/x/%2E%2E/admin",
    "/admin%2f..%2fx",
    "/admin%2fx",
    "/admin%2Fx",
    "/x%2f..%2fadmin",
    "/x/..%2fadmin",
    "\\admin",
    "/\\admin",
    "/x\\..\\admin",
    "/x/..\\admin",
    "/%5cadmin",
    "/x/..%5cadmin",
    "/x%5c..%5cadmin",
    "/admin%00",
    "/admin%00.html",
    "/admin?",
    "/admin?a=/x",
    "/admin#x",
    "/admin%3fx",
    "/admin%23x",
    "/admin/..%00/admin",
    "/x//../admin",
    "/x/..//admin",
    "/admin/.",
    "/admin/./",
    "/admin/x/..",
    "http://example.test/admin",
    "http://example.test//admin",
    "http://example.test/x/../admin",
    "HTTP://EXAMPLE.TEST/%61dmin",
    "http://example.test\\admin",
    "/admin%",
    "/admin%zz",
    "/%",
    "/%2561dmin/../admin",
    "/admin%20/..",
    "/admin\t",
    "/\u{1}admin",
];

#[tokio::test]
async fn no_spelling_of_a_guarded_path_reaches_the_origin() {
    let origin = Origin::echo().await;
    let gateway = guarded(&origin, "").await;
    for spelling in SPELLINGS {
        let mut client = Wire::connect(gateway.address()).await;
        client.send(format!("GET {spelling} HTTP/1.1\r\nHost: example.test\r\n\r\n")).await;
        let answer = client.answer().await.unwrap_or_else(|e| panic!("{spelling:?}: {e:?}"));
        let reached = answer.text().lines().next().unwrap_or_default().to_owned();
        match answer.status {
            400 | 403 => {}
            200 => assert_harmless(spelling, &reached),
            _ => panic!("{spelling:?}: {answer:?}"),
        }
    }
}

/// The request line the origin saw names nothing that a server could read as `/admin`.
fn assert_harmless(spelling: &str, line: &str) {
    let target = line.split(' ').nth(1).unwrap_or_default();
    let path = target.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let decoded = path.replace("%25", "%").replace("%61", "a").replace("%2e", ".").replace("%2f", "/");
    let suspicious = decoded.split('/').any(|segment| segment.trim().split(';').next() == Some("admin"));
    assert!(!suspicious && !decoded.contains(".."), "{spelling:?} reached the origin as {line:?}");
}

#[tokio::test]
async fn no_http2_spelling_of_a_guarded_path_reaches_the_origin() {
    let origin = Origin::echo().await;
    let gateway = guarded(&origin, "").await;
    for spelling in SPELLINGS.iter().filter(|spelling| spelling.starts_with('/')) {
        // What the client library refuses to send is no spelling.
        let Ok(request) = Request::get(format!("http://example.test{spelling}")).body(()) else { continue };
        let client = H2c::connect(gateway.address()).await;
        let Ok(answer) = client.send(request, b"").await else { continue };
        match answer.status {
            400 | 403 => {}
            200 => assert_harmless(spelling, answer.text().lines().next().unwrap_or_default()),
            status => panic!("{spelling:?}: {status}"),
        }
    }
}

#[tokio::test]
async fn decoding_escaped_slashes_opens_no_way_around() {
    let origin = Origin::echo().await;
    for slash in ["decode", "keep"] {
        let gateway = guarded(&origin, &format!("server: {{paths: {{encoded_slash: {slash}}}}}")).await;
        for spelling in ["/x%2f..%2fadmin", "/x/..%2fadmin", "/%2fadmin", "/x%5c..%5cadmin", "/admin%2fx"] {
            let answer = get(gateway.address(), spelling).await;
            let line = answer.text().lines().next().unwrap_or_default().to_owned();
            match (slash, answer.status) {
                (_, 400 | 403) => {}
                // Kept as a character, it is the origin's own, and reaches it escaped as it was.
                ("keep", 200) => assert!(line.to_lowercase().contains(spelling), "{spelling}: {line}"),
                _ => panic!("{slash} {spelling}: {answer:?}"),
            }
        }
    }
}

#[tokio::test]
async fn the_origin_sees_the_path_that_was_matched() {
    // RFC 3986 s6.2.2: unreserved characters decoded, escapes in upper case, dot segments resolved.
    let origin = Origin::echo().await;
    let gateway = guarded(&origin, "").await;
    for (sent, seen) in [
        ("/a/./b/../c?x=/../y", "/a/c?x=/../y"),
        ("//a//b", "/a/b"),
        ("/%7euser/%c3%bc", "/~user/%C3%BC"),
        ("/a%20b", "/a%20b"),
        ("/a;p=1/b", "/a;p=1/b"),
        ("/a/..", "/"),
    ] {
        let answer = get(gateway.address(), sent).await;
        let line = answer.text().lines().next().unwrap_or_default().to_owned();
        assert_eq!(line, format!("GET {seen} HTTP/1.1"), "{sent}");
    }
}

#[tokio::test]
async fn a_rewritten_path_keeps_what_the_rules_of_the_server_keep() {
    let origin = Origin::echo().await;
    for (rules, rewrite, sent, seen) in [
        ("encoded_slash: keep", "{strip_prefix: /npm}", "/npm/@scope%2fpkg", Some("/@scope%2Fpkg")),
        ("encoded_slash: keep", "{strip_prefix: \"/a%2fb\"}", "/a%2Fb/c", Some("/c")),
        // What decisions do not see of a prefix goes with it.
        ("encoded_slash: keep", "{strip_prefix: /api, add_prefix: /in}", "/api;x/u;y", Some("/in/u;y")),
        ("merge_slashes: true", "{strip_prefix: /api, add_prefix: /in}", "/;x/api/u", Some("/in/u")),
        ("merge_slashes: false", "{strip_prefix: /api}", "/;x/api/u", Some("/;x/api/u")),
        ("encoded_slash: keep", "{path: \"/p/${query.q}\"}", "/?q=a%2Fb", Some("/p/a%2Fb?q=a%2Fb")),
        ("merge_slashes: false", "{add_prefix: /bucket}", "/a//b", Some("/bucket/a//b")),
        ("merge_slashes: false", "{path: \"/p//${query.q}\"}", "/?q=1", Some("/p//1?q=1")),
        // A value stays in its segment.
        ("encoded_slash: decode", "{path: \"/p/${query.q}\"}", "/?q=a%2Fb", None),
        ("encoded_slash: keep", "{path: \"/p/${query.q}\"}", "/?q=..", None),
    ] {
        let gateway = Gateway::start(&format!(
            "server: {{paths: {{{rules}}}}}\n\
             upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]\nroutes:\n\
             - {{name: all, match: {{paths: [\"/*\"]}}, filters: [{{rewrite: {rewrite}}}], upstream: origin}}\n",
            origin.address
        ))
        .await;
        let answer = get(gateway.address(), sent).await;
        match seen {
            Some(seen) => {
                let text = answer.text();
                let line = text.lines().next().unwrap_or_default();
                assert_eq!(line, format!("GET {seen} HTTP/1.1"), "{rules} {rewrite} {sent}");
            }
            None => assert_eq!(answer.status, 400, "{rules} {rewrite} {sent}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_service_that_decides_is_asked_at_a_path_by_the_rules_of_the_server() {
    let (service, origin) = (Origin::echo().await, Origin::echo().await);
    for (rules, path, sent, asked) in [
        ("encoded_slash: keep", "/authz${request.path}", "/npm/s%2fpkg", Some("/authz/npm/s%2Fpkg")),
        ("encoded_slash: keep", "/authz/${query.q}", "/?q=a%2Fb", Some("/authz/a%2Fb")),
        ("merge_slashes: false", "/authz${request.path}", "/a//b", Some("/authz/a//b")),
        // A value stays in its segment.
        ("encoded_slash: decode", "/authz/${query.q}", "/?q=a%2Fb", None),
        ("encoded_slash: keep", "/authz/${query.q}", "/?q=..", None),
        // And a path is one value of a query.
        ("merge_slashes: true", "/authz?u=${request.path}", "/a;&u=b", Some("/authz?u=/a%3B%26u%3Db")),
    ] {
        let gateway = Gateway::start(&format!(
            "server: {{paths: {{{rules}}}}}\n\
             upstreams:\n\
             - {{name: origin, backends: [{{address: \"{}\"}}]}}\n\
             - {{name: sso, backends: [{{address: \"{}\"}}]}}\n\
             routes:\n\
             - name: all\n  filters: [{{forward_auth: {{upstream: sso, path: \"{path}\"}}}}]\n  upstream: origin\n",
            origin.address, service.address
        ))
        .await;
        let before = service.heads().len();
        let answer = get(gateway.address(), sent).await;
        let lines: Vec<String> = service.heads().drain(before..).map(|head| head.line).collect();
        let expected: Vec<String> = asked.iter().map(|asked| format!("GET {asked} HTTP/1.1")).collect();
        assert_eq!(lines, expected, "{rules} {path} {sent}");
        assert_eq!(answer.status, if asked.is_some() { 200 } else { 400 }, "{rules} {path} {sent}");
    }
}

#[tokio::test]
async fn patterns_follow_the_rules_of_the_server() {
    for (rules, pattern, hit, miss) in [
        ("merge_slashes: false", "/a//b", "/a//b", "/a/b"),
        ("encoded_slash: keep", "/a%2fb", "/a%2Fb", "/a/b"),
        ("encoded_slash: decode", "/a%2fb", "/a/b", "/a%252Fb"),
    ] {
        let gateway = Gateway::start(&format!(
            "server: {{paths: {{{rules}}}}}\nroutes:\n- name: one\n  match: {{paths: [\"{pattern}\"]}}\n  \
             filters: [{{respond: {{body: when}}, when: {{paths: [\"{pattern}\"], query: {{q: \"1\"}}}}}}]\n  \
             respond: {{body: route}}\n"
        ))
        .await;
        assert_eq!(get(gateway.address(), hit).await.text(), "route", "{rules} {hit}");
        assert_eq!(get(gateway.address(), &format!("{hit}?q=1")).await.text(), "when", "{rules} {hit}");
        assert_eq!(get(gateway.address(), miss).await.status, 404, "{rules} {miss}");
    }
}
