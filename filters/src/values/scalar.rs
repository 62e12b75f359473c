//! What every scalar of a document has in common: read from text, written as text, described in
//! the schema.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserializer, Error, Visitor};

#[doc(hidden)]
pub mod reexports {
    pub use {schemars, serde};
}

/// A value written as one YAML scalar.
///
/// Implement it, and `Display` for the canonical form, then call [`scalar!`](crate::scalar) for
/// serde and the schema.
pub trait Scalar: Sized + fmt::Display {
    /// What is accepted, as the end of "expected ...": names the form and gives examples.
    const EXPECTED: &'static str;
    /// The regular expression of the JSON Schema, or none where a pattern cannot say it.
    const PATTERN: Option<&'static str> = None;
    /// The `format` of the JSON Schema.
    const FORMAT: Option<&'static str> = None;
    /// One written value, for the schema.
    const EXAMPLE: &'static str;
    /// Whether a bare YAML integer is accepted too, and read as its decimal text.
    const INTEGERS: bool = false;

    /// Reads the written form; `None` if it is not one.
    fn read(text: &str) -> Option<Self>;
}

/// The text was not in the accepted form. Says what is expected and nothing of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}", self.0)
    }
}

impl std::error::Error for Refused {}

/// Gives a [`Scalar`] its `FromStr`, `Deserialize`, `Serialize` and `JsonSchema`.
#[macro_export]
macro_rules! scalar {
    ($type:ident) => {
        impl ::std::str::FromStr for $type {
            type Err = $crate::values::Refused;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                <Self as $crate::values::Scalar>::read(text)
                    .ok_or($crate::values::Refused(<Self as $crate::values::Scalar>::EXPECTED))
            }
        }

        impl<'de> $crate::values::scalar::reexports::serde::Deserialize<'de> for $type {
            fn deserialize<D>(deserializer: D) -> Result<Self, D::Error>
            where
                D: $crate::values::scalar::reexports::serde::Deserializer<'de>,
            {
                $crate::values::scalar::deserialize(deserializer)
            }
        }

        impl $crate::values::scalar::reexports::serde::Serialize for $type {
            fn serialize<S>(&self, serializer: S) -> Result<S::Ok, S::Error>
            where
                S: $crate::values::scalar::reexports::serde::Serializer,
            {
                serializer.collect_str(self)
            }
        }

        impl $crate::values::scalar::reexports::schemars::JsonSchema for $type {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(
                _: &mut $crate::values::scalar::reexports::schemars::SchemaGenerator,
            ) -> $crate::values::scalar::reexports::schemars::Schema {
                $crate::values::scalar::schema::<Self>()
            }
        }
    };
}

/// Reads a [`Scalar`] from any deserialiser, without quoting what it refuses.
pub fn deserialize<'de, T: Scalar, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(ScalarVisitor(PhantomData))
}

/// The JSON Schema of a [`Scalar`].
pub fn schema<T: Scalar>() -> schemars::Schema {
    let mut schema = schemars::json_schema!({"type": "string"});
    if T::INTEGERS {
        schema.insert("type".to_owned(), serde_json::json!(["string", "integer"]));
    }
    if let Some(pattern) = T::PATTERN {
        schema.insert("pattern".to_owned(), pattern.into());
    }
    if let Some(format) = T::FORMAT {
        schema.insert("format".to_owned(), format.into());
    }
    schema.insert("examples".to_owned(), serde_json::json!([T::EXAMPLE]));
    schema
}

struct ScalarVisitor<T>(PhantomData<T>);

impl<T: Scalar> ScalarVisitor<T> {
    fn refuse<E: Error>() -> E {
        E::custom(Refused(T::EXPECTED))
    }
}

impl<T: Scalar> Visitor<'_> for ScalarVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        T::read(text).ok_or_else(Self::refuse)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<T, E> {
        if T::INTEGERS { self.visit_str(&number.to_string()) } else { Err(Self::refuse()) }
    }

    // Serde's own answers to these quote the value.
    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        u64::try_from(number).map_or_else(|_| Err(Self::refuse()), |number| self.visit_u64(number))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<T, E> {
        Err(Self::refuse())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<T, E> {
        Err(Self::refuse())
    }

    fn visit_bytes<E: Error>(self, _: &[u8]) -> Result<T, E> {
        Err(Self::refuse())
    }
}

/// Splits `text` into its leading ASCII digits, as a number, and the rest.
pub(super) fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    Some((digits.parse().ok()?, rest))
}
