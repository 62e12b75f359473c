//! Times as HTTP writes them (RFC 9110 s5.6.7).

use std::time::UNIX_EPOCH;

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Seconds since 1970 of a date in any of the three forms; names in any case, as some servers write them.
/// What is no date is none, and so is a time before 1970.
#[must_use]
pub fn http_date(text: &[u8]) -> Option<u64> {
    let text = str::from_utf8(text).ok().filter(|text| text.len() <= 40)?;
    let text = cased(text);
    // The library checks the day of the week, which nobody needs.
    let any_day =
        || DAYS.iter().find_map(|day| httpdate::parse_http_date(&format!("{day}{}", text.get(3..)?)).ok());
    let date = httpdate::parse_http_date(&text).ok().or_else(any_day)?;
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
