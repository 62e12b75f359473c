//! One line of a consumers' file: a consumer, or the name of one that is gone.

use serde::Deserialize;
use tollhouse_filters::identity::ConsumerSpec;
use tollhouse_filters::tree::{Error, FileId, Limits, Mark, Path, from_node_all, parse_bytes};

use crate::config::Name;

/// What a line says.
#[derive(Debug)]
pub(super) enum Entry {
    /// There is this consumer.
    Consumer(Box<ConsumerSpec>),
    /// The consumer of this name is no more.
    Gone(Name),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Gone {
    name: Name,
    deleted: bool,
}

/// Reads a line; nothing for a blank one.
///
/// # Errors
/// All that is wrong with it, with places in a document of this one line.
pub(super) fn read(line: &[u8]) -> Result<Option<Entry>, Vec<Error>> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let error = match serde_json::from_slice(line) {
        Ok(spec) => return Ok(Some(Entry::Consumer(Box::new(spec)))),
        Err(error) => error,
    };
    if let Ok(Gone { name, deleted: true }) = serde_json::from_slice(line) {
        return Ok(Some(Entry::Gone(name)));
    }
    // Its words are not used where there are better ones: they may quote a secret.
    let is_json = error.is_data();
    let errors = match parse_bytes(line.trim_ascii_end(), FileId(0), &Limits::default()) {
        Err(errors) if is_json => errors,
        Ok(node) if is_json => match from_node_all::<ConsumerSpec>(&node) {
            Err(errors) => errors,
            Ok(_) => vec![Error::new(node.at, "expected each key once, and values as JSON has them")],
        },
        _ => {
            let column = u32::try_from(error.column()).unwrap_or_default();
            let at = Mark { file: FileId(0), line: 1, column };
            vec![Error::new(at, "expected a consumer as JSON in one line, such as `{\"name\": \"acme\"}`")]
        }
    };
    Err(errors)
}

/// The column at which something below a line's value stands, from 1.
pub(super) fn column(line: &[u8], path: &Path) -> u32 {
    let node = parse_bytes(line.trim_ascii_end(), FileId(0), &Limits::default());
    node.map_or(1, |node| node.nearest(path).at.column)
}

/// The line with something switched: the consumer, or one credential of it.
pub(super) fn switched(line: &[u8], credential: Option<&str>, disabled: bool) -> Option<Vec<u8>> {
    let mut consumer: serde_json::Value = serde_json::from_slice(line).ok()?;
    let target = match credential {
        None => &mut consumer,
        Some(id) => {
            let mut all = consumer.get_mut("credentials")?.as_array_mut()?.iter_mut();
            all.find(|credential| credential["id"].as_str() == Some(id))?
        }
    };
    let target = target.as_object_mut()?;
    match disabled {
        true => drop(target.insert("disabled".to_owned(), true.into())),
        false => drop(target.shift_remove("disabled")),
    }
    let mut line = serde_json::to_vec(&consumer).ok()?;
    line.push(b'\n');
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_line_is_a_consumer_as_in_a_document_or_the_end_of_one() {
        let line = format!(
            "{{\"name\": \"acme\", \"groups\": [\"a\"], \"credentials\": [{{\"type\": \"api_key\", \"id\": \"k\", \
             \"hash\": \"{KEY}\", \"expires\": \"2027-01-01\"}}]}}\r\n"
        );
        let Ok(Some(Entry::Consumer(spec))) = read(line.as_bytes()) else { panic!("no consumer") };
        assert_eq!((spec.name.as_str(), spec.credentials.len()), ("acme", 1));
        let gone = read(br#"{"name": "acme", "deleted": true}"#);
        assert!(matches!(gone, Ok(Some(Entry::Gone(name))) if name.as_str() == "acme"));
        assert!(matches!(read(b" \r\n"), Ok(None)));
    }

    #[test]
    fn mistakes_are_told_with_their_columns_and_without_keys() {
        let of = |line: &str| -> Vec<(u32, String)> {
            let errors = read(line.as_bytes()).expect_err("wrong");
            errors.into_iter().map(|error| (error.at.column, error.message)).collect()
        };
        assert_eq!(of(r#"{"name": "acme", "grops": []}"#)[0].0, 18);
        let several =
            of(r#"{"name": "a b", "credentials": [{"type": "api_key", "id": "k", "hash": "s3cret"}]}"#);
        assert_eq!(several.len(), 2);
        assert!(several.iter().all(|(_, message)| !message.contains("s3cret")), "{several:?}");
        for line in ["{name: acme}", r#"{"name": "acme""#, "x", "{}{}", "\u{0}", r#"{"name":"a"} x"#] {
            let errors = of(line);
            assert!(errors.len() == 1 && errors[0].0 > 0, "{line}: {errors:?}");
        }
        assert!(of(r#"{"name": "acme", "deleted": false}"#)[0].1.contains("deleted"));
        assert!(of(r#"{"name": "acme", "name": "b"}"#)[0].1.contains("duplicate"));
        assert!(read(b"\xff").is_err());
    }

    #[test]
    fn a_switched_line_differs_in_nothing_else() {
        let line = r#"{"name":"acme","credentials":[{"type":"api_key","id":"a"},{"id":"b","x":1.50}]}"#;
        let off = switched(line.as_bytes(), Some("b"), true).expect("there");
        let text = String::from_utf8_lossy(&off).into_owned();
        assert_eq!(
            text,
            "{\"name\":\"acme\",\"credentials\":[{\"type\":\"api_key\",\"id\":\"a\"},\
             {\"id\":\"b\",\"x\":1.5,\"disabled\":true}]}\n"
        );
        let on = switched(&off, Some("b"), false).expect("there");
        assert!(!String::from_utf8_lossy(&on).contains("disabled"));
        assert!(switched(line.as_bytes(), Some("c"), true).is_none());
        assert!(switched(line.as_bytes(), None, true).expect("there").ends_with(b"\"disabled\":true}\n"));
    }
}
