//! Lists, maps, keys and enum variants, passing over what was pruned.

use std::iter::Enumerate;
use std::slice::Iter;
use std::sync::Arc;

use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::fault::Fault;
use super::{NodeDe, numbers, visit_flexible_number};
use crate::tree::collect::Prune;
use crate::tree::scalar::resolve;
use crate::tree::{Key, Node, Resolved, Step};

pub(super) struct Items<'a> {
    items: Enumerate<Iter<'a, Arc<Node>>>,
    prune: Option<&'a Prune>,
}

impl<'a> Items<'a> {
    pub(super) fn new(items: &'a [Arc<Node>], prune: Option<&'a Prune>) -> Items<'a> {
        Items { items: items.iter().enumerate(), prune }
    }
}

impl<'a> SeqAccess<'a> for Items<'a> {
    type Error = Fault;

    fn next_element_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        let kept = |index: usize| self.prune.is_none_or(|prune| !prune.skips_item(index));
        let Some((index, node)) = self.items.by_ref().find(|(index, _)| kept(*index)) else {
            return Ok(None);
        };
        let prune = self.prune.and_then(|prune| prune.item(index));
        let source = NodeDe { node, prune, hidden: false };
        let value = seed.deserialize(source);
        value.map(Some).map_err(|fault| fault.locate(node, false).below(Step::Index(index)))
    }

    fn size_hint(&self) -> Option<usize> {
        // Nothing more than was really written, so a type may reserve it.
        self.prune.is_none().then(|| self.items.len())
    }
}

pub(super) struct Entries<'a> {
    entries: Iter<'a, (Key, Arc<Node>)>,
    prune: Option<&'a Prune>,
    current: Option<&'a (Key, Arc<Node>)>,
}

impl<'a> Entries<'a> {
    pub(super) fn new(entries: &'a [(Key, Arc<Node>)], prune: Option<&'a Prune>) -> Entries<'a> {
        // Of a long map, what was good is not read again.
        let read = prune.map_or(0, Prune::entries_read).min(entries.len());
        Entries { entries: entries[read..].iter(), prune, current: None }
    }

    /// The entries of what has fields, each of which may be wanted.
    pub(super) fn of_fields(entries: &'a [(Key, Arc<Node>)], prune: Option<&'a Prune>) -> Entries<'a> {
        Entries { entries: entries.iter(), prune, current: None }
    }

    /// The entry, if there is exactly one.
    pub(super) fn only(mut self) -> Option<(&'a Key, &'a Arc<Node>, Option<&'a Prune>)> {
        let (key, node) = self.next()?;
        let prune = self.prune.and_then(|prune| prune.entry(&key.text));
        self.next().is_none().then_some((key, node, prune))
    }

    fn next(&mut self) -> Option<&'a (Key, Arc<Node>)> {
        let prune = self.prune;
        self.entries.find(|(key, _)| prune.is_none_or(|prune| !prune.skips_entry(&key.text)))
    }
}

impl<'a> MapAccess<'a> for Entries<'a> {
    type Error = Fault;

    fn next_key_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<Option<S::Value>, Fault> {
        self.current = self.next();
        let Some((key, _)) = self.current else { return Ok(None) };
        seed.deserialize(KeyDe(&key.text)).map(Some).map_err(|fault| fault.locate_key(key))
    }

    fn next_value_seed<S: DeserializeSeed<'a>>(&mut self, seed: S) -> Result<S::Value, Fault> {
        let Some((key, node)) = self.current else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let prune = self.prune.and_then(|prune| prune.entry(&key.text));
        let source = NodeDe { node, prune, hidden: false };
        seed.deserialize(source).map_err(|fault| fault.locate(node, false).below(Step::from(&*key.text)))
    }

    fn size_hint(&self) -> Option<usize> {
        self.prune.is_none().then(|| self.entries.len())
    }
}

/// A key is text, or a number or boolean where one is wanted (`{404: ...}`).
struct KeyDe<'a>(&'a str);

impl<'a> KeyDe<'a> {
    fn number<V: Visitor<'a>>(self, visitor: V) -> Result<V::Value, Fault> {
        visit_flexible_number(self.0, visitor)
    }
}

impl<'de> Deserializer<'de> for KeyDe<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match resolve(self.0) {
            Resolved::Bool(value) => visitor.visit_bool(value),
            _ => Err(de::Error::invalid_type(Unexpected::Str(self.0), &visitor)),
        }
    }

    numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_enum(Variant::Unit(self.0))
    }

    forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

/// `name`, or `{name: content}`.
pub(super) enum Variant<'a> {
    Unit(&'a str),
    Tagged { key: &'a Key, node: &'a Arc<Node>, prune: Option<&'a Prune> },
}

impl<'a> Variant<'a> {
    fn content<T>(self, read: impl FnOnce(NodeDe<'a>) -> Result<T, Fault>) -> Result<T, Fault> {
        match self {
            Variant::Unit(name) => {
                let message = format!("`{name}` needs settings: write `{name}: {{..}}`");
                Err(de::Error::custom(message))
            }
            Variant::Tagged { key, node, prune } => read(NodeDe { node, prune, hidden: false })
                .map_err(|fault| fault.locate(node, false).below(Step::from(&*key.text))),
        }
    }
}

impl<'a> EnumAccess<'a> for Variant<'a> {
    type Error = Fault;
    type Variant = Variant<'a>;

    fn variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<(S::Value, Variant<'a>), Fault> {
        let value = match &self {
            Variant::Unit(name) => seed.deserialize(BorrowedStrDeserializer::new(name)),
            Variant::Tagged { key, .. } => {
                seed.deserialize(KeyDe(&key.text)).map_err(|fault| fault.locate_key(key))
            }
        };
        value.map(|value| (value, self))
    }
}

impl<'a> VariantAccess<'a> for Variant<'a> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self {
            Variant::Unit(_) => Ok(()),
            tagged => tagged.content(<() as de::Deserialize<'_>>::deserialize),
        }
    }

    fn newtype_variant_seed<S: DeserializeSeed<'a>>(self, seed: S) -> Result<S::Value, Fault> {
        self.content(|source| seed.deserialize(source))
    }

    fn tuple_variant<V: Visitor<'a>>(self, _len: usize, visitor: V) -> Result<V::Value, Fault> {
        self.content(|source| source.deserialize_any(visitor))
    }

    fn struct_variant<V: Visitor<'a>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.content(|source| source.deserialize_any(visitor))
    }
}
