//! "Did you mean": the known name nearest to what was written.

/// The candidate that `word` is most likely a misspelling of.
///
/// Case and `-` against `_` do not count; otherwise about one slip in four characters is forgiven
/// (insertions, deletions, substitutions, neighbours swapped).
pub fn nearest<'a, I>(word: &str, candidates: I) -> Option<&'a str>
where
    I: IntoIterator<Item = &'a str>,
{
    if word.is_empty() || word.len() > 64 {
        return None;
    }
    let folded = fold(word);
    let allowed = 1 + folded.len() / 5;
    candidates
        .into_iter()
        .filter(|known| known.len().abs_diff(word.len()) <= allowed)
        .map(|known| (strsim::osa_distance(&folded, &fold(known)), known))
        .filter(|(distance, known)| *distance <= allowed && *distance < known.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

fn fold(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_another_word_does_not() {
        let known = ["rate", "routes", "max_age", "connect"];
        assert_eq!(nearest("rats", known), Some("rate"));
        assert_eq!(nearest("roues", known), Some("routes"));
        assert_eq!(nearest("max-age", known), Some("max_age"));
        assert_eq!(nearest("conenct", known), Some("connect"));
        assert_eq!(nearest("timeout", known), None);
        assert_eq!(nearest("", known), None);
        assert_eq!(nearest("x", ["y"]), None);
    }
}
