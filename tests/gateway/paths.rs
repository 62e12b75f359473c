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
