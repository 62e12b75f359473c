//! Keys that signatures are verified with; each knows which algorithms it is for, whatever a token says.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::options::{AlgorithmName, KeySet, Options};
use crate::filter::BuildError;
use crate::identity::{Refusal, json};
use crate::values::hex;

/// What is said of a token that is of none of the keys.
pub(in crate::identity) const NO_KEY: Refusal = Refusal::new("no key is known that could verify the token");

/// The most keys of a set: a token without `kid` is tried with each.
const MOST: usize = 32;

const HMAC: [(Algorithm, usize); 3] =
    [(Algorithm::HS256, 32), (Algorithm::HS384, 48), (Algorithm::HS512, 64)];
const RSA: [Algorithm; 6] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
/// The sizes of keys that signatures are verified with, in bits (RFC 7518 s3.3: at least 2048).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// The keys of one identity.
#[derive(Debug)]
pub(super) struct Keys {
    keys: Vec<Key>,
    epoch: u64,
}

/// Why a signature is not taken.
pub(super) struct Unverified {
    pub(super) refusal: Refusal,
    /// Keys that are newer than these could verify it.
    pub(super) may_be_newer: bool,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// What it can verify, of those that are allowed.
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Keys {
    /// The keys that the document holds.
    pub(super) fn written(options: &Options) -> Result<Self, BuildError> {
        let keys = match (&options.secret, &options.public_key, &options.jwks) {
            (Some(secret), None, None) => vec![from_secret(secret.expose(), &options.algorithms)?],
            (None, Some(pem), None) => vec![from_pem(pem)?],
            (None, None, Some(set)) => from_set(set)?,
            _ => return Err(BuildError::new("needs one of `secret`, `public_key` and `jwks`")),
        };
        let keys = Self::allowed(keys, &options.algorithms, 1);
        for (at, name) in options.algorithms.iter().enumerate() {
            if !keys.keys.iter().any(|key| key.algorithms.contains(&name.0)) {
                let path = ["algorithms"].into_iter().collect::<crate::tree::Path>().join(at);
                let message = format!("no key here can verify `{name}`");
                return Err(BuildError { path, message, hint: None });
            }
        }
        Ok(keys)
    }

    /// The keys of a set that was fetched, for these algorithms. Those that cannot be used are passed over
    /// (RFC 7517 s5), and so are secrets: what was published is none.
    pub(super) fn from_answer(
        set: &Map<String, Value>,
        algorithms: &[AlgorithmName],
    ) -> Result<Self, String> {
        let list = set.get("keys").and_then(Value::as_array).ok_or("the answer is no set of keys")?;
        if list.len() > MOST {
            return Err(format!("the set has more than {MOST} keys"));
        }
        let maps = list.iter().filter_map(Value::as_object);
        let public = maps.filter(|key| key.get("kty").is_none_or(|kind| kind != "oct"));
        let keys = public.filter_map(|key| from_jwk(key).ok().flatten()).collect();
        let digest: [u8; 32] = Sha256::digest(serde_json::to_vec(list).unwrap_or_default()).into();
        let (epoch, _) = digest.split_first_chunk().expect("32 bytes hold 8");
        let keys = Self::allowed(keys, algorithms, u64::from_be_bytes(*epoch));
        match keys.keys.is_empty() {
            true => Err("the set has no key that these algorithms could be verified with".to_owned()),
            false => Ok(keys),
        }
    }

    fn allowed(keys: Vec<Key>, algorithms: &[AlgorithmName], epoch: u64) -> Self {
        let allowed = |algorithm: &Algorithm| algorithms.contains(&AlgorithmName(*algorithm));
        let keys = keys.into_iter().map(|mut key| {
            key.algorithms.retain(allowed);
            key
        });
        Self { keys: keys.filter(|key| !key.algorithms.is_empty()).collect(), epoch }
    }

    /// What they are known by: other keys have another number.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether one of them has this id.
    pub(super) fn has(&self, id: &str) -> bool {
        self.keys.iter().any(|key| key.id.as_deref() == Some(id))
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Verifies a signature with the key of this id, or with those that fit if it names none of them.
    pub(super) fn verify(
        &self,
        algorithm: Algorithm,
        id: Option<&str>,
        message: &str,
        signature: &str,
    ) -> Result<(), Unverified> {
        let is_known = id.is_some_and(|id| self.has(id));
        let refused = |refusal| Err(Unverified { refusal, may_be_newer: !is_known });
        let fits = |key: &&Key| {
            let named = if is_known { key.id.as_deref() == id } else { id.is_none() || key.id.is_none() };
            named && key.algorithms.contains(&algorithm)
        };
        let mut keys = self.keys.iter().filter(fits).peekable();
        if keys.peek().is_none() {
            return refused(NO_KEY);
        }
        let verifies = |key: &Key| {
            crypto::verify(signature, message.as_bytes(), &key.key, algorithm).is_ok_and(|valid| valid)
        };
        match keys.any(verifies) {
            true => Ok(()),
            false => refused(Refusal::new("the signature of the token is wrong")),
        }
    }
}

fn from_secret(secret: &str, algorithms: &[AlgorithmName]) -> Result<Key, BuildError> {
    let short = |(algorithm, least): &&(Algorithm, usize)| {
        algorithms.contains(&AlgorithmName(*algorithm)) && secret.len() < *least
    };
    if let Some((algorithm, least)) = HMAC.iter().find(short) {
        let message = format!("{algorithm:?} needs a secret of at least {least} bytes (RFC 7518 s3.2)");
        return Err(BuildError::at("secret", message));
    }
    Ok(Key { id: None, algorithms: hmac(secret.len()), key: DecodingKey::from_secret(secret.as_bytes()) })
}

fn hmac(length: usize) -> Vec<Algorithm> {
    HMAC.iter().filter(|(_, least)| length >= *least).map(|(algorithm, _)| *algorithm).collect()
}

fn from_pem(pem: &str) -> Result<Key, BuildError> {
    let (algorithms, key) = public_key(pem)?;
    Ok(Key { id: None, algorithms, key })
}

/// A public key in PEM under the option `public_key`, and all that it can verify.
pub(in crate::identity) fn public_key(pem: &str) -> Result<(Vec<Algorithm>, DecodingKey), BuildError> {
    let refused = |message: &str| BuildError::at("public_key", message);
    let is_public = ["-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----"]
        .iter()
        .any(|begin| pem.trim_start().starts_with(begin));
    if !is_public {
        return Err(refused("expected a public key in PEM (`BEGIN PUBLIC KEY`), as in `${file:corp.pem}`"));
    }
    let pem = pem.trim().as_bytes();
    let key = DecodingKey::from_rsa_pem(pem)
        .or_else(|_| DecodingKey::from_ec_pem(pem))
        .or_else(|_| DecodingKey::from_ed_pem(pem))
        .map_err(|_| refused("is no key of RSA, of the curves P-256 and P-384, or of Ed25519"))?;
    let bytes = key.try_get_as_bytes().unwrap_or_default();
    let algorithms = match key.family() {
        AlgorithmFamily::Rsa if !RSA_BITS.contains(&modulus_bits(bytes)) => {
            return Err(refused("an RSA key has 2048 to 8192 bits"));
        }
        AlgorithmFamily::Rsa => RSA.to_vec(),
        AlgorithmFamily::Ed if is_of_small_order(bytes) => {
            return Err(refused("the point is of small order: anybody could sign for it"));
        }
        AlgorithmFamily::Ed => vec![Algorithm::EdDSA],
        // An uncompressed point: a byte and two coordinates.
        _ => match bytes.len() {
            65 => vec![Algorithm::ES256],
            97 => vec![Algorithm::ES384],
            _ => return Err(refused("of elliptic curves, P-256 and P-384 are supported")),
        },
    };
    Ok((algorithms, key))
}

/// The size of the modulus in an `RSAPublicKey` (RFC 8017 A.1.1): the first number of a sequence, in DER.
fn modulus_bits(der: &[u8]) -> usize {
    let content = |der: &[u8], tag: u8| {
        let (first, rest) = (*der.first()?, der.get(1..)?);
        let (length, rest) = match *rest.first()? {
            short @ 0..=127 => (usize::from(short), &rest[1..]),
            long => {
                let (bytes, after) = rest.get(1..)?.split_at_checked(usize::from(long & 127).min(4))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), after)
            }
        };
        (first == tag).then_some(())?;
        rest.get(..length).map(<[u8]>::to_vec)
    };
    let number = content(der, 0x30).and_then(|sequence| content(&sequence, 0x02));
    number.map_or(0, |number| bits(&number))
}

/// The bits of a number in big-endian bytes, without leading zeros.
fn bits(number: &[u8]) -> usize {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    let zeros = number.get(start).map_or(0, |byte| byte.leading_zeros() as usize);
    (number.len() - start) * 8 - zeros
}

fn from_set(set: &KeySet) -> Result<Vec<Key>, BuildError> {
    let refused = |message: &str| BuildError::at("jwks", message);
    let text = match set.0.0.as_str() {
        Some(text) => text.to_owned(),
        None => serde_json::to_string(&*set.0.0).unwrap_or_default(),
    };
    let expected = "expected a set of keys such as `{keys: [..]}`, or its JSON as in `${file:jwks.json}`";
    let map = json::object(text.as_bytes()).ok_or_else(|| refused(expected))?;
    let list = map.get("keys").and_then(Value::as_array).ok_or_else(|| refused(expected))?;
    if list.len() > MOST {
        return Err(refused(&format!("has more than {MOST} keys")));
    }
    let mut keys = Vec::new();
    for (at, key) in list.iter().enumerate() {
        let wrong = |message: &str| refused(&format!("key {}: {message}", at + 1));
        let map = key.as_object().ok_or_else(|| wrong("expected a map"))?;
        keys.extend(from_jwk(map).map_err(wrong)?);
    }
    match keys.is_empty() {
        true => Err(refused("holds no key that signatures could be verified with")),
        false => Ok(keys),
    }
}

/// A key of a set; none for those of other uses and types, which are passed over (RFC 7517 s5).
fn from_jwk(jwk: &Map<String, Value>) -> Result<Option<Key>, &'static str> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or_default();
    let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)).map_err(|_| "a value is not base64url");
    let verifies = |list: &Vec<Value>| list.iter().any(|operation| operation == "verify");
    let is_other = jwk.get("use").is_some_and(|purpose| purpose != "sig")
        || jwk.get("key_ops").is_some_and(|list| !list.as_array().is_some_and(verifies));
    if is_other {
        return Ok(None);
    }
    if text("kty") != "oct" && jwk.contains_key("d") {
        return Err("holds a private key; a gateway needs the public one only");
    }
    let (mut algorithms, key) = match (text("kty"), text("crv")) {
        ("RSA", _) => {
            let (n, e) = (bytes("n")?, bytes("e")?);
            if !RSA_BITS.contains(&bits(&n)) {
                return Err("an RSA key has 2048 to 8192 bits");
            }
            if !is_exponent(&e) {
                return Err("the exponent of an RSA key is odd, and from 3 to 2^33");
            }
            (RSA.to_vec(), DecodingKey::from_rsa_raw_components(&n, &e))
        }
        ("EC", "P-256") => (vec![Algorithm::ES256], point(&bytes("x")?, &bytes("y")?, 32)?),
        ("EC", "P-384") => (vec![Algorithm::ES384], point(&bytes("x")?, &bytes("y")?, 48)?),
        ("OKP", "Ed25519") => {
            let x = bytes("x")?;
            if x.len() != 32 {
                return Err("the coordinate has another length than its curve");
            }
            if is_of_small_order(&x) {
                return Err("the point is of small order: anybody could sign for it");
            }
            (vec![Algorithm::EdDSA], DecodingKey::from_ed_der(&x))
        }
        ("oct", _) => {
            let secret = bytes("k")?;
            if secret.len() < 32 {
                return Err("a secret has at least 32 bytes (RFC 7518 s3.2)");
            }
            (hmac(secret.len()), DecodingKey::from_secret(&secret))
        }
        _ => return Ok(None),
    };
    if let Some(only) = jwk.get("alg") {
        algorithms.retain(|algorithm| only.as_str() == Some(&AlgorithmName(*algorithm).to_string()));
    }
    let id = match jwk.get("kid") {
        Some(Value::String(id)) => Some(id.clone()),
        None => None,
        Some(_) => return Err("`kid` is a text; put it in quotes"),
    };
    Ok(Some(Key { id, algorithms, key }))
}

/// Whether a number is the public exponent of a sound key: with 1 everything is its own signature.
fn is_exponent(number: &[u8]) -> bool {
    number.last().is_some_and(|last| last % 2 == 1) && (2..=33).contains(&bits(number))
}

/// Whether a key of Ed25519 is one of the points whose eightfold is nothing, however it is written (RFC 8032 s5.1.7
/// lets them pass): a signature by them says nothing.
fn is_of_small_order(point: &[u8]) -> bool {
    /// The coordinate of both points of order 8 that are each other's negative, and of the other two.
    const EIGHTH: [&str; 2] = [
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    ];
    let Some((high, low)) = point.split_last() else { return true };
    let coordinate = [low, &[high & 0x7f]].concat();
    // 0, 1 and -1 modulo p = 2^255 - 19; above that, p and p + 1 stand for 0 and 1.
    let rest = |ends: &[u8]| low[1..].iter().all(|byte| ends.contains(byte));
    let is_low = low[0] <= 1 && rest(&[0]) && high & 0x7f == 0;
    let is_high = (0xec..=0xee).contains(&low[0]) && rest(&[0xff]) && high & 0x7f == 0x7f;
    is_low || is_high || EIGHTH.contains(&hex(&coordinate).as_str())
}

/// A point of an elliptic curve, uncompressed (SEC 1 s2.3.3).
fn point(x: &[u8], y: &[u8], length: usize) -> Result<DecodingKey, &'static str> {
    if x.len() != length || y.len() != length {
        return Err("a coordinate has another length than its curve");
    }
    Ok(DecodingKey::from_ec_der(&[&[4], x, y].concat()))
}
