//! `cors`: cross-origin resource sharing, as the Fetch standard has it.
//!
//! Preflight requests are answered here, so write `cors` before filters that authenticate. With `*`, answers say so
//! to who asks without an origin too.
//!
//! ```yaml
//! - cors: {origins: ["https://app.example.com", "https://*.example.org"], credentials: true}
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use http::Method;
use http::header::{self, HeaderName, HeaderValue};
use pingora_http::{RequestHeader, ResponseHeader};
use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::condition::MethodName;
use crate::context::Context;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{OnRequest, OnResponse, Phases};
use crate::problem::{FORBIDDEN, Problem};
use crate::values::{self, Duration, FieldName};

/// Who may read answers from a browser, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Origins: exactly, with `*.` for one or more labels of the host, `~` and a regular
    /// expression for the whole origin, or `*` for any.
    pub origins: Vec<String>,
    /// Methods beside the simple ones; GET, HEAD, POST, PUT, PATCH and DELETE by default.
    #[serde(default)]
    pub methods: Option<Vec<MethodName>>,
    /// Header fields that requests may have; any by default.
    #[serde(default)]
    pub headers: Option<Vec<FieldName>>,
    /// Header fields of answers that scripts may read.
    #[serde(default)]
    pub expose: Vec<FieldName>,
    /// Whether requests may carry cookies and credentials.
    #[serde(default)]
    pub credentials: bool,
    /// How long a browser may remember a preflight's answer; 10m by default.
    #[serde(default)]
    pub max_age: Option<Duration>,
}

/// See the [module](self).
pub struct Cors {
    origins: Origins,
    methods: HeaderValue,
    allowed_methods: Vec<Method>,
    headers: Option<HeaderValue>,
    expose: Option<HeaderValue>,
    credentials: bool,
    max_age: HeaderValue,
}

#[derive(Default)]
struct Origins {
    any: bool,
    exact: Vec<String>,
    /// What stands before and after `*.`.
    below: Vec<(String, String)>,
    regexes: Vec<Regex>,
}

const OWN: [HeaderName; 6] = [
    header::ACCESS_CONTROL_ALLOW_ORIGIN,
    header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
    header::ACCESS_CONTROL_ALLOW_METHODS,
    header::ACCESS_CONTROL_ALLOW_HEADERS,
    header::ACCESS_CONTROL_EXPOSE_HEADERS,
    header::ACCESS_CONTROL_MAX_AGE,
];

/// Methods that any page may use, whatever it is told: the CORS-safelisted ones (Fetch s2.2.1).
const SIMPLE: [Method; 3] = [Method::GET, Method::HEAD, Method::POST];

impl Filter for Cors {
    const NAME: &'static str = "cors";
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let origins = Origins::parse(&options.origins)?;
        if origins.any && options.credentials {
            return Err(BuildError::at(
                "credentials",
                "any origin and credentials together would open every account; list the origins",
            ));
        }
        let default = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
        let allowed_methods: Vec<Method> = options
            .methods
            .map_or_else(|| default.to_vec(), |list| list.into_iter().map(Method::from).collect());
        let names =
            |list: Vec<FieldName>| joined(list.into_iter().map(|name| HeaderName::from(name).to_string()));
        let max_age = options.max_age.map_or(600, |age| age.get().as_secs());
        let filter = Arc::new(Self {
            origins,
            methods: joined(allowed_methods.iter().map(ToString::to_string)),
            allowed_methods,
            headers: options.headers.map(names),
            expose: (!options.expose.is_empty()).then(|| names(options.expose)),
            credentials: options.credentials,
            max_age: HeaderValue::from(max_age),
        });
        build.answers_preflight();
        Ok(Phases::new().on_request(filter.clone()).on_response(filter))
    }
}

fn joined(names: impl Iterator<Item = String>) -> HeaderValue {
    let text = names.collect::<Vec<_>>().join(", ");
    HeaderValue::from_str(&text).expect("methods and field names are tokens")
}

impl Origins {
    fn parse(list: &[String]) -> Result<Self, BuildError> {
        let wrong =
            || BuildError::at("origins", "expected origins such as `https://app.example.com`, without path");
        let mut origins = Self::default();
        if list.is_empty() {
            return Err(wrong());
        }
        for text in list {
            if text == "*" {
                origins.any = true;
            } else if let Some(regex) = text.strip_prefix('~') {
                let regex = values::whole_regex(regex);
                origins
                    .regexes
                    .push(regex.map_err(|_| BuildError::at("origins", "a regular expression is not valid"))?);
            } else {
                let text = text.to_ascii_lowercase();
                let (_, host) = text.split_once("://").ok_or_else(wrong)?;
                match host.strip_prefix("*.") {
                    _ if host.is_empty() || host.contains('/') => return Err(wrong()),
                    Some(suffix) if !suffix.contains('*') => {
                        let scheme = text[..text.len() - host.len()].to_owned();
                        origins.below.push((scheme, format!(".{suffix}")));
                    }
                    None if !host.contains('*') => origins.exact.push(text),
                    _ => return Err(wrong()),
                }
            }
        }
        Ok(origins)
    }

    fn allow(&self, origin: &str) -> bool {
        let below = |(scheme, suffix): &(String, String)| {
            let labels = origin.strip_prefix(&**scheme).and_then(|host| host.strip_suffix(&**suffix));
            labels.is_some_and(|labels| {
                !labels.is_empty()
                    && labels.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            })
        };
        self.exact.iter().any(|exact| exact == origin)
            || self.below.iter().any(below)
            || self.regexes.iter().any(|regex| regex.is_match(origin))
    }
}

impl Cors {
    /// Whether answers are the same for every origin.
    fn is_uniform(&self) -> bool {
        self.origins.any
    }

    /// Who may read the answer to this request, as browsers are told, if anybody may. Where that is everybody, those
    /// who ask without an origin are told too: caches give others the same answer.
    fn readers(&self, request: &RequestHeader) -> Option<HeaderValue> {
        if self.is_uniform() {
            return Some(HeaderValue::from_static("*"));
        }
        let allowed = |origin: &&HeaderValue| origin.to_str().is_ok_and(|origin| self.origins.allow(origin));
        origin(request).filter(allowed).cloned()
    }

    fn write_readers(&self, head: &mut ResponseHeader, readers: HeaderValue) -> Result<(), FilterError> {
        head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, readers)?;
        if self.credentials {
            head.insert_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, "true")?;
        }
        Ok(())
    }

    fn preflight(&self, request: &RequestHeader, readers: HeaderValue) -> Result<Reply, FilterError> {
        let mut head = ResponseHeader::build(204, Some(8))?;
        self.write_readers(&mut head, readers)?;
        head.insert_header(header::ACCESS_CONTROL_ALLOW_METHODS, self.methods.clone())?;
        let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS);
        if let Some(headers) = self.headers.as_ref().or(asked) {
            head.insert_header(header::ACCESS_CONTROL_ALLOW_HEADERS, headers.clone())?;
        }
        head.insert_header(header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone())?;
        head.append_header(header::VARY, "Access-Control-Request-Method, Access-Control-Request-Headers")?;
        Ok(Reply::message(head, ""))
    }
}

/// The origin of the request; two of them are none.
fn origin(request: &RequestHeader) -> Option<&HeaderValue> {
    let mut lines = request.headers.get_all(header::ORIGIN).iter();
    lines.next().filter(|_| lines.next().is_none())
}

#[async_trait]
impl OnRequest for Cors {
    async fn on_request(&self, request: &mut RequestHeader, _: &mut Context) -> Result<Outcome, FilterError> {
        let asked = request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let (Some(_), Some(asked), &Method::OPTIONS) = (origin(request), asked, &request.method) else {
            return Ok(Outcome::Continue);
        };
        let Some(readers) = self.readers(request) else {
            return Ok(Problem::new(&FORBIDDEN).detail("this origin may not use the resource").into());
        };
        let is_asked = |method: &Method| method.as_str().as_bytes() == asked.as_bytes();
        if !SIMPLE.iter().chain(&self.allowed_methods).any(is_asked) {
            return Ok(Problem::new(&FORBIDDEN)
                .detail("this method may not be used from another origin")
                .into());
        }
        Ok(self.preflight(request, readers)?.into())
    }
}

#[async_trait]
impl OnResponse for Cors {
    async fn on_response(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        _: &mut Context,
    ) -> Result<(), FilterError> {
        // Caches must keep apart what differs by origin, asked for with one or not.
        if !self.is_uniform() {
            response.append_header(header::VARY, "Origin")?;
        }
        if response.status == 204
            && response.headers.contains_key(header::ACCESS_CONTROL_MAX_AGE)
            && request.method == Method::OPTIONS
        {
            return Ok(());
        }
        for name in &OWN {
            response.remove_header(name);
        }
        let Some(readers) = self.readers(request) else { return Ok(()) };
        self.write_readers(response, readers)?;
        if let Some(expose) = &self.expose {
            response.insert_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{Request, chain, get, refused, send};

    const CORS: &str = "- cors: {origins: ['https://app.test', 'https://*.example.org', '~https://pr-[0-9]+\\.test'], credentials: true, expose: [x-total]}";

    fn preflight(origin: &str) -> Request {
        send("OPTIONS", "/")
            .header("origin", origin)
            .header("access-control-request-method", "PUT")
            .header("access-control-request-headers", "x-a")
    }

    #[tokio::test]
    async fn a_preflight_is_answered_at_once() {
        let answer = chain(CORS).send(preflight("https://app.test")).await.responds(204);
        answer
            .header("access-control-allow-origin", "https://app.test")
            .header("access-control-allow-credentials", "true")
            .header("access-control-allow-methods", "GET, HEAD, POST, PUT, PATCH, DELETE")
            .header("access-control-allow-headers", "x-a")
            .header("access-control-max-age", "600")
            .header("vary", "Access-Control-Request-Method, Access-Control-Request-Headers, Origin");
    }

    #[tokio::test]
    async fn simple_methods_need_not_be_listed() {
        // Fetch s4.8: a method that is not in the list is refused unless it is a CORS-safelisted one (s2.2.1).
        for (listed, told) in [("[PUT]", "PUT"), ("[]", "")] {
            let chain = chain(&format!("- cors: {{origins: ['https://app.test'], methods: {listed}}}"));
            let ask = |method: &str| {
                let asked = send("OPTIONS", "/").header("origin", "https://app.test");
                chain.send(asked.header("access-control-request-method", method))
            };
            for method in ["GET", "HEAD", "POST"] {
                ask(method).await.responds(204).header("access-control-allow-methods", told);
            }
            ask("DELETE").await.responds(403);
            ask("get").await.responds(403);
        }
    }

    #[tokio::test]
    async fn origins_match_exactly_below_a_host_or_by_expression() {
        let chain = chain(CORS);
        for allowed in
            ["https://app.test", "https://a.example.org", "https://a.b.example.org", "https://pr-12.test"]
        {
            chain.send(preflight(allowed)).await.responds(204);
        }
        for other in [
            "http://app.test",
            "https://app.test.evil",
            "https://example.org",
            "https://xexample.org",
            "https://evil/.example.org",
            "https://pr-1.test.evil",
            "null",
        ] {
            chain.send(preflight(other)).await.responds(403);
        }
    }

    #[tokio::test]
    async fn an_answer_names_the_origin_and_varies_by_it() {
        let chain = chain(CORS);
        let upstreams_own = [("access-control-allow-origin", "*")];
        let answer = chain.answer(get("/").header("origin", "https://app.test"), &upstreams_own).await;
        answer
            .header("access-control-allow-origin", "https://app.test")
            .header("access-control-expose-headers", "x-total")
            .header("vary", "Origin");
        let answer = chain.answer(get("/").header("origin", "https://evil.test"), &upstreams_own).await;
        answer.no_header("access-control-allow-origin").header("vary", "Origin");
        chain.answer(get("/"), &[]).await.header("vary", "Origin").no_header("access-control-allow-origin");
    }

    #[tokio::test]
    async fn any_origin_is_a_star_without_vary() {
        let chain = chain("- cors: {origins: ['*']}");
        let answer = chain.answer(get("/").header("origin", "https://x.test"), &[]).await;
        answer.header("access-control-allow-origin", "*").no_header("vary");
    }

    #[tokio::test]
    async fn any_origin_is_a_star_for_who_asks_without_one_too() {
        // Fetch, "CORS protocol and HTTP caches": else a cache gives scripts an answer that they may not read.
        let chain = chain("- cors: {origins: ['*'], expose: [x-total]}");
        let answer = chain.answer(get("/"), &[("access-control-allow-origin", "https://app.test")]).await;
        answer
            .header("access-control-allow-origin", "*")
            .header("access-control-expose-headers", "x-total")
            .no_header("vary");
    }

    #[tokio::test]
    async fn options_without_an_origin_is_an_ordinary_request() {
        chain(CORS).send(send("OPTIONS", "/")).await.continues();
    }

    #[test]
    fn any_origin_with_credentials_is_refused() {
        assert!(refused("- cors: {origins: ['*'], credentials: true}").contains("credentials"));
        assert!(refused("- cors: {origins: []}").contains("origins"));
        assert!(refused("- cors: {origins: ['https://a.test/x']}").contains("without path"));
    }

    #[test]
    fn an_expression_that_is_none_alone_is_refused() {
        // Between anchors it would be one, and let `https://a.test.evil` in.
        let said = refused(r"- cors: {origins: ['~https://a\.test)|(https://b\.test']}");
        assert!(said.contains("a regular expression is not valid"), "{said}");
    }
}
