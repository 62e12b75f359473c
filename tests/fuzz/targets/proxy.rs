//! Preambles of the PROXY protocol: known as soon as they are whole, and what they say can be said again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_fuzz::{Preamble, read_preamble};

fuzz_target!(|bytes: &[u8]| {
    let whole = read_preamble(bytes);
    for cut in 0..bytes.len().min(300) {
        match read_preamble(&bytes[..cut]) {
            Ok(None) => {}
            // Nothing that comes later changes it.
            known => return assert_eq!(known, whole, "after {cut} bytes"),
        }
    }
    let Ok(Some(Preamble { length, addresses })) = whole else { return };
    assert!(length <= bytes.len());
    let Some((client, local)) = addresses else { return };
    if client.is_ipv4() != local.is_ipv4() {
        return;
    }
    let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (client.ip(), local.ip());
    let line = format!("PROXY {family} {from} {to} {} {}\r\n", client.port(), local.port());
    assert_eq!(read_preamble(line.as_bytes()), Ok(Some(Preamble { length: line.len(), addresses })));
});
