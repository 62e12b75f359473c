//! Starting, refusing to start, and what is not HTTP.

use std::net::TcpListener;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::harness::{Gateway, Origin, Wire, get, noise, refused_to_start, until};

#[tokio::test]
async fn what_is_not_http_is_refused_and_harms_nobody() {
    let origin = Origin::echo().await;
    let gateway = Gateway::counting(&origin, "").await;
    let mut content = 0;
    let tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec();
    for (garbage, status, reason) in [
        (noise(10_000), 400, "the method is not a token"),
        (tls, 400, "the request is a TLS handshake, and this port speaks plain HTTP"),
        (vec![0; 100_000], 400, "the method is not a token"),
        (b"\r\n\r\n\r\n".to_vec(), 400, "the request line is not a method, a target and a version"),
        (b"GET\r\n\r\n".to_vec(), 400, "the request line is not a method, a target and a version"),
        (b"GET /unfinished HTTP/1.1\r\n".to_vec(), 400, "the connection ended inside the head"),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_vec(), 505, "the version is not HTTP/1.1 or HTTP/1.0"),
    ] {
        let already = gateway.log().len();
        let mut client = Wire::connect(gateway.address()).await;
        client.send(&garbage).await;
        client.half_close().await;
        let answer = client.answer().await.expect("an answer");
        assert_eq!((answer.status, answer.field("content-type")), (status, Some("application/problem+json")));
        assert!(answer.text().contains(reason), "{answer:?}");
        let line = until("a line of the log", || gateway.log().into_iter().nth(already)).await;
        assert_eq!((&line["status"], &line["reason"]), (&status.into(), &reason.into()));
        assert_eq!((&line["listener"], &line["route"]), (&"plain".into(), &"(none)".into()));
        assert_eq!(line["bytes_out"], answer.body.len(), "{line}");
        content += answer.body.len() as u64;
    }
    let bytes = "tollhouse_response_bytes_total{listener=\"plain\",route=\"(none)\",upstream=\"none\"}";
    assert_eq!(gateway.number(bytes).await, content);
    // What follows the preface of HTTP/2 is SETTINGS, or a PROTOCOL_ERROR (RFC 9113 s3.4).
    for garbage in [&b"garbage garbage"[..], b"\0\0\0\x06\0\0\0\0\0", b"\0\0\x05\x04\0\0\0\0\0", b"\0\0"] {
        let already = gateway.log().len();
        let mut client = Wire::connect(gateway.address()).await;
        client.send([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", garbage].concat()).await;
        client.half_close().await;
        let said = client.rest().await;
        let goaway = b"\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";
        assert!(said.windows(goaway.len()).any(|bytes| bytes == goaway), "{garbage:?}: {said:?}");
        let line = until("a line of the log", || gateway.log().into_iter().nth(already)).await;
        assert_eq!((&line["status"], &line["protocol"]), (&400.into(), &"HTTP/2".into()));
        assert_eq!(line["reason"], "the preface of HTTP/2 is not followed by SETTINGS");
    }
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    assert_eq!(origin.heads().len(), 1);
    assert_eq!(gateway.said("panic"), 0, "{:#?}", gateway.stderr());
}

#[tokio::test]
async fn a_process_takes_all_descriptors_it_may_have_and_tells_if_they_are_too_few() {
    let most = getrlimit(Resource::Nofile).maximum.map_or(4000, |hard| hard.min(4000));
    let few = Rlimit { current: Some(most.min(512)), maximum: Some(most) };
    // The gateway inherits them.
    setrlimit(Resource::Nofile, few).expect("lower than before");
    let gateway = Gateway::start("routes: []\n").await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.pid())).expect("it runs");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a limit of files");
    assert_eq!(files.split_whitespace().nth(3), Some(&*most.to_string()), "{files}");
    assert_eq!(gateway.said(&format!("at most {most} files can be open")), 1, "{:#?}", gateway.stderr());
}

#[test]
fn a_busy_port_is_named_and_ends_with_3() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = busy.local_addr().expect("bound");
    let document = format!(
        "version: 1\nadmin: {{address: none}}\nlisteners: [{{name: plain, address: \"{address}\"}}]\nroutes: []\n"
    );
    let (code, said) = refused_to_start(&document);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_busy_admin_port_is_named_and_ends_with_3() {
    let busy = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = busy.local_addr().expect("bound");
    let document = format!(
        "version: 1\nadmin: {{address: \"{address}\"}}\nlisteners: [{{name: plain, address: \"127.0.0.1:0\"}}]\nroutes: []\n"
    );
    let (code, said) = refused_to_start(&document);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains(&address.to_string()) && said.contains("in use"), "{said}");
}

#[test]
fn a_document_with_problems_ends_with_1_and_names_them_all() {
    for (document, wanted) in [
        ("", &["version"][..]),
        ("version: 2\n", &["version"]),
        ("version: 1\nlisteners: [\n", &["tollhouse.yaml:"]),
        (
            "version: 1\nlistners: []\nroutes: [{name: a, upstream: b}]\n",
            &["listners", "listeners", "tollhouse.yaml:2"],
        ),
        (
            "version: 1\nroutes: [{name: a, upstream: nowhere}, {name: b, upstream: nobody}]\n",
            &["nowhere", "nobody"],
        ),
    ] {
        let (code, said) = refused_to_start(document);
        assert_eq!(code, Some(1), "{document:?}: {said}");
        for wanted in wanted {
            assert!(said.contains(wanted), "{document:?} does not name {wanted}: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}
