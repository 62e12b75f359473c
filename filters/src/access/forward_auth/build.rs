//! Options, checked.

use std::sync::Arc;

use http::Method;
use http::header::{self, HeaderName, HeaderValue};

use super::answer::Told;
use super::memory::Memory;
use super::options::About;
use super::question::is_ours;
use super::{Counters, Format, ForwardAuth, Options, Target};
use crate::access::fields::has_meaning;
use crate::filter::{Build, BuildError};
use crate::phase::Phases;
use crate::template::Template;
use crate::values::FieldName;
use crate::world::{Metrics, UpstreamId};

const ALL: [About; 5] = [About::Method, About::Proto, About::Host, About::Uri, About::For];

/// The phases of a filter with these options.
pub(super) fn phases(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
    let (to, host) = place(&options, build)?;
    options.path.iter().for_each(|path| build.fills_in(path));
    let target = target(&options)?;
    let method = method(&options)?;
    if options.format == Format::Opa && options.about.is_some() {
        return Err(BuildError::at("about", "does not belong to `format: opa`, whose input has it all"));
    }
    let sent = listed("request_headers", &options.request_headers)?;
    let told = Told {
        upstream: told_upstream(&options.response_headers, build)?,
        client: listed("client_headers", &options.client_headers)?,
        refused: listed("refusal_headers", &options.refusal_headers)?,
    };
    let memory = options.cache.as_ref().map(|cache| {
        // All that answers depend on: what was decided lives on with the same.
        let shape = format!("{options:?} {to:?}");
        build.retained(shape.as_bytes(), || Memory::new(cache))
    });
    let (has_body, tells_client) = (options.body.is_some(), !told.client.is_empty());
    let filter = Arc::new(ForwardAuth {
        to,
        host,
        target,
        rules: build.path_rules().of_values(),
        method,
        format: options.format,
        about: options.about.unwrap_or_else(|| ALL.to_vec()),
        sent,
        unsent: build.login_cookies(),
        told,
        timeout: options.timeout.get(),
        body: options.body.map(|size| size.get()),
        max_body: options.max_body.as_len(),
        memory,
        held: build.slot(),
        client: build.client(),
        clock: build.clock(),
        counters: Counters::new(build.metrics()),
    });
    let mut phases = Phases::new().on_request(filter.clone()).on_upstream_request(filter.clone());
    if has_body {
        phases = phases.on_request_body(filter.clone());
    }
    if has_body || tells_client {
        phases = phases.on_response(filter);
    }
    Ok(phases)
}

impl Counters {
    fn new(metrics: &dyn Metrics) -> Self {
        let count = |outcome| {
            let help = "Decisions of services that are asked whether requests may pass.";
            metrics.counter("tollhouse_forward_auth_total", help, &[("outcome", outcome)])
        };
        Self {
            passed: count("passed"),
            refused: count("refused"),
            remembered: count("remembered"),
            failed: count("failed"),
        }
    }
}

/// Where questions go, and whom they name as host.
fn place(
    options: &Options,
    build: &Build<'_>,
) -> Result<(Option<UpstreamId>, Option<HeaderValue>), BuildError> {
    match (&options.upstream, &options.url) {
        (Some(upstream), None) => Ok((Some(build.upstream("upstream", upstream)?), None)),
        (None, Some(url)) => {
            if !url.is_https() && !url.is_loopback() {
                let message = "expected an https URL; one on this machine may be http";
                return Err(BuildError::at("url", message));
            }
            let host = HeaderValue::try_from(url.authority());
            let host = host.map_err(|_| BuildError::at("url", "its host is not valid"))?;
            Ok((build.client().origin(&url.origin()), Some(host)))
        }
        (Some(_), Some(_)) => Err(BuildError::at("url", "is there beside `upstream`; remove one of them")),
        (None, None) => Err(BuildError::new("whom to ask is missing: add `upstream` or `url`")),
    }
}

fn target(options: &Options) -> Result<Target, BuildError> {
    let of_url = options.url.as_ref().map(crate::values::Url::target);
    let Some(path) = &options.path else {
        return Ok(Target::Fixed(of_url.cloned().unwrap_or_else(|| "/".parse().expect("a path"))));
    };
    if of_url.is_some_and(|target| target.as_str() != "/") {
        return Err(BuildError::at("path", "`url` has a path already; remove one of them"));
    }
    let wrong = || BuildError::at("path", "expected a path such as `/verify`");
    if !path.to_string().starts_with('/') {
        return Err(wrong());
    }
    match path.literal() {
        Some(literal) => Ok(Target::Fixed(literal.parse().map_err(|_| wrong())?)),
        None => Ok(Target::Made(Template::clone(path))),
    }
}

fn method(options: &Options) -> Result<Method, BuildError> {
    let by_itself =
        if options.format == Format::Opa || options.body.is_some() { Method::POST } else { Method::GET };
    match options.method.clone().map(Method::from) {
        None => Ok(by_itself),
        Some(_) if options.format == Format::Opa => {
            Err(BuildError::at("method", "does not belong to `format: opa`, which is asked by POST"))
        }
        Some(Method::CONNECT) => {
            Err(BuildError::at("method", "CONNECT asks for a tunnel, not for an answer"))
        }
        Some(method) if options.body.is_some() && [Method::GET, Method::HEAD].contains(&method) => {
            Err(BuildError::at("method", "has no `body`; remove one of them"))
        }
        Some(method) => Ok(method),
    }
}

/// Names of fields that may be taken over.
fn listed(option: &str, names: &[FieldName]) -> Result<Vec<HeaderName>, BuildError> {
    let names: Vec<HeaderName> = names.iter().cloned().map(HeaderName::from).collect();
    match names.iter().position(is_ours) {
        Some(at) => Err(refused(option, at, "the gateway writes this field itself")),
        None => Ok(names),
    }
}

/// Names of fields that upstreams are told; no client can forge them.
fn told_upstream(names: &[FieldName], build: &mut Build<'_>) -> Result<Vec<HeaderName>, BuildError> {
    let names: Vec<HeaderName> = names.iter().cloned().map(HeaderName::from).collect();
    for (at, field) in names.iter().enumerate() {
        if *field == header::AUTHORIZATION {
            continue;
        }
        let message = if has_meaning(field) {
            "the field has a meaning of its own; choose another one"
        } else if build.has_credentials(field) {
            "an identity looks for credentials in this field; choose another one"
        } else {
            build.identity_header(field.clone());
            continue;
        };
        return Err(refused("response_headers", at, message));
    }
    Ok(names)
}

fn refused(option: &str, at: usize, message: &str) -> BuildError {
    let mut error = BuildError::at(option, message);
    error.path.push(at);
    error
}
