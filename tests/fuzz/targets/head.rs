//! Heads of requests: pieces make no difference, and what passes is to httparse the same request.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_fuzz::{Body, read_head, with_cuts};

fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = with_cuts(input) else { return };
    let whole = read_head(bytes, &[]);
    assert_eq!(read_head(bytes, &cuts), whole, "in pieces");
    let Ok(Some(head)) = &whole else { return };
    assert!(head.start <= 2 && head.end <= bytes.len());
    assert_eq!(&read_head(&bytes[..head.end], &[]), &whole, "what follows does not count");
    assert_eq!(read_head(&bytes[..head.end - 1], &[]), Ok(None), "not whole before its last byte");

    let text = &bytes[head.start..head.end];
    assert!(text.ends_with(b"\r\n\r\n") && !text.contains(&0));
    let lf = text.iter().filter(|byte| **byte == b'\n').count();
    let crlf = text.windows(2).filter(|two| two == b"\r\n").count();
    assert_eq!((lf, text.iter().filter(|byte| **byte == b'\r').count()), (crlf, crlf));

    // A later minor version is read as ours.
    let mut as_ours = text.to_vec();
    let end = text.iter().position(|byte| *byte == b'\r').expect("a line");
    if !matches!(as_ours[end - 1], b'0' | b'1') {
        as_ours[end - 1] = b'1';
    }
    let mut fields = [httparse::EMPTY_HEADER; 40];
    let mut request = httparse::Request::new(&mut fields);
    let parsed = request.parse(&as_ours);
    assert_eq!(parsed, Ok(httparse::Status::Complete(as_ours.len())));
    let named = |name: &'static str| {
        request.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name))
    };
    let (lengths, codings) = (named("content-length").count(), named("transfer-encoding").count());
    assert!(named("host").count() <= 1 && lengths + codings <= 1);
    match &head.body {
        Body::Chunked => assert_eq!((codings, request.version), (1, Some(1))),
        Body::Length(length) => {
            let said = named("content-length").next().map_or(b"0".as_slice(), |field| field.value);
            assert_eq!(std::str::from_utf8(said).expect("digits").trim().parse(), Ok(*length));
            assert_eq!(codings, 0);
        }
        Body::Open => assert!(named("upgrade").count() > 0 && codings == 0 && request.version == Some(1)),
    }
});
