//! Distinguished names as text that has one reading (RFC 4514).

use std::fmt::Write as _;
use std::str;

use x509_parser::der_parser::asn1_rs::{Any, BmpString, Tag, ToDer};
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::x509::{AttributeTypeAndValue, X509Name};

/// A name as RFC 4514 s2 writes it, though in the order of the certificate and with spaces, such as `C=DE, CN=acme`:
/// names of different text never read alike, whatever clients had put in one.
pub(super) fn distinguished_name(name: &X509Name<'_>) -> String {
    let parts = name.iter().map(|part| {
        let attributes: Vec<_> = part.iter().map(attribute).collect();
        attributes.join(" + ")
    });
    parts.collect::<Vec<_>>().join(", ")
}

fn attribute(attribute: &AttributeTypeAndValue<'_>) -> String {
    let kind = attribute.attr_type();
    let short = oid2abbrev(kind, oid_registry());
    let kind = short.map_or_else(|_| kind.to_id_string(), str::to_owned);
    let value = attribute.attr_value();
    format!("{kind}={}", text(value).map_or_else(|| encoded(value), |text| escaped(&text)))
}

/// What a value says; none if it is no string, or one of another character set than it says.
fn text(value: &Any<'_>) -> Option<String> {
    match value.tag() {
        Tag::Utf8String
        | Tag::PrintableString
        | Tag::Ia5String
        | Tag::NumericString
        | Tag::VisibleString
        | Tag::T61String => str::from_utf8(value.data).ok().map(str::to_owned),
        Tag::BmpString => BmpString::try_from(value.clone()).ok().map(|text| text.string()),
        _ => None,
    }
}

/// `#` and the value's DER in hexadecimal digits (RFC 4514 s2.4).
fn encoded(value: &Any<'_>) -> String {
    let der = value.to_der_vec().unwrap_or_default();
    der.iter().fold("#".to_owned(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// RFC 4514 s2.4: what could be taken for something else has a backslash; control characters, too, are in hexadecimal
/// digits.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (at, character) in text.char_indices() {
        let last = at + character.len_utf8() == text.len();
        match character {
            '"' | '+' | ',' | ';' | '<' | '>' | '\\' => out.extend(['\\', character]),
            '#' if at == 0 => out.push_str("\\#"),
            ' ' if at == 0 || last => out.push_str("\\ "),
            _ if character.is_control() => {
                let mut bytes = [0; 4];
                for byte in character.encode_utf8(&mut bytes).bytes() {
                    let _ = write!(out, "\\{byte:02X}");
                }
            }
            _ => out.push(character),
        }
    }
    out
}
