//! Keys that signatures of messages are verified with; each is for one algorithm, whatever a message says.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::filter::BuildError;
use crate::identity::jwt;
use crate::values::Secret;

/// The shortest secret, in bytes: as long as what it makes (RFC 2104 s3).
const SHORTEST: usize = 32;

/// An algorithm of the registry of HTTP signatures (RFC 9421 s6.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SignatureAlgorithm {
    /// HMAC with SHA-256, with a secret.
    HmacSha256,
    /// Ed25519.
    Ed25519,
    /// ECDSA on P-256 with SHA-256.
    EcdsaP256Sha256,
    /// ECDSA on P-384 with SHA-384.
    EcdsaP384Sha384,
    /// RSASSA-PSS with SHA-512.
    RsaPssSha512,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    #[serde(rename = "rsa-v1_5-sha256")]
    RsaV15Sha256,
}

impl SignatureAlgorithm {
    /// Its name in the registry.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::HmacSha256 => "hmac-sha256",
            Self::Ed25519 => "ed25519",
            Self::EcdsaP256Sha256 => "ecdsa-p256-sha256",
            Self::EcdsaP384Sha384 => "ecdsa-p384-sha384",
            Self::RsaPssSha512 => "rsa-pss-sha512",
            Self::RsaV15Sha256 => "rsa-v1_5-sha256",
        }
    }

    /// The same under the name of RFC 7518; signatures have the same form there.
    fn of_tokens(self) -> Algorithm {
        match self {
            Self::HmacSha256 => Algorithm::HS256,
            Self::Ed25519 => Algorithm::EdDSA,
            Self::EcdsaP256Sha256 => Algorithm::ES256,
            Self::EcdsaP384Sha384 => Algorithm::ES384,
            Self::RsaPssSha512 => Algorithm::PS512,
            Self::RsaV15Sha256 => Algorithm::RS256,
        }
    }
}

/// A key, and the only algorithm that it is for.
#[derive(Clone)]
pub struct SigningKey {
    algorithm: SignatureAlgorithm,
    key: DecodingKey,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.algorithm.name())
    }
}

impl SigningKey {
    /// The key of a credential: a secret or a public key. Without an algorithm, a secret is for `hmac-sha256`.
    pub(in crate::identity) fn new(
        algorithm: Option<SignatureAlgorithm>,
        secret: Option<&Secret>,
        public_key: Option<&str>,
    ) -> Result<Self, BuildError> {
        match (secret, public_key) {
            (Some(secret), None) => Self::from_secret(algorithm, secret),
            (None, Some(pem)) => Self::from_pem(algorithm, pem),
            _ => Err(BuildError::new("a credential of type `hmac` needs one of `secret` and `public_key`")),
        }
    }

    fn from_secret(algorithm: Option<SignatureAlgorithm>, secret: &Secret) -> Result<Self, BuildError> {
        let algorithm = algorithm.unwrap_or(SignatureAlgorithm::HmacSha256);
        if algorithm != SignatureAlgorithm::HmacSha256 {
            return Err(BuildError::at("secret", format!("`{}` needs a `public_key`", algorithm.name())));
        }
        let bytes = match secret.expose().strip_prefix("base64:") {
            Some(text) => STANDARD.decode(text).map_err(|_| BuildError::at("secret", "is not base64"))?,
            None => secret.expose().as_bytes().to_vec(),
        };
        if bytes.len() < SHORTEST {
            return Err(BuildError::at("secret", format!("needs at least {SHORTEST} bytes (RFC 2104 s3)")));
        }
        Ok(Self { algorithm, key: DecodingKey::from_secret(&bytes) })
    }

    fn from_pem(algorithm: Option<SignatureAlgorithm>, pem: &str) -> Result<Self, BuildError> {
        let missing = "say which one the key is for, such as `ed25519` or `rsa-pss-sha512`";
        let algorithm = algorithm.ok_or_else(|| BuildError::at("algorithm", missing))?;
        let (fitting, key) = jwt::public_key(pem)?;
        if !fitting.contains(&algorithm.of_tokens()) {
            let message = format!("is no key for `{}`", algorithm.name());
            return Err(BuildError::at("public_key", message));
        }
        Ok(Self { algorithm, key })
    }

    /// What it is for.
    pub(super) fn algorithm(&self) -> SignatureAlgorithm {
        self.algorithm
    }

    /// Whether the signature is this key's, of this message.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let signature = URL_SAFE_NO_PAD.encode(signature);
        crypto::verify(&signature, message, &self.key, self.algorithm.of_tokens()).unwrap_or(false)
    }
}
