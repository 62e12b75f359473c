//! What an OCSP response says of itself, and the certificate it is sent with for as long as it is good (RFC 6960).

use std::sync::Arc;

use rustls::sign::CertifiedKey;
use x509_parser::prelude::{ASN1Time, FromDer};

const OCTET_STRING: u8 = 0x04;
const ENUMERATED: u8 = 0x0a;
const SEQUENCE: u8 = 0x30;
/// `[0]`, with a value in it.
const EXPLICIT_0: u8 = 0xa0;

/// A certificate with its key, as clients are shown it.
#[derive(Debug)]
pub(super) struct Shown {
    plain: Arc<CertifiedKey>,
    /// The same with an OCSP response.
    stapled: Option<Arc<CertifiedKey>>,
    /// Until when that is good, in Unix seconds; the end of time if it does not say.
    ends: i64,
}

impl Shown {
    /// A certificate, and the OCSP response of it in DER, if there is one.
    pub(super) fn new(key: CertifiedKey, response: Option<Vec<u8>>) -> Self {
        let ends = response.as_deref().and_then(next_update).unwrap_or(i64::MAX);
        let stapled = response.map(|response| CertifiedKey { ocsp: Some(response), ..key.clone() });
        Self { plain: Arc::new(key), stapled: stapled.map(Arc::new), ends }
    }

    /// Without an OCSP response.
    pub(super) fn plain(&self) -> &CertifiedKey {
        &self.plain
    }

    /// What is sent at a time, in Unix seconds. With a stale response, clients refuse what they take without one (RFC
    /// 6960 s4.2.2.1).
    pub(super) fn at(&self, now: impl FnOnce() -> i64) -> &Arc<CertifiedKey> {
        self.stapled.as_ref().filter(|_| now() <= self.ends).unwrap_or(&self.plain)
    }

    /// When its OCSP response ends, in Unix seconds; none if there is none, or it does not say.
    pub(super) fn ends(&self) -> Option<i64> {
        self.stapled.is_some().then_some(self.ends).filter(|ends| *ends < i64::MAX)
    }
}

/// The status of a response; none if it is none (RFC 6960 s4.2.1).
pub(super) fn status(response: &[u8]) -> Option<u8> {
    match split(response)? {
        (SEQUENCE, [ENUMERATED, 1, status, ..], []) => Some(*status),
        _ => None,
    }
}

/// The first `nextUpdate` in a response, in Unix seconds; none if there is none (RFC 6960 s4.2.1).
fn next_update(response: &[u8]) -> Option<i64> {
    // Behind the status, and behind the type of the response.
    let (bytes, _) = value(behind(value(response, SEQUENCE)?.0)?, EXPLICIT_0)?;
    let (basic, _) = value(behind(value(bytes, SEQUENCE)?.0)?, OCTET_STRING)?;
    let (data, _) = value(value(basic, SEQUENCE)?.0, SEQUENCE)?;
    let data = value(data, EXPLICIT_0).map_or(data, |(_version, rest)| rest);
    // Behind who says so, and when.
    let (mut answers, _) = value(behind(behind(data)?)?, SEQUENCE)?;
    let each = std::iter::from_fn(|| {
        let (answer, rest) = value(answers, SEQUENCE)?;
        answers = rest;
        Some(answer)
    });
    each.filter_map(next_update_of).min()
}

/// The same of an answer about one certificate: behind which it is, its status, and `thisUpdate`.
fn next_update_of(answer: &[u8]) -> Option<i64> {
    let (time, _) = value(behind(behind(behind(answer)?)?)?, EXPLICIT_0)?;
    ASN1Time::from_der(time).ok().map(|(_, time)| time.timestamp())
}

/// What a value of this tag holds, and what stands behind it.
fn value(der: &[u8], wanted: u8) -> Option<(&[u8], &[u8])> {
    let (tag, content, rest) = split(der)?;
    (tag == wanted).then_some((content, rest))
}

/// What stands behind a value.
fn behind(der: &[u8]) -> Option<&[u8]> {
    split(der).map(|(_, _, rest)| rest)
}

/// The tag of a value in DER, what it holds, and what stands behind it.
fn split(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, rest) = der.split_first()?;
    let (first, rest) = rest.split_first()?;
    let more = usize::from(first & 0x7f);
    let (length, rest) = match first {
        0x80 => return None,
        0..0x80 => (more, rest),
        _ if more > 4 => return None,
        _ => {
            let (length, rest) = rest.split_at_checked(more)?;
            (length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((*tag, content, rest))
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs::sign::any_supported_type;
    use rustls::pki_types::PrivateKeyDer;

    use super::*;

    /// 2020-01-08 00:00:00 UTC.
    const EIGHTH: i64 = 1_578_441_600;

    fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82][..], &length, &content].concat()
    }

    fn time(text: &str) -> Vec<u8> {
        der(0x18, &[text.as_bytes()])
    }

    /// `SingleResponse`: good since the first of the month, with this at its end.
    fn answer(end: &[u8]) -> Vec<u8> {
        der(SEQUENCE, &[&der(SEQUENCE, &[]), &[0x80, 0], &time("20200101000000Z"), end])
    }

    /// A successful `OCSPResponse` of type `id-pkix-ocsp-basic`, its data beginning with this.
    fn response(begin: &[u8], answers: &[&[u8]]) -> Vec<u8> {
        let data = [begin, &der(0xa2, &[]), &time("20200101000000Z"), &der(SEQUENCE, answers)];
        let basic = der(SEQUENCE, &[&der(SEQUENCE, &data), &der(SEQUENCE, &[]), &[3, 1, 0]]);
        let kind = [6, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
        let bytes = der(SEQUENCE, &[&kind, &der(OCTET_STRING, &[&basic])]);
        der(SEQUENCE, &[&[ENUMERATED, 1, 0], &der(EXPLICIT_0, &[&bytes])])
    }

    fn until(text: &str) -> Vec<u8> {
        answer(&der(EXPLICIT_0, &[&time(text)]))
    }

    #[test]
    fn a_response_is_good_until_the_first_next_update_as_rfc_6960_s4_2_1_has_it() {
        let (eighth, ninth) = (until("20200108000000Z"), until("20200109000000Z"));
        let version = der(EXPLICIT_0, &[&[2, 1, 0]]);
        for begin in [&version[..], &[]] {
            assert_eq!(next_update(&response(begin, &[&ninth, &eighth])), Some(EIGHTH));
        }
        // Newer ones are there all the time where it is left out; extensions may follow.
        assert_eq!(next_update(&response(&[], &[&answer(&[])])), None);
        assert_eq!(next_update(&response(&[], &[&answer(&der(0xa1, &[]))])), None);
        let whole = response(&version, &[&eighth]);
        assert_eq!(status(&whole), Some(0));
        for length in 0..whole.len() {
            assert_eq!((status(&whole[..length]), next_update(&whole[..length])), (None, None));
        }
    }

    #[test]
    fn a_stale_response_is_left_away() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_der();
        let signer = any_supported_type(&PrivateKeyDer::try_from(&key[..]).unwrap()).unwrap();
        let key = CertifiedKey::new(Vec::new(), signer);
        let week = response(&[], &[&until("20200108000000Z")]);
        let shown = Shown::new(key.clone(), Some(week.clone()));
        assert_eq!(shown.ends(), Some(EIGHTH));
        assert_eq!(
            (shown.at(|| EIGHTH).ocsp.as_ref(), shown.at(|| EIGHTH + 1).ocsp.as_ref()),
            (Some(&week), None)
        );
        let endless = Shown::new(key.clone(), Some(response(&[], &[&answer(&[])])));
        assert!(endless.at(|| i64::MAX).ocsp.is_some() && endless.ends().is_none());
        assert!(Shown::new(key, None).at(|| EIGHTH).ocsp.is_none());
    }
}
