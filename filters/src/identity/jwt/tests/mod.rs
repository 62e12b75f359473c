//! Tokens of the RFCs, and every attack on tokens that is known.

mod attacks;
mod fetched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use futures_util::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

use crate::identity::consumers::Consumers;
use crate::identity::{ConsumerSpec, Identities, IdentitySpec, Presented, Site, build, index, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Slow, request, yaml};
use crate::values::Name;
use crate::world::World;

/// RFC 7515 A.1: HS256.
const A1: &str = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
    dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
const A1_KEY: &str =
    "{kty: oct, k: AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow}";
/// RFC 7515 A.2: RS256.
const A2: &str = "eyJhbGciOiJSUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
    cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdb\
    F9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383\
    LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWy\
    wlVmtVrBp0igcN_IoypGlUPQGe77Rw";
const A2_KEY: &str = "{kty: RSA, e: AQAB, n: ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ}";
/// RFC 7515 A.3: ES256.
const A3: &str = "eyJhbGciOiJFUzI1NiJ9.\
    eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.\
    DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
const A3_KEY: &str = "{kty: EC, crv: P-256, x: f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU, y: x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0}";

const SECRET: &str = "a secret of thirty-two bytes, or so";
/// 2026-01-01T00:00:00Z.
const NOW: u64 = 1_767_225_600;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn built(options: &str) -> Result<Identities, String> {
    let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!("{{corp: {{type: jwt, {options}}}}}"));
    let consumers: Vec<ConsumerSpec> = yaml(
        "[{name: acme, match: [{identity: corp, claim: azp, value: acme-app}, {identity: corp, claim: n, value: '5'}]},
          {name: other, match: [{identity: corp, claim: tenant, value: other}]}]",
    );
    let layout = layout(&identities, &Plans::default());
    let (index, mut errors) = index(&layout, consumers);
    let world = World::dry();
    let site = Site { world: &world, surroundings: &Alone };
    let (built, wrong) = build(&identities, &Arc::new(Consumers::new(layout, index)), &site);
    errors.extend(wrong);
    match errors.first() {
        Some(error) => Err(format!("{}: {}", error.path, error.message)),
        None => Ok(built),
    }
}

/// The subject and the consumer of who sends these fields, or why it is refused.
fn ask(options: &str, fields: &[(&'static str, &str)], now: u64) -> Result<(String, String), String> {
    let identities = built(options).unwrap_or_else(|error| panic!("{error}"));
    let (mut request, ctx) = request("GET", "/");
    for (name, value) in fields {
        request.append_header(*name, *value).expect("a valid field");
    }
    let checked = identities.get("corp").expect("an identity").check(&request, &ctx, at(now)).now_or_never();
    match checked.expect("nothing to wait for") {
        Presented::Unknown(why) => Err(why.reason.into_owned()),
        Presented::Nothing => Err("nothing".to_owned()),
        Presented::Refused(refusal) => Err(refusal.reason.to_owned()),
        Presented::Valid(verified) => {
            let consumer = verified.consumer.map(|consumer| consumer.name.to_string());
            Ok((verified.principal.subject.clone(), consumer.unwrap_or_default()))
        }
    }
}

fn check(options: &str, token: &str, now: u64) -> Result<(String, String), String> {
    ask(options, &[("authorization", &format!("Bearer {token}"))], now)
}

fn reason(options: &str, token: &str) -> String {
    check(options, token, NOW).expect_err("refused")
}

fn part(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

/// A token with this header and these claims as they are, signed with HMAC-SHA-256.
fn signed(header: &Value, claims: &str, secret: &[u8]) -> String {
    let message = format!("{}.{}", part(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = crypto::sign(message.as_bytes(), &EncodingKey::from_secret(secret), Algorithm::HS256);
    format!("{message}.{}", signature.expect("signed"))
}

fn hs256(claims: &Value) -> String {
    signed(&json!({"alg": "HS256"}), &claims.to_string(), SECRET.as_bytes())
}

fn with(rest: &str) -> String {
    format!("algorithms: [HS256], secret: '{SECRET}'{rest}")
}

fn set(algorithm: &str, key: &str) -> String {
    format!("algorithms: [{algorithm}], jwks: {{keys: [{key}]}}")
}

#[test]
fn the_examples_of_rfc_7515_hold_until_their_end() {
    for (algorithm, key, token) in [("HS256", A1_KEY, A1), ("RS256", A2_KEY, A2), ("ES256", A3_KEY, A3)] {
        let options = format!("{}, issuer: joe, leeway: 0s", set(algorithm, key));
        assert!(check(&options, token, 1_300_819_379).is_ok(), "{algorithm}");
        assert_eq!(check(&options, token, 1_300_819_380), Err("the token has expired".to_owned()));
        let mut broken = token.to_owned();
        let byte = if broken.pop() == Some('Q') { 'g' } else { 'A' };
        broken.push(byte);
        assert!(check(&options, &broken, 1_300_819_379).is_err(), "{algorithm}");
    }
}

#[test]
fn the_key_of_rfc_8037_verifies_its_example() {
    // A.4: its payload is no JSON, so that it fails after its signature.
    let token = "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.\
        hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg";
    let options = set("EdDSA", "{kty: OKP, crv: Ed25519, x: 11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo}");
    assert_eq!(reason(&options, token), "the token is malformed");
    let broken = token.replace("hgyY", "hgyZ");
    assert_eq!(reason(&options, &broken), "the signature of the token is wrong");
}

#[test]
fn a_token_without_signature_is_refused() {
    let claims = json!({"exp": NOW + 60}).to_string();
    for name in ["none", "None", "NONE", "nOnE", ""] {
        let token = format!("{}.{}.", part(&json!({"alg": name})), URL_SAFE_NO_PAD.encode(&claims));
        assert_eq!(reason(&with(""), &token), "the algorithm of the token is not allowed");
    }
    let (message, _) = A2.rsplit_once('.').expect("a signature");
    assert_eq!(reason(&set("RS256", A2_KEY), &format!("{message}.")), "the signature of the token is wrong");
    let token = format!("{}.{}.", part(&json!({"typ": "JWT"})), URL_SAFE_NO_PAD.encode(&claims));
    assert_eq!(reason(&with(""), &token), "the token is malformed");
}

/// RFC 8725 s2.1: a public key is no secret of HMAC.
#[test]
fn a_public_key_verifies_no_hmac() {
    let claims = json!({"exp": NOW + 60}).to_string();
    let n = A2_KEY.rsplit("n: ").next().expect("a modulus").trim_end_matches('}');
    let modulus = URL_SAFE_NO_PAD.decode(n).expect("base64url");
    for secret in [modulus.as_slice(), n.as_bytes(), A2_KEY.as_bytes()] {
        let token = signed(&json!({"alg": "HS256"}), &claims, secret);
        assert_eq!(reason(&set("RS256", A2_KEY), &token), "the algorithm of the token is not allowed");
        let token = signed(&json!({"alg": "RS256"}), &claims, secret);
        assert_eq!(reason(&set("RS256", A2_KEY), &token), "the signature of the token is wrong");
        // Nor where both kinds are allowed, each with its own key.
        let both = set("RS256, HS256", &format!("{A2_KEY}, {A1_KEY}"));
        let token = signed(&json!({"alg": "HS256"}), &claims, secret);
        assert_eq!(reason(&both, &token), "the signature of the token is wrong");
    }
    assert!(built(&format!("algorithms: [HS256], jwks: {{keys: [{A2_KEY}]}}")).is_err());
}

/// RFC 8725 s3.10, and keys that a token brings along (RFC 7515 s4.1.2 to s4.1.5).
#[test]
fn keys_that_a_token_brings_are_not_looked_at() {
    let own = b"an attacker's own secret, long enough";
    for header in [
        json!({"alg": "HS256", "jwk": {"kty": "oct", "k": URL_SAFE_NO_PAD.encode(own)}}),
        json!({"alg": "HS256", "jku": "https://evil.example/jwks.json"}),
        json!({"alg": "HS256", "x5u": "https://evil.example/cert.pem"}),
        json!({"alg": "HS256", "x5c": [URL_SAFE_NO_PAD.encode(own)]}),
        json!({"alg": "HS256", "kid": "../../../../dev/null"}),
        json!({"alg": "HS256", "kid": "' UNION SELECT 'secret"}),
    ] {
        let token = signed(&header, &json!({"exp": NOW + 60}).to_string(), own);
        assert_eq!(reason(&with(""), &token), "the signature of the token is wrong", "{header}");
        let token = signed(&header, &json!({"exp": NOW + 60}).to_string(), b"");
        assert_eq!(reason(&with(""), &token), "the signature of the token is wrong", "{header}");
    }
}

#[test]
fn extensions_that_must_be_understood_are_refused() {
    for header in [
        json!({"alg": "HS256", "crit": ["exp"], "exp": 1}),
        json!({"alg": "HS256", "crit": []}),
        json!({"alg": "HS256", "b64": false, "crit": ["b64"]}),
        json!({"alg": "HS256", "b64": false}),
    ] {
        let token = signed(&header, &json!({"exp": NOW + 60}).to_string(), SECRET.as_bytes());
        assert_eq!(reason(&with(""), &token), "the token needs an extension that is not supported");
    }
}

/// CVE-2022-21449: r = s = 0 is a signature of everything.
#[test]
fn psychic_signatures_are_refused() {
    let claims = json!({"exp": NOW + 60, "sub": "root"});
    let order = "FFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551";
    let order: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&order[at * 2..at * 2 + 2], 16).expect("digits")).collect();
    let mut one = [0; 32];
    one[31] = 1;
    let zero = [0; 32];
    let halves = [&zero[..], &one[..], &order[..]];
    for r in halves {
        for s in halves {
            let signature = URL_SAFE_NO_PAD.encode([r, s].concat());
            let token = format!("{}.{}.{signature}", part(&json!({"alg": "ES256"})), part(&claims));
            assert_eq!(reason(&set("ES256", A3_KEY), &token), "the signature of the token is wrong");
        }
    }
    // The same signature in DER (RFC 7518 s3.4 has r and s side by side).
    for signature in [&[0x30, 6, 2, 1, 0, 2, 1, 0][..], &[0; 63], &[0; 65], &[]] {
        let signature = URL_SAFE_NO_PAD.encode(signature);
        let token = format!("{}.{}.{signature}", part(&json!({"alg": "ES256"})), part(&claims));
        assert_eq!(reason(&set("ES256", A3_KEY), &token), "the signature of the token is wrong");
    }
}

#[test]
fn names_that_stand_twice_are_refused() {
    for claims in [
        format!("{{\"exp\":{0},\"sub\":\"eve\",\"sub\":\"root\"}}", NOW + 60),
        format!("{{\"exp\":{0},\"exp\":{0}}}", NOW + 60),
        format!("{{\"exp\":{0},\"a\":{{\"b\":1,\"b\":2}}}}", NOW + 60),
        format!("{{\"exp\":{0},\"s\\u0075b\":\"eve\",\"sub\":\"root\"}}", NOW + 60),
    ] {
        let token = signed(&json!({"alg": "HS256"}), &claims, SECRET.as_bytes());
        assert_eq!(reason(&with(""), &token), "the token is malformed", "{claims}");
    }
    let header = URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\",\"alg\":\"none\"}");
    let token = format!("{header}.{}.", part(&json!({"exp": NOW + 60})));
    assert_eq!(reason(&with(""), &token), "the token is malformed");
}

#[test]
fn what_is_no_token_is_refused() {
    let good = hs256(&json!({"exp": NOW + 60}));
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    for token in [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "e30.e30.",
        &format!("{good}.x.y"),
        &format!("{good}="),
        &format!("{message}=.{signature}"),
        &format!(" {message}.{signature}x"),
        &good.replace('.', " ."),
        &good.replacen('.', "", 1),
    ] {
        check(&with(""), token, NOW).expect_err(token);
    }
    let long = hs256(&json!({"exp": NOW + 60, "pad": "x".repeat(16 * 1024)}));
    assert_eq!(reason(&with(""), &long), "the token is larger than 16 KiB");
    let deep = format!("{{\"exp\":{},\"a\":{}1{}}}", NOW + 60, "[".repeat(2000), "]".repeat(2000));
    let token = signed(&json!({"alg": "HS256"}), &deep, SECRET.as_bytes());
    assert_eq!(reason(&with(""), &token), "the token is malformed");
    for claims in ["[]", "1", "null", "\"a\""] {
        let token = signed(&json!({"alg": "HS256"}), claims, SECRET.as_bytes());
        assert_eq!(reason(&with(""), &token), "the token is malformed");
    }
}

/// RFC 7519 s4.1.
#[test]
fn registered_claims_are_checked() {
    let rules = with(", issuer: joe, audiences: [api, web], leeway: 10s, required_claims: [azp]");
    let good = json!({"iss": "joe", "aud": "api", "exp": NOW + 60, "azp": "x", "sub": "alice"});
    assert_eq!(check(&rules, &hs256(&good), NOW), Ok(("alice".to_owned(), String::new())));
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => drop(claims.as_object_mut().expect("a map").remove(name)),
            value => claims[name] = value,
        }
        check(&rules, &hs256(&claims), NOW).map_or_else(|reason| reason, |_| "holds".to_owned())
    };
    for (name, value, told) in [
        ("exp", json!(NOW - 9), "holds"),
        ("exp", json!(NOW - 10), "the token has expired"),
        ("exp", json!(NOW as f64 + 0.5), "holds"),
        ("exp", Value::Null, "the token has no end (exp)"),
        ("exp", json!((NOW + 60).to_string()), "a registered claim of the token has the wrong type"),
        ("exp", json!([NOW + 60]), "a registered claim of the token has the wrong type"),
        ("exp", json!(-1), "the token has expired"),
        ("nbf", json!(NOW + 10), "holds"),
        ("nbf", json!(NOW + 11), "the token is not valid yet"),
        ("nbf", json!("0"), "a registered claim of the token has the wrong type"),
        ("iat", json!("0"), "a registered claim of the token has the wrong type"),
        ("iss", json!("eve"), "the token is from another issuer"),
        ("iss", json!("Joe"), "the token is from another issuer"),
        ("iss", json!(["joe"]), "a registered claim of the token has the wrong type"),
        ("iss", Value::Null, "the token is from another issuer"),
        ("aud", json!(["x", "web"]), "holds"),
        ("aud", json!("x"), "the token is for another audience"),
        ("aud", json!([]), "the token is for another audience"),
        ("aud", json!({"api": 1}), "a registered claim of the token has the wrong type"),
        ("aud", json!(["api", 1]), "a registered claim of the token has the wrong type"),
        ("aud", Value::Null, "the token is for another audience"),
        ("sub", json!(7), "a registered claim of the token has the wrong type"),
        ("azp", Value::Null, "the token lacks a required claim"),
    ] {
        assert_eq!(changed(name, value.clone()), told, "{name}: {value}");
    }
    let for_somebody = hs256(&json!({"exp": NOW + 60, "aud": "api"}));
    assert_eq!(reason(&with(""), &for_somebody), "the token is for another audience");
}

#[test]
fn a_consumer_is_known_by_a_claim() {
    let consumer = |claims: Value| check(&with(""), &hs256(&claims), NOW).map(|(_, consumer)| consumer);
    let exp = NOW + 60;
    assert_eq!(consumer(json!({"exp": exp, "azp": "acme-app"})), Ok("acme".to_owned()));
    assert_eq!(consumer(json!({"exp": exp, "n": 5})), Ok("acme".to_owned()));
    assert_eq!(consumer(json!({"exp": exp, "n": 5, "azp": "acme-app"})), Ok("acme".to_owned()));
    for claims in [
        json!({"exp": exp, "azp": "Acme-app"}),
        json!({"exp": exp, "azp": ["acme-app"]}),
        json!({"exp": exp, "sub": "acme-app"}),
        json!({"exp": exp, "n": 5.5}),
    ] {
        assert_eq!(consumer(claims), Ok(String::new()));
    }
    let both = json!({"exp": exp, "azp": "acme-app", "tenant": "other"});
    assert_eq!(consumer(both), Err("the claims of the token name several consumers".to_owned()));
}

#[test]
fn a_token_names_its_key() {
    let key =
        |id: &str, secret: &[u8]| format!("{{kty: oct, kid: {id}, k: '{}'}}", URL_SAFE_NO_PAD.encode(secret));
    let (old, new) = (b"the old secret of thirty-two bytes", b"the new secret of thirty-two bytes");
    let options = set("HS256", &format!("{}, {}", key("old", old), key("new", new)));
    let token = |id: Value, secret: &[u8]| {
        let header = if id.is_null() { json!({"alg": "HS256"}) } else { json!({"alg": "HS256", "kid": id}) };
        signed(&header, &json!({"exp": NOW + 60}).to_string(), secret)
    };
    for (id, secret) in [(json!("old"), old), (json!("new"), new), (Value::Null, old), (Value::Null, new)] {
        assert!(check(&options, &token(id, secret), NOW).is_ok());
    }
    assert_eq!(reason(&options, &token(json!("old"), new)), "the signature of the token is wrong");
    assert_eq!(reason(&options, &token(json!("x"), new)), "no key is known that could verify the token");
    assert_eq!(reason(&options, &token(json!(1), new)), "the token is malformed");
}

/// RFC 6750 s2.1, s3.1.
#[test]
fn a_request_has_one_token() {
    let token = hs256(&json!({"exp": NOW + 60}));
    let asked = |lines: &[&str]| {
        let fields: Vec<_> = lines.iter().map(|line| ("authorization", *line)).collect();
        ask(&with(""), &fields, NOW).map_or_else(|reason| reason, |_| "holds".to_owned())
    };
    for scheme in ["Bearer", "bearer", "BEARER"] {
        assert_eq!(asked(&[&format!("{scheme} {token}")]), "holds");
        assert_eq!(asked(&[&format!("{scheme}   {token} ")]), "holds");
    }
    for other in ["Basic YTpi", &token, "Bearerx", "Bear", ""] {
        assert_eq!(asked(&[other]), "nothing", "{other}");
    }
    assert_eq!(asked(&["Bearer"]), "the token is malformed");
    assert_eq!(asked(&["Basic YTpi", &format!("Bearer {token}")]), "holds");
    let twice = format!("Bearer {token}");
    assert_eq!(asked(&[&twice, &twice]), "the request has several tokens");
}

#[test]
fn keys_that_cannot_work_are_refused() {
    let pem = "public_key: \"-----BEGIN CERTIFICATE-----\"";
    for (options, told) in [
        ("algorithms: [RS256]", "needs one of `secret`, `public_key`, `jwks` and `jwks_uri`"),
        ("algorithms: [HS256], secret: short", "secret: HS256 needs a secret of at least 32 bytes"),
        (&format!("algorithms: [RS256], {pem}"), "public_key: expected a public key in PEM"),
        ("algorithms: [RS256], public_key: corp.pem", "public_key: expected a public key in PEM"),
        ("algorithms: [RS256], jwks: {keys: []}", "jwks: holds no key"),
        ("algorithms: [RS256], jwks: corp.json", "jwks: expected a set of keys"),
        (
            "algorithms: [RS256], jwks: {keys: [{kty: RSA, n: AQAB, e: AQAB}]}",
            "jwks: key 1: an RSA key has 2048",
        ),
        (
            "algorithms: [ES256], jwks: {keys: [{kty: EC, crv: P-256, x: AQAB, y: AQAB}]}",
            "jwks: key 1: a coordinate",
        ),
        (
            "algorithms: [EdDSA], jwks: {keys: [{kty: OKP, crv: Ed25519, x: AQAB, d: AQAB}]}",
            "jwks: key 1: holds a private",
        ),
        (&set("RS256, ES256", A2_KEY), "algorithms[1]: no key here can verify `ES256`"),
        (&set("RS256", &A2_KEY.replace("kty", "use: enc, kty")), "jwks: holds no key"),
        (&set("RS256", &A2_KEY.replace("kty", "alg: PS256, kty")), "algorithms[0]: no key here can verify"),
        (&with(", from: []"), "from: no token could ever be found"),
        ("algorithms: [], secret: x", "algorithms: expected at least one"),
        ("algorithms: [none], secret: x", "algorithms[0]: expected one of `RS256`"),
    ] {
        let error = built(options).err().unwrap_or_else(|| panic!("{options}"));
        let wanted = match told.split_once(": ") {
            Some((path, message)) => format!("identities.corp.{path}: {message}"),
            None => format!("identities.corp: {told}"),
        };
        assert!(error.starts_with(&wanted), "{error}");
    }
}

/// The value of a member of a key, such as `x`.
fn member(key: &str, name: &str) -> Vec<u8> {
    let (_, rest) = key.split_once(&format!(" {name}: ")).expect("a member");
    URL_SAFE_NO_PAD.decode(rest.split([',', '}']).next().expect("a value")).expect("base64url")
}

fn pem(label: &str, parts: &[&[u8]]) -> String {
    format!("-----BEGIN {label}-----\\n{}\\n-----END {label}-----\\n", STANDARD.encode(parts.concat()))
}

/// `SubjectPublicKeyInfo` of RFC 5480 s2, RFC 8017 A.1.1 and RFC 8410 s4, around the keys of the examples.
#[test]
fn a_key_in_pem_verifies_as_the_same_one_in_a_set() {
    let rsa = |n: &[u8]| {
        let length = u16::try_from(n.len() + 1).expect("a short key");
        let whole = (length + 4 + 5).to_be_bytes();
        [&[0x30, 0x82][..], &whole, &[2, 0x82], &length.to_be_bytes(), &[0], n, &[2, 3, 1, 0, 1]].concat()
    };
    let modulus = member(A2_KEY, "n");
    let begin =
        b"\x30\x82\x01\x22\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x82\x01\x0f\x00";
    let a2 = pem("PUBLIC KEY", &[begin, &rsa(&modulus)]);
    let bare = pem("RSA PUBLIC KEY", &[&rsa(&modulus)]);
    let begin = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00\x04";
    let a3 = pem("PUBLIC KEY", &[begin, &member(A3_KEY, "x"), &member(A3_KEY, "y")]);
    for (algorithm, pem, token) in [("RS256", &a2, A2), ("RS256", &bare, A2), ("ES256", &a3, A3)] {
        let options = format!("algorithms: [{algorithm}], public_key: \"{pem}\"");
        assert!(check(&options, token, 1_300_819_379).is_ok(), "{algorithm}");
    }
    for (algorithm, pem, told) in [
        ("ES256", &a2, "no key here can verify `ES256`"),
        ("ES384", &a3, "no key here can verify `ES384`"),
        ("HS256", &a3, "no key here can verify `HS256`"),
        ("RS256", &pem("RSA PUBLIC KEY", &[&rsa(&modulus[..128])]), "an RSA key has 2048 to 8192 bits"),
        ("RS256", &pem("PUBLIC KEY", &[b"\x30\x00"]), "is no key of RSA"),
        ("RS256", &pem("PUBLIC KEY", &[b""]), "is no key of RSA"),
        ("RS256", &pem("PUBLIC KEY", &[&[0x30; 64]]), "is no key of RSA"),
    ] {
        let options = format!("algorithms: [{algorithm}], public_key: \"{pem}\"");
        let error = built(&options).err().expect("refused");
        assert!(error.contains(told), "{error}");
    }
}
