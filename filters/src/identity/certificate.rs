//! `mtls`: the certificate of a client, which the listener asked for and verified (`client_auth`).
//!
//! A certificate proves who is at the other end of the connection. Where that is a trusted proxy, it says nothing of
//! the client behind it, and is not looked at.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use http::HeaderValue;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::consumers::{Consumers, Found, IdentityNo, Index, Key};
use super::{Identity, IdentityState, Presented, Refusal, Source, Verified, challenge};
use crate::context::{AlternativeName, ClientCertificate, Context, Principal};
use crate::values::{Scalar, hex};

/// Certificates of clients, by which consumers of the document are known under `credentials`. The listener verifies
/// them: see its `tls.client_auth`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "MtlsIdentity")]
pub(super) struct Options {
    /// What it is: `mtls`.
    #[serde(rename = "type")]
    pub(super) _kind: Type,
    /// Whether a verified certificate counts that is no consumer's, too: as a caller of its own, who is called by its
    /// subject.
    #[serde(default)]
    pub(super) any: bool,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "MtlsType")]
pub(super) enum Type {
    /// `mtls`
    Mtls,
}

/// SHA-256 of a certificate in DER form, as `openssl x509 -fingerprint -sha256` writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Scalar for Fingerprint {
    const EXPECTED: &'static str =
        "SHA-256 of a certificate: `sha256:` and 64 hexadecimal digits, also with colons";
    const PATTERN: Option<&'static str> = Some("^sha256:[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}$");
    const EXAMPLE: &'static str = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn read(text: &str) -> Option<Self> {
        let digits = text.strip_prefix("sha256:")?.as_bytes();
        let pairs: Vec<&[u8]> = match digits.len() {
            64 => digits.chunks(2).collect(),
            95 => digits.split(|byte| *byte == b':').collect(),
            _ => return None,
        };
        let digit = |digit: u8| char::from(digit).to_digit(16);
        let byte = |pair: &[u8]| match pair {
            [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
            _ => None,
        };
        let bytes: Option<Vec<u8>> = pairs.into_iter().map(byte).collect();
        bytes?.try_into().ok().map(Self)
    }
}

crate::scalar!(Fingerprint);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", hex(&self.0))
    }
}

/// What a certificate is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CertificateName {
    /// Its own hash.
    Fingerprint(Fingerprint),
    /// The distinguished name of whom it is for.
    Subject(String),
    /// A host name among its further names.
    Dns(String),
    /// A URI among its further names.
    Uri(String),
    /// A mailbox among its further names.
    Email(String),
}

impl CertificateName {
    /// The option that gives it.
    pub(super) fn option(&self) -> &'static str {
        match self {
            Self::Fingerprint(_) => "fingerprint",
            Self::Subject(_) => "subject",
            Self::Dns(_) => "dns",
            Self::Uri(_) => "uri",
            Self::Email(_) => "email",
        }
    }

    /// Whether it is a text that names of certificates can be.
    pub(super) fn is_plain(&self) -> bool {
        match self {
            Self::Fingerprint(_) => true,
            Self::Dns(name) | Self::Subject(name) | Self::Uri(name) | Self::Email(name) => {
                !name.is_empty() && !name.contains(char::is_control)
            }
        }
    }

    /// What it is found by: no two of them are the same.
    pub(super) fn key(&self) -> String {
        let text = match self {
            Self::Fingerprint(hash) => &hex(&hash.0),
            // Host names are the same in any case (RFC 4343).
            Self::Dns(name) => &name.to_ascii_lowercase(),
            Self::Subject(name) | Self::Uri(name) | Self::Email(name) => name,
        };
        format!("{}:{text}", self.option())
    }
}

/// All that a certificate may be known by.
fn names_of(certificate: &ClientCertificate) -> impl Iterator<Item = CertificateName> {
    let further = certificate.names.iter().filter_map(|name| match name {
        AlternativeName::Dns(name) => Some(CertificateName::Dns(name.to_string())),
        AlternativeName::Uri(name) => Some(CertificateName::Uri(name.to_string())),
        AlternativeName::Email(name) => Some(CertificateName::Email(name.to_string())),
        AlternativeName::Ip(_) => None,
    });
    let fingerprint = CertificateName::Fingerprint(Fingerprint(certificate.fingerprint));
    [fingerprint, CertificateName::Subject(certificate.subject.to_string())].into_iter().chain(further)
}

/// Whom a certificate is for. One without a subject has further names (RFC 5280 s4.1.2.6): it is called by its only
/// URI, such as a SPIFFE id, or its only host name; else by itself.
fn subject(certificate: &ClientCertificate) -> String {
    if !certificate.subject.is_empty() {
        return certificate.subject.to_string();
    }
    let only = |option: &str| {
        let mut names = names_of(certificate).filter(|name| name.option() == option);
        names.next().filter(|_| names.next().is_none())
    };
    let fingerprint = CertificateName::Fingerprint(Fingerprint(certificate.fingerprint));
    only("uri").or_else(|| only("dns")).unwrap_or(fingerprint).key()
}

/// What a certificate says, as claims: `sub`, `iss`, `serial`, `fingerprint`, and lists `dns`, `uri`, `email`, `ip`.
fn claims(certificate: &ClientCertificate, subject: &str) -> Map<String, Value> {
    let mut lists = ["dns", "uri", "email", "ip"].map(|name| (name, Vec::new()));
    for name in &certificate.names {
        let (at, text) = match name {
            AlternativeName::Dns(name) => (0, name.to_string()),
            AlternativeName::Uri(name) => (1, name.to_string()),
            AlternativeName::Email(name) => (2, name.to_string()),
            AlternativeName::Ip(address) => (3, address.to_string()),
        };
        lists[at].1.push(text);
    }
    let texts = [
        ("sub", subject.to_owned()),
        ("iss", certificate.issuer.to_string()),
        ("serial", certificate.serial.to_string()),
        ("fingerprint", certificate.fingerprint_hex()),
    ];
    let texts = texts.into_iter().map(|(name, text)| (name.to_owned(), Value::from(text)));
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
    texts.chain(lists.map(|(name, list)| (name.to_owned(), json!(list)))).collect()
}

/// See the [module](self).
pub(super) struct Certificates {
    name: Arc<str>,
    any: bool,
    consumers: Arc<Consumers>,
    number: Option<IdentityNo>,
}

impl Certificates {
    pub(super) fn new(name: Arc<str>, options: &Options, consumers: Arc<Consumers>) -> Self {
        let number = consumers.layout().number(&name);
        Self { name, any: options.any, consumers, number }
    }

    fn verify(&self, certificate: &ClientCertificate, now: SystemTime) -> Result<Verified, Refusal> {
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // It held when the connection began.
        if i64::try_from(seconds).is_ok_and(|now| now > certificate.not_after) {
            return Err(Refusal::new("the certificate has expired"));
        }
        let keys: Vec<String> = names_of(certificate).map(|name| name.key()).collect();
        let index = self.consumers.load();
        let found = self.owner(&index, &keys, now)?;
        if found.is_none() && !self.any {
            return Err(Refusal::new("no consumer has the certificate"));
        }
        let subject = subject(certificate);
        let principal = Principal { claims: claims(certificate, &subject), subject };
        Ok(Verified {
            principal: Arc::new(principal),
            consumer: found.map(|found| found.consumer().clone()),
            credential: found.and_then(|found| Some(found.credential()?.id().clone())),
            body: None,
            cookies: Vec::new(),
        })
    }

    /// Whose certificate it is that is known by these; one that is several consumers' is nobody's.
    fn owner<'a>(
        &self,
        index: &'a Index,
        keys: &'a [String],
        now: SystemTime,
    ) -> Result<Option<Found<'a>>, Refusal> {
        let (mut counting, mut lapsed): (Option<Found<'_>>, _) = (None, None);
        let number = self.number.into_iter();
        for found in
            number.flat_map(|number| keys.iter().filter_map(move |key| index.find(number, Key::Name(key))))
        {
            if let Some(lapse) = found.lapse(now) {
                lapsed = lapsed.or(Some(lapse));
            } else if counting.is_some_and(|other| other.consumer().name != found.consumer().name) {
                return Err(Refusal::new("the certificate is of several consumers"));
            } else {
                counting = counting.or(Some(found));
            }
        }
        match (counting, lapsed) {
            // What lapses is not to count by `any` again.
            (None, Some(lapse)) => {
                let reasons = ["the certificate is no credential any more", "the certificate is disabled"];
                Err(Refusal::new(lapse.reason(reasons)))
            }
            (counting, _) => Ok(counting),
        }
    }
}

#[async_trait]
impl Identity for Certificates {
    fn name(&self) -> &Arc<str> {
        &self.name
    }

    async fn check(&self, _: &RequestHeader, ctx: &Context, now: SystemTime) -> Presented {
        match ctx.client.certificate().filter(|_| !ctx.client.through_trusted_proxy) {
            None => Presented::Nothing,
            Some(certificate) => {
                self.verify(certificate, now).map_or_else(Presented::Refused, Presented::Valid)
            }
        }
    }

    fn challenge(&self, _: Option<&Refusal>) -> HeaderValue {
        // No scheme is registered for what TLS asks for itself.
        challenge(&format!("ClientCertificate realm=\"{}\"", self.name))
    }

    fn sources(&self) -> &[Source] {
        &[]
    }

    fn has_claims(&self) -> bool {
        true
    }

    fn state(&self) -> IdentityState {
        IdentityState { kind: "mtls", ..IdentityState::default() }
    }
}

#[cfg(test)]
mod tests;
