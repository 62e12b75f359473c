//! Signatures of requests (RFC 9421, and the simple form): none passes that was not made with the key.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tollhouse_filters::identity::{Identities, Presented};
use tollhouse_fuzz::identity::{check, identities};

static IDENTITIES: LazyLock<Identities> = LazyLock::new(identities);
const FIELDS: [&str; 5] = ["signature-input", "signature", "content-digest", "authorization", "x-a"];

fuzz_target!(|input: &[u8]| {
    // A line for each field; the same one again for more lines.
    let lines = input.split(|byte| *byte == b'\n');
    let fields: Vec<(&'static str, &[u8])> = FIELDS.iter().copied().cycle().zip(lines).take(20).collect();
    let fields: Vec<_> = fields.into_iter().filter(|(_, value)| !value.is_empty()).collect();
    match check(&IDENTITIES, "signed", &fields) {
        None | Some(Presented::Nothing | Presented::Refused(_)) => {}
        other => panic!("{other:?}"),
    }
});
