//! Identifiers and addresses as text, several times faster than the formatter writes them.

use std::net::IpAddr;

/// Bytes as hexadecimal digits in lower case, two each.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = vec![0; bytes.len() * 2];
    for (pair, byte) in text.chunks_exact_mut(2).zip(bytes) {
        pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    String::from_utf8(text).expect("digits are ASCII")
}

/// An address, without brackets.
#[must_use]
pub fn address_text(address: IpAddr) -> String {
    let IpAddr::V4(v4) = address else { return address.to_string() };
    let mut text = String::with_capacity("255.255.255.255".len());
    for octet in v4.octets() {
        if !text.is_empty() {
            text.push('.');
        }
        let places = [100, 10, 1].into_iter().filter(|place| octet >= *place || *place == 1);
        text.extend(places.map(|place| char::from(b'0' + octet / place % 10)));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn every_byte_is_written_as_the_formatter_does() {
        let bytes: Vec<u8> = (0..=255).collect();
        let formatted: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!((hex(&bytes), hex(&[])), (formatted, String::new()));
    }

    #[test]
    fn every_octet_is_written_as_the_formatter_does() {
        for octet in 0..=255 {
            let address = Ipv4Addr::new(octet, 10, 0, octet);
            assert_eq!(address_text(address.into()), address.to_string());
        }
        assert_eq!(address_text("2001:db8::1".parse().expect("an address")), "2001:db8::1");
    }
}
