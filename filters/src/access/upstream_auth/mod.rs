//! `upstream_auth`: the gateway proves to the upstream who it is.
//!
//! ```yaml
//! - upstream_auth: {client_credentials: {token_url: "https://id.example.com/token", client_id: gw, client_secret: "${env:SECRET}"}}
//! - upstream_auth: {basic: {username: gw, password: "${env:PASSWORD}"}}
//! - upstream_auth: {header: {name: x-api-key, value: "${env:KEY}"}}
//! - upstream_auth: {aws: {region: eu-central-1, service: lambda, access_key_id: AKIA.., secret_access_key: "${env:KEY}"}}
//! ```
//!
//! `Authorization` of the client, or its copy of the field, does not get there, nor does it when there are no
//! credentials to send. Neither that nor what is written is in copies that `mirror` makes, above or below, unless it
//! stands above a `cache` and this one behind it. TRACE is answered 405, since the upstream would show the client what
//! it was sent (RFC 9110 s9.3.8).
//!
//! A token (RFC 6749 s4.4) is fetched when it is first needed, once for all who wait, and anew before it ends. While
//! none can be had, one that still holds is used; else it is 503. When the upstream answers 401, the token is given
//! up and the next request has a new one, at most every 10 seconds; the request itself is not sent again.
//!
//! A signature of AWS covers the host, `content-type`, all `x-amz-` fields, path, query, and the body: it is waited
//! for, up to `max_body`. With `payload: unsigned` bodies stream, which S3 takes. What filters below change is not
//! covered by it, so this one stands last.
//!
//! Some of these fields say what is done (`x-amz-copy-source`, `x-amz-acl`), and signed, it would be done by the
//! gateway's rights: those that are not in `client_fields` are removed when the request gets here. Whose they are cannot
//! be told by then: one that `headers` above sets is named as well, and takes the place of the client's.
//!
//! Each attempt is signed anew. Secrets are in no log, and `explain` shows them as `***`. Hardened against
//! untrusted clients; upstreams and whoever gives out tokens are trusted.

mod amz;
mod grant;
mod options;
mod sigv4;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};

use self::amz::Allowed;
use self::grant::{Grant, Token};
pub use self::options::{Aws, Basic, ClientCredentials, Field, Options, Payload};
use self::sigv4::{Message, Moment, Paths, Signer};
use crate::context::{Context, Slot};
use crate::filter::{Build, BuildError, Filter};
use crate::identity::remote::Remote;
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnRequestBody, OnResponse, OnUpstreamRequest, Phases};
use crate::problem::{METHOD_NOT_ALLOWED, Problem};
use crate::values::Secret;
use crate::world::Clock;

/// See the [module](self).
pub struct UpstreamAuth {
    way: Way,
}

/// How it is proved.
enum Way {
    /// By this field.
    Field(HeaderName, HeaderValue),
    /// By a token.
    Token { grant: Arc<Grant>, used: Slot<Arc<Token>>, dry: bool },
    /// By a signature.
    Aws(Box<Signing>),
}

struct Signing {
    signer: Signer,
    session_token: Option<HeaderValue>,
    /// The largest body that is signed; none where bodies are not.
    max_body: Option<u64>,
    client_fields: Allowed,
    hash: Slot<String>,
    clock: Arc<dyn Clock>,
}

impl Filter for UpstreamAuth {
    const NAME: &'static str = "upstream_auth";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let Options { client_credentials, basic, header, aws } = options;
        let way = match (client_credentials, basic, header, aws) {
            (Some(options), None, None, None) => token(&options, build)?,
            (None, Some(options), None, None) => user(&options)?,
            (None, None, Some(options), None) => field(options)?,
            (None, None, None, Some(options)) => Way::Aws(Box::new(signing(options, build)?)),
            _ => {
                let message = "expected one of `client_credentials`, `basic`, `header` and `aws`";
                return Err(BuildError::new(message));
            }
        };
        let (has_token, signs_bodies) = match &way {
            Way::Field(..) => (false, false),
            Way::Token { .. } => (true, false),
            Way::Aws(signing) => (false, signing.max_body.is_some()),
        };
        let filter = Arc::new(Self { way });
        let mut phases = Phases::new().on_request(filter.clone()).on_upstream_request(filter.clone());
        if has_token {
            phases = phases.on_response(filter);
        } else if signs_bodies {
            phases = phases.on_request_body(filter);
        }
        Ok(phases)
    }
}

fn within(key: &str, option: &str, message: impl Into<String>) -> BuildError {
    BuildError { path: [key, option].into_iter().collect(), message: message.into(), hint: None }
}

fn token(options: &ClientCredentials, build: &Build<'_>) -> Result<Way, BuildError> {
    const KEY: &str = "client_credentials";
    let url = &options.token_url;
    let via = options.upstream.as_deref().map(|name| build.upstream("upstream", name)).transpose();
    let via = via.map_err(|error| BuildError { path: [KEY, "upstream"].into_iter().collect(), ..error })?;
    if !url.is_https() && !url.is_loopback() && via.is_none() {
        let message = "expected an https URL; one on this machine, or through an `upstream`, may be http";
        return Err(within(KEY, "token_url", message));
    }
    if options.client_id.is_empty() {
        return Err(within(KEY, "client_id", "expected who asks"));
    }
    const OWN: [&str; 4] = ["grant_type", "scope", "client_id", "client_secret"];
    if let Some(name) = options.parameters.keys().find(|name| OWN.contains(&name.as_str())) {
        return Err(within(KEY, "parameters", format!("`{name}` is written by the gateway itself")));
    }
    let client = build.client();
    let remote = Remote::new(&client, url, via, options.timeout.get());
    // All that tokens depend on: the one in use lives on with the same.
    let shape = format!("{options:?} {via:?} {}", sigv4::hash(options.client_secret.expose().as_bytes()));
    let (clock, metrics) = (build.clock(), build.metrics());
    let grant = build.retained(shape.as_bytes(), || Grant::new(options, remote, clock, metrics));
    Ok(Way::Token { grant, used: build.slot(), dry: client.is_dry() })
}

fn user(options: &Basic) -> Result<Way, BuildError> {
    // RFC 7617 s2.
    let has_control = |text: &str| text.chars().any(char::is_control);
    if options.username.contains(':') || has_control(&options.username) {
        return Err(within("basic", "username", "expected a name without colon and control characters"));
    }
    if has_control(options.password.expose()) {
        return Err(within("basic", "password", "expected a text without control characters"));
    }
    let pair = zeroize::Zeroizing::new(format!("{}:{}", options.username, options.password.expose()));
    let value = secret(&format!("Basic {}", STANDARD.encode(pair.as_bytes())));
    Ok(Way::Field(header::AUTHORIZATION, value.expect("base64 is visible ASCII")))
}

fn field(options: Field) -> Result<Way, BuildError> {
    let name = HeaderName::from(options.name);
    const OTHERS: [&str; 8] = [
        "connection",
        "content-length",
        "content-type",
        "host",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let is_ours = name.as_str().starts_with("x-forwarded-") || name.as_str().starts_with("x-tollhouse-");
    if is_ours || OTHERS.contains(&name.as_str()) {
        return Err(within("header", "name", "the field has a meaning of its own"));
    }
    let value = secret(options.value.expose());
    let value = value.ok_or_else(|| within("header", "value", "expected what can be sent in a field"))?;
    Ok(Way::Field(name, value))
}

fn signing(options: Aws, build: &Build<'_>) -> Result<Signing, BuildError> {
    let is_word = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    for (key, text) in [
        ("region", &options.region),
        ("service", &options.service),
        ("access_key_id", &options.access_key_id),
    ] {
        if !is_word(text) {
            return Err(within("aws", key, "expected letters, digits, `-`, `_` and `.`"));
        }
    }
    let session_token = options.session_token.as_ref().map(Secret::expose);
    let session_token = session_token.map(|token| {
        secret(token).ok_or_else(|| within("aws", "session_token", "expected what can be sent in a field"))
    });
    let signed = options.payload == Payload::Signed;
    Ok(Signing {
        session_token: session_token.transpose()?,
        max_body: signed.then(|| options.max_body.get()),
        client_fields: Allowed::parse(&options.client_fields)?,
        hash: build.slot(),
        clock: build.clock(),
        signer: Signer {
            paths: Paths::of(&options.service),
            access_key_id: options.access_key_id,
            secret_access_key: options.secret_access_key,
            region: options.region,
            service: options.service,
        },
    })
}

/// A value that neither logs nor `explain` show.
fn secret(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The client's copies of a field, also those that some servers would take for it.
fn copies(name: &HeaderName, request: &RequestHeader) -> Vec<HeaderName> {
    let plain = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let own = name.as_str().as_bytes();
    let is_same = |(one, other): (&u8, &u8)| plain(*one) == plain(*other);
    let is_copy = |other: &&HeaderName| {
        let other = other.as_str().as_bytes();
        other.len() == own.len() && other.iter().zip(own).all(is_same)
    };
    request.headers.keys().filter(is_copy).cloned().collect()
}

fn remove(name: &HeaderName, request: &mut RequestHeader) {
    copies(name, request).iter().for_each(|copy| drop(request.remove_header(copy)));
}

/// Marks the client's copies of a field as secrets. They stay until they are replaced, since filters below may ask for
/// them.
fn mark(name: &HeaderName, request: &mut RequestHeader) -> Result<(), FilterError> {
    for copy in copies(name, request) {
        let values: Vec<HeaderValue> = request.headers.get_all(&copy).iter().cloned().collect();
        request.remove_header(&copy);
        for mut value in values {
            value.set_sensitive(true);
            request.append_header(copy.clone(), value)?;
        }
    }
    Ok(())
}

/// RFC 9110 s9.3.8: a TRACE must not carry what may not be shown, and s15.5.6: what may be asked instead.
fn no_trace() -> Problem {
    let others = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
    Problem::new(&METHOD_NOT_ALLOWED).header(header::ALLOW, others)
}

impl UpstreamAuth {
    /// The field that is written.
    fn name(&self) -> HeaderName {
        match &self.way {
            Way::Field(name, _) => name.clone(),
            Way::Token { .. } | Way::Aws(_) => header::AUTHORIZATION,
        }
    }
}

impl Signing {
    fn sign(&self, request: &mut RequestHeader, ctx: &Context) -> Result<(), FilterError> {
        remove(&header::AUTHORIZATION, request);
        for name in amz::WRITTEN {
            remove(&HeaderName::from_static(name), request);
        }
        let moment = moment(self.clock.wall())?;
        let empty = || sigv4::hash(b"");
        let payload = match self.max_body {
            Some(_) => ctx.slot(self.hash).cloned().unwrap_or_else(empty),
            None => sigv4::UNSIGNED.to_owned(),
        };
        request.insert_header("x-amz-date", &*moment)?;
        if self.signer.service == "s3" || self.max_body.is_none() {
            request.insert_header("x-amz-content-sha256", &*payload)?;
        }
        if let Some(token) = &self.session_token {
            request.insert_header("x-amz-security-token", token.clone())?;
        }
        let is_signed = |name: &HeaderName| {
            [header::HOST, header::CONTENT_TYPE].contains(name) || name.as_str().starts_with(amz::PREFIX)
        };
        let mut fields = Vec::new();
        for (name, value) in request.headers.iter().filter(|(name, _)| is_signed(name)) {
            let value = std::str::from_utf8(value.as_bytes())
                .map_err(|_| FilterError::Internal(format!("`{name}` is not UTF-8 and cannot be signed")))?;
            fields.push((name.as_str().to_owned(), value.to_owned()));
        }
        let message = Message {
            method: request.method.as_str(),
            path: request.uri.path(),
            query: request.uri.query().unwrap_or_default(),
            fields: &fields,
            payload: &payload,
        };
        let signed = self.signer.authorization(&message, &Moment(&moment));
        let value = secret(&signed).ok_or_else(|| FilterError::Internal("no signature".to_owned()))?;
        request.insert_header(header::AUTHORIZATION, value)?;
        Ok(())
    }
}

fn moment(now: SystemTime) -> Result<String, FilterError> {
    let now = jiff::Timestamp::try_from(now).map_err(|error| FilterError::Internal(error.to_string()))?;
    Ok(now.strftime("%Y%m%dT%H%M%SZ").to_string())
}

#[async_trait]
impl OnRequest for UpstreamAuth {
    async fn on_request(&self, request: &mut RequestHeader, _: &mut Context) -> Result<Outcome, FilterError> {
        if request.method == Method::TRACE {
            return Ok(no_trace().into());
        }
        if let Way::Aws(signing) = &self.way {
            signing.client_fields.keep(request);
        }
        mark(&self.name(), request)?;
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnRequestBody for UpstreamAuth {
    fn max_bytes(&self) -> u64 {
        match &self.way {
            Way::Aws(signing) => signing.max_body.unwrap_or_default(),
            _ => 0,
        }
    }

    fn is_for_upstream(&self) -> bool {
        true
    }

    async fn on_request_body(
        &self,
        _: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if let Way::Aws(signing) = &self.way {
            ctx.set_slot(signing.hash, sigv4::hash(body));
        }
        Ok(Outcome::Continue)
    }
}

#[async_trait]
impl OnUpstreamRequest for UpstreamAuth {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        match &self.way {
            Way::Field(name, value) => {
                remove(name, request);
                request.insert_header(name.clone(), value.clone())?;
            }
            Way::Aws(signing) => signing.sign(request, ctx)?,
            Way::Token { dry: true, .. } => {
                // Where there is no network, nobody gives out tokens.
                remove(&header::AUTHORIZATION, request);
                request.insert_header(header::AUTHORIZATION, "Bearer dry-run")?;
            }
            Way::Token { grant, used, .. } => {
                remove(&header::AUTHORIZATION, request);
                let token = grant.token().await;
                let token = token
                    .map_err(|why| FilterError::Unavailable(format!("no token for the upstream: {why}")))?;
                request.insert_header(header::AUTHORIZATION, token.value.clone())?;
                ctx.set_slot(*used, token);
            }
        }
        Ok(())
    }
}

#[async_trait]
impl OnResponse for UpstreamAuth {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        if let Way::Token { grant, used, .. } = &self.way
            && response.status == http::StatusCode::UNAUTHORIZED
            && let Some(token) = ctx.slot(*used)
        {
            grant.refused(token);
        }
        Ok(())
    }
}
