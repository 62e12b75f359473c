use proptest::prelude::*;

use super::*;

fn rules(encoded_slash: EncodedSlash) -> PathRules {
    PathRules { encoded_slash, ..PathRules::default() }
}

fn forms(path: &str, rules: &PathRules) -> (String, String) {
    let normal = normalize(path, rules).unwrap_or_else(|e| panic!("{path}: {e}"));
    (normal.wire().to_owned(), normal.matched().to_owned())
}

fn wire(path: &str) -> String {
    forms(path, &PathRules::default()).0
}

fn matched(path: &str) -> String {
    forms(path, &PathRules::default()).1
}

fn refused(path: &str) -> PathError {
    normalize(path, &PathRules::default()).expect_err(path)
}

fn pattern(text: &str) -> PathPattern {
    PathPattern::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn normal(path: &str) -> NormalPath {
    normalize(path, &PathRules::default()).unwrap()
}

fn hits(text: &str, path: &str) -> bool {
    pattern(text).matches(&normal(path)).is_some()
}

#[test]
fn an_ordinary_path_has_one_form() {
    for path in ["/", "/a", "/a/b/", "/a.b/..c/x..", "/a:b@c!$&'()*+,=", "*", "/-._~"] {
        assert_eq!(forms(path, &PathRules::default()), (path.to_owned(), path.to_owned()));
    }
}

#[test]
fn escapes_are_normalised_as_in_rfc_3986_6_2_2() {
    assert_eq!(wire("/%7eabc/%41%2d%5f"), "/~abc/A-_");
    assert_eq!(wire("/%c3%a9%3a"), "/%C3%A9%3A");
    assert_eq!(wire("/é \"<>[]^`{|}"), "/%C3%A9%20%22%3C%3E%5B%5D%5E%60%7B%7C%7D");
    assert_eq!(wire("/a?b#c"), "/a%3Fb%23c");
}

#[test]
fn dot_segments_are_removed_as_in_rfc_3986_5_2_4() {
    for (path, expected) in [
        ("/a/b/c/./../../g", "/a/g"),
        ("/a/.", "/a/"),
        ("/a/..", "/"),
        ("/a/b/..", "/a/"),
        ("/..", "/"),
        ("/../a", "/a"),
        ("/../../../etc", "/etc"),
        ("/./a", "/a"),
        ("/a/...", "/a/..."),
        ("/.well-known/x", "/.well-known/x"),
        ("/a/%2e%2E/b", "/b"),
        ("/a/.%2e/b/%2e", "/b/"),
        ("/a;x/../b", "/b"),
    ] {
        assert_eq!(wire(path), expected, "{path}");
    }
}

#[test]
fn an_escape_is_decoded_once_only() {
    assert_eq!(forms("/%252e%252e/%252f", &PathRules::default()).1, "/%252e%252e/%252f");
    assert_eq!(decode_segment("%252e"), "%2e");
}

#[test]
fn slashes_are_merged_unless_the_rules_keep_them() {
    assert_eq!(wire("//a///b//"), "/a/b/");
    let keep = PathRules { merge_slashes: false, ..PathRules::default() };
    assert_eq!(forms("//a//b//", &keep).0, "//a//b//");
    assert_eq!(forms("/a//../b", &keep).0, "/a/b");
    assert_eq!(wire("/a//../b"), "/b");
}

#[test]
fn an_encoded_slash_is_refused_by_default() {
    for path in ["/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/..%2f", "/%2F"] {
        assert_eq!(refused(path), PathError::EncodedSlash, "{path}");
    }
}

#[test]
fn a_decoded_slash_counts_before_merging_and_dot_removal() {
    let decode = rules(EncodedSlash::Decode);
    assert_eq!(forms("/a/..%2f..%5Cadmin", &decode).0, "/admin");
    assert_eq!(forms("/a%2f/b\\c", &decode).0, "/a/b/c");
    assert_eq!(normalize("/a/..;x%2fb", &decode), Err(PathError::AmbiguousDots));
}

#[test]
fn a_kept_slash_stays_escaped_in_both_forms() {
    let both = |text: &str| (text.to_owned(), text.to_owned());
    assert_eq!(forms("/a%2fb\\c%5c", &rules(EncodedSlash::Keep)), both("/a%2Fb%5Cc%5C"));
}

#[test]
fn what_backends_read_differently_is_refused() {
    for (path, error) in [
        ("", PathError::NotAbsolute),
        ("a", PathError::NotAbsolute),
        ("**", PathError::NotAbsolute),
        ("%2fa", PathError::NotAbsolute),
        ("/%", PathError::InvalidEscape),
        ("/%4", PathError::InvalidEscape),
        ("/%4g", PathError::InvalidEscape),
        ("/%+1", PathError::InvalidEscape),
        ("/%é", PathError::InvalidEscape),
        ("/a\0", PathError::Control),
        ("/a%00", PathError::Control),
        ("/a%0d%0aX", PathError::Control),
        ("/a\x7f", PathError::Control),
        ("/a%7F", PathError::Control),
        ("/a/..;x/b", PathError::AmbiguousDots),
        ("/a/.;", PathError::AmbiguousDots),
        ("/a/%2e%2e;/b", PathError::AmbiguousDots),
    ] {
        assert_eq!(refused(path), error, "{path:?}");
    }
    let strict = PathRules { dot_segments: DotSegments::Reject, ..PathRules::default() };
    assert_eq!(normalize("/a/%2e", &strict), Err(PathError::DotSegment));
}

#[test]
fn decisions_see_neither_parameters_nor_harmless_escapes() {
    assert_eq!(forms("/a;v=1/b;c;d", &PathRules::default()), ("/a;v=1/b;c;d".into(), "/a/b".into()));
    assert_eq!(matched("/%24x%20y%7Bz%7d%2A"), "/$x%20y{z}*");
    assert_eq!(matched("/%25%3f%23%3b%c3%a9"), "/%25%3F%23%3B%C3%A9");
    assert_eq!(matched("/a|b"), "/a|b");
}

#[test]
fn parameters_cannot_hide_a_path_behind_an_empty_segment() {
    assert_eq!(matched("/;x/admin"), "/admin");
    assert_eq!(wire("/;x/admin"), "/;x/admin");
    assert_eq!(matched("/a/;x"), "/a/");
}

#[test]
fn patterns_match_whole_segments() {
    for (text, path, expected) in [
        ("/a/b", "/a/b", true),
        ("/a/b", "/a/b/", false),
        ("/a/b/", "/a/b", false),
        ("/", "/", true),
        ("/", "*", false),
        ("/a/*", "/a", true),
        ("/a/*", "/a/", true),
        ("/a/*", "/a/b/c", true),
        ("/a/*", "/ab", false),
        ("/*", "/", true),
        ("/*", "/x/y", true),
        ("/*", "*", true),
        ("/u/{id}", "/u/1", true),
        ("/u/{id}", "/u/", false),
        ("/u/{id}", "/u/1/", false),
        ("/u/{id}/*", "/u/1", true),
        ("/u/{id}/*", "/u/", false),
        ("/{a}/x/{b}", "/1/x/2", true),
        ("/a/b", "/a;v=1/%62", true),
        ("/%7Bid%7D", "/x", false),
        ("/%7Bid%7D", "/{id}", true),
        ("/$x", "/%24x", true),
        ("/é", "/%c3%a9", true),
        ("/a/../b", "/b", true),
        ("/a//./b", "/a/b", true),
        ("/%2A", "/*", true),
    ] {
        assert_eq!(hits(text, path), expected, "{text} {path}");
    }
}

#[test]
fn a_regular_expression_matches_from_the_start() {
    for (text, path, expected) in [
        ("~^/v[0-9]+/", "/v1/x", true),
        ("~/v[0-9]+/", "/a/v1/", false),
        ("~/a|/b", "/x/b", false),
        ("~/a$", "/a/b", false),
    ] {
        assert_eq!(hits(text, path), expected, "{text} {path}");
    }
    let captures = pattern("~^/v(?<major>[0-9]+)/(?<rest>.*)").matches(&normal("/v2/a%2525")).unwrap();
    assert_eq!(captures.iter().collect::<Vec<_>>(), [("major", "2"), ("rest", "a%25")]);
}

#[test]
fn a_parameter_is_decoded_once() {
    let captures = pattern("/u/{id}/{x}").matches(&normal("/u/%2541%20b;v=1/%ff%3f")).unwrap();
    assert_eq!(captures.get("id"), Some("%41 b"));
    assert_eq!(captures.get("x"), Some("\u{fffd}?"));
    assert_eq!(captures.get("y"), None);
}

#[test]
fn a_bad_pattern_is_refused() {
    for (text, message) in [
        ("", "begins with `/`"),
        ("*", "begins with `/`"),
        ("a/b", "begins with `/`"),
        ("/a*", "`*`"),
        ("/*/a", "`*`"),
        ("/a/*/*", "`*`"),
        ("/**", "`*`"),
        ("/a{id}", "whole segment"),
        ("/{id}x", "whole segment"),
        ("/{a}{b}", "a parameter's name"),
        ("/a}", "whole segment"),
        ("/{}", "a parameter's name"),
        ("/{a b}", "a parameter's name"),
        ("/{a}/{a}", "`{a}` is there twice"),
        ("/a;v=1", "`;`"),
        ("/a?b=c", "`?`"),
        ("/a%2fb", "escaped slash"),
        ("/a%zz", "percent-escape"),
        (&"/a".repeat(129), "at most 128 segments"),
        ("~(", "regular expression"),
        ("~a)|(b", "regular expression"),
        ("~(\\w{1000}){1000}", "regular expression"),
    ] {
        let error = PathPattern::parse(text).expect_err(text);
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn a_pattern_prints_as_it_was_written() {
    let pattern: PathPattern = serde_json::from_str("\"/a//{id}/*\"").unwrap();
    assert_eq!(pattern.to_string(), "/a//{id}/*");
    let error = serde_json::from_str::<PathPattern>("\"/a*b\"").unwrap_err().to_string();
    assert!(error.starts_with("`*` can only stand alone at the end"), "{error}");
}

#[test]
fn rules_take_defaults_and_refuse_unknown_keys() {
    let rules: PathRules = serde_json::from_str(r#"{"encoded_slash": "keep"}"#).unwrap();
    assert!(rules.merge_slashes && rules.encoded_slash == EncodedSlash::Keep);
    assert!(serde_json::from_str::<PathRules>(r#"{"slashes": true}"#).is_err());
}

#[test]
fn empty_segments_count_where_slashes_are_not_merged() {
    let keep = PathRules { merge_slashes: false, ..PathRules::default() };
    let path = normalize("/a//b", &keep).unwrap();
    assert_eq!(path.segments().collect::<Vec<_>>(), ["a", "", "b"]);
    assert!(pattern("/a/*").matches(&path).is_some());
    // A parameter is one whole segment and never empty; these patterns merge their slashes.
    for text in ["/a/{x}/b", "/a/b", "/a//b"] {
        assert!(pattern(text).matches(&path).is_none(), "{text}");
    }
}

/// A pattern as a document has it, where paths are normalised by these rules.
fn settled(text: &str, rules: &PathRules) -> Result<PathPattern, String> {
    let pattern = serde_json::from_value::<PathPattern>(text.into()).map_err(|error| error.to_string())?;
    let mut patterns = [pattern];
    let wrong = PathPattern::settle(&mut patterns, rules);
    let [pattern] = patterns;
    wrong.into_iter().next().map_or(Ok(pattern), |(_, why)| Err(why))
}

#[test]
fn patterns_are_normalised_by_the_rules_that_paths_are() {
    let apart = PathRules { merge_slashes: false, ..PathRules::default() };
    let (keep, decode) = (rules(EncodedSlash::Keep), rules(EncodedSlash::Decode));
    for (rules, text, path, expected) in [
        (&apart, "/a//b", "/a//b", true),
        (&apart, "/a//b", "/a/b", false),
        (&apart, "/a/b", "/a//b", false),
        (&apart, "//", "//", true),
        (&apart, "//", "/", false),
        (&apart, "/a//*", "/a//b", true),
        (&apart, "/a/.//b", "/a//b", true),
        (&apart, "/a//../b", "/a/b", true),
        (&keep, "/a%2fb", "/a%2Fb", true),
        (&keep, "/a%2fb", "/a/b", false),
        (&keep, "/a\\b", "/a%5cb", true),
        (&decode, "/a%2fb", "/a/b", true),
        (&decode, "/a%5Cb\\c", "/a%2fb/c", true),
        (&PathRules::default(), "/a//b", "/a/b", true),
    ] {
        let pattern = settled(text, rules).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(pattern.matches(&normalize(path, rules).unwrap()).is_some(), expected, "{text} {path}");
    }
    let told = settled("/a%2fb", &PathRules::default()).expect_err("no path is like that");
    assert!(told.contains("escaped slash"), "{told}");
}

#[test]
fn a_pattern_tells_the_names_of_its_captures() {
    assert_eq!(pattern("/u/{id}/x/{part}/*").names(), ["id", "part"]);
    assert_eq!(pattern("~^/v(?<major>[0-9]+)/([a-z]+)").names(), ["major"]);
    assert!(pattern("/u/*").names().is_empty());
}

#[test]
fn a_kept_slash_is_part_of_a_parameter() {
    let path = normalize("/u/a%2fb", &rules(EncodedSlash::Keep)).unwrap();
    assert_eq!(pattern("/u/{id}").matches(&path).unwrap().get("id"), Some("a/b"));
    assert!(pattern("/u/a/b").matches(&path).is_none());
}

fn any_rules() -> impl Strategy<Value = PathRules> {
    let slash = prop_oneof![Just(EncodedSlash::Reject), Just(EncodedSlash::Decode), Just(EncodedSlash::Keep)];
    let dots = prop_oneof![Just(DotSegments::Normalize), Just(DotSegments::Reject)];
    (slash, dots, any::<bool>()).prop_map(|(encoded_slash, dot_segments, merge_slashes)| PathRules {
        encoded_slash,
        dot_segments,
        merge_slashes,
    })
}

fn hostile_path() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("/"),
        Just("."),
        Just(".."),
        Just(";"),
        Just("%2e"),
        Just("%2F"),
        Just("%5c"),
        Just("\\"),
        Just("%25"),
        Just("a"),
        Just("b"),
        Just("%61"),
        Just("é"),
        Just(" "),
        Just("%3b"),
        Just("{"),
        Just("*"),
    ];
    proptest::collection::vec(piece, 0..12).prop_map(|pieces| format!("/{}", pieces.concat()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn normalising_again_changes_nothing(path in hostile_path(), rules in any_rules()) {
        if let Ok(once) = normalize(&path, &rules) {
            prop_assert_eq!(normalize(once.wire(), &rules), Ok(once));
        }
    }

    #[test]
    fn no_dot_segment_and_no_illegal_byte_survives(path in hostile_path(), rules in any_rules()) {
        if let Ok(path) = normalize(&path, &rules) {
            prop_assert!(path.segments().all(|segment| segment != "." && segment != ".."));
            prop_assert!(path.wire().split('/').all(|segment| segment != "." && segment != ".."));
            let legal = |byte: u8| byte.is_ascii_graphic() && !b"\\\"<>[]^`{|}#?".contains(&byte);
            prop_assert_eq!(path.wire().bytes().find(|&byte| !legal(byte)), None);
            prop_assert!(!rules.merge_slashes || !path.wire().contains("//") && !path.matched().contains("//"));
        }
    }

    #[test]
    fn a_path_matches_the_pattern_that_is_spelt_like_it(path in hostile_path(), rules in any_rules()) {
        if let (Ok(normal), Ok(pattern)) = (normalize(&path, &rules), settled(&path, &rules)) {
            prop_assert!(pattern.matches(&normal).is_some(), "{}", path);
        }
    }

    #[test]
    fn what_is_behind_a_prefix_is_what_decisions_see_there(
        path in "(/[ab]?(;x)?){1,4}", prefix in "(/[ab]){0,2}", merge_slashes in any::<bool>(),
    ) {
        let rules = PathRules { merge_slashes, ..PathRules::default() };
        let path = normalize(&path, &rules).expect("a valid path");
        let seen = path.matched().strip_prefix(&*prefix);
        let seen = seen.filter(|rest| rest.is_empty() || rest.starts_with('/')).map(str::to_owned);
        let found = behind(path.wire(), &prefix, merge_slashes).map(|rest| match rest {
            "" => String::new(),
            rest => normalize(rest, &rules).expect("a valid path").matched().to_owned(),
        });
        prop_assert_eq!(found, seen);
    }

    #[test]
    fn no_text_panics(text in any::<String>(), bytes in any::<Vec<u8>>(), rules in any_rules()) {
        for text in [text, String::from_utf8_lossy(&bytes).into_owned()] {
            for text in [format!("/{text}"), format!("~{text}"), format!("/%{text}"), text] {
                let _ = PathPattern::parse(&text);
                let _ = decode_segment(&text);
                if let Ok(path) = normalize(&text, &rules) {
                    prop_assert_eq!(normalize(path.wire(), &rules), Ok(path));
                }
            }
        }
    }
}

#[test]
fn a_first_segment_is_taken_off_both_forms_or_not_at_all() {
    let split = |path: &str| {
        let path = normalize(path, &PathRules::default()).expect("a valid path");
        path.split_first()
            .map(|(first, rest)| (first.to_owned(), rest.wire().to_owned(), rest.matched().to_owned()))
    };
    let parts = |first: &str, wire: &str, matched: &str| {
        Some((first.to_owned(), wire.to_owned(), matched.to_owned()))
    };
    assert_eq!(split("/v2/users"), parts("v2", "/users", "/users"));
    assert_eq!(split("/v2/"), parts("v2", "/", "/"));
    assert_eq!(split("/v2"), parts("v2", "/", "/"));
    assert_eq!(split("/v2/a;b=1"), parts("v2", "/a;b=1", "/a"));
    assert_eq!(split("/v2;b=1/a"), None);
    assert_eq!(split("*"), None);
}

#[test]
fn a_path_begins_with_what_decisions_see_it_begin_with() {
    for (path, rest) in [
        ("/api", Some("")),
        ("/api/", Some("/")),
        ("/api/users;x", Some("/users;x")),
        ("/api;x/users/7", Some("/users/7")),
        ("/api;", Some("")),
        ("/;x/api/;y/users", Some("/;y/users")),
        ("/apiary;x", None),
        ("/ap;i/users", None),
        ("/;api/users", None),
        ("/x;/api", None),
    ] {
        assert_eq!(behind(path, "/api", true), rest, "{path}");
    }
    assert_eq!(behind("/%24a/%3D;x/b", "/$a/=", true), Some("/b"));
    assert_eq!(behind("/;x/api", "/api", false), None, "that is `//api`");
    assert_eq!(behind("/;x/api/b", "//api", false), Some("/b"));
}
