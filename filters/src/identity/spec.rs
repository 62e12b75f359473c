//! What users write under `identities` and `consumers`.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::api_key::KeyHash;
use super::basic::PasswordHash;
use super::certificate::Fingerprint;
use super::hmac::SignatureAlgorithm;
use super::{api_key, basic, certificate, hmac, introspection, jwt, oidc};
use crate::tree::Raw;
use crate::values::{Date, Name, Scalar, Secret, scalar};

/// One written identity, kept as it is until all names are known.
#[derive(Debug, Clone)]
pub struct IdentitySpec(pub(super) Raw);

impl IdentitySpec {
    /// Its type, if there is such a one.
    pub(super) fn kind(&self) -> Option<Kind> {
        self.0.0.get("type").and_then(|node| node.as_str()).and_then(Kind::read)
    }
}

/// The types of identities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    ApiKey,
    Basic,
    Hmac,
    Introspection,
    Jwt,
    Mtls,
    Oidc,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::ApiKey, Self::Basic, Self::Hmac, Self::Introspection, Self::Jwt, Self::Mtls, Self::Oidc];

    pub(super) fn names() -> impl Iterator<Item = &'static str> {
        Self::ALL.into_iter().map(Self::name)
    }

    fn name(self) -> &'static str {
        match self {
            Self::ApiKey => "api_key",
            Self::Basic => "basic",
            Self::Hmac => "hmac",
            Self::Introspection => "introspection",
            Self::Jwt => "jwt",
            Self::Mtls => "mtls",
            Self::Oidc => "oidc",
        }
    }

    /// Whether consumers can be known by the claims of what it verifies, rather than by their credentials.
    pub(super) fn has_claims(self) -> bool {
        matches!(self, Self::Introspection | Self::Jwt | Self::Oidc)
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl<'de> Deserialize<'de> for IdentitySpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Raw::deserialize(deserializer).map(Self)
    }
}

impl JsonSchema for IdentitySpec {
    fn schema_name() -> Cow<'static, str> {
        "Identity".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let kinds = [
            generator.subschema_for::<api_key::Options>(),
            generator.subschema_for::<basic::Options>(),
            generator.subschema_for::<hmac::Options>(),
            generator.subschema_for::<introspection::Options>(),
            generator.subschema_for::<jwt::Options>(),
            generator.subschema_for::<certificate::Options>(),
            generator.subschema_for::<oidc::Options>(),
        ];
        json_schema!({"description": "A way to prove who is calling.", "oneOf": kinds})
    }
}

/// Who calls, and how they are known.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Consumer")]
pub struct ConsumerSpec {
    /// Its name; upstreams are told it.
    pub name: Name,
    /// Groups it belongs to.
    #[serde(default)]
    pub groups: Vec<Name>,
    /// The plan that says how much it may; `plan_limits` enforces it.
    #[serde(default)]
    pub plan: Option<Name>,
    /// Whether nothing it proves itself with counts.
    #[serde(default)]
    pub disabled: bool,
    /// Claims by which it is known; any one is enough.
    #[serde(default, rename = "match")]
    pub matches: Vec<MatchSpec>,
    /// What it proves itself with; several at a time let one follow the other.
    #[serde(default)]
    pub credentials: Vec<CredentialSpec>,
}

/// A claim by which a consumer is known.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "ConsumerMatch")]
pub struct MatchSpec {
    /// The identity that verifies the claim, of type `jwt`, `introspection` or `oidc`.
    pub identity: Name,
    /// The claim's name.
    pub claim: String,
    /// Its value, exactly; numbers and booleans as text.
    pub value: String,
}

/// What a consumer proves itself with.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Credential")]
pub struct CredentialSpec {
    /// What it is, which says what else belongs to it.
    #[serde(rename = "type")]
    pub kind: CredentialKind,
    /// What logs call it; unique for the consumer.
    pub id: Name,
    /// The identity it is for; needed only if there are several of its type.
    #[serde(default)]
    pub identity: Option<Name>,
    /// Of `api_key`: SHA-256 of the key, as in `sha256:` and 64 hexadecimal digits; make keys of at least 128 random
    /// bits. Of `basic`: the password's hash by Argon2id, as in `$argon2id$v=19$m=19456,t=2,p=1$..`.
    #[serde(default)]
    pub hash: Option<CredentialHash>,
    /// Of `basic`: the user's name, by default the `id`. Two passwords of one user let one follow the other.
    #[serde(default)]
    pub username: Option<String>,
    /// Of `hmac`: what requests call the key (`keyid`), by default the `id`.
    #[serde(default)]
    pub key_id: Option<String>,
    /// Of `hmac`: the one algorithm that the key is for; needed with a `public_key`.
    #[serde(default)]
    pub algorithm: Option<SignatureAlgorithm>,
    /// Of `hmac`: a secret of at least 32 bytes; after `base64:` it is bytes in base64.
    #[serde(default)]
    pub secret: Option<Secret>,
    /// Of `hmac`: a public key in PEM, instead of a secret.
    #[serde(default)]
    pub public_key: Option<String>,
    /// Of `mtls`, which needs one of these: SHA-256 of the certificate in DER form.
    #[serde(default)]
    pub fingerprint: Option<Fingerprint>,
    /// The certificate's distinguished name, such as `C=DE, CN=acme`, escaped as in RFC 4514.
    #[serde(default)]
    pub subject: Option<String>,
    /// A host name of the certificate (a subject alternative name).
    #[serde(default)]
    pub dns: Option<String>,
    /// A URI of the certificate, such as `spiffe://acme.example/billing`.
    #[serde(default)]
    pub uri: Option<String>,
    /// A mailbox of the certificate.
    #[serde(default)]
    pub email: Option<String>,
    /// When it ends; never by default.
    #[serde(default)]
    pub expires: Option<Date>,
    /// Whether it does not count.
    #[serde(default)]
    pub disabled: bool,
}

impl CredentialSpec {
    /// An option that is written and belongs to credentials of another type.
    pub(super) fn foreign(&self) -> Option<&'static str> {
        use CredentialKind::{ApiKey, Basic, Hmac, Mtls};
        let written = [
            ("hash", self.hash.is_some(), &[ApiKey, Basic][..]),
            ("username", self.username.is_some(), &[Basic]),
            ("key_id", self.key_id.is_some(), &[Hmac]),
            ("algorithm", self.algorithm.is_some(), &[Hmac]),
            ("secret", self.secret.is_some(), &[Hmac]),
            ("public_key", self.public_key.is_some(), &[Hmac]),
            ("fingerprint", self.fingerprint.is_some(), &[Mtls]),
            ("subject", self.subject.is_some(), &[Mtls]),
            ("dns", self.dns.is_some(), &[Mtls]),
            ("uri", self.uri.is_some(), &[Mtls]),
            ("email", self.email.is_some(), &[Mtls]),
        ];
        let foreign = written.into_iter().find(|(_, written, kinds)| *written && !kinds.contains(&self.kind));
        foreign.map(|(option, ..)| option)
    }
}

/// What a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CredentialKind {
    /// A key, kept as its hash.
    ApiKey,
    /// A user's name and password, kept as its hash.
    Basic,
    /// A key of signatures.
    Hmac,
    /// A certificate.
    Mtls,
}

impl From<CredentialKind> for Kind {
    fn from(kind: CredentialKind) -> Self {
        match kind {
            CredentialKind::ApiKey => Self::ApiKey,
            CredentialKind::Basic => Self::Basic,
            CredentialKind::Hmac => Self::Hmac,
            CredentialKind::Mtls => Self::Mtls,
        }
    }
}

impl fmt::Display for CredentialKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Kind::from(*self).fmt(f)
    }
}

/// The hash of a key or of a password. Neither printed nor shown: weak ones could be guessed from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialHash {
    /// SHA-256 of a key.
    Key(KeyHash),
    /// A password's hash.
    Password(PasswordHash),
}

impl Scalar for CredentialHash {
    const EXPECTED: &'static str = "a hash";
    const PATTERN: Option<&'static str> = Some("^(sha256:[0-9A-Fa-f]{64}|\\$argon2id\\$v=19\\$.+)$");
    const EXAMPLE: &'static str = KeyHash::EXAMPLE;

    fn read(text: &str) -> Option<Self> {
        KeyHash::read(text).map(Self::Key).or_else(|| PasswordHash::read(text).map(Self::Password))
    }
}

// Not the macro: what `Display` writes could not be read back, and who writes the key itself by mistake must
// not find it in the message. One that begins with "expected" is given what was found.
impl<'de> Deserialize<'de> for CredentialHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar::deserialize(deserializer).map_err(|_| {
            D::Error::custom(
                "a hash is needed: of a key `sha256:` and 64 hexadecimal digits, of a password `$argon2id$v=19$..` \
                 of at most 256 MiB",
            )
        })
    }
}

impl JsonSchema for CredentialHash {
    fn schema_name() -> Cow<'static, str> {
        "CredentialHash".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let mut schema = scalar::schema::<Self>();
        // What shows documents goes by this.
        schema.insert("writeOnly".to_owned(), true.into());
        schema
    }
}

impl fmt::Display for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
