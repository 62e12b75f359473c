//! Identifiers and addresses as text, several times faster than the formatter writes them.

use std::net::IpAddr;

/// Bytes as hexadecimal digits in lower case, two each.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    push_hex(bytes, &mut text);
    String::from_utf8(text).expect("digits are ASCII")
}

/// As [`hex`], at the end of a text.
pub fn push_hex(bytes: &[u8], text: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    text.reserve(bytes.len() * 2);
    for byte in bytes {
        text.extend_from_slice(&[byte >> 4, byte & 15].map(|half| DIGITS[usize::from(half)]));
    }
}

/// An address, without brackets.
#[must_use]
pub fn address_text(address: IpAddr) -> String {
    let mut text = Vec::with_capacity("255.255.255.255".len());
    push_address(address, &mut text);
    String::from_utf8(text).expect("addresses are ASCII")
}

/// As [`address_text`], at the end of a text.
pub fn push_address(address: IpAddr, text: &mut Vec<u8>) {
    let IpAddr::V4(v4) = address else { return text.extend_from_slice(address.to_string().as_bytes()) };
    for (at, octet) in v4.octets().into_iter().enumerate() {
        if at > 0 {
            text.push(b'.');
        }
        let [hundreds, tens, ones] = [octet / 100, octet / 10 % 10, octet % 10].map(|digit| b'0' + digit);
        match octet {
            100.. => text.extend_from_slice(&[hundreds, tens, ones]),
            10.. => text.extend_from_slice(&[tens, ones]),
            _ => text.push(ones),
        }
    }
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
