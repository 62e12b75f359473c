//! What an attacker makes of headers, claims, encodings and keys.

use super::*;

/// A token with these parts, to the byte, whose signature holds.
fn raw(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("signed");
    format!("{message}.{signature}")
}

const HEADER: &[u8] = b"{\"alg\":\"HS256\"}";

#[test]
fn numbers_of_every_size_are_dates_or_refused() {
    let wrong = "a registered claim of the token has the wrong type";
    let malformed = "the token is malformed";
    for (claims, told) in [
        ("\"exp\":1e400", malformed),
        ("\"exp\":-1e400", malformed),
        ("\"exp\":NaN", malformed),
        ("\"exp\":Infinity", malformed),
        ("\"exp\":01767225700", malformed),
        ("\"exp\":0x7fffffff", malformed),
        ("\"exp\":18446744073709551615", "holds"),
        ("\"exp\":99999999999999999999999999999999999999", "holds"),
        ("\"exp\":1.7e308", "holds"),
        ("\"exp\":-99999999999999999999999999", "the token has expired"),
        ("\"exp\":-0.0", "the token has expired"),
        ("\"exp\":0", "the token has expired"),
        ("\"exp\":null", wrong),
        ("\"exp\":true", wrong),
        ("\"exp\":{}", wrong),
        ("\"exp\":\"9999999999\"", wrong),
        ("\"exp\":9999999999,\"nbf\":1e300", "the token is not valid yet"),
        ("\"exp\":9999999999,\"nbf\":-1e300", "holds"),
        ("\"exp\":9999999999,\"nbf\":null", wrong),
        ("\"exp\":9999999999,\"iat\":{}", wrong),
        ("\"exp\":9999999999,\"sub\":5", wrong),
        ("\"exp\":9999999999,\"sub\":null", wrong),
        ("\"exp\":9999999999,\"iss\":{\"a\":1}", wrong),
        ("\"exp\":9999999999,\"aud\":{\"a\":1}", wrong),
        ("\"exp\":9999999999,\"aud\":[[\"api\"]]", wrong),
        ("\"exp\":9999999999,\"aud\":null", wrong),
        ("\"exp\":9999999999,\"aud\":[]", "the token is for another audience"),
        // Names are compared to the letter.
        ("\"EXP\":9999999999", "the token has no end (exp)"),
        ("\"exp\\u0000\":9999999999", "the token has no end (exp)"),
    ] {
        let token = raw(HEADER, format!("{{{claims}}}").as_bytes());
        let found = check(&with(""), &token, NOW).map_or_else(|reason| reason, |_| "holds".to_owned());
        assert_eq!(found, told, "{claims}");
    }
}

#[test]
fn parts_are_written_in_one_way_only() {
    let good = raw(HEADER, format!("{{\"exp\":{},\"a\":\"?>\"}}", NOW + 60).as_bytes());
    assert!(check(&with(""), &good, NOW).is_ok());
    let parts: Vec<&str> = good.split('.').collect();
    for at in 0..3 {
        let other = |text: String| {
            let mut parts = parts.clone();
            parts[at] = &text;
            parts.join(".")
        };
        let part = parts[at];
        for text in [
            format!("{part}="),
            format!("{part}=="),
            format!("{part}A"),
            format!("{} {}", &part[..4], &part[4..]),
            format!("{}\t{}", &part[..4], &part[4..]),
            format!("{part}%3D"),
            part.replace('_', "/").replace('-', "+") + "/",
            String::new(),
        ] {
            check(&with(""), &other(text.clone()), NOW).expect_err(&text);
        }
    }
    // The bits that no byte is made of.
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    let (begin, last) = signature.split_at(signature.len() - 1);
    let digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let at = digits.find(last).expect("a digit");
    for other in (at / 4 * 4..at / 4 * 4 + 4).filter(|other| *other != at) {
        let digit = &digits[other..=other];
        assert!(check(&with(""), &format!("{message}.{begin}{digit}"), NOW).is_err(), "{digit}");
    }
}

#[test]
fn what_is_not_json_of_one_object_is_malformed() {
    let exp = format!("\"exp\":{}", NOW + 60);
    for claims in [
        format!("\u{feff}{{{exp}}}").as_bytes(),
        format!("{{{exp},\"a\":\"\\ud800\"}}").as_bytes(),
        format!("{{{exp},}}").as_bytes(),
        format!("{{{exp}}}{{{exp}}}").as_bytes(),
        format!("{{{exp}}} x").as_bytes(),
        format!("{{{exp}/**/}}").as_bytes(),
        format!("{{'exp':{}}}", NOW + 60).as_bytes(),
        format!("{{{exp},\"a\":\"\0\"}}").as_bytes(),
        &[format!("{{{exp},\"a\":\"").as_bytes(), b"\xff\xfe", b"\"}"].concat(),
        // A token within a token (RFC 7519 s5.2).
        hs256(&json!({"exp": NOW + 60})).as_bytes(),
        format!("\"{}\"", hs256(&json!({"exp": NOW + 60}))).as_bytes(),
        b"",
    ] {
        let told = String::from_utf8_lossy(claims).into_owned();
        assert_eq!(reason(&with(""), &raw(HEADER, claims)), "the token is malformed", "{told}");
        let token = raw(claims, format!("{{{exp}}}").as_bytes());
        assert_eq!(reason(&with(""), &token), "the token is malformed", "{told}");
    }
}

#[test]
fn headers_are_no_more_than_a_choice_among_known_keys() {
    let claims = format!("{{\"exp\":{}}}", NOW + 60);
    let holds = |header: &str| check(&with(""), &raw(header.as_bytes(), claims.as_bytes()), NOW);
    let not_allowed = Err("the algorithm of the token is not allowed".to_owned());
    for name in
        ["hs256", "HS256 ", "HS256\\u0000", "HS384", "HS1", "RS256", "dir", "A128KW", "PBES2-HS256+A128KW"]
    {
        assert_eq!(holds(&format!("{{\"alg\":\"{name}\"}}")), not_allowed, "{name}");
    }
    for header in ["{\"alg\":[\"HS256\"]}", "{\"alg\":{}}", "{\"alg\":null}", "{\"ALG\":\"HS256\"}", "{}"] {
        assert_eq!(holds(header), Err("the token is malformed".to_owned()), "{header}");
    }
    for kid in ["null", "5", "[]", "{}", "true"] {
        let header = format!("{{\"alg\":\"HS256\",\"kid\":{kid}}}");
        assert_eq!(holds(&header), Err("the token is malformed".to_owned()), "{kid}");
    }
    // Whatever a name of a key says, nothing is done with it.
    for kid in [
        "",
        "\\u0000",
        "../../etc/passwd",
        "'; DROP TABLE keys; --",
        "|id",
        "${env:SECRET}",
        "http://a.test/",
    ] {
        assert!(holds(&format!("{{\"alg\":\"HS256\",\"kid\":\"{kid}\"}}")).is_ok(), "{kid}");
    }
    for header in [
        "{\"alg\":\"HS256\",\"crit\":\"exp\"}",
        "{\"alg\":\"HS256\",\"crit\":null}",
        "{\"alg\":\"HS256\",\"b64\":true}",
    ] {
        assert!(holds(header).expect_err("refused").contains("extension"), "{header}");
    }
    // Five parts are an encrypted token (RFC 7516 s7.1).
    let good = raw(HEADER, claims.as_bytes());
    let (message, signature) = good.rsplit_once('.').expect("a signature");
    check(&with(""), &format!("{message}.{signature}.{message}"), NOW).expect_err("five parts");
}

/// RFC 7518 s3.4: r and s side by side, and nothing else.
#[test]
fn a_signature_in_der_is_none_of_es256() {
    let (message, signature) = A3.rsplit_once('.').expect("a signature");
    let sides = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let number = |side: &[u8]| match side[0] {
        0..=127 => [&[2, 32][..], side].concat(),
        _ => [&[2, 33, 0][..], side].concat(),
    };
    let numbers = [number(&sides[..32]), number(&sides[32..])].concat();
    let length = u8::try_from(numbers.len()).expect("short");
    let der = [&[0x30, length][..], &numbers].concat();
    for signature in [&der[..], &[&sides[..], &[0]].concat(), &[&[0], &sides[..]].concat(), &sides[..32]] {
        let token = format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature));
        let told = check(&set("ES256", A3_KEY), &token, 1_300_819_379);
        assert_eq!(told, Err("the signature of the token is wrong".to_owned()));
    }
}

#[test]
fn keys_by_which_anybody_could_sign_are_refused() {
    let rsa = |e: &str| A2_KEY.replace("AQAB", e);
    let ed = |bytes: &[u8]| format!("{{kty: OKP, crv: Ed25519, x: {}}}", URL_SAFE_NO_PAD.encode(bytes));
    let end = |first: u8, middle: u8, last: u8| {
        let mut point = [middle; 32];
        (point[0], point[31]) = (first, last);
        ed(&point)
    };
    let eighth: Vec<u8> = (0..32)
        .map(|at| {
            let digits = "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05";
            u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16).expect("digits")
        })
        .collect();
    let mut negative = eighth.clone();
    negative[31] |= 0x80;
    for (algorithm, key, told) in [
        ("RS256", rsa("AQ"), "the exponent of an RSA key"),
        ("RS256", rsa("Ag"), "the exponent of an RSA key"),
        ("RS256", rsa("AA"), "the exponent of an RSA key"),
        ("RS256", rsa("''"), "the exponent of an RSA key"),
        ("RS256", rsa("AQAAAAAB"), "the exponent of an RSA key"),
        ("EdDSA", end(0, 0, 0), "small order"),
        ("EdDSA", end(0, 0, 0x80), "small order"),
        ("EdDSA", end(1, 0, 0), "small order"),
        ("EdDSA", end(1, 0, 0x80), "small order"),
        ("EdDSA", end(0xec, 0xff, 0x7f), "small order"),
        ("EdDSA", end(0xed, 0xff, 0x7f), "small order"),
        ("EdDSA", end(0xee, 0xff, 0xff), "small order"),
        ("EdDSA", ed(&eighth), "small order"),
        ("EdDSA", ed(&negative), "small order"),
        ("HS256", "{kty: oct, k: ''}".to_owned(), "a secret has at least 32 bytes"),
        ("HS256", A1_KEY.replace("kty", "use: enc, kty"), "holds no key"),
        ("HS256", A1_KEY.replace("kty", "key_ops: [sign], kty"), "holds no key"),
        ("HS256", A1_KEY.replace("kty", "key_ops: [], kty"), "holds no key"),
        ("HS256", A1_KEY.replace("kty", "key_ops: verify, kty"), "holds no key"),
        ("HS256", A1_KEY.replace("kty", "alg: HS512, kty"), "no key here can verify"),
        ("HS256", A1_KEY.replace("kty", "alg: none, kty"), "no key here can verify"),
    ] {
        let error = built(&set(algorithm, &key)).err().unwrap_or_else(|| panic!("{key}"));
        assert!(error.contains(told), "{key}: {error}");
    }
    assert!(built("algorithms: [HS256], secret: ''").is_err());
    assert!(
        built(&set("HS256", &A1_KEY.replace("kty", "key_ops: [verify], use: sig, alg: HS256, kty"))).is_ok()
    );
}
