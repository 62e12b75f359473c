//! What `decompress` does with messages.

use super::*;
use crate::coding::encode::{Algorithm, Encoder};
use crate::registry::Registry;
use crate::testing::{Request, Sent, chain, chain_of, refused, send};

/// `decompress` with memory for one body of Brotli and a window of 256 KiB.
struct Tight;

impl Filter for Tight {
    const NAME: &'static str = Decompress::NAME;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        Decompress::within(Arc::new(Budget::new(1000 << 10)), options, build)
    }
}

fn encoded(algorithm: Algorithm, body: &[u8]) -> Bytes {
    Encoder::new(algorithm, 3).and_then(|encoder| encoder.finish(body)).expect("encodes")
}

fn post(coding: &str) -> Request {
    send("POST", "/").header("content-encoding", coding)
}

/// Passes a body in pieces; what comes out, or the status it was answered with.
fn pass(sent: &mut Sent, body: &[u8]) -> Result<Vec<u8>, u16> {
    let mut out = Vec::new();
    for piece in body.chunks(100) {
        out.extend_from_slice(&sent.request_piece(piece, false)?);
    }
    out.extend_from_slice(&sent.request_piece(b"", true)?);
    Ok(out)
}

#[tokio::test]
async fn the_upstream_gets_a_decoded_body_and_a_head_that_fits() {
    let body = b"hello ".repeat(100);
    for (coding, algorithm) in [("gzip", Algorithm::Gzip), ("BR", Algorithm::Br), ("zstd", Algorithm::Zstd)] {
        let encoded = encoded(algorithm, &body);
        let request = post(coding).header("content-length", &encoded.len().to_string());
        let request = request.header("content-digest", "sha-256=:AA==:").header("content-type", "text/plain");
        let mut sent = chain("- decompress: {}").send(request).await.continues();
        let head = sent.attempt(1).await;
        for gone in ["content-encoding", "content-length", "content-digest"] {
            assert!(!head.headers.contains_key(gone), "{gone}");
        }
        assert_eq!(head.headers["content-type"], "text/plain");
        assert_eq!(pass(&mut sent, &encoded).as_deref(), Ok(&body[..]), "{coding}");
    }
}

#[tokio::test]
async fn the_length_of_what_is_still_to_be_read_is_not_touched() {
    let sent = chain("- decompress: {}").send(post("gzip").header("content-length", "77")).await;
    sent.continues().request_header("content-length", "77");
}

#[tokio::test]
async fn several_codings_are_undone_from_the_last_to_the_first() {
    let twice = encoded(Algorithm::Gzip, &encoded(Algorithm::Br, b"twice"));
    let mut sent =
        chain("- decompress: {}").send(post("br, identity").header("content-encoding", "gzip")).await;
    assert_eq!(pass(&mut sent, &twice).as_deref(), Ok(&b"twice"[..]));
    chain("- decompress: {}").send(post("gzip, gzip, gzip, gzip")).await.responds(415);
}

#[tokio::test]
async fn bodies_without_a_coding_pass() {
    for request in [send("POST", "/"), post("identity"), post("")] {
        let mut sent =
            chain("- decompress: {}").send(request.header("content-length", "5")).await.continues();
        assert_eq!(sent.attempt(1).await.headers["content-length"], "5");
        assert_eq!(pass(&mut sent, b"plain").as_deref(), Ok(&b"plain"[..]));
    }
    let mut sent = chain("- decompress: {}").send(post("gzip").header("content-length", "0")).await;
    assert_eq!(sent.attempt(1).await.headers["content-length"], "0");
    assert_eq!(pass(&mut sent, b"").as_deref(), Ok(&b""[..]));
}

#[tokio::test]
async fn an_unknown_coding_is_a_415_that_names_the_known_ones() {
    // RFC 9110 s15.5.16, RFC 7694 s3.
    let answer = chain("- decompress: {}").send(post("compress")).await.responds(415);
    answer.header("accept-encoding", "gzip, br, zstd, deflate");
    chain("- decompress: {}").send(post("gzip, aes128gcm")).await.responds(415);
    let sent = chain("- decompress: {unknown: pass}").send(post("compress")).await;
    sent.continues().request_header("content-encoding", "compress");
}

#[tokio::test]
async fn a_body_that_is_not_what_it_says_is_a_400() {
    let whole = encoded(Algorithm::Gzip, b"whole");
    for broken in [&b"not gzip at all"[..], &whole[..whole.len() - 1], &[&whole[..], b"more"].concat()] {
        let mut sent = chain("- decompress: {}").send(post("gzip")).await;
        assert_eq!(pass(&mut sent, broken), Err(400));
    }
}

#[tokio::test]
async fn a_bomb_is_a_413() {
    let bomb = encoded(Algorithm::Zstd, &vec![0; 10 << 20]);
    let nested = encoded(Algorithm::Gzip, &bomb);
    for options in ["{max_size: 1MiB}", "{max_size: 1GiB}"] {
        let chain = chain(&format!("- decompress: {options}"));
        assert_eq!(pass(&mut chain.send(post("zstd")).await, &bomb), Err(413), "{options}");
        assert_eq!(pass(&mut chain.send(post("zstd, gzip")).await, &nested), Err(413), "{options}");
    }
    let lax = chain("- decompress: {max_size: 10MiB, max_ratio: 100000}");
    assert_eq!(pass(&mut lax.send(post("zstd")).await, &bomb).map(|body| body.len()), Ok(10 << 20));
}

#[tokio::test]
async fn a_body_for_which_there_is_no_memory_is_a_503_until_another_one_is_through() {
    let chain = chain_of(&Registry::default().with::<Tight>(), "- decompress: {}").expect("builds");
    let body: Vec<u8> = (0..100_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    let packed = encoded(Algorithm::Br, &body);
    let (begin, end) = packed.split_at(packed.len() - 4);
    let mut first = chain.send(post("br")).await;
    let mut out = Vec::new();
    for piece in begin.chunks(100) {
        out.extend_from_slice(&first.request_piece(piece, false).expect("there is memory for one"));
    }
    assert_eq!(pass(&mut chain.send(post("br")).await, &packed), Err(503));
    out.extend_from_slice(&first.request_piece(end, true).expect("it has what it needs"));
    assert_eq!(out, body);
    assert_eq!(pass(&mut chain.send(post("br")).await, &packed), Ok(body));
}

#[tokio::test]
async fn what_the_last_piece_becomes_takes_memory_until_it_is_sent_or_answered() {
    let chain = chain_of(&Registry::default().with::<Tight>(), "- decompress: {}").expect("builds");
    let (bomb, larger) =
        (encoded(Algorithm::Gzip, &vec![0; 400 << 10]), encoded(Algorithm::Gzip, &vec![0; 900 << 10]));
    let mut first = chain.send(post("gzip")).await;
    assert_eq!(first.request_piece(&bomb, true).map(|body| body.len()), Ok(400 << 10));
    assert_eq!(chain.send(post("gzip")).await.request_piece(&bomb, true).err(), Some(503));
    drop(first);
    assert_eq!(chain.send(post("gzip")).await.request_piece(&larger, true).err(), Some(413), "it never fits");
    let mut next = chain.send(post("gzip")).await;
    assert!(next.request_piece(&bomb, true).is_ok());
    // What an attempt sent is gone with it.
    next.attempt(2).await;
    assert!(next.request_piece(&bomb, true).is_ok());
    assert_eq!(chain.send(post("gzip")).await.request_piece(&bomb, true).err(), Some(503));
    // Nor does a long answer hold on to it.
    next.answered(200, &[]).await;
    assert!(chain.send(post("gzip")).await.request_piece(&bomb, true).is_ok());
}

#[tokio::test]
async fn what_the_last_piece_becomes_takes_no_memory_where_the_answer_has_begun() {
    let chain = chain_of(&Registry::default().with::<Tight>(), "- decompress: {}").expect("builds");
    let bomb = encoded(Algorithm::Gzip, &vec![0; 400 << 10]);
    let (begin, rest) = bomb.split_at(10);
    let mut early = chain.send(post("gzip")).await;
    assert!(early.request_piece(begin, false).is_ok());
    early.answered(200, &[]).await;
    assert_eq!(early.request_piece(rest, true).map(|body| body.len()), Ok(400 << 10));
    assert!(chain.send(post("gzip")).await.request_piece(&bomb, true).is_ok());
    // Another attempt is not answered yet.
    early.attempt(2).await;
    assert!(early.request_piece(&bomb, true).is_ok());
    assert_eq!(chain.send(post("gzip")).await.request_piece(&bomb, true).err(), Some(503));
}

#[tokio::test]
async fn a_limit_after_it_counts_what_came_out() {
    let body = encoded(Algorithm::Gzip, &[b'a'; 2000]);
    let after = chain("- decompress: {}\n- body_limit: {request: 1KiB}");
    assert_eq!(pass(&mut after.send(post("gzip")).await, &body), Err(413));
    let before = chain("- body_limit: {request: 1KiB}\n- decompress: {}");
    assert_eq!(pass(&mut before.send(post("gzip")).await, &body).map(|body| body.len()), Ok(2000));
}

#[tokio::test]
async fn each_attempt_decodes_from_the_start() {
    let body = encoded(Algorithm::Br, b"again and again");
    let mut sent = chain("- decompress: {}").send(post("br")).await;
    sent.attempt(1).await;
    sent.request_piece(&body[..5], false).expect("the first attempt breaks here");
    sent.attempt(2).await;
    assert_eq!(pass(&mut sent, &body).as_deref(), Ok(&b"again and again"[..]));
}

#[test]
fn a_dry_run_is_refused_because_it_would_not_look_at_the_body() {
    assert!(!crate::builtin().get("decompress").expect("a built-in filter").decides);
}

#[test]
fn a_ratio_of_nothing_is_refused() {
    assert!(refused("- decompress: {max_ratio: 0}").starts_with("max_ratio"));
}
