//! The version that `Accept` asks for (RFC 9110 s12.5.1): in a vendor's subtype, `application/vnd.acme.v2+json`,
//! or in a parameter, `application/json;v=2`.

use http::HeaderMap;
use http::header::ACCEPT;
use tollhouse_filters::coding::accept::thousandths;

/// What `Accept` says of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wish {
    /// It names none that exists, and takes what has none.
    Nothing,
    /// The best that exists of those it names; none where it prefers a media type without one.
    Version(Option<usize>),
    /// It names this one among others, and takes nothing that exists.
    Unknown(String),
}

/// What one media range says: a version, if it names one, and its weight.
#[derive(Debug)]
struct Range {
    version: Option<Result<usize, String>>,
    weight: u16,
}

/// Reads the field. `named` finds a version by its name without a `v`; one that is not `usable` is chosen only
/// where no other is left.
pub(super) fn wish(
    headers: &HeaderMap,
    named: impl Fn(&str) -> Option<usize>,
    usable: impl Fn(usize) -> bool,
) -> Wish {
    let lines = headers.get_all(ACCEPT).iter().filter_map(|line| line.to_str().ok());
    let ranges: Vec<Range> =
        lines.flat_map(|line| unquoted(line, ',')).filter_map(|text| range(text, &named)).collect();
    if ranges.iter().all(|range| range.version.is_none()) {
        return Wish::Nothing;
    }
    // Weight first, a named version before none, then the order of the field.
    let rank = |range: &Range| match &range.version {
        Some(Ok(version)) => Some((usable(*version), range.weight, true)),
        Some(Err(_)) => None,
        None => Some((true, range.weight, false)),
    };
    let acceptable = ranges.iter().filter(|range| range.weight > 0);
    let names_one = acceptable.clone().any(|range| matches!(range.version, Some(Ok(_))));
    let ranked = acceptable.filter_map(|range| Some((rank(range)?, range)));
    // Of equals the first, where `max_by_key` gives the last.
    let best = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best });
    match best.map(|(_, range)| range) {
        Some(Range { version: Some(Ok(version)), .. }) => Wish::Version(Some(*version)),
        Some(_) if names_one => Wish::Version(None),
        // Others mean something else by `v`: of Chrome, it is `application/signed-exchange;v=b3`.
        Some(_) => Wish::Nothing,
        None => Wish::Unknown(ranges.into_iter().find_map(|range| range.version?.err()).unwrap_or_default()),
    }
}

/// A media range; none where it is not one.
fn range(text: &str, named: impl Fn(&str) -> Option<usize>) -> Option<Range> {
    let mut parts = unquoted(text, ';').map(str::trim);
    let (_, subtype) = parts.next()?.split_once('/')?;
    let mut range = Range { version: in_subtype(subtype, &named), weight: 1000 };
    for part in parts {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let value = value.trim().trim_matches('"');
        match name.trim().to_ascii_lowercase().as_str() {
            "q" => range.weight = thousandths(value)?,
            "v" | "version" => {
                let bare = super::bare(value);
                range.version = Some(named(bare).ok_or_else(|| bare.to_owned()));
            }
            _ => {}
        }
    }
    Some(range)
}

/// The version in a subtype such as `vnd.acme.v2+json`: known, or the digits after the `v`.
fn in_subtype(subtype: &str, named: impl Fn(&str) -> Option<usize>) -> Option<Result<usize, String>> {
    let subtype = subtype.to_ascii_lowercase();
    let base = subtype.rsplit_once('+').map_or(&*subtype, |(base, _)| base);
    let starts = base.match_indices(['.', '-']).filter_map(|(at, _)| base[at + 1..].strip_prefix('v'));
    for rest in starts {
        // The longest, since a version may have points in it.
        let ends = rest.match_indices(['.', '-']).map(|(at, _)| at).chain([rest.len()]);
        if let Some(version) = ends.collect::<Vec<_>>().into_iter().rev().find_map(|end| named(&rest[..end]))
        {
            return Some(Ok(version));
        }
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let digits = rest[..digits].trim_end_matches('.');
        if !digits.is_empty() {
            return Some(Err(digits.to_owned()));
        }
    }
    None
}

/// The parts of a text between separators that are not in quotes.
fn unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        match c {
            _ if std::mem::take(&mut escaped) => {}
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSIONS: [&str; 3] = ["1", "2", "2.1"];

    fn wished(accept: &str, gone: &[usize]) -> Wish {
        let mut headers = HeaderMap::new();
        for line in accept.split('\n') {
            headers.append(ACCEPT, line.parse().expect("a value"));
        }
        let named = |text: &str| VERSIONS.iter().position(|version| *version == text);
        wish(&headers, named, |version| !gone.contains(&version))
    }

    #[test]
    fn a_version_stands_in_the_subtype_or_in_a_parameter() {
        for (accept, version) in [
            ("application/vnd.acme.v2+json", 1),
            ("application/vnd.acme.v2.raw+json", 1),
            ("application/vnd.acme-v1+xml", 0),
            ("application/vnd.acme.v2.1+json", 2),
            ("application/json;v=2", 1),
            ("application/json; charset=utf-8; Version=\"v1\"", 0),
            ("application/json;x=\"a,b;v=1\";v=2", 1),
            ("text/html, application/VND.ACME.V1+JSON", 0),
        ] {
            assert_eq!(wished(accept, &[]), Wish::Version(Some(version)), "{accept}");
        }
    }

    #[test]
    fn weights_decide_among_versions_that_exist() {
        for (accept, version) in [
            ("application/vnd.a.v1+json;q=0.5, application/vnd.a.v2+json", Some(1)),
            ("application/vnd.a.v1+json;q=0.5\napplication/vnd.a.v2+json;q=0.4", Some(0)),
            ("application/vnd.a.v9+json, application/vnd.a.v1+json;q=0.1", Some(0)),
            ("application/vnd.a.v1+json, application/vnd.a.v2+json", Some(0)),
            ("application/vnd.a.v1+json;q=0.5, */*", None),
            ("application/vnd.a.v1+json, */*", Some(0)),
            ("application/vnd.a.v1+json;q=0, application/vnd.a.v2+json;q=0.001", Some(1)),
        ] {
            assert_eq!(wished(accept, &[]), Wish::Version(version), "{accept}");
        }
    }

    #[test]
    fn a_version_that_has_ended_is_chosen_only_if_no_other_is_asked_for() {
        let accept = "application/vnd.a.v1+json, application/vnd.a.v2+json;q=0.5";
        assert_eq!(wished(accept, &[0]), Wish::Version(Some(1)));
        assert_eq!(wished("application/vnd.a.v1+json", &[0]), Wish::Version(Some(0)));
    }

    #[test]
    fn what_names_no_version_says_nothing_of_versions() {
        for accept in [
            "*/*",
            "application/json",
            "application/vnd.acme+json",
            "text/vcard",
            "video/vnd.dvb.file",
            "application/vnd.a.v9+json, */*;q=0.1",
            "application/vnd.a.v1+json;q=0, */*",
            "text/html,*/*;q=0.8,application/signed-exchange;v=b3;q=0.7",
        ] {
            assert_eq!(wished(accept, &[]), Wish::Nothing, "{accept}");
        }
    }

    #[test]
    fn what_does_not_exist_or_is_refused_is_named() {
        assert_eq!(wished("application/vnd.a.v9+json", &[]), Wish::Unknown("9".to_owned()));
        assert_eq!(wished("application/json;v=beta", &[]), Wish::Unknown("beta".to_owned()));
        assert_eq!(wished("application/json;v=1;q=0", &[]), Wish::Unknown(String::new()));
    }
}
