//! Which content coding an `Accept-Encoding` asks for (RFC 9110 s12.5.3).

use http::HeaderMap;
use http::header::ACCEPT_ENCODING;

use super::encode::Algorithm;

/// A coding that the client accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// The coding.
    pub algorithm: Algorithm,
    /// The client refuses an answer without a coding: `identity;q=0`.
    pub required: bool,
}

/// The coding that the client likes best among those offered; the first of equals.
///
/// None without the field, although anything would be allowed then: who does not say that it decodes
/// seldom does. None too when the client likes an answer without a coding better.
#[must_use]
pub fn choose(request: &HeaderMap, offered: &[Algorithm]) -> Option<Choice> {
    let accepted = Accepted::parse(request);
    let mut best: Option<(Algorithm, u16)> = None;
    for algorithm in offered {
        let quality = accepted.quality(*algorithm);
        if quality > best.map_or(0, |(_, best)| best) {
            best = Some((*algorithm, quality));
        }
    }
    let (algorithm, quality) = best?;
    // Named without weight it is as good as a coding, and then the coding is the shorter one.
    let preferred = accepted.identity.is_some_and(|identity| identity > quality);
    (!preferred).then_some(Choice { algorithm, required: accepted.refuses_identity() })
}

/// Weights in thousandths, by coding; none where the field is silent.
#[derive(Default)]
struct Accepted {
    codings: Vec<(Algorithm, u16)>,
    identity: Option<u16>,
    any: Option<u16>,
}

impl Accepted {
    fn parse(request: &HeaderMap) -> Self {
        let mut accepted = Self::default();
        let lines = request.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        for (coding, weight) in lines.flat_map(|line| line.split(',')).filter_map(element) {
            if coding == "*" {
                accepted.any = Some(weight);
            } else if coding.eq_ignore_ascii_case("identity") {
                accepted.identity = Some(weight);
            } else if let Some(algorithm) = Algorithm::named(coding) {
                accepted.codings.push((algorithm, weight));
            }
        }
        accepted
    }

    fn quality(&self, algorithm: Algorithm) -> u16 {
        let named = self.codings.iter().find(|(known, _)| *known == algorithm);
        named.map(|(_, weight)| *weight).or(self.any).unwrap_or(0)
    }

    /// `*;q=0` is about the codings that are not named, and no coding is one of them.
    fn refuses_identity(&self) -> bool {
        self.identity.or(self.any) == Some(0)
    }
}

/// A coding and its weight; none where the weight is not one.
fn element(text: &str) -> Option<(&str, u16)> {
    let mut parts = text.split(';').map(str::trim);
    let coding = parts.next().filter(|coding| !coding.is_empty())?;
    let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    Some((coding, weight.map_or(Some(1000), thousandths)?))
}

/// A weight from 0 to 1 with at most three decimals (RFC 9110 s12.4.2).
#[must_use]
pub fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let valid = matches!(whole, "0" | "1") && decimals.len() <= 3;
    let all_digits = decimals.bytes().all(|byte| byte.is_ascii_digit());
    let fraction: u16 = format!("{decimals:0<3}").parse().ok().filter(|_| valid && all_digits)?;
    Some(u16::from(whole == "1") * 1000 + fraction).filter(|weight| *weight <= 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Algorithm::{Br, Gzip, Zstd};

    fn chosen(lines: &[&str]) -> Option<Choice> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(ACCEPT_ENCODING, line.parse().expect("a valid value"));
        }
        choose(&headers, &[Zstd, Br, Gzip])
    }

    fn named(field: &str) -> Option<Algorithm> {
        chosen(&[field]).map(|choice| choice.algorithm)
    }

    #[test]
    fn the_examples_of_rfc_9110_s12_5_3() {
        assert_eq!(named("compress, gzip"), Some(Gzip));
        assert_eq!(named(""), None);
        assert_eq!(named("*"), Some(Zstd));
        assert_eq!(named("compress;q=0.5, gzip;q=1.0"), Some(Gzip));
        let last = chosen(&["gzip;q=1.0, identity; q=0.5, *;q=0"]);
        assert_eq!(last, Some(Choice { algorithm: Gzip, required: false }));
    }

    #[test]
    fn weights_decide_and_the_order_of_the_gateway_breaks_ties() {
        assert_eq!(named("gzip, deflate, br, zstd"), Some(Zstd));
        assert_eq!(named("gzip, br"), Some(Br));
        assert_eq!(named("gzip;q=0.9, br;q=0.8, zstd;q=0.001"), Some(Gzip));
        assert_eq!(named("br;q=0, gzip;q=0.1"), Some(Gzip));
        assert_eq!(named("*;q=0.5, gzip;q=0.4"), Some(Zstd));
        assert_eq!(named("gzip, *;q=0"), Some(Gzip));
        assert_eq!(named("GZIP"), Some(Gzip));
        assert_eq!(named("x-gzip"), Some(Gzip), "RFC 9110 s8.4.1.3");
        assert_eq!(chosen(&["deflate", "br"]).map(|choice| choice.algorithm), Some(Br));
    }

    #[test]
    fn an_answer_without_coding_can_be_preferred() {
        assert_eq!(named("identity"), None);
        assert_eq!(named("identity;q=1, gzip;q=0.5"), None);
        assert_eq!(named("identity, gzip"), Some(Gzip));
        assert_eq!(named("identity;q=0.5, gzip"), Some(Gzip));
        assert_eq!(named("gzip;q=0"), None);
        assert_eq!(named("*;q=0"), None);
    }

    #[test]
    fn an_answer_without_coding_can_be_refused() {
        for field in ["identity;q=0, gzip", "gzip, *;q=0", "gzip;q=0.1, identity;q=0.000"] {
            assert_eq!(chosen(&[field]), Some(Choice { algorithm: Gzip, required: true }), "{field}");
        }
        assert_eq!(chosen(&["gzip, *;q=0.1"]).map(|choice| choice.required), Some(false));
    }

    #[test]
    fn what_is_no_weight_counts_as_nothing_said() {
        for weight in ["2", "1.5", "0.1234", "-1", "", "x", "1.001", "0,5", "+0"] {
            assert_eq!(named(&format!("gzip;q={weight}")), None, "{weight}");
        }
        for (weight, expected) in
            [("0", 0), ("0.", 0), ("0.5", 500), ("1", 1000), ("1.000", 1000), ("0.001", 1)]
        {
            assert_eq!(thousandths(weight), Some(expected), "{weight}");
        }
    }
}
