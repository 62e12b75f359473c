//! Times as HTTP writes them (RFC 9110 s5.6.7).

use std::time::UNIX_EPOCH;

/// Seconds since 1970 of a date in any of the three forms; names in any case, as some servers write them.
/// What is no date is none, and so is a time before 1970.
#[must_use]
pub fn http_date(text: &[u8]) -> Option<u64> {
    let text = str::from_utf8(text).ok().filter(|text| text.len() <= 40)?;
    let date = httpdate::parse_http_date(&cased(text)).ok()?;
    date.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs())
}

/// Words with a capital first and small letters after it; the time zone in capitals.
fn cased(text: &str) -> String {
    let mut at_start = true;
    let mut cased: String = text
        .chars()
        .map(|c| {
            let was = std::mem::replace(&mut at_start, !c.is_ascii_alphabetic());
            if was { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() }
        })
        .collect();
    if let Some(rest) = cased.strip_suffix(" Gmt") {
        cased = format!("{rest} GMT");
    }
    cased
}

