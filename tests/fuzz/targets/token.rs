//! Tokens whose signature holds: whatever their header and claims are, what passes has not ended and is for us.

#![no_main]

use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use tollhouse_filters::identity::{Identities, Presented};
use tollhouse_fuzz::identity::{NOW, SECRET, check, identities};

static IDENTITIES: LazyLock<Identities> = LazyLock::new(identities);

fuzz_target!(|input: &[u8]| {
    // As they come, and signed: the header up to the first NUL, then claims.
    let raw = [b"Bearer ", input].concat();
    let presented = check(&IDENTITIES, "token", &[("authorization", &raw)]);
    assert!(!matches!(presented, Some(Presented::Valid(_) | Presented::Unknown(_))));
    let Some(at) = input.iter().position(|byte| *byte == 0) else { return };
    let (header, claims) = (&input[..at], &input[at + 1..]);
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signed");
    let value = format!("Bearer {message}.{signature}");
    match check(&IDENTITIES, "token", &[("authorization", value.as_bytes())]) {
        Some(Presented::Valid(verified)) => {
            let claims = &verified.principal.claims;
            let end = claims["exp"].as_f64().expect("a number");
            // Clocks may differ by half a minute.
            assert!(end > NOW as f64 - 31.0 && claims["iss"] == "joe");
            assert!(
                claims["aud"] == "api"
                    || claims["aud"].as_array().is_some_and(|all| all.contains(&"api".into()))
            );
            let header: serde_json::Value = serde_json::from_slice(header).expect("JSON");
            assert!(header["alg"] == "HS256" && header.get("crit").is_none() && header.get("b64").is_none());
        }
        Some(Presented::Refused(_)) => {}
        other => panic!("{other:?}"),
    }
});
