//! Who calls, put together from all the credentials that hold.

use std::borrow::Cow;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;

use crate::context::{Consumer, Context, Principal, Verdict};
use crate::identity::{BodyProof, Identity, Verified};

/// Who calls.
pub(super) struct Caller {
    pub(super) principal: Arc<Principal>,
    pub(super) consumer: Arc<Consumer>,
    /// All credentials are of the same consumer; one that no consumer of the document has is of a caller of its
    /// own, whom no other credential can stand in for.
    pub(super) is_one: bool,
    pub(super) identity: Arc<str>,
    /// Whose credentials hold.
    pub(super) proven: Vec<Arc<dyn Identity>>,
    /// What the body has to be, and for which identity.
    pub(super) proofs: Vec<(Arc<dyn Identity>, BodyProof)>,
    /// `Set-Cookie` of the answer.
    pub(super) cookies: Vec<HeaderValue>,
    credential: Option<Arc<str>>,
}

impl Caller {
    /// The caller that these credentials prove; at least one. What it is called comes from the first one of a
    /// consumer of the document, what is claimed from the first one that has claims.
    pub(super) fn new(verified: Vec<(Arc<dyn Identity>, Verified)>) -> Self {
        let (identity, first) = &verified[0];
        let claiming = verified.iter().find(|(identity, _)| identity.has_claims());
        let principal = claiming.map_or(&first.principal, |(_, one)| &one.principal).clone();
        let consumer = verified.iter().find_map(|(_, one)| one.consumer.clone());
        let is_same = |one: &Verified| match (&consumer, &one.consumer) {
            (Some(consumer), Some(other)) => consumer.name == other.name,
            _ => false,
        };
        let is_one = verified.len() == 1 || verified.iter().all(|(_, one)| is_same(one));
        let consumer = consumer.unwrap_or_else(|| of_its_own(identity, &first.principal));
        let credential = verified.iter().find_map(|(_, one)| one.credential.clone());
        let identity = identity.name().clone();
        let cookies = verified.iter().flat_map(|(_, one)| one.cookies.iter().cloned()).collect();
        let proven = verified.iter().map(|(identity, _)| identity.clone()).collect();
        let of_body = |(identity, one): (_, Verified)| one.body.map(|proof| (identity, proof));
        let proofs = verified.into_iter().filter_map(of_body).collect();
        Self { principal, consumer, is_one, identity, proven, proofs, cookies, credential }
    }

    /// A claim as text; none if it is not there.
    pub(super) fn claim(&self, name: &str) -> Option<Cow<'_, str>> {
        match self.principal.claims.get(name)? {
            Value::Null => None,
            Value::String(text) => Some(text.into()),
            other => Some(other.to_string().into()),
        }
    }

    /// Notes in the decision log who it is.
    pub(super) fn note(&self, ctx: &mut Context) {
        let mut fields = vec![("consumer", &*self.consumer.name), ("identity", &*self.identity)];
        fields.extend(self.credential.iter().map(|id| ("credential", &**id)));
        ctx.decide(Verdict::Passed, "authenticated", &fields);
    }
}

/// A caller whom the document has no consumer for; no name of the document has a colon.
fn of_its_own(identity: &Arc<dyn Identity>, principal: &Principal) -> Arc<Consumer> {
    let name = format!("{}:{}", identity.name(), principal.subject).into();
    Arc::new(Consumer { name, groups: Arc::default(), plan: None })
}

/// A text as the value of a field; none for what another reader could take for something else: control
/// characters, and white space at the ends, which is not part of a value (RFC 9110 s5.5).
pub(super) fn field_value(text: &str) -> Option<HeaderValue> {
    let is_same = text.trim() == text && !text.contains(char::is_control);
    HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| is_same)
}
