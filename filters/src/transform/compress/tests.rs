//! What `compress` does with messages.

use super::*;
use crate::coding::decode::{Coding, Decoder, Limits};
use crate::registry::Registry;
use crate::testing::{Answer, Chain, Request, chain, chain_of, get, refused, send};

const JSON: (&str, &str) = ("content-type", "application/json");

async fn answer(request: Request, status: u16, fields: &[(&'static str, &str)]) -> Answer {
    let mut sent = chain("- compress: {}").send(request).await.continues();
    sent.answered(status, fields).await
}

fn gzip(method: &str) -> Request {
    send(method, "/").header("accept-encoding", "gzip")
}

async fn is_left(request: Request, status: u16, fields: &[(&'static str, &str)]) -> Answer {
    answer(request, status, fields).await.no_header("content-encoding")
}

/// `compress` with memory for one answer of Brotli and one of gzip.
struct Tight;

impl Filter for Tight {
    const NAME: &'static str = Compress::NAME;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let brotli = Effort::new(Algorithm::Br, 4, None).memory();
        Compress::within(Arc::new(Budget::new(2 * brotli)), options, build)
    }
}

fn tight(filters: &str) -> Chain {
    chain_of(&Registry::default().with::<Tight>(), filters).expect("builds")
}

fn decoded(coding: &str, pieces: &[Bytes]) -> Vec<u8> {
    let coding = Coding::named(coding).expect("a coding");
    let mut decoder = Decoder::new(&[coding], Limits { size: 1 << 30, ratio: u32::MAX }).expect("memory");
    let out = pieces.iter().flat_map(|piece| decoder.piece(piece).expect("decodes").to_vec()).collect();
    assert_eq!(decoder.finish(), Ok(()));
    out
}

#[tokio::test]
async fn the_head_of_an_encoded_answer_says_so_and_nothing_about_other_bytes() {
    let fields = [
        JSON,
        ("content-length", "5000"),
        ("etag", "\"abc\""),
        ("accept-ranges", "bytes"),
        ("vary", "Origin"),
        ("content-md5", "Q2hlY2sgSW50ZWdyaXR5IQ=="),
        ("repr-digest", "sha-256=:AEGPTgUMw5e96wxZuDtpfm23RBU3nFwtgY5fw4NYORo=:"),
    ];
    let answer = answer(gzip("GET"), 200, &fields).await;
    let answer = answer.header("content-encoding", "gzip").header("vary", "Origin, Accept-Encoding");
    let answer = answer.header("etag", "W/\"abc\"").no_header("content-length").no_header("accept-ranges");
    answer.no_header("content-md5").no_header("repr-digest").header("content-type", "application/json");
}

#[tokio::test]
async fn the_body_comes_back_piece_by_piece() {
    for coding in ["zstd", "br", "gzip"] {
        let request = get("/").header("accept-encoding", coding);
        let mut sent = chain("- compress: {}").send(request).await;
        sent.answered(200, &[JSON]).await.header("content-encoding", coding);
        let mut pieces = vec![sent.response_piece(b"{\"a\": ", false), sent.response_piece(b"", false)];
        assert!(
            !pieces[0].is_empty() && pieces[1].is_empty(),
            "a piece is sent on, and nothing made of none"
        );
        pieces.push(sent.response_piece(b"1}", false));
        pieces.push(sent.response_piece(b"", true));
        assert_eq!(decoded(coding, &pieces), b"{\"a\": 1}", "{coding}");
    }
}

#[tokio::test]
async fn an_empty_body_of_unknown_length_is_encoded_too() {
    let mut sent = chain("- compress: {}").send(gzip("GET")).await;
    sent.answered(200, &[JSON]).await.header("content-encoding", "gzip");
    let end = sent.response_piece(b"", true);
    assert_eq!(decoded("gzip", &[end]), b"");
}

#[tokio::test]
async fn a_client_that_accepts_no_coding_gets_none_but_caches_are_told() {
    is_left(get("/"), 200, &[JSON, ("etag", "\"a\"")])
        .await
        .header("vary", "Accept-Encoding")
        .header("etag", "\"a\"");
    let request = get("/").header("accept-encoding", "identity, gzip;q=0.5");
    is_left(request, 200, &[JSON]).await.header("vary", "Accept-Encoding");
    let small = [JSON, ("content-length", "1023"), ("vary", "accept-ENCODING")];
    is_left(gzip("GET"), 200, &small)
        .await
        .header("vary", "accept-ENCODING")
        .header("content-length", "1023");
    is_left(gzip("GET"), 200, &[JSON, ("content-length", "5"), ("vary", "*")]).await.header("vary", "*");
}

#[tokio::test]
async fn the_smallest_size_counts_unless_the_client_refuses_what_is_not_encoded() {
    let size = |length: &'static str| [JSON, ("content-length", length)];
    is_left(gzip("GET"), 200, &size("1023")).await;
    answer(gzip("GET"), 200, &size("1024")).await.header("content-encoding", "gzip");
    let request = get("/").header("accept-encoding", "gzip, identity;q=0");
    answer(request, 200, &size("10")).await.header("content-encoding", "gzip");
}

#[tokio::test]
async fn streams_of_messages_and_other_types_are_left() {
    for content_type in ["text/event-stream", "application/grpc", "application/grpc-web+proto", "image/png"] {
        is_left(gzip("GET"), 200, &[("content-type", content_type)]).await.no_header("vary");
    }
    is_left(gzip("GET"), 200, &[]).await.no_header("vary");
    is_left(gzip("GET"), 101, &[JSON]).await.no_header("vary");
}

#[tokio::test]
async fn encoded_partial_and_empty_answers_are_left() {
    is_left(gzip("GET"), 204, &[JSON]).await;
    let part = [JSON, ("content-range", "bytes 0-9/10000"), ("etag", "\"a\"")];
    // RFC 9110 s15.3.7: a 206 varies as the 200 does.
    is_left(gzip("GET"), 206, &part).await.header("vary", "Accept-Encoding").header("etag", "\"a\"");
    let coded =
        answer(gzip("GET"), 200, &[JSON, ("content-encoding", "br"), ("content-length", "9000")]).await;
    coded.header("content-encoding", "br").header("content-length", "9000").no_header("vary");
}

#[tokio::test]
async fn no_transform_of_either_side_is_heeded() {
    // RFC 9111 s5.2.2.6 and s5.2.1.6.
    is_left(gzip("GET"), 200, &[JSON, ("cache-control", "max-age=5, No-Transform")]).await.no_header("vary");
    // RFC 9110 s12.5.5: for others it would be another.
    let asked = gzip("GET").header("cache-control", "no-transform");
    is_left(asked, 200, &[JSON]).await.header("vary", "Accept-Encoding");
    answer(gzip("GET"), 200, &[JSON, ("cache-control", "no-store")]).await.header("content-encoding", "gzip");
}

#[tokio::test]
async fn an_http_1_0_client_gets_what_it_can_tell_the_end_of() {
    let request = gzip("GET").head(|head| head.set_version(Version::HTTP_10));
    is_left(request, 200, &[JSON]).await.header("vary", "Accept-Encoding");
}

#[tokio::test]
async fn head_says_what_get_would_have_said_and_has_no_body() {
    let mut sent = chain("- compress: {}").send(gzip("HEAD")).await;
    let head = sent.answered(200, &[JSON, ("content-length", "5000"), ("etag", "\"a\"")]).await;
    head.header("content-encoding", "gzip").header("etag", "W/\"a\"").no_header("content-length");
    assert_eq!(sent.response_piece(b"", true), Bytes::new());
}

#[tokio::test]
async fn a_304_confirms_the_tag_that_the_client_knows() {
    // RFC 9110 s13.1.2: the origin compares weakly; RFC 9111 s4.3.4: caches compare strongly.
    let request = || gzip("GET").header("if-none-match", "\"x\", W/\"abc\"");
    let answer = is_left(request(), 304, &[("etag", "\"abc\"")]).await;
    answer.header("etag", "W/\"abc\"").header("vary", "Accept-Encoding");
    let other = is_left(request(), 304, &[("etag", "\"x\"")]).await;
    other.header("etag", "\"x\"").header("vary", "Accept-Encoding");
}

#[tokio::test]
async fn a_304_varies_as_the_200_would() {
    // RFC 9110 s15.4.5; what it says takes the place of what caches hold (RFC 9111 s3.2).
    let date = ("last-modified", "Tue, 01 Dec 2026 00:00:00 GMT");
    for known in [("etag", "W/\"v\""), ("etag", "\"v\""), date] {
        for request in [gzip("GET"), gzip("HEAD"), get("/")] {
            let answer = is_left(request, 304, &[known, ("vary", "Origin")]).await;
            answer.header("vary", "Origin, Accept-Encoding").header(known.0, known.1);
        }
    }
    // What is told of the 200 shows that it would not vary.
    let forbidden = ("cache-control", "no-transform");
    for told in [("content-type", "image/png"), ("content-encoding", "br"), forbidden] {
        answer(gzip("GET"), 304, &[told]).await.no_header("vary");
    }
    answer(gzip("GET"), 304, &[JSON]).await.header("vary", "Accept-Encoding");
}

#[tokio::test]
async fn a_304_tells_no_length_or_digest_of_other_bytes() {
    // RFC 9110 s8.6: a length only if it is that of the 200.
    let digest = ("repr-digest", "sha-256=:AEGPTgUMw5e96wxZuDtpfm23RBU3nFwtgY5fw4NYORo=:");
    let fields = [("etag", "\"abc\""), ("content-length", "5000"), digest];
    let answer = answer(gzip("GET").header("if-none-match", "W/\"abc\""), 304, &fields).await;
    answer.header("etag", "W/\"abc\"").no_header("content-length").no_header("repr-digest");
}

#[tokio::test]
async fn a_second_answer_does_not_continue_the_first_one() {
    let mut sent = chain("- compress: {}").send(gzip("GET")).await;
    sent.answered(200, &[JSON]).await.header("content-encoding", "gzip");
    sent.answered(502, &[JSON, ("content-length", "7")]).await.no_header("content-encoding");
    assert_eq!(&sent.response_piece(b"problem", true)[..], b"problem");
}

#[tokio::test]
async fn without_memory_answers_take_a_cheaper_coding_and_then_none() {
    let chain = tight("- compress: {algorithms: [br, gzip]}");
    let request = || get("/").header("accept-encoding", "br, gzip, identity;q=0");
    let mut under_way = Vec::new();
    for coding in ["br", "gzip", "gzip", "gzip", "gzip", "gzip"] {
        let mut sent = chain.send(request()).await;
        sent.answered(200, &[JSON]).await.header("content-encoding", coding);
        let begin = sent.response_piece(b"begin", false);
        under_way.push((coding, sent, begin));
    }
    let mut refused = chain.send(request()).await;
    let plain = refused.answered(200, &[JSON, ("etag", "\"a\"")]).await;
    plain.no_header("content-encoding").header("vary", "Accept-Encoding").header("etag", "\"a\"");
    assert_eq!(&refused.response_piece(b"plain", true)[..], b"plain");
    for (coding, mut sent, begin) in under_way {
        let end = sent.response_piece(b" end", true);
        assert_eq!(decoded(coding, &[begin, end]), b"begin end");
    }
    let mut later = chain.send(request()).await;
    later.answered(200, &[JSON]).await.header("content-encoding", "br");
}

#[tokio::test]
async fn without_memory_nobody_gets_a_coding_that_he_does_not_accept() {
    let chain = tight("- compress: {algorithms: [br, gzip]}");
    let mut first = chain.send(get("/").header("accept-encoding", "br")).await;
    first.answered(200, &[JSON]).await.header("content-encoding", "br");
    // Brotli of a lower level.
    let mut second = chain.send(get("/").header("accept-encoding", "br, gzip;q=0")).await;
    second.answered(200, &[JSON]).await.header("content-encoding", "br");
}

#[test]
fn options_that_make_no_sense_are_refused_at_their_place() {
    assert!(refused("- compress: {algorithms: []}").contains("none is offered"));
    assert!(refused("- compress: {algorithms: [gzip, br, gzip]}").contains("twice"));
    assert!(refused("- compress: {algorithms: [deflate]}").starts_with("algorithms[0]"));
    assert!(refused("- compress: {level: {br: 7}}").starts_with("level.br: expected a level from 1 to 6"));
    assert!(refused("- compress: {types: [text/html, image/png]}").starts_with("types[1]: this type"));
}
