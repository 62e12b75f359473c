//! HTTP Message Signatures (RFC 9421): what a request says of its signatures, and what they are made of.

use http::HeaderName;
use sfv::{BareItem, Dictionary, InnerList, Item, ListEntry, ListSerializer, Parser};

use super::component::{Component, Message};
use crate::identity::Refusal;

/// Signatures of one request; each costs a verification.
const MOST: usize = 4;
/// Components of one signature.
const MOST_COMPONENTS: usize = 64;

const MALFORMED: Refusal = Refusal::new("the fields Signature-Input and Signature are malformed");

pub(super) static SIGNATURE: HeaderName = HeaderName::from_static("signature");
pub(super) static SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// A signature of a request.
pub(super) struct Signature {
    components: Vec<Component>,
    /// The list of components with its parameters, in strict form.
    input: String,
    pub(super) params: Params,
    pub(super) bytes: Vec<u8>,
}

/// What a signature says of itself (RFC 9421 s2.3).
#[derive(Debug, Default)]
pub(super) struct Params {
    pub(super) key_id: Option<String>,
    pub(super) algorithm: Option<String>,
    pub(super) created: Option<i64>,
    pub(super) expires: Option<i64>,
    pub(super) nonce: Option<String>,
    pub(super) tag: Option<String>,
}

impl Params {
    fn read(list: &InnerList) -> Result<Self, Refusal> {
        let text = |name: &str| match list.params.get(name) {
            None => Ok(None),
            Some(BareItem::String(text)) => Ok(Some(text.as_str().to_owned())),
            Some(_) => Err(MALFORMED),
        };
        let time = |name: &str| match list.params.get(name) {
            None => Ok(None),
            Some(BareItem::Integer(time)) => Ok(Some(i64::from(*time))),
            Some(_) => Err(MALFORMED),
        };
        Ok(Self {
            key_id: text("keyid")?,
            algorithm: text("alg")?,
            created: time("created")?,
            expires: time("expires")?,
            nonce: text("nonce")?,
            tag: text("tag")?,
        })
    }
}

/// The signatures that a request has, in its order; none where it speaks of none.
pub(super) fn read(message: Message<'_>) -> Result<Option<Vec<Signature>>, Refusal> {
    let has = |name: &HeaderName| message.request.headers.contains_key(name);
    match (has(&SIGNATURE_INPUT), has(&SIGNATURE)) {
        (false, false) => return Ok(None),
        (true, true) => {}
        _ => return Err(MALFORMED),
    }
    let dictionary = |name: &HeaderName| -> Result<Dictionary, Refusal> {
        Parser::new(&message.field(name)?).parse().map_err(|_| MALFORMED)
    };
    let (inputs, mut signatures) = (dictionary(&SIGNATURE_INPUT)?, dictionary(&SIGNATURE)?);
    if inputs.is_empty() || inputs.len() != signatures.len() {
        return Err(MALFORMED);
    }
    if inputs.len() > MOST {
        return Err(Refusal::new("the request has too many signatures"));
    }
    let pair = |(label, input)| {
        let signature = signatures.swap_remove(&label);
        let Some(ListEntry::Item(Item { bare_item: BareItem::ByteSequence(bytes), .. })) = signature else {
            return Err(MALFORMED);
        };
        match input {
            ListEntry::InnerList(list) => Signature::new(list, bytes),
            ListEntry::Item(_) => Err(MALFORMED),
        }
    };
    inputs.into_iter().map(pair).collect::<Result<_, _>>().map(Some)
}

impl Signature {
    fn new(list: InnerList, bytes: Vec<u8>) -> Result<Self, Refusal> {
        if list.items.len() > MOST_COMPONENTS {
            return Err(Refusal::new("the signature covers too many components"));
        }
        let params = Params::read(&list)?;
        let mut serializer = ListSerializer::new();
        {
            let mut inner = serializer.inner_list();
            inner.items(&list.items);
            inner.finish().parameters(&list.params);
        }
        let input = serializer.finish().ok_or(MALFORMED)?;
        let components: Vec<Component> =
            list.items.into_iter().map(Component::read).collect::<Result<_, _>>()?;
        Ok(Self { components, input, params, bytes })
    }

    /// Whether it covers the whole of a component, by itself or as a part of another.
    pub(super) fn covers(&self, wanted: &str) -> bool {
        let has = |name: &str| self.components.iter().any(|one| one.name() == name && one.is_whole());
        match wanted {
            "@target-uri" => has(wanted) || ["@scheme", "@authority", "@path", "@query"].into_iter().all(has),
            "@request-target" => has(wanted) || has("@target-uri") || (has("@path") && has("@query")),
            "@path" | "@query" => has(wanted) || has("@target-uri") || has("@request-target"),
            "@scheme" | "@authority" => has(wanted) || has("@target-uri"),
            _ => has(wanted),
        }
    }

    /// Whether it covers a digest of the body that is good for a proof.
    pub(super) fn covers_digest(&self) -> bool {
        self.components
            .iter()
            .any(|one| one.name() == "content-digest" && (one.is_whole() || one.is_digest()))
    }

    /// What is signed (RFC 9421 s2.5).
    pub(super) fn base(&self, message: Message<'_>) -> Result<Vec<u8>, Refusal> {
        let mut base = Vec::new();
        let mut seen: Vec<String> = Vec::with_capacity(self.components.len());
        for component in &self.components {
            let identifier = component.identifier()?;
            if seen.contains(&identifier) {
                return Err(MALFORMED);
            }
            base.extend_from_slice(identifier.as_bytes());
            base.extend_from_slice(b": ");
            base.extend(component.value(message)?);
            base.push(b'\n');
            seen.push(identifier);
        }
        base.extend_from_slice(b"\"@signature-params\": ");
        base.extend_from_slice(self.input.as_bytes());
        Ok(base)
    }
}
