//! The first message of a TLS handshake: pieces make no difference, and a host that it names is one that
//! requests can name.

#![no_main]

use libfuzzer_sys::fuzz_target;
use rustls::server::Acceptor;
use tollhouse_filters::host::host_of;
use tollhouse_fuzz::with_cuts;

fuzz_target!(|input: &[u8]| {
    let Some((cuts, bytes)) = with_cuts(input) else { return };
    let whole = named(bytes, &[]);
    assert_eq!(named(bytes, &cuts), whole, "in pieces");
    let Some(Some(name)) = whole else { return };
    let plain = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(host) = host_of(&name) {
        assert_eq!(host, plain);
    }
});

/// The host that a message names; none for what is no such message.
fn named(bytes: &[u8], cuts: &[usize]) -> Option<Option<String>> {
    let (mut acceptor, mut from) = (Acceptor::default(), 0);
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        let mut piece = &bytes[from..cut];
        from = cut;
        while !piece.is_empty() {
            if acceptor.read_tls(&mut piece).ok()? == 0 {
                break;
            }
            if let Some(accepted) = acceptor.accept().ok()? {
                return Some(accepted.client_hello().server_name().map(str::to_owned));
            }
        }
    }
    None
}
