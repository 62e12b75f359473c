//! `security_headers`: tells browsers to be careful, as the OWASP Secure Headers Project advises.
//!
//! ```yaml
//! - security_headers: {hsts: {include_subdomains: true}, content_security_policy: "default-src 'self'"}
//! ```
//!
//! What the origin says itself stays, unless `override` is true; otherwise a 304 gets none of these fields, which
//! caches would put in the place of what came with the 200 (RFC 9111 s3.2). `Strict-Transport-Security` is about
//! the host: it comes with every answer, but over TLS only, and one that an origin sends is dropped without TLS
//! (RFC 6797 s7.1, s7.2).

use std::sync::Arc;

use async_trait::async_trait;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::context::{Context, Scheme};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::FilterError;
use crate::phase::{OnResponse, Phases};
use crate::values::{Duration, FieldName};

/// What browsers are told, and what nobody is told.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// `Strict-Transport-Security`, over TLS only.
    pub hsts: Hsts,
    /// `X-Content-Type-Options: nosniff`: types are not guessed.
    pub content_type_options: bool,
    /// `X-Frame-Options`: who may show answers in a frame: nobody (`deny`), or documents of the same origin
    /// (`sameorigin`). `none` does not send it.
    pub frame_options: FrameOptions,
    /// `Referrer-Policy`: what other sites learn about where a reader came from: nothing (`no-referrer`), everything
    /// within the origin and else nothing (`same-origin`), the origin (`origin`), everything within it and else the
    /// origin (`origin-when-cross-origin`), everything (`unsafe-url`); or as the last three, but nothing from TLS to
    /// plain text: `strict-origin`, `strict-origin-when-cross-origin`, `no-referrer-when-downgrade`. `none` does not
    /// send it.
    pub referrer_policy: ReferrerPolicy,
    /// `Content-Security-Policy`, as it is written here; not sent by default.
    pub content_security_policy: Option<String>,
    /// `Permissions-Policy`, as it is written here; not sent by default.
    pub permissions_policy: Option<String>,
    /// `Cross-Origin-Opener-Policy`: which windows share something with a document: those of the same origin
    /// (`same-origin`), those that it opened too (`same-origin-allow-popups`), or all (`unsafe-none`). `none` does
    /// not send it.
    pub cross_origin_opener_policy: OpenerPolicy,
    /// `Cross-Origin-Resource-Policy`: who may embed answers: documents of the same origin (`same-origin`) or site
    /// (`same-site`), or everybody (`cross-origin`); requests with CORS are not concerned. `none` does not send it.
    pub cross_origin_resource_policy: ResourcePolicy,
    /// `Cross-Origin-Embedder-Policy`: what a document may embed: what says that it may be (`require-corp`), all
    /// without credentials (`credentialless`), or all (`unsafe-none`). `none` does not send it.
    pub cross_origin_embedder_policy: EmbedderPolicy,
    /// `X-Permitted-Cross-Domain-Policies: none`: no policy files for plug-ins.
    pub no_cross_domain_policies: bool,
    /// Fields of answers that tell what software made them.
    pub remove: Vec<FieldName>,
    /// Whether what the origin says is replaced.
    pub r#override: bool,
}

/// How long browsers use TLS without being asked (RFC 6797).
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Hsts {
    /// Whether the field is sent, and dropped without TLS.
    pub enabled: bool,
    /// For how long after the last answer.
    pub max_age: Duration,
    /// For every name below the host too.
    pub include_subdomains: bool,
    /// Asks browser makers to build the host in; needs `include_subdomains` and a year.
    pub preload: bool,
}

/// A policy with the values it has; `none` sends no field.
macro_rules! policy {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $variant:ident = $text:literal,)* } default $default:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub enum $name {
            /// The field is not sent.
            #[serde(rename = "none")]
            None,
            $($(#[$about])* #[serde(rename = $text)] $variant,)*
        }

        impl $name {
            fn text(self) -> Option<&'static str> {
                match self {
                    Self::None => None,
                    $(Self::$variant => Some($text),)*
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::$default
            }
        }
    };
}

policy! {
    /// Who may show answers in a frame (RFC 7034).
    FrameOptions {
        /// Nobody.
        Deny = "deny",
        /// Documents of the same origin.
        SameOrigin = "sameorigin",
    } default Deny
}

policy! {
    /// What other sites learn about where a reader came from (W3C Referrer Policy).
    ReferrerPolicy {
        /// Nothing.
        NoReferrer = "no-referrer",
        /// Everything, but nothing from TLS to plain text.
        NoReferrerWhenDowngrade = "no-referrer-when-downgrade",
        /// The origin.
        Origin = "origin",
        /// The origin, and everything within it.
        OriginWhenCrossOrigin = "origin-when-cross-origin",
        /// Everything within the origin, else nothing.
        SameOrigin = "same-origin",
        /// The origin, but nothing from TLS to plain text.
        StrictOrigin = "strict-origin",
        /// The origin, everything within it, nothing from TLS to plain text.
        StrictOriginWhenCrossOrigin = "strict-origin-when-cross-origin",
        /// Everything.
        UnsafeUrl = "unsafe-url",
    } default NoReferrer
}

policy! {
    /// Which windows share a browsing context group with a document (HTML s7.1.3).
    OpenerPolicy {
        /// Those of the same origin.
        SameOrigin = "same-origin",
        /// Those of the same origin, and those that it opened.
        SameOriginAllowPopups = "same-origin-allow-popups",
        /// All.
        UnsafeNone = "unsafe-none",
    } default SameOrigin
}

policy! {
    /// Who may embed answers (Fetch s3.7).
    ResourcePolicy {
        /// Documents of the same origin.
        SameOrigin = "same-origin",
        /// Documents of the same site.
        SameSite = "same-site",
        /// Everybody.
        CrossOrigin = "cross-origin",
    } default SameOrigin
}

policy! {
    /// What a document may embed (HTML s7.1.4).
    EmbedderPolicy {
        /// What says that it may be.
        RequireCorp = "require-corp",
        /// All, but without credentials.
        Credentialless = "credentialless",
        /// All.
        UnsafeNone = "unsafe-none",
    } default None
}

impl Default for Options {
    fn default() -> Self {
        let remove = ["server", "x-powered-by", "x-aspnet-version", "x-aspnetmvc-version"];
        Self {
            hsts: Hsts::default(),
            content_type_options: true,
            frame_options: FrameOptions::default(),
            referrer_policy: ReferrerPolicy::default(),
            content_security_policy: None,
            permissions_policy: None,
            cross_origin_opener_policy: OpenerPolicy::default(),
            cross_origin_resource_policy: ResourcePolicy::default(),
            cross_origin_embedder_policy: EmbedderPolicy::default(),
            no_cross_domain_policies: true,
            remove: remove.map(|name| FieldName::from(HeaderName::from_static(name))).to_vec(),
            r#override: false,
        }
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Default for Hsts {
    /// A year, and not for the names below: those may be served by others.
    fn default() -> Self {
        Self { enabled: true, max_age: YEAR, include_subdomains: false, preload: false }
    }
}

impl Hsts {
    fn value(self) -> Result<Option<HeaderValue>, BuildError> {
        if self.preload && (!self.include_subdomains || self.max_age.get() < YEAR.get()) {
            let mut error = BuildError::at(
                "hsts",
                "browser makers want `include_subdomains: true` and a `max_age` of a year",
            );
            error.path.push("preload");
            return Err(error);
        }
        let subdomains = if self.include_subdomains { "; includeSubDomains" } else { "" };
        let preload = if self.preload { "; preload" } else { "" };
        let text = format!("max-age={}{subdomains}{preload}", self.max_age.get().as_secs());
        Ok(self.enabled.then(|| HeaderValue::from_str(&text).expect("digits and tokens")))
    }
}

/// See the [module](self).
pub struct SecurityHeaders {
    hsts: Option<HeaderValue>,
    fields: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
    overrides: bool,
}

impl Filter for SecurityHeaders {
    const NAME: &'static str = "security_headers";
    type Options = Options;

    fn build(options: Options, _: &mut Build<'_>) -> Result<Phases, BuildError> {
        let hsts = options.hsts.value()?;
        let fields = fields(&options)?;
        let remove: Vec<HeaderName> = options.remove.into_iter().map(HeaderName::from).collect();
        let framing = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
        if let Some(at) = remove.iter().position(|name| framing.contains(name)) {
            let mut error =
                BuildError::at("remove", "this field belongs to the connection and cannot be changed");
            error.path.push(at);
            return Err(error);
        }
        let filter = Self { hsts, fields, remove, overrides: options.r#override };
        Ok(Phases::new().on_response(Arc::new(filter)))
    }
}

/// The fields that every answer gets.
fn fields(options: &Options) -> Result<Vec<(HeaderName, HeaderValue)>, BuildError> {
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, options.content_type_options.then_some("nosniff")),
        (header::X_FRAME_OPTIONS, options.frame_options.text()),
        (header::REFERRER_POLICY, options.referrer_policy.text()),
        (HeaderName::from_static("cross-origin-opener-policy"), options.cross_origin_opener_policy.text()),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            options.cross_origin_resource_policy.text(),
        ),
        (
            HeaderName::from_static("cross-origin-embedder-policy"),
            options.cross_origin_embedder_policy.text(),
        ),
        (
            HeaderName::from_static("x-permitted-cross-domain-policies"),
            options.no_cross_domain_policies.then_some("none"),
        ),
    ];
    let fixed = fixed.into_iter().filter_map(|(name, text)| Some((name, HeaderValue::from_static(text?))));
    let mut fields: Vec<_> = fixed.collect();
    let written = [
        ("content_security_policy", header::CONTENT_SECURITY_POLICY, &options.content_security_policy),
        ("permissions_policy", HeaderName::from_static("permissions-policy"), &options.permissions_policy),
    ];
    for (option, name, text) in written {
        let Some(text) = text else { continue };
        let value = HeaderValue::from_str(text).ok().filter(|_| !text.trim().is_empty());
        fields.push((
            name,
            value.ok_or_else(|| BuildError::at(option, "expected the value of a header field"))?,
        ));
    }
    Ok(fields)
}

#[async_trait]
impl OnResponse for SecurityHeaders {
    async fn on_response(
        &self,
        _: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for name in &self.remove {
            response.remove_header(name);
        }
        // Caches have what came with the 200: these fields already, or the origin's own.
        if self.overrides || response.status != StatusCode::NOT_MODIFIED {
            for (name, value) in &self.fields {
                self.put(response, name, value)?;
            }
        }
        match &self.hsts {
            Some(hsts) if ctx.scheme == Scheme::Https => {
                self.put(response, &header::STRICT_TRANSPORT_SECURITY, hsts)?;
            }
            Some(_) => {
                response.remove_header(&header::STRICT_TRANSPORT_SECURITY);
            }
            None => {}
        }
        Ok(())
    }
}

impl SecurityHeaders {
    fn put(
        &self,
        response: &mut ResponseHeader,
        name: &HeaderName,
        value: &HeaderValue,
    ) -> Result<(), FilterError> {
        if self.overrides || !response.headers.contains_key(name) {
            response.insert_header(name, value.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, Request, chain, get, refused};

    fn over_tls() -> Request {
        get("/").with(|ctx| ctx.scheme = Scheme::Https)
    }

    async fn answer(options: &str, request: Request, fields: &[(&'static str, &str)]) -> Answer {
        chain(&format!("- security_headers: {options}")).answer(request, fields).await
    }

    async fn confirmed(options: &str, fields: &[(&'static str, &str)]) -> Answer {
        let mut sent = chain(&format!("- security_headers: {options}")).send(over_tls()).await;
        sent.answered(304, fields).await
    }

    #[tokio::test]
    async fn the_defaults_are_those_of_owasp() {
        let software = [("server", "nginx/1.22"), ("x-powered-by", "PHP/8.2"), ("x-aspnet-version", "4")];
        let answer = answer("{}", over_tls(), &software).await;
        let answer = answer.header("x-content-type-options", "nosniff").header("x-frame-options", "deny");
        let answer = answer
            .header("referrer-policy", "no-referrer")
            .header("strict-transport-security", "max-age=31536000");
        let answer = answer.header("cross-origin-opener-policy", "same-origin");
        let answer = answer.header("cross-origin-resource-policy", "same-origin");
        let answer = answer.header("x-permitted-cross-domain-policies", "none");
        let answer = answer.no_header("server").no_header("x-powered-by").no_header("x-aspnet-version");
        answer.no_header("content-security-policy").no_header("cross-origin-embedder-policy");
    }

    #[tokio::test]
    async fn without_tls_there_is_no_strict_transport_security() {
        // RFC 6797 s7.2: it must not be sent over non-secure transport.
        let origins = [("strict-transport-security", "max-age=1")];
        answer("{}", get("/"), &origins).await.no_header("strict-transport-security");
        let left = answer("{hsts: {enabled: false}}", get("/"), &origins).await;
        left.header("strict-transport-security", "max-age=1");
        answer("{hsts: {enabled: false}}", over_tls(), &[]).await.no_header("strict-transport-security");
    }

    #[tokio::test]
    async fn what_the_origin_says_stays_unless_it_is_overridden() {
        let origins = [("x-frame-options", "SAMEORIGIN"), ("strict-transport-security", "max-age=1")];
        let kept = answer("{}", over_tls(), &origins).await;
        kept.header("x-frame-options", "SAMEORIGIN").header("strict-transport-security", "max-age=1");
        let replaced = answer("{override: true}", over_tls(), &origins).await;
        replaced.header("x-frame-options", "deny").header("strict-transport-security", "max-age=31536000");
    }

    #[tokio::test]
    async fn a_304_leaves_to_caches_what_the_origin_said_with_the_200() {
        // RFC 9111 s3.2: its fields take the place of the stored ones, and RFC 9110 s15.4.5 has origins send few.
        let policy = "content_security_policy: \"default-src 'self'\"";
        let origins = [("server", "nginx"), ("referrer-policy", "origin")];
        let answer = confirmed(&format!("{{{policy}}}"), &origins).await;
        let answer = answer.no_header("content-security-policy").no_header("x-frame-options");
        let answer = answer.header("referrer-policy", "origin").no_header("server");
        // RFC 6797 s7.1: every response over TLS.
        answer.header("strict-transport-security", "max-age=31536000");
        let replaced = confirmed(&format!("{{{policy}, override: true}}"), &[]).await;
        replaced.header("content-security-policy", "default-src 'self'").header("x-frame-options", "deny");
    }

    #[tokio::test]
    async fn each_field_can_be_set_and_left_out() {
        let options = "{hsts: {max_age: 730d, include_subdomains: true, preload: true}, content_type_options: false,
            frame_options: none, referrer_policy: strict-origin, content_security_policy: \"default-src 'none'\",
            permissions_policy: 'camera=()', cross_origin_opener_policy: none,
            cross_origin_resource_policy: same-site, cross_origin_embedder_policy: require-corp,
            no_cross_domain_policies: false, remove: []}";
        let answer = answer(options, over_tls(), &[("server", "mine")]).await;
        let answer =
            answer.header("strict-transport-security", "max-age=63072000; includeSubDomains; preload");
        let answer = answer.no_header("x-content-type-options").no_header("x-frame-options");
        let answer =
            answer.header("referrer-policy", "strict-origin").header("permissions-policy", "camera=()");
        let answer = answer.header("content-security-policy", "default-src 'none'");
        let answer = answer
            .no_header("cross-origin-opener-policy")
            .header("cross-origin-resource-policy", "same-site");
        let answer = answer.header("cross-origin-embedder-policy", "require-corp").header("server", "mine");
        answer.no_header("x-permitted-cross-domain-policies");
    }

    #[test]
    fn options_that_make_no_sense_are_refused_at_their_place() {
        assert!(refused("- security_headers: {hsts: {preload: true}}").starts_with("hsts.preload"));
        let short =
            refused("- security_headers: {hsts: {preload: true, include_subdomains: true, max_age: 1d}}");
        assert!(short.contains("a year"));
        assert!(refused("- security_headers: {frame_options: allow}").starts_with("frame_options"));
        assert!(
            refused("- security_headers: {content_security_policy: \"a\\nb\"}")
                .starts_with("content_security_policy")
        );
        assert!(refused("- security_headers: {permissions_policy: ''}").starts_with("permissions_policy"));
        assert!(refused("- security_headers: {remove: [content-length]}").starts_with("remove[0]"));
    }
}
