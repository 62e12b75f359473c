//! Reads certificates, keys, revocation lists and OCSP responses; messages name the file.

use std::fs;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

use super::ocsp;

/// Longest file read; revocation lists of large authorities have some megabytes.
const LONGEST: u64 = 64 << 20;

/// The certificates of a PEM file, at least one.
pub(crate) fn certificates(base: &Path, file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    certificates_in(&read(base, file)?, &file.display().to_string())
}

/// The certificates of PEM, at least one; `name` is what messages call it.
pub(crate) fn certificates_in(pem: &[u8], name: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("{name} is not valid PEM"))?;
    match found.is_empty() {
        true => Err(format!("{name} holds no certificate")),
        false => Ok(found),
    }
}

/// The first private key of a PEM file.
pub(crate) fn private_key(base: &Path, file: &Path) -> Result<PrivateKeyDer<'static>, String> {
    private_key_in(&Zeroizing::new(read(base, file)?), &file.display().to_string())
}

/// The first private key of PEM; `name` is what messages call it.
pub(crate) fn private_key_in(pem: &[u8], name: &str) -> Result<PrivateKeyDer<'static>, String> {
    let has = |text: &[u8]| pem.windows(text.len()).any(|window| window == text);
    if has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED") {
        return Err(format!(
            "{name} is encrypted, and nobody is there to be asked for a password; decrypt it"
        ));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| format!("{name} holds no private key"))
}

/// The revocation lists of a PEM file, or the one of a DER file.
pub(super) fn revocation_lists(
    base: &Path,
    file: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = read(base, file)?;
    let found: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|_| format!("{} is not valid PEM", file.display()))?;
    match (found.is_empty(), bytes.first()) {
        (false, _) => Ok(found),
        (true, Some(0x30)) => Ok(vec![bytes.into()]),
        (true, _) => Err(format!("{} holds no revocation list", file.display())),
    }
}

/// A successful OCSP response in DER (RFC 6960 s4.2.1).
pub(super) fn ocsp(base: &Path, file: &Path) -> Result<Vec<u8>, String> {
    let bytes = read(base, file)?;
    match ocsp::status(&bytes) {
        Some(0) => Ok(bytes),
        Some(status) => Err(format!("{} is an OCSP response that tells of error {status}", file.display())),
        None => Err(format!("{} holds no OCSP response in DER", file.display())),
    }
}

fn read(base: &Path, file: &Path) -> Result<Vec<u8>, String> {
    if file.to_string_lossy().contains("-----BEGIN") {
        // A key, maybe, which is never told.
        return Err("expected the path of a file, found what would be in one (not shown)".to_owned());
    }
    let path = base.join(file);
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", file.display());
    let about = fs::metadata(&path).map_err(failed)?;
    match (about.is_file(), about.len()) {
        // A pipe would block for ever.
        (false, _) => Err(format!("cannot read {}: not a file", file.display())),
        (true, 0) => Err(format!("{} is empty", file.display())),
        (true, LONGEST..) => Err(format!("{} is longer than 64 MiB", file.display())),
        _ => fs::read(path).map_err(failed),
    }
}
