//! Reading trees into types, and what the messages say.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _};

use super::*;
use crate::tree::{Raw, from_node};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    rate: Wait,
    burst: Option<u16>,
    #[serde(default)]
    per: Per,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Per {
    #[default]
    Ip,
    Consumer,
    Header(String),
    Pair {
        one: String,
        two: String,
    },
}

/// Stands for the value types of the project.
#[derive(Debug, PartialEq)]
struct Wait(u64);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Wait, D::Error> {
        let text = String::deserialize(deserializer)?;
        let number = text.strip_suffix("ms").and_then(|n| n.parse().ok());
        number.map(Wait).ok_or_else(|| D::Error::custom("expected a duration such as `250ms`"))
    }
}

#[derive(Deserialize)]
#[serde(rename = "$secret")]
struct Secret(#[expect(dead_code, reason = "only its errors matter")] String);

fn read<T: DeserializeOwned>(text: &str) -> T {
    from_node(&tree(text)).unwrap_or_else(|error| panic!("{error}"))
}

fn wrong<T: DeserializeOwned + fmt::Debug>(text: &str) -> String {
    from_node::<T>(&tree(text)).expect_err("a wrong value").to_string()
}

fn wrong_secret<T: DeserializeOwned>(text: &str, secret: &str) -> String {
    match from_node::<T>(&substituted(text, secret)) {
        Ok(_) => panic!("a wrong value"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn serde_types_are_read() {
    let limit = read::<Limit>("{rate: 5ms, per: {header: x-id}}");
    assert_eq!(limit, Limit { rate: Wait(5), burst: None, per: Per::Header("x-id".into()) });
    assert_eq!(read::<Per>("{pair: {one: a, two: b}}"), Per::Pair { one: "a".into(), two: "b".into() });
    assert_eq!(read::<Per>("consumer"), Per::Consumer);
    assert_eq!(read::<BTreeMap<u16, bool>>("{404: true, 500: false}"), [(404, true), (500, false)].into());
    assert_eq!(read::<HashMap<String, i64>>("{80: -1}"), [("80".to_owned(), -1)].into());
    assert_eq!(read::<(u8, f64, Option<String>)>("[1, 2, x]"), (1, 2.0, Some("x".to_owned())));
    assert_eq!(read::<Vec<IpAddr>>("['::1']").len(), 1);
    assert_eq!(read::<serde_json::Value>("{a: [1, x, ~, 1.5]}").to_string(), r#"{"a":[1,"x",null,1.5]}"#);
}

#[test]
fn a_key_without_a_value_is_not_taken_for_one_that_is_not_there() {
    for (text, place) in [
        ("rate: 5ms\nburst:\n", "2:6"),
        ("rate: 5ms\nburst: # 5\n", "2:6"),
        ("{rate: 5ms, burst: ~}", "1:20"),
        ("{\"rate\": \"5ms\", \"burst\": null}", "1:26"),
    ] {
        let expected = format!("{place}: burst: has no value: leave the key out, or give it one");
        assert_eq!(wrong::<Limit>(text), expected, "{text}");
    }
    assert_eq!(read::<Limit>("rate: 5ms").burst, None);
}

#[test]
fn an_unknown_key_is_met_with_the_nearest_or_the_list() {
    assert_eq!(
        wrong::<Vec<Limit>>("- {rate: 5ms}\n- rats: 5ms\n"),
        "2:3: [1].rats: unknown key `rats` (did you mean `rate`?)"
    );
    assert_eq!(
        wrong::<Limit>("{window: 5ms}"),
        "1:2: window: unknown key `window` (known keys: rate, burst, per)"
    );
}

#[test]
fn wrong_types_say_what_was_wanted_and_the_fix() {
    assert_eq!(
        wrong::<BTreeMap<String, String>>("port: 8080"),
        "1:7: port: expected a string, found a number (quote it: \"8080\")"
    );
    assert_eq!(wrong::<String>("true"), "1:1: expected a string, found a boolean (quote it: \"true\")");
    assert_eq!(
        wrong::<u16>("'8080'"),
        "1:1: expected a whole number from 0 to 65535, found a string (remove the quotes: 8080)"
    );
    assert_eq!(wrong::<u16>("70000"), "1:1: expected a whole number from 0 to 65535, found 70000");
    assert_eq!(wrong::<u64>("-1"), "1:1: expected a whole number, zero or more, found -1");
    assert_eq!(wrong::<u64>("ten"), "1:1: expected a whole number, zero or more, found \"ten\"");
    assert_eq!(wrong::<bool>("yes"), "1:1: expected true or false, found \"yes\"");
    assert_eq!(wrong::<Vec<u8>>("{a: 1}"), "1:1: expected a list, found a map");
    assert_eq!(wrong::<Limit>("[1]"), "1:1: expected a map, found a list");
    assert_eq!(wrong::<Vec<String>>("- a\n-\n"), "2:2: [1]: expected a string, found nothing");
    assert_eq!(wrong::<Limit>("{burst: 1}"), "1:1: missing key `rate`");
    assert_eq!(
        wrong::<BTreeMap<u16, u8>>("{1: 1, x: 2}"),
        "1:8: x: expected a whole number from 0 to 65535, found \"x\""
    );
}

#[test]
fn a_value_type_has_its_message_completed() {
    let text = "- {rate: 5 parsecs}";
    let error = from_node::<Vec<Limit>>(&tree(text)).expect_err("no duration");
    assert_eq!(error.path.to_string(), "[0].rate");
    assert_eq!(error.message, "expected a duration such as `250ms`, found \"5 parsecs\"");
    assert_eq!((error.at.line, error.at.column), (1, 10));
}

#[test]
fn an_unknown_variant_is_met_with_the_known_ones() {
    assert_eq!(
        wrong::<Per>("consumr"),
        "1:1: expected one of `ip`, `consumer`, `header`, `pair`, found `consumr` (did you mean `consumer`?)"
    );
    assert_eq!(wrong::<Per>("7"), "1:1: expected one of `ip`, `consumer`, `header`, `pair`, found a number");
    assert!(wrong::<Per>("{ip: ~, header: x}").contains("exactly one key"));
    assert!(wrong::<Per>("header").contains("`header` needs settings"));
    assert_eq!(
        wrong::<Per>("{pair: {one: a, two: 2}}"),
        "1:22: pair.two: expected a string, found a number (quote it: \"2\")"
    );
    assert!(wrong::<Per>("{heade: x}").starts_with("1:2: heade: expected one of"));
}

#[test]
fn substituted_text_is_whatever_is_wanted() {
    #[derive(Debug, PartialEq, Deserialize)]
    struct All {
        number: u16,
        float: f64,
        flag: bool,
        text: String,
        any: serde_json::Value,
        maybe: Option<u8>,
    }
    let one =
        substituted("number: ${X}\nfloat: '${X}'\nflag: false\ntext: ${X}\nany: ${X}\nmaybe: ${X}\n", "80");
    let all: All = from_node(&one).expect("flexible");
    assert_eq!(
        all,
        All { number: 80, float: 80.0, flag: false, text: "80".into(), any: "80".into(), maybe: Some(80) }
    );
    assert!(from_node::<bool>(&substituted("${X}", "true")).expect("a boolean"));
    assert_eq!(from_node::<String>(&substituted("${X}", "~")).expect("a string"), "~");
    assert_eq!(from_node::<Per>(&substituted("${X}", "consumer")).expect("a variant"), Per::Consumer);
}

#[test]
fn no_message_quotes_substituted_text() {
    #[derive(Debug, Deserialize)]
    #[serde(try_from = "Vec<String>")]
    #[expect(dead_code, reason = "only its errors matter")]
    struct Chatty(String);
    impl TryFrom<Vec<String>> for Chatty {
        type Error = String;
        fn try_from(list: Vec<String>) -> Result<Chatty, String> {
            Err(format!("{} is no good", list.concat()))
        }
    }
    #[derive(Debug)]
    struct Nosy;
    impl<'de> Deserialize<'de> for Nosy {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Nosy, D::Error> {
            let text = String::deserialize(deserializer)?;
            Err(D::Error::custom(format!("bad character in {}..", &text[..5])))
        }
    }
    let secret = "hunter2-hunter2";
    let messages = [
        wrong_secret::<Wait>("${X}", secret),
        wrong_secret::<u16>("'${X}'", secret),
        wrong_secret::<bool>("${X}", secret),
        wrong_secret::<Per>("${X}", secret),
        wrong_secret::<Per>("{pair: {one: 1, two: '${X}'}}", secret),
        wrong_secret::<Vec<u8>>("${X}", secret),
        wrong_secret::<IpAddr>("${X}", secret),
        wrong_secret::<Nosy>("${X}", secret),
        wrong_secret::<Chatty>("['${X}']", secret),
        wrong_secret::<char>("${X}", secret),
        wrong_secret::<u8>("${X}", "99999"),
        wrong_secret::<Limit>("[\"${X}\"]", secret),
    ];
    for message in messages {
        assert!(!message.contains("hunt") && !message.contains("9999"), "{message}");
    }
    assert_eq!(wrong_secret::<Wait>("${X}", secret), "1:1: expected a duration such as `250ms`");
}

#[test]
fn no_message_quotes_the_password_of_a_url() {
    for (text, shown) in [
        ("https://gate:s3cret@id.test/a", "https://***@id.test/a"),
        ("redis//:s3cret@cache", "redis//***@cache"),
        ("redis:/:s3cret@cache", "redis:***@cache"),
        ("https:gate:s3cret@id.test", "https:***@id.test"),
        ("https://gate:s3/s3cret@s3cret@id.test", "https://***@id.test"),
        ("https://id.test/a", "https://id.test/a"),
        ("gate@id.test", "gate@id.test"),
    ] {
        let messages = [wrong::<Wait>(text), wrong::<u64>(text), wrong::<Per>(text)];
        for message in messages {
            assert!(message.contains(shown) && !message.contains("s3cret"), "{message}");
        }
    }
}

#[test]
fn a_secret_type_is_not_quoted_even_when_written_out() {
    let error = match from_node::<Secret>(&tree("12345678")) {
        Ok(_) => panic!("a number is no string"),
        Err(error) => error.to_string(),
    };
    assert_eq!(error, "1:1: expected a string, found a number");
    assert!(from_node::<Secret>(&tree("'12345678'")).is_ok());
}

#[test]
fn raw_keeps_the_node_itself() {
    #[derive(Debug, Deserialize)]
    struct Step {
        filter: Raw,
        rest: Option<BTreeMap<String, Raw>>,
    }
    let root = tree("- {filter: {rate: x}, rest: {a: 1}}\n- {filter: ~}\n");
    let steps: Vec<Step> = from_node(&root).expect("steps");
    let options = root.find(&path(&["0", "filter"])).expect("options");
    assert!(Arc::ptr_eq(&steps[0].filter.0, options));
    assert_eq!(steps[0].rest.as_ref().map(BTreeMap::len), Some(1));
    let error = steps[0].filter.read::<Limit>().expect_err("no duration");
    let whole = error.under(&path(&["0", "filter"]));
    assert_eq!(whole.to_string(), "1:19: [0].filter.rate: expected a duration such as `250ms`, found \"x\"");
}

#[test]
fn raw_takes_the_same_data_from_json_and_through_buffers() {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Buffered {
        One { options: Raw },
    }
    let Raw(node) = serde_json::from_str(r#"{"a": [1, "1", null, true, 1.5, -2]}"#).expect("any JSON");
    assert_eq!(node.value, without_marks(&tree("{a: [1, '1', ~, true, 1.5, -2]}")).value);
    let Buffered::One { options } = read("{options: {b: [1, '1']}}");
    assert_eq!(serde_json::to_string(&*options.0).unwrap(), r#"{"b":[1,"1"]}"#);
}

fn without_marks(node: &Arc<Node>) -> Arc<Node> {
    let Raw(plain) = serde_json::from_str(&serde_json::to_string(&**node).unwrap()).unwrap();
    plain
}
