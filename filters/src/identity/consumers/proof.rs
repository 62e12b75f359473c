//! From what is written of a credential to what it is verified with, by its type.

use super::record::{Password, Proof, Signing};
use crate::filter::BuildError;
use crate::identity::certificate::CertificateName;
use crate::identity::hmac::SigningKey;
use crate::identity::spec::{CredentialHash, CredentialKind, CredentialSpec};

/// What a credential is verified with. Each type has options of its own; those of others are refused.
pub(super) fn proof(spec: &CredentialSpec) -> Result<Proof, BuildError> {
    if let Some(option) = spec.foreign() {
        let message = format!("does not belong to a credential of type `{}`", spec.kind);
        return Err(BuildError::at(option, message));
    }
    match spec.kind {
        CredentialKind::ApiKey => match &spec.hash {
            Some(CredentialHash::Key(hash)) => Ok(Proof::ApiKey(*hash)),
            _ => Err(BuildError::at("hash", "a key needs its hash: `sha256:` and 64 hexadecimal digits")),
        },
        CredentialKind::Basic => match &spec.hash {
            Some(CredentialHash::Password(hash)) => {
                let user = named("username", spec.username.as_deref(), spec)?;
                if user.contains(':') {
                    return Err(BuildError::at("username", "a user's name has no colon (RFC 7617 s2)"));
                }
                Ok(Proof::Password(Box::new(Password { user, hash: hash.clone() })))
            }
            _ => Err(BuildError::at("hash", "a password needs its hash by Argon2id: `$argon2id$v=19$..`")),
        },
        CredentialKind::Hmac => {
            let key_id = named("key_id", spec.key_id.as_deref(), spec)?;
            let key = SigningKey::new(spec.algorithm, spec.secret.as_ref(), spec.public_key.as_deref())?;
            Ok(Proof::Signing(Box::new(Signing { key_id, key })))
        }
        CredentialKind::Mtls => Ok(Proof::Certificate(certificate(spec)?.key().into())),
    }
}

/// A name that requests give; the credential's `id` unless it is written.
fn named(option: &str, written: Option<&str>, spec: &CredentialSpec) -> Result<Box<str>, BuildError> {
    let name = written.unwrap_or_else(|| spec.id.as_str());
    match name.is_empty() || name.contains(char::is_control) {
        true => Err(BuildError::at(option, "expected a text without control characters")),
        false => Ok(name.into()),
    }
}

fn certificate(spec: &CredentialSpec) -> Result<CertificateName, BuildError> {
    let texts = [
        spec.subject.clone().map(CertificateName::Subject),
        spec.dns.clone().map(CertificateName::Dns),
        spec.uri.clone().map(CertificateName::Uri),
        spec.email.clone().map(CertificateName::Email),
    ];
    let fingerprint = spec.fingerprint.map(CertificateName::Fingerprint);
    let mut names = fingerprint.into_iter().chain(texts.into_iter().flatten());
    match (names.next(), names.next()) {
        (Some(name), None) if name.is_plain() => Ok(name),
        (Some(name), None) => {
            Err(BuildError::at(name.option(), "expected a text without control characters"))
        }
        _ => Err(BuildError::new(
            "a certificate is known by one of `fingerprint`, `subject`, `dns`, `uri` and `email`",
        )),
    }
}
