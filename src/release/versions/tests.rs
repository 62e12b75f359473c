use proptest::prelude::*;
use tollhouse_filters::path::normalize;
use tollhouse_filters::world::ManualClock;

use super::*;

/// 2026-01-01T00:00:00Z, where the clock of these tests starts, as RFC 9745 writes it.
const START: &str = "@1767225600";

fn versions_at(yaml: &str, clock: &Arc<ManualClock>) -> Versions {
    let written: Service = serde_yaml::from_str(yaml).expect("a service");
    Versions::new(&written, &World::dry_at(clock.clone())).expect("versions")
}

fn versions(yaml: &str) -> Versions {
    versions_at(yaml, &Arc::new(ManualClock::new()))
}

fn request(target: &str, fields: &[(&'static str, &str)]) -> RequestHeader {
    let mut request = RequestHeader::build("GET", target.as_bytes(), None).expect("valid");
    for (name, value) in fields {
        request.append_header(*name, *value).expect("valid");
    }
    request
}

const EVERY_PLACE: &str = "
name: users
versioning: {from: [path, 'header:x-api-version', accept, 'query:api-version'], default: '2'}
versions: {'1': {}, '2': {}, '2.1': {}}
";

/// The version and where it was found, or the status of the refusal.
fn resolved(
    versions: &Versions,
    request: &RequestHeader,
    in_path: Option<&str>,
) -> Result<(String, String), u16> {
    let asked = versions.resolve(request, in_path).and_then(|asked| asked.ok_or_else(|| versions.unnamed()));
    let asked = asked.map_err(|problem| problem.status())?;
    Ok((versions.get(asked).name.to_string(), versions.source(asked)))
}

#[test]
fn the_first_place_that_names_a_version_decides() {
    let versions = versions(EVERY_PLACE);
    let all = [("x-api-version", "1"), ("accept", "application/vnd.a.v2.1+json")];
    let found = |fields: &[(&'static str, &str)], target: &str, in_path| {
        let (name, source) = resolved(&versions, &request(target, fields), in_path).expect("a version");
        format!("{name} {source}")
    };
    assert_eq!(found(&all, "/?api-version=1", Some("v2.1")), "2.1 path");
    assert_eq!(found(&all, "/?api-version=1", None), "1 header:x-api-version");
    assert_eq!(found(&all[1..], "/?api-version=1", None), "2.1 accept");
    assert_eq!(found(&[("accept", "*/*")], "/?a=b&api-version=1", None), "1 query:api-version");
    assert_eq!(found(&[], "/", None), "2 default");
}

#[test]
fn what_browsers_say_of_other_things_leaves_the_version_to_later_places() {
    // What Chrome asks for pages with (MDN, "List of default Accept values").
    let chrome = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,\
                  */*;q=0.8,application/signed-exchange;v=b3;q=0.7";
    let versions = versions(EVERY_PLACE);
    let found = |fields: &[(&'static str, &str)], target| resolved(&versions, &request(target, fields), None);
    let by_query = Ok(("1".to_owned(), "query:api-version".to_owned()));
    assert_eq!(found(&[("accept", chrome)], "/?api-version=1"), by_query);
    let unknown = [("accept", "application/vnd.a.v9+json, */*;q=0.1")];
    assert_eq!(found(&unknown, "/?api-version=1"), by_query);
    assert_eq!(found(&unknown, "/"), Ok(("2".to_owned(), "default".to_owned())));
}

#[test]
fn what_does_not_exist_is_406_and_told_what_does() {
    let versions = versions(EVERY_PLACE);
    for (fields, target, in_path) in [
        (&[][..], "/", Some("v9")),
        (&[("x-api-version", "9")], "/?api-version=1", None),
        (&[("x-api-version", "1"), ("x-api-version", "2")], "/", None),
        (&[("x-api-version", "")], "/", None),
        (&[("accept", "application/vnd.a.v9+json")], "/", None),
        (&[], "/?api-version=%00%0A1", None),
    ] {
        let problem = versions.resolve(&request(target, fields), in_path).expect_err("refused");
        assert_eq!((problem.kind.code, problem.status()), ("no-such-version", 406), "{fields:?} {target}");
        assert_eq!(problem.members.expect("one")["versions"], serde_json::json!(["1", "2", "2.1"]));
        let detail = problem.detail.expect("a detail");
        assert!(
            detail.ends_with("there are: `1`, `2`, `2.1`") && !detail.contains(char::is_control),
            "{detail}"
        );
    }
}

#[test]
fn without_a_default_a_version_must_be_named() {
    let versions = versions("{name: a, versioning: {from: [accept]}, versions: {'1': {}}}");
    assert_eq!(resolved(&versions, &request("/", &[]), None), Err(406));
    let any = request("/", &[("accept", "application/json;v=9, */*")]);
    assert_eq!(resolved(&versions, &any, None), Err(406));
}

const OLD: &str = "
name: users
versioning: {from: [path, accept], default: '2'}
versions:
  '1':
    deprecated: 2026-01-01
    sunset: 2026-03-01
    docs: https://example.com/moving
    brownouts: [{at: 2026-02-01T10:00:00Z, for: 10m, every: 7d}]
  '2': {}
";

fn fields(versions: &Versions, name: &str, path: &str) -> Vec<String> {
    let asked = Asked { version: versions.named(name).expect("a version"), source: Some(0) };
    let mut response = ResponseHeader::build(200, None).expect("valid");
    let path = normalize(path, &Default::default()).expect("valid");
    versions.write_fields(Some(asked), &path, &mut response);
    let line =
        |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().expect("text"));
    response.headers.iter().map(line).collect()
}

#[test]
fn an_old_version_tells_when_it_ends_and_where_to_go() {
    let versions = versions(OLD);
    assert_eq!(
        fields(&versions, "1", "/users/7"),
        [
            format!("deprecation: {START}"),
            "sunset: Sun, 01 Mar 2026 00:00:00 GMT".to_owned(),
            "link: <https://example.com/moving>; rel=\"deprecation sunset\"; type=\"text/html\"".to_owned(),
            "link: </v2/users/7>; rel=\"successor-version\"".to_owned(),
        ]
    );
    assert_eq!(fields(&versions, "2", "/users/7"), [""; 0]);
}

#[test]
fn answers_vary_with_what_was_looked_at() {
    let versions = versions(EVERY_PLACE);
    let vary = |asked: Option<Asked>| {
        let mut response = ResponseHeader::build(200, None).expect("valid");
        let path = normalize("/", &Default::default()).expect("valid");
        versions.write_fields(asked, &path, &mut response);
        response.headers.get(VARY).map(|value| value.to_str().expect("text").to_owned())
    };
    let from = |source| Some(Asked { version: 0, source: Some(source) });
    assert_eq!(vary(from(0)), None);
    assert_eq!(vary(from(1)).as_deref(), Some("x-api-version"));
    for all in [from(2), from(3), Some(Asked::unasked(0)), None] {
        assert_eq!(vary(all).as_deref(), Some("x-api-version, accept"));
    }
}

#[test]
fn a_version_is_refused_after_its_end_and_for_a_while_before() {
    let clock = Arc::new(ManualClock::new());
    let versions = versions_at(OLD, &clock);
    let asked = |name| Asked { version: versions.named(name).expect("a version"), source: Some(0) };
    let refusal =
        |name| versions.refusal(asked(name)).map(|problem| (problem.kind.code, problem.retry_after));
    let (day, minute) = (Duration::from_secs(86_400), Duration::from_secs(60));
    assert_eq!(refusal("1"), None);
    // To 2026-02-01T10:03:00Z, and a week later.
    clock.advance(day * 31 + minute * 603);
    assert_eq!(refusal("1"), Some(("version-brownout", Some(420))));
    assert_eq!(refusal("2"), None);
    clock.advance(minute * 7);
    assert_eq!(refusal("1"), None);
    clock.advance(day * 7 - minute * 10);
    assert_eq!(refusal("1"), Some(("version-brownout", Some(600))));
    clock.advance(day * 28);
    assert_eq!(refusal("1"), Some(("version-gone", None)));
    assert_eq!(resolved(&versions, &request("/", &[("accept", "application/x;v=9")]), None), Err(406));
    let problem = versions.resolve(&request("/", &[]), Some("v9")).expect_err("unknown");
    let named = &problem.members.expect("one")["versions"];
    assert_eq!(*named, serde_json::json!(["2"]), "what has ended is not there any more");
}

#[test]
fn segments_that_mean_a_version_are_a_v_and_digits() {
    for segment in ["v1", "V2", "v2.1", "v2026-01-01"] {
        assert!(looks_like_a_version(segment), "{segment}");
    }
    for segment in ["v", "1", "vista", "v8engine", "", "version1", "v.1"] {
        assert!(!looks_like_a_version(segment), "{segment}");
    }
    assert_eq!([bare("v1"), bare("1"), bare("V1"), bare("v"), bare("beta")], ["1", "1", "1", "v", "beta"]);
}

proptest! {
    #[test]
    fn whatever_a_request_says_it_gets_a_version_that_exists_or_406(
        accept in proptest::option::of("[ -~]{0,60}"),
        header in proptest::option::of("[!-~]{0,10}"),
        query in "[a-z=&%0-9.-]{0,30}",
        in_path in proptest::option::of("v[0-9.]{1,4}"),
    ) {
        let versions = versions(EVERY_PLACE);
        let mut request = request(&format!("/?{query}"), &[]);
        if let Some(accept) = &accept {
            request.insert_header("accept", accept.as_str()).expect("printable");
        }
        if let Some(header) = &header {
            request.insert_header("x-api-version", header.as_str()).expect("printable");
        }
        match versions.resolve(&request, in_path.as_deref()) {
            Ok(None) => prop_assert!(in_path.is_none(), "it is named"),
            Ok(Some(asked)) => {
                prop_assert!(asked.version < 3);
                if let Some(segment) = &in_path {
                    prop_assert_eq!(bare(&versions.get(asked).name), bare(segment));
                }
            }
            Err(problem) => prop_assert_eq!(problem.status(), 406),
        }
    }

    #[test]
    fn accept_gives_the_version_of_the_greatest_weight(weights in prop::collection::vec(0_u16..=1000, 3)) {
        let versions = versions(EVERY_PLACE);
        let names = ["1", "2", "2.1"];
        let ranges = names.iter().zip(&weights).map(|(name, weight)| {
            format!("application/vnd.a.v{name}+json;q={}.{:03}", weight / 1000, weight % 1000)
        });
        let accept = ranges.collect::<Vec<_>>().join(", ");
        let greatest = *weights.iter().max().expect("three");
        let first = weights.iter().position(|weight| *weight == greatest).expect("one of them");
        let expected = if greatest == 0 { Err(406) } else { Ok((names[first].to_owned(), "accept".to_owned())) };
        prop_assert_eq!(resolved(&versions, &request("/", &[("accept", &accept)]), None), expected);
    }
}
