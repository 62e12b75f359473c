//! Files of all kinds, right and wrong, and what follows from them.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use tempfile::TempDir;
use tollhouse_filters::context::AlternativeName;

use super::*;
use crate::config::tls as written;

/// A folder with the pairs `a`, `b` (ECDSA, `a.test` and `*.b.test`) and `r` (RSA, `a.test`).
fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    pair(folder.path(), "a", &["a.test"], KeyPair::generate().unwrap());
    pair(folder.path(), "b", &["*.b.test"], KeyPair::generate().unwrap());
    pair(folder.path(), "r", &["a.test"], KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap());
    folder
}

fn pair(folder: &Path, stem: &str, names: &[&str], key: KeyPair) {
    let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    write(folder, &format!("{stem}.pem"), certificate.pem());
    write(folder, &format!("{stem}.key"), key.serialize_pem());
}

fn write(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::write(folder.join(name), bytes).unwrap();
}

fn certificate(cert: &str, key: &str) -> written::Certificate {
    written::Certificate { hosts: Vec::new(), cert: cert.into(), key: key.into(), ocsp: None }
}

fn tls(certificates: Vec<written::Certificate>) -> ListenerTls {
    ListenerTls { min_version: TlsVersion::V12, certificates, client_auth: None }
}

fn build(folder: &Path, written: &ListenerTls) -> (Option<ServerTls>, Remarks) {
    build_after(folder, written, None)
}

fn build_after(
    folder: &Path,
    written: &ListenerTls,
    previous: Option<&ServerTls>,
) -> (Option<ServerTls>, Remarks) {
    let mut remarks = Remarks::default();
    let built = ServerTls::build(written, &[Protocol::Http1], folder, previous, &mut remarks);
    assert_eq!(built.is_none(), !remarks.faults.is_empty(), "{remarks:?}");
    (built, remarks)
}

/// What is wrong with one pair of files.
fn fault(folder: &Path, cert: &str, key: &str) -> String {
    let (_, remarks) = build(folder, &tls(vec![certificate(cert, key)]));
    let faults: Vec<_> =
        remarks.faults.iter().map(|(place, message)| format!("{place}: {message}")).collect();
    faults.join("; ")
}

#[test]
fn every_kind_of_wrong_file_is_told_by_its_name() {
    let folder = folder();
    let at = folder.path();
    write(at, "empty.pem", "");
    write(at, "text.pem", "certificate");
    write(at, "cut.pem", "-----BEGIN CERTIFICATE-----\nAAAA");
    write(at, "der.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    write(
        at,
        "locked.key",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    );
    let old =
        "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    write(at, "old.key", old);
    write(at, "der.key", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n");
    std::fs::create_dir(at.join("folder")).unwrap();
    for (cert, key, expected) in [
        ("none.pem", "a.key", "cert: cannot read none.pem: No such file"),
        ("folder", "a.key", "cert: cannot read folder: not a file"),
        ("empty.pem", "a.key", "cert: empty.pem is empty"),
        ("text.pem", "a.key", "cert: text.pem holds no certificate"),
        ("a.key", "a.key", "cert: a.key holds no certificate"),
        ("cut.pem", "a.key", "cert: cut.pem is not valid PEM"),
        ("der.pem", "a.key", "cert: der.pem is not a usable certificate"),
        ("a.pem", "none.key", "key: cannot read none.key: No such file"),
        (
            "a.pem",
            "-----BEGIN PRIVATE KEY-----\nMC4C\n",
            "key: expected the path of a file, found what would be in one (not shown)",
        ),
        ("a.pem", "empty.pem", "key: empty.pem is empty"),
        ("a.pem", "a.pem", "key: a.pem holds no private key"),
        ("a.pem", "locked.key", "key: locked.key is encrypted"),
        ("a.pem", "old.key", "key: old.key is encrypted"),
        ("a.pem", "der.key", "key: der.key holds a key of no supported type"),
        ("a.pem", "b.key", "key: the key does not belong to the first certificate in `cert`"),
        ("a.pem", "r.key", "key: the key does not belong to the first certificate in `cert`"),
    ] {
        let said = fault(at, cert, key);
        assert!(said.starts_with(&format!("tls.certificates[0].{expected}")), "{cert} {key}: {said}");
    }
    assert_eq!(fault(at, "a.pem", "a.key"), "");
    assert_eq!(fault(at, "r.pem", "r.key"), "");
}

#[test]
fn no_message_tells_what_is_in_a_key() {
    let folder = folder();
    let key = std::fs::read_to_string(folder.path().join("a.key")).unwrap();
    let line = key.lines().nth(1).unwrap();
    write(folder.path(), "bad.key", key.replace("PRIVATE KEY", "SECRET KEY"));
    let said = fault(folder.path(), "a.pem", "bad.key");
    assert!(said.contains("holds no private key") && !said.contains(line), "{said}");
}

#[test]
fn one_host_has_one_certificate_of_each_type_of_key() {
    let folder = folder();
    let at = folder.path();
    pair(at, "a2", &["c.test", "a.test"], KeyPair::generate().unwrap());
    let both = tls(vec![certificate("a.pem", "a.key"), certificate("r.pem", "r.key")]);
    assert!(build(at, &both).0.is_some(), "ECDSA and RSA for one host");
    let twice = tls(vec![certificate("a.pem", "a.key"), certificate("a2.pem", "a2.key")]);
    let (_, remarks) = build(at, &twice);
    let message = "`a.test` has a certificate with a key of this type already: certificates[0]";
    assert_eq!(remarks.faults, [("tls.certificates[1].hosts[1]".into(), message.into())]);
}

#[test]
fn hosts_are_taken_from_the_certificate_unless_they_are_written() {
    let folder = folder();
    let (built, remarks) = build(folder.path(), &tls(vec![certificate("b.pem", "b.key")]));
    assert_eq!(*built.unwrap().certificates()[0].hosts, [Box::<str>::from("*.b.test")]);
    assert!(remarks.warnings.is_empty(), "{remarks:?}");
    let mut other = certificate("b.pem", "b.key");
    other.hosts = ["x.b.test", "b.test"].map(|host| host.parse_pattern()).into();
    let (built, remarks) = build(folder.path(), &tls(vec![other]));
    assert_eq!(*built.unwrap().certificates()[0].hosts, ["x.b.test", "b.test"].map(Box::<str>::from));
    let warning =
        ("tls.certificates[0].hosts[1]".to_owned(), "the certificate is not for `b.test`".to_owned());
    assert_eq!(remarks.warnings, [warning]);
}

#[test]
fn an_address_among_the_host_names_of_a_certificate_is_passed_over() {
    let folder = folder();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["i.test".to_owned()]).unwrap();
    params.subject_alt_names.push(rcgen::SanType::DnsName("192.0.2.1".try_into().unwrap()));
    write(folder.path(), "i.pem", params.self_signed(&key).unwrap().pem());
    write(folder.path(), "i.key", key.serialize_pem());
    let (built, remarks) = build(folder.path(), &tls(vec![certificate("i.pem", "i.key")]));
    assert!(remarks.warnings.is_empty(), "{remarks:?}");
    assert_eq!(*built.unwrap().certificates()[0].hosts, [Box::<str>::from("i.test")]);
}

trait ParsePattern {
    fn parse_pattern(&self) -> tollhouse_filters::host::HostPattern;
}

impl ParsePattern for &str {
    fn parse_pattern(&self) -> tollhouse_filters::host::HostPattern {
        tollhouse_filters::host::HostPattern::parse(self).unwrap()
    }
}

#[test]
fn a_certificate_that_no_client_can_ask_for_is_an_error() {
    let folder = folder();
    pair(folder.path(), "n", &[], KeyPair::generate().unwrap());
    let nameless = || certificate("n.pem", "n.key");
    assert!(build(folder.path(), &tls(vec![nameless()])).0.is_some(), "the first is for everybody");
    let (_, remarks) = build(folder.path(), &tls(vec![certificate("a.pem", "a.key"), nameless()]));
    assert_eq!(remarks.faults[0].0, "tls.certificates[1]");
    let mut address = certificate("a.pem", "a.key");
    address.hosts = vec!["127.0.0.1".parse_pattern()];
    let (_, remarks) = build(folder.path(), &tls(vec![address]));
    assert!(remarks.faults[0].1.starts_with("clients never name `127.0.0.1`"), "{remarks:?}");
    assert_eq!(build(folder.path(), &tls(Vec::new())).1.faults[0].0, "tls.certificates");
}

#[test]
fn an_ocsp_response_is_der_and_successful_as_rfc_6960_s4_2_1_says() {
    let folder = folder();
    let mut written = certificate("a.pem", "a.key");
    written.ocsp = Some("a.ocsp".into());
    for (bytes, message) in [
        (&b"-----BEGIN OCSP RESPONSE-----"[..], "holds no OCSP response in DER"),
        (b"", "is empty"),
        (&[0x30, 3, 0x0a, 1, 6], "that tells of error 6"),
        (&[0x30, 4, 0x0a, 1, 0], "holds no OCSP response"),
        (&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff, 0x0a, 1, 0], "holds no OCSP response"),
        (&[0x30, 0x80], "holds no OCSP response"),
    ] {
        write(folder.path(), "a.ocsp", bytes);
        let (_, remarks) = build(folder.path(), &tls(vec![written.clone()]));
        assert_eq!(remarks.faults[0].0, "tls.certificates[0].ocsp");
        assert!(remarks.faults[0].1.contains(message), "{remarks:?}");
    }
    write(folder.path(), "a.ocsp", [0x30, 3, 0x0a, 1, 0]);
    assert!(build(folder.path(), &tls(vec![written])).0.is_some());
}

/// An authority in `{stem}.pem`.
fn authority(folder: &Path, stem: &str) -> Issuer<'static, KeyPair> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, stem);
    write(folder, &format!("{stem}.pem"), params.self_signed(&key).unwrap().pem());
    Issuer::new(params, key)
}

fn asking(mode: written::ClientAuthMode, ca: &str, crl: Option<&str>) -> ListenerTls {
    let client_auth =
        Some(written::ClientAuth { mode, ca: ca.into(), crl: crl.map(Into::into), forward: false });
    ListenerTls { client_auth, ..tls(vec![certificate("a.pem", "a.key")]) }
}

#[test]
fn wrong_files_about_clients_are_told_by_their_names() {
    use written::ClientAuthMode::Require;
    let folder = folder();
    authority(folder.path(), "ca");
    for (ca, crl, place, message) in [
        ("none.pem", None, "ca", "cannot read none.pem"),
        ("a.key", None, "ca", "a.key holds no certificate"),
        ("ca.pem", Some("none.crl"), "crl", "cannot read none.crl"),
        ("ca.pem", Some("a.pem"), "crl", "a.pem holds no revocation list"),
    ] {
        let (_, remarks) = build(folder.path(), &asking(Require, ca, crl));
        assert_eq!(remarks.faults[0].0, format!("tls.client_auth.{place}"));
        assert!(remarks.faults[0].1.contains(message), "{remarks:?}");
    }
    write(folder.path(), "bad.crl", [0x30, 1, 0]);
    let (_, remarks) = build(folder.path(), &asking(Require, "ca.pem", Some("bad.crl")));
    assert!(remarks.faults[0].1.contains("bad.crl holds an invalid revocation list"), "{remarks:?}");
}

#[test]
fn tickets_stay_good_as_long_as_the_same_clients_are_let_in() {
    use written::ClientAuthMode::{Optional, Require};
    let folder = folder();
    let at = folder.path();
    authority(at, "ca");
    let reads = |new: &ServerTls, old: &ServerTls| {
        let ticket = old.config.ticketer.encrypt(b"state").unwrap();
        new.config.ticketer.decrypt(&ticket).is_some()
    };
    let anyone = build(at, &tls(vec![certificate("a.pem", "a.key")])).0.unwrap();
    let other = tls(vec![certificate("b.pem", "b.key")]);
    assert!(reads(&build_after(at, &other, Some(&anyone)).0.unwrap(), &anyone), "another certificate");
    assert!(!reads(&build(at, &other).0.unwrap(), &anyone), "another listener");
    let require = build_after(at, &asking(Require, "ca.pem", None), Some(&anyone)).0.unwrap();
    assert!(!reads(&require, &anyone), "certificates are asked for now");
    let same = build_after(at, &asking(Require, "ca.pem", None), Some(&require)).0.unwrap();
    assert!(reads(&same, &require));
    let optional = build_after(at, &asking(Optional, "ca.pem", None), Some(&require)).0.unwrap();
    assert!(!reads(&optional, &require));
    authority(at, "ca");
    let replaced = build_after(at, &asking(Require, "ca.pem", None), Some(&require)).0.unwrap();
    assert!(!reads(&replaced, &require), "another authority in the same file");
}

#[test]
fn clients_are_asked_for_the_same_as_long_as_the_same_is_written() {
    use written::ClientAuthMode::{Optional, Require};
    let folder = folder();
    for stem in ["ca", "other"] {
        authority(folder.path(), stem);
    }
    let built = |written: &ListenerTls| build(folder.path(), written).0.unwrap();
    let require = built(&asking(Require, "ca.pem", None));
    for other in [
        tls(vec![certificate("a.pem", "a.key")]),
        asking(Optional, "ca.pem", None),
        asking(Require, "other.pem", None),
    ] {
        assert!(!require.asks_as(&built(&other)), "{other:?}");
    }
    authority(folder.path(), "ca");
    let renewed =
        ListenerTls { certificates: vec![certificate("b.pem", "b.key")], ..asking(Require, "ca.pem", None) };
    assert!(require.asks_as(&built(&renewed)), "what the files hold may change");
}

#[test]
fn a_certificate_is_warned_about_from_two_weeks_before_its_end() {
    let term =
        Term { hosts: Vec::new(), not_before: 1_000 * DAY, not_after: 2_000 * DAY, stapled_until: None };
    let said = |day: i64| term.warning(day * DAY).unwrap_or_default();
    assert_eq!(said(999), "the certificate is not valid before Wed, 27 Sep 1972 00:00:00 +0000");
    assert_eq!((said(1_000), said(1_986)), (String::new(), String::new()));
    assert_eq!(said(1_987), "the certificate expires in 13 days, on Tue, 24 Jun 1975 00:00:00 +0000");
    assert_eq!(said(2_001), "the certificate expired on Tue, 24 Jun 1975 00:00:00 +0000");
}

#[test]
fn dates_of_a_loaded_certificate_are_warned_about_at_its_place() {
    let folder = folder();
    for (from, to, message) in [(2000, 2001, "expired on"), (2100, 2101, "is not valid before")] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["d.test".to_owned()]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(from, 1, 1), date_time_ymd(to, 1, 1));
        write(folder.path(), "d.pem", params.self_signed(&key).unwrap().pem());
        write(folder.path(), "d.key", key.serialize_pem());
        let (built, remarks) = build(folder.path(), &tls(vec![certificate("d.pem", "d.key")]));
        assert!(built.is_some() && remarks.warnings.len() == 1, "{remarks:?}");
        let (place, said) = &remarks.warnings[0];
        assert!(place == "tls.certificates[0].cert" && said.contains(message), "{remarks:?}");
    }
}

#[test]
fn a_clients_certificate_is_told_with_all_its_names_but_hidden_ones() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["c.test".to_owned(), "192.0.2.9".to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "acme");
    params.distinguished_name.push(DnType::OrganizationName, "Acme");
    params.serial_number = Some(rcgen::SerialNumber::from(0x1234_u64));
    params.not_after = date_time_ymd(2030, 1, 1);
    for hidden in ["spiffe://test/acme", "spiffe://test/\0admin"] {
        params.subject_alt_names.push(rcgen::SanType::URI(hidden.try_into().unwrap()));
    }
    let certificate = params.self_signed(&key).unwrap();
    let facts = client_certificate(certificate.der()).unwrap();
    assert_eq!(&*facts.subject, "CN=acme, O=Acme");
    assert_eq!((&*facts.serial, facts.not_after), ("1234", 1_893_456_000));
    let names = [
        AlternativeName::Dns("c.test".into()),
        AlternativeName::Ip("192.0.2.9".parse().unwrap()),
        AlternativeName::Uri("spiffe://test/acme".into()),
    ];
    assert_eq!(*facts.names, names);
    assert_eq!(facts.fingerprint_hex().len(), 64);
    assert!(client_certificate(&vec![0x30, 0].into()).is_none());
}

/// The subject told of a certificate with these attributes.
fn subject(attributes: &[(DnType, rcgen::DnValue)]) -> String {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for (kind, value) in attributes {
        params.distinguished_name.push(kind.clone(), value.clone());
    }
    let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    client_certificate(certificate.der()).unwrap().subject.into()
}

#[test]
fn what_a_client_put_in_one_attribute_is_never_taken_for_two() {
    let name = |text: &str| (DnType::CommonName, text.into());
    let unit = (DnType::OrganizationalUnitName, "admin".into());
    assert_eq!(subject(&[name("alice"), unit]), "CN=alice, OU=admin");
    // RFC 4514 s2.4.
    for (value, expected) in [
        ("alice, OU=admin", "CN=alice\\, OU=admin"),
        ("alice + OU=admin", "CN=alice \\+ OU=admin"),
        ("alice\\, OU=admin", "CN=alice\\\\\\, OU=admin"),
        ("\"a\";<b>", "CN=\\\"a\\\"\\;\\<b\\>"),
        ("#61", "CN=\\#61"),
        (" a b ", "CN=\\ a b\\ "),
        (" ", "CN=\\ "),
        ("a\0\nb\u{85}", "CN=a\\00\\0Ab\\C2\\85"),
        ("Lu\u{10d}i\u{107}", "CN=Lu\u{10d}i\u{107}"),
    ] {
        assert_eq!(subject(&[name(value)]), expected);
    }
}

#[test]
fn attributes_without_a_short_name_are_told_by_their_number() {
    let organization = DnType::CustomDnType(vec![2, 5, 4, 97]);
    assert_eq!(subject(&[(organization, "VATDE-1".into())]), "2.5.4.97=VATDE-1");
}

#[test]
fn values_that_are_no_text_are_told_byte_by_byte() {
    let wide = rcgen::string::UniversalString::try_from("a").unwrap();
    let value = rcgen::DnValue::UniversalString(wide);
    assert_eq!(subject(&[(DnType::CommonName, value)]), "CN=#1c0400000061");
    let wide = rcgen::string::BmpString::try_from("a, b").unwrap();
    assert_eq!(subject(&[(DnType::CommonName, rcgen::DnValue::BmpString(wide))]), "CN=a\\, b");
}
