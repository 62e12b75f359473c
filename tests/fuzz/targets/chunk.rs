//! Chunked bodies: pieces make no difference, and a plain decoder finds the same end.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_fuzz::{read_chunks, with_cuts};

fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = with_cuts(input) else { return };
    let whole = read_chunks(bytes, &[]);
    assert_eq!(read_chunks(bytes, &cuts), whole, "in pieces");
    let Ok(Some(end)) = whole else { return };
    assert!(bytes[..end].ends_with(b"\r\n\r\n"));
    assert_eq!(read_chunks(&bytes[..end], &[]), Ok(Some(end)), "what follows does not count");
    assert_eq!(read_chunks(&bytes[..end - 1], &[]), Ok(None), "not whole before its last byte");
    assert_eq!(plainly(bytes), Some(end));
});

/// Where a body ends, line by line (RFC 9112 s7.1.3).
fn plainly(bytes: &[u8]) -> Option<usize> {
    let line = |at: usize| Some(at + bytes[at..].windows(2).position(|two| two == b"\r\n")?);
    let mut at = 0;
    loop {
        let end = line(at)?;
        let text = std::str::from_utf8(bytes[at..end].split(|byte| *byte == b';').next()?).ok()?;
        let size = usize::from_str_radix(text, 16).ok()?;
        let (status, oracle) = match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Complete(found)) => found,
            _ => panic!("httparse does not read {:?}", &bytes[at..end]),
        };
        assert_eq!((at + status, oracle), (end + 2, size as u64));
        at = end + 2;
        if size == 0 {
            break;
        }
        at += size + 2;
    }
    loop {
        let end = line(at)?;
        if end == at {
            return Some(end + 2);
        }
        at = end + 2;
    }
}
