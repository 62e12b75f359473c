//! Signatures of other tags (RFC 9421 s2.3), which are for somebody else.

use http::{HeaderName, HeaderValue};
use pingora_http::RequestHeader;
use sfv::{BareItem, DictSerializer, Dictionary, ListEntry, Parser};

use super::message::{SIGNATURE, SIGNATURE_INPUT};

/// Takes all signatures but those of other tags out of a request; all of them where nobody can tell which ones those
/// are.
pub(super) fn keep(tag: &str, request: &mut RequestHeader) {
    let left = others(tag, request);
    let names = [SIGNATURE_INPUT.clone(), SIGNATURE.clone()];
    names.iter().for_each(|name| drop(request.remove_header(name)));
    for (name, value) in names.into_iter().zip(left.into_iter().flatten()) {
        // What is written in strict form is visible ASCII.
        let _ = request.insert_header(name, value);
    }
}

/// What the two fields say of the others; none if there are none.
fn others(tag: &str, request: &RequestHeader) -> Option<[String; 2]> {
    let read = |name: &HeaderName| -> Option<Dictionary> {
        let lines: Vec<&[u8]> = request.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
        Parser::new(&lines.join(&b", "[..])).parse().ok()
    };
    let (mut inputs, mut signatures) = (read(&SIGNATURE_INPUT)?, read(&SIGNATURE)?);
    inputs.retain(|_, input| has_another(tag, input));
    signatures.retain(|label, _| inputs.contains_key(label));
    if inputs.len() != signatures.len() {
        return None;
    }
    Some([written(&inputs)?, written(&signatures)?])
}

/// Whether a signature has another tag, or none.
fn has_another(tag: &str, input: &ListEntry) -> bool {
    let ListEntry::InnerList(list) = input else { return false };
    match list.params.get("tag") {
        None => true,
        Some(BareItem::String(text)) => text.as_str() != tag,
        Some(_) => false,
    }
}

fn written(members: &Dictionary) -> Option<String> {
    let mut serializer = DictSerializer::new();
    serializer.members(members);
    serializer.finish()
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::hmac;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use crate::testing::{chain_with, get};

    /// With the hash of `key-one`.
    const DOCUMENT: &str = "
identities:
  signed: {type: hmac, tag: gateway}
  keys: {type: api_key, from: [header:x-api-key]}
consumers:
  - name: acme
    credentials:
      - {type: api_key, id: a, hash: 'sha256:9b346041bc9a49574eb2665b2ad2a0a3f9f9cce4e42f5d1f26deb8a256b5966a'}
";

    #[tokio::test]
    async fn signatures_of_other_tags_go_on_where_those_of_this_one_do_not() {
        let chain = chain_with(DOCUMENT, "- authenticate: {any_of: [keys, signed]}");
        let ours = ("ours=(\"@method\");tag=\"gateway\"", "ours=:AAAA:");
        let both = "theirs=(\"@method\");created=1;tag=\"backend\", plain=(\"@path\")";
        let two = (both, "theirs=:AQID:, plain=:AAAA:");
        for (fields, left) in [
            (vec![two], Some(two)),
            (vec![ours, two], Some(two)),
            (vec![two, ours], Some(two)),
            (vec![ours], None),
            // What nobody can tell apart.
            (vec![(two.0, "theirs=:AQID:")], None),
            (vec![("x=(\"@method\");tag=backend", "x=:AAAA:")], None),
            (vec![("x=\"@method\"", "x=:AAAA:")], None),
            (vec![("x=(\"@method\"", "x=:AAAA:")], None),
        ] {
            let mut request = get("/").header("x-api-key", "key-one");
            for (input, signature) in &fields {
                request = request.header("signature-input", input).header("signature", signature);
            }
            let head = chain.send(request).await.continues().attempt(1).await;
            let told = ["signature-input", "signature"].map(|name| head.headers.get(name));
            let told = told.map(|value| value.and_then(|value| value.to_str().ok()));
            let expected = left.map_or([None, None], |(input, signature)| [Some(input), Some(signature)]);
            assert_eq!(told, expected, "{fields:?}");
        }
    }

    /// A signature of `GET /` with this tag, and its secret, at the time when the clock of tests begins.
    fn signed(tag: &str, secret: &str) -> [(&'static str, String); 2] {
        let input = format!("(\"@method\");created=1767225600;keyid=\"{tag}\";tag=\"{tag}\"");
        let base = format!("\"@method\": GET\n\"@signature-params\": {input}");
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = STANDARD.encode(hmac::sign(&key, base.as_bytes()));
        [("signature-input", format!("{tag}={input}")), ("signature", format!("{tag}=:{signature}:"))]
    }

    #[tokio::test]
    async fn a_signature_that_holds_keeps_none_of_another_tag_in_the_request() {
        let (own, other) =
            ("a secret of thirty-two bytes, or so", "another secret of thirty-two bytes, or so");
        for (hide, secret) in [(true, other), (false, "a forged one of thirty-two bytes, or so")] {
            let document = format!(
                "
identities:
  a: {{type: hmac, tag: a, components: ['@method'], hide: {hide}}}
  b: {{type: hmac, tag: b, components: ['@method']}}
consumers:
  - name: acme
    credentials:
      - {{type: hmac, identity: a, id: a, secret: '{other}'}}
      - {{type: hmac, identity: b, id: b, secret: '{own}'}}
"
            );
            let fields = [signed("a", secret), signed("b", own)].concat();
            let request =
                || fields.iter().fold(get("/"), |request, (name, value)| request.header(name, value));
            let alone = chain_with(&document, "- authenticate: {any_of: [a]}").send(request()).await;
            assert_eq!(alone.ctx.consumer.is_some(), hide, "it holds if it is hidden, and is forged else");
            let chain = chain_with(&document, "- authenticate: {any_of: [b, a]}");
            let head = chain.send(request()).await.continues().attempt(1).await;
            for (name, value) in signed("b", own) {
                let left: Vec<_> = head.headers.get_all(name).iter().collect();
                assert_eq!(left, [value.as_str()], "{name}");
            }
        }
    }
}
