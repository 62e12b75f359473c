//! Lines as Apache and NGINX write them, and values that try to break out.

use proptest::prelude::*;

use super::super::format_line;
use super::*;

fn line(layout: &Layout, access: &Access<'_>, rules: &[&str]) -> String {
    let rules: Vec<_> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
    let mut buffer = Vec::new();
    layout.write(access, &Redactor::new(&rules), &mut buffer);
    String::from_utf8(buffer).unwrap()
}

fn rendered(template: &str, access: &Access<'_>) -> String {
    line(&Layout::parse(template).unwrap(), access, &[])
}

/// Apache HTTP Server, "Log Files": `%h %l %u %t \"%r\" %>s %b`, with `-` for what is unknown.
#[test]
fn the_common_format_is_apaches() {
    assert_eq!(
        line(&Layout::common(), &Access::example(), &[]),
        "192.0.2.7 - - [01/Jan/2026:00:00:00 +0000] \"GET /users/1?page=2 HTTP/1.1\" 200 512\n"
    );
    let empty = Access { bytes_out: 0, query: None, status: 0, protocol: "HTTP/2", ..Access::example() };
    assert_eq!(
        line(&Layout::common(), &empty, &[]),
        "192.0.2.7 - - [01/Jan/2026:00:00:00 +0000] \"GET /users/1 HTTP/2.0\" 000 -\n"
    );
}

/// NGINX's `combined`: `"$http_referer" "$http_user_agent"` after the common fields.
#[test]
fn the_combined_format_adds_referer_and_user_agent() {
    let access = Access { referer: Some(b"https://x.test/?a=1"), ..Access::example() };
    let text = line(&Layout::combined(), &access, &[]);
    assert!(text.ends_with(" 200 512 \"https://x.test/?a=1\" \"curl/8\"\n"), "{text}");
    let access = Access { user_agent: None, ..Access::example() };
    assert!(line(&Layout::combined(), &access, &[]).ends_with(" 200 512 \"-\" \"-\"\n"));
}

#[test]
fn secrets_are_masked_in_every_format() {
    let access = Access {
        query: Some(b"a=1&api_key=s3cret"),
        referer: Some(b"https://x/?access_token=s3cret"),
        ..Access::example()
    };
    let all =
        Layout::parse("${request.query} ${referer} ${request.line} ${user_agent} ${request.host}").unwrap();
    for layout in [Layout::common(), Layout::combined(), all.clone()] {
        let text = line(&layout, &access, &[]);
        assert!(!text.contains("s3cret") && text.contains("api_key=***"), "{text}");
    }
    let text = line(&all, &access, &["header:referer", "header:user-agent", "header:host"]);
    assert_eq!(text, "a=1&api_key=*** *** GET /users/1?a=1&api_key=*** HTTP/1.1 *** ***\n");
}

#[test]
fn what_could_not_be_read_is_a_dash_and_hides_its_user() {
    let refused = Access { method: "", path: b"", host: b"", query: None, ..Access::example() };
    assert!(line(&Layout::combined(), &refused, &[]).contains("] \"-\" 200 "));
    assert_eq!(rendered("${request.method} ${request.path} ${request.host}", &refused), "- - -\n");
    let refused =
        Access { path: b"http://u:SECRET@h/x", host: b"u:SECRET@h", query: None, ..Access::example() };
    assert!(line(&Layout::combined(), &refused, &[]).contains("] \"GET http://***@h/x HTTP/1.1\" 200 "));
    assert_eq!(rendered("${request.path} ${request.host}", &refused), "http://***@h/x ***@h\n");
}

#[test]
fn a_template_has_every_field_of_the_json_line() {
    let access = Access {
        service: Some("s"),
        consumer: Some("acme"),
        identity: Some("keys"),
        denied_by: Some("acl"),
        reason: Some("r"),
        referer: Some(b"x"),
        error: Some("e"),
        ..Access::example()
    };
    let mut json = Vec::new();
    format_line(&access, &Redactor::new(&[]), &mut json);
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&json).unwrap();
    assert_eq!(json.len(), 27);
    for (key, value) in &json {
        let names = ["request.", "client.", ""].map(|prefix| match prefix {
            "client." if key == "client" => "client.address".to_owned(),
            "request." if key == "request_id" => "request.id".to_owned(),
            prefix => format!("{prefix}{key}"),
        });
        let name = names.iter().find(|name| Layout::parse(&format!("${{{name}}}")).is_ok());
        let name = name.unwrap_or_else(|| panic!("{key} is no field of templates"));
        let text = rendered(&format!("${{{name}}}"), &access);
        let text = text.trim_end();
        let same = value.as_str().map_or_else(|| text.parse().ok() == value.as_f64(), |value| value == text);
        assert!(same, "{name}: {text} is not {value}");
    }
}

#[test]
fn what_is_absent_is_a_dash() {
    let access =
        Access { query: None, upstream: None, backend: None, upstream_elapsed: None, ..Access::example() };
    assert_eq!(
        rendered("${request.query},${upstream},${backend},${upstream_ms},${error}", &access),
        "-,-,-,-,-\n"
    );
}

#[test]
fn text_between_fields_stays_as_it_is() {
    assert_eq!(rendered("é\t\"${status}\" $${status}", &Access::example()), "é\t\"200\" ${status}\n");
}

#[test]
fn an_unknown_field_is_refused_with_a_guess() {
    for (written, meant) in [
        ("${statsu}", "${status}"),
        ("${client.adress}", "${client.address}"),
        ("${request_id}", "${request.id}"),
        ("${method}", "${request.method}"),
        ("${client}", "${client.address}"),
    ] {
        let message = Layout::parse(written).unwrap_err();
        assert!(message.ends_with(&format!("did you mean `{meant}`?")), "{written}: {message}");
    }
    assert_eq!(Layout::parse("${nonsense}").unwrap_err(), "`${nonsense}` is no field of the access log");
    for bad in ["${%b}", "${status", "${}", "${status}\n", "\r${status}"] {
        assert!(Layout::parse(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_long_value_is_cut_and_says_so() {
    let long = vec![b'a'; 5000];
    let access = Access { path: &long, query: Some(&long), user_agent: Some(&long), ..Access::example() };
    for field in ["${request.path}", "${request.query}", "${user_agent}"] {
        let text = rendered(field, &access);
        assert_eq!(text.len(), MAX_VALUE + "...\n".len(), "{field}");
        assert!(text.ends_with("a...\n"), "{field}");
    }
}

/// The value between quotes, as readers of NGINX's logs decode it.
fn decoded(text: &str) -> Vec<u8> {
    let mut pieces = text.split("\\x");
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    bytes
}

proptest! {
    /// A widespread pattern for the combined format, as strict about quotes as any.
    #[test]
    fn no_value_ends_its_quotes_or_its_line(
        path in prop::collection::vec(any::<u8>(), 1..40),
        agent in prop::collection::vec(any::<u8>(), 1..40),
        referer in "\\PC{0,30}[\"\\\\\n\r\u{85}\u{2028}\u{1b}]{0,4}",
    ) {
        let access = Access {
            path: &path,
            query: None,
            user_agent: Some(&agent),
            referer: Some(referer.as_bytes()),
            ..Access::example()
        };
        let text = line(&Layout::combined(), &access, &[]);
        let pattern = regex::Regex::new(
            "\\A[0-9.]+ - - \\[[^\\]]+\\] \"GET ([^\"]*) HTTP/1.1\" [0-9]{3} [0-9]+ \"([^\"]*)\" \"([^\"]*)\"\n\\z",
        ).unwrap();
        let found = pattern.captures(&text);
        prop_assert!(found.is_some(), "{text}");
        let found = found.unwrap();
        prop_assert!(text.trim_end_matches('\n').bytes().all(|byte| (0x20..0x7f).contains(&byte)));
        prop_assert_eq!(decoded(&found[1]), &*Redactor::new(&[]).path(&path));
        prop_assert_eq!(decoded(&found[3]), agent);
    }
}
