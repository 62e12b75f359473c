//! Questions to the Open Policy Agent, and its answers (its REST API, "Get a Document (with Input)").
//!
//! The decision is `true` or `false`, or an object with `allow` and perhaps `headers`, `status`, `body` and
//! `reason`. A decision that is undefined, which OPA answers without `result`, lets nothing pass.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pingora_http::RequestHeader;
use serde_json::{Map, Value, json};

use super::answer::{Fields, Said, Told, lines, unavailable};
use crate::condition::query_pairs;
use crate::context::{ClientCertificate, Context};
use crate::identity::json;
use crate::outcome::FilterError;
use crate::values::address_text;
use crate::world::ClientReply;

/// The largest answer that is read, in bytes.
const LARGEST: usize = 256 * 1024;

/// The document `{"input": ..}` about a request; of its fields, it has these.
pub(super) fn question(
    request: &RequestHeader,
    body: Option<&Bytes>,
    sent: &[HeaderName],
    ctx: &Context,
) -> Bytes {
    let mut about = json!({
        "method": request.method.as_str(),
        "scheme": ctx.scheme.as_str(),
        "host": ctx.host.as_deref(),
        "path": ctx.path.matched(),
        "query": query(request),
        "headers": fields(sent, &request.headers),
    });
    match body.map(|body| std::str::from_utf8(body).map_err(|_| STANDARD.encode(body))) {
        None => {}
        Some(Ok(text)) => about["body"] = text.into(),
        Some(Err(base64)) => about["body_base64"] = base64.into(),
    }
    // Behind a trusted proxy it is the proxy's.
    let own = ctx.client.certificate().filter(|_| !ctx.client.through_trusted_proxy);
    let certificate = own.map(certificate);
    let consumer = ctx.consumer.as_ref().map(|consumer| {
        json!({"name": &*consumer.name, "groups": &*consumer.groups, "plan": consumer.plan.as_deref()})
    });
    let input = json!({
        "request": about,
        "client": {"address": address_text(ctx.client.address), "certificate": certificate},
        "consumer": consumer,
        "claims": ctx.principal.as_ref().map(|principal| &principal.claims),
        "listener": &*ctx.listener,
        "route": &*ctx.route,
        "service": ctx.service.as_deref(),
        "version": ctx.version.as_deref(),
    });
    json!({"input": input}).to_string().into()
}

/// Each parameter with all its values.
fn query(request: &RequestHeader) -> Value {
    let mut all = Map::new();
    for (name, value) in request.uri.query().into_iter().flat_map(query_pairs) {
        if let Value::Array(values) = all.entry(name.into_owned()).or_insert_with(|| json!([])) {
            values.push(value.into_owned().into());
        }
    }
    all.into()
}

/// Each field with its lines joined (RFC 9110 s5.2).
fn fields(sent: &[HeaderName], headers: &HeaderMap) -> Value {
    let joined = |name: &HeaderName| {
        let lines: Vec<_> =
            headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        (!lines.is_empty()).then(|| (name.as_str().to_owned(), lines.join(", ").into()))
    };
    sent.iter().filter_map(joined).collect::<Map<_, _>>().into()
}

fn certificate(of: &ClientCertificate) -> Value {
    json!({
        "subject": &*of.subject,
        "issuer": &*of.issuer,
        "serial": &*of.serial,
        "fingerprint": of.fingerprint_hex(),
    })
}

/// What OPA decided.
pub(super) async fn read(answer: &mut ClientReply, told: &Told) -> Result<Said, FilterError> {
    let status = answer.head.status;
    if status != StatusCode::OK {
        return Err(unavailable(format!("it answered {status}")));
    }
    let body = answer.read_all(LARGEST).await.map_err(unavailable)?;
    let mut document = json::object(&body).ok_or_else(|| unavailable("its answer is no JSON object"))?;
    match document.shift_remove("result") {
        None => Ok(Said::Forbid { reason: "the decision is undefined".to_owned() }),
        Some(Value::Bool(true)) => Ok(Said::Pass { upstream: Vec::new(), client: Vec::new() }),
        Some(Value::Bool(false)) => Ok(Said::Forbid { reason: "the policy does not allow it".to_owned() }),
        Some(Value::Object(decision)) => decided(&decision, told),
        Some(_) => Err(unavailable("its `result` is neither true, false nor an object")),
    }
}

fn decided(decision: &Map<String, Value>, told: &Told) -> Result<Said, FilterError> {
    let Some(Value::Bool(allow)) = decision.get("allow") else {
        return Err(unavailable("its `result` has no `allow` that is true or false"));
    };
    let headers = written(decision.get("headers"))?;
    if *allow {
        return Ok(Said::Pass {
            upstream: lines(&told.upstream, &headers),
            client: lines(&told.client, &headers),
        });
    }
    let reason = decision.get("reason").and_then(Value::as_str).unwrap_or("the policy does not allow it");
    let Some(status) = decision.get("status") else {
        return Ok(Said::Forbid { reason: reason.to_owned() });
    };
    let status = status.as_u64().and_then(|status| u16::try_from(status).ok());
    let status = status.filter(|status| (300..500).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    let status = status.ok_or_else(|| unavailable("its `status` is not one from 300 to 499"))?;
    let body = decision.get("body").and_then(Value::as_str).unwrap_or_default();
    let fields: Fields = lines(&told.refused, &headers);
    Ok(Said::Refuse { status, fields, body: Bytes::copy_from_slice(body.as_bytes()) })
}

/// Fields of a decision: each a text, or a list of texts.
fn written(headers: Option<&Value>) -> Result<HeaderMap, FilterError> {
    let wrong = || unavailable("its `headers` are no object of texts");
    let mut fields = HeaderMap::new();
    let headers = match headers {
        None | Some(Value::Null) => return Ok(fields),
        Some(headers) => headers.as_object().ok_or_else(wrong)?,
    };
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let values = match value {
            Value::Array(values) => values.as_slice(),
            one => std::slice::from_ref(one),
        };
        for value in values {
            let value = value.as_str().and_then(|text| HeaderValue::from_bytes(text.as_bytes()).ok());
            fields.append(name.clone(), value.ok_or_else(wrong)?);
        }
    }
    Ok(fields)
}
