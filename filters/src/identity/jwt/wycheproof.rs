//! Signatures of Project Wycheproof: what others got wrong.

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::keys::Keys;
use super::options::Options;
use super::token::{KeyRing, Verifier};
use crate::identity::claims::Rules;
use crate::testing::yaml;

/// Valid by the vectors, and refused here: tokens of PS384 for a key whose `alg` is PS256 (RFC 7517 s4.4), and
/// tokens with characters that are none of base64url's, which other libraries pass over (RFC 7515 s5.2).
const STRICTER: [u32; 4] = [346, 350, 372, 373];

/// Invalid by the vectors for padding that is not in them: these tokens are, to the byte, that of 357, which is valid.
const UNPADDED: [u32; 2] = [367, 370];

#[derive(Deserialize)]
struct Group {
    comment: String,
    key: Value,
    tests: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    #[serde(rename = "tcId")]
    id: u32,
    comment: String,
    jws: String,
    result: String,
}

/// Whether the signature holds, by a document that pins the key's own algorithm.
fn holds(key: &Value, algorithm: &str, token: &str) -> bool {
    let options = json!({"type": "jwt", "algorithms": [algorithm], "jwks": {"keys": [key]}}).to_string();
    let options: Options = yaml(&options);
    let Ok(keys) = Keys::written(&options) else { return false };
    let rules = Rules { issuer: None, audiences: Vec::new(), required: Vec::new(), leeway: Duration::ZERO };
    let verifier = Verifier { keys: KeyRing::Written(Arc::new(keys)), algorithms: options.algorithms, rules };
    verifier.signed(token.as_bytes()).is_ok()
}

#[test]
fn signatures_hold_where_wycheproof_says_so_and_nowhere_else() {
    let groups: Vec<Group> =
        serde_json::from_str(include_str!("vectors/json_web_signature.json")).expect("vectors");
    let (mut valid, mut invalid, mut wrong) = (0, 0, Vec::new());
    for Group { comment: group, key, tests } in &groups {
        // A key without `alg` is one for encryption; what it would sign is RS256 or ES256. P-521 is not supported.
        let algorithm = match (key["alg"].as_str(), key["kty"].as_str()) {
            (Some("ES521"), _) => continue,
            (Some(algorithm), _) => algorithm,
            (None, Some("RSA")) => "RS256",
            (None, _) => "ES256",
        };
        for Vector { id, comment, jws, result } in tests {
            let expected = (result == "valid" && !STRICTER.contains(id)) || UNPADDED.contains(id);
            *(if expected { &mut valid } else { &mut invalid }) += 1;
            if holds(key, algorithm, jws) != expected {
                wrong.push(format!("{id} {group}: {comment} is {result}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((valid, invalid), (42, 357));
}
