//! The shape of a line, as it is written in a document.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tollhouse_filters::tree::{Raw, Scalar, from_node, suggest};

use super::Layout;

/// The shape of a line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// The Common Log Format.
    Common,
    /// The Combined Log Format of Apache and NGINX.
    Combined,
    /// As a template lays it out.
    Template(Layout),
    /// No access log.
    Off,
}

const NAMES: [(&str, Format); 4] =
    [("json", Format::Json), ("combined", Format::Combined), ("clf", Format::Common), ("none", Format::Off)];

impl Format {
    /// Reads a text of which these parts are literal: what references brought in is no template.
    fn read(literal: &[Range<usize>], text: &str) -> Result<Self, String> {
        if let Some((_, format)) = NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(format.clone());
        }
        let is_written = |at: usize| !literal.iter().any(|part| part.contains(&at));
        if text.match_indices("${").any(|(at, _)| is_written(at)) {
            return Layout::parse_beside(literal, text).map(Self::Template);
        }
        Err(match suggest(text, NAMES.map(|(name, _)| name)) {
            Some(name) => format!("there is no such format; did you mean `{name}`?"),
            None => "expected `json`, `combined`, `clf`, `none`, or a template such as `${time} ${status}`"
                .to_owned(),
        })
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(&[], text)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Template(layout) => layout.fmt(f),
            named => {
                let found = NAMES.iter().find(|(_, format)| format == named);
                f.write_str(found.map_or("", |(name, _)| name))
            }
        }
    }
}

impl Serialize for Format {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Format {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw(node) = Raw::deserialize(deserializer)?;
        let text: String = from_node(&node).map_err(|error| de::Error::custom(error.message))?;
        let literal = node.as_scalar().map(Scalar::literal).unwrap_or_default();
        Self::read(literal, &text).map_err(de::Error::custom)
    }
}

impl JsonSchema for Format {
    fn schema_name() -> Cow<'static, str> {
        "Format".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "`json`, `combined`, `clf`, `none`, or a template.",
            "anyOf": [
                {"const": "json", "description": "One JSON object a line."},
                {"const": "combined", "description": "The Combined Log Format of Apache and NGINX."},
                {"const": "clf", "description": "The Common Log Format."},
                {"const": "none", "description": "No access log."},
                {
                    "type": "string",
                    "pattern": "\\$\\{",
                    "description": "A template; `${time}`, `${status}`, `${request.path}` and others are filled in.",
                    "examples": ["${client.address} ${request.method} ${request.path} ${status}"],
                },
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use tollhouse_filters::tree::{Mark, Node};

    use super::super::Access;
    use super::*;
    use crate::observe::redact::Redactor;

    #[test]
    fn what_a_reference_brings_in_is_text_and_no_template() {
        let read = |text: &str, literal: Range<usize>| {
            let scalar = Scalar::quoted(text).with_literal(vec![literal]);
            from_node::<Format>(&Node::scalar(scalar, Mark::default()))
        };
        // `${env:PRODUCT} ${status}` and `$${env:PRODUCT} ${status}`.
        for (text, literal, expected) in [
            ("${request.path} ${status}", 0..15, "${request.path} 200\n"),
            ("${env:PRODUCT} ${status}", 0..2, "${env:PRODUCT} 200\n"),
        ] {
            let Ok(Format::Template(layout)) = read(text, literal) else { panic!("{text} is a template") };
            let mut line = Vec::new();
            layout.write(&Access::example(), &Redactor::new(&[]), &mut line);
            assert_eq!(String::from_utf8(line).unwrap(), expected);
        }
        assert!(read("${status}", 0..9).is_err(), "`${{env:FORMAT}}` names a format");
        assert_eq!(read("clf", 0..3).unwrap(), Format::Common);
    }

    #[test]
    fn every_format_is_written_back_as_it_was_read() {
        for text in ["json", "combined", "clf", "none", "${status}\t${request.path} $${x}"] {
            assert_eq!(text.parse::<Format>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_format_is_refused_with_a_guess() {
        assert!("combind".parse::<Format>().unwrap_err().ends_with("did you mean `combined`?"));
        for bad in ["", "apache", "JSON", "off"] {
            assert!(bad.parse::<Format>().is_err(), "{bad}");
        }
    }
}
