//! Parts of a stored answer (RFC 9110 s14).

/// What a request for a part gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranged {
    /// All of it: the field says nothing that can be served as one part (s14.2: it may be ignored).
    Whole,
    /// These bytes, first and last.
    Part(u64, u64),
    /// There are no such bytes: 416.
    Nothing,
}

/// What `Range` says of content of this length.
#[must_use]
pub fn ranged(range: &[u8], length: u64) -> Ranged {
    let text = str::from_utf8(range).unwrap_or_default();
    let Some((unit, spec)) = text.split_once('=') else { return Ranged::Whole };
    if !unit.trim_ascii().eq_ignore_ascii_case("bytes") || spec.contains(',') {
        return Ranged::Whole;
    }
    let Some((first, last)) = spec.trim_ascii().split_once('-') else { return Ranged::Whole };
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => Ranged::Whole,
        (Some(_), None) if !last.is_empty() => Ranged::Whole,
        (Some(first), _) if first >= length => Ranged::Nothing,
        (Some(first), last) => Ranged::Part(first, last.unwrap_or(u64::MAX).min(length - 1)),
        (None, Some(0)) if first.is_empty() => Ranged::Nothing,
        (None, Some(_)) if first.is_empty() && length == 0 => Ranged::Nothing,
        (None, Some(suffix)) if first.is_empty() => Ranged::Part(length.saturating_sub(suffix), length - 1),
        _ => Ranged::Whole,
    }
}
