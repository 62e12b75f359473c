//! A tree as plain data for any serde format. Substituted text is written out: whoever shows it
//! to somebody redacts it first.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::{Node, Resolved, Scalar, Value};

impl Serialize for Node {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.value {
            Value::Null => serializer.serialize_unit(),
            Value::Scalar(scalar) => scalar.serialize(serializer),
            Value::List(items) => serializer.collect_seq(items.iter().map(|item| &**item)),
            Value::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, node) in entries {
                    map.serialize_entry(&*key.text, &**node)?;
                }
                map.end()
            }
        }
    }
}

impl Serialize for Scalar {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.resolve() {
            Resolved::Null => serializer.serialize_unit(),
            Resolved::Bool(value) => serializer.serialize_bool(value),
            Resolved::Unsigned(value) => serializer.serialize_u64(value),
            Resolved::Signed(value) => serializer.serialize_i64(value),
            Resolved::Float(value) => serializer.serialize_f64(value),
            Resolved::Str => serializer.serialize_str(self.text()),
        }
    }
}
