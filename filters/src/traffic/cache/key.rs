//! Keys: what tells requests apart.

use std::borrow::Cow;

use http::header::{AUTHORIZATION, FORWARDED, HeaderName};
use http::uri::PathAndQuery;
use pingora_http::RequestHeader;

use super::Options;
use super::options::QueryOptions;
use crate::caching::{Counted, url};
use crate::context::Context;
use crate::filter::BuildError;
use crate::selector::{Part, Selector, write_part};

/// What the names of fields begin with that are no part of the URL, but that applications take for one. Where a
/// request has one, it is in the key.
const OF_URL: [&str; 6] =
    ["x-forwarded-", "x-host", "x-http-host-override", "x-original-", "x-rewrite-", "x-url-scheme"];
/// Those of them that differ from client to client and say nothing of the URL.
const OF_CLIENT: [&str; 3] = ["x-forwarded-for", "x-forwarded-client-cert", "x-forwarded-user"];

/// A field's name as applications behind CGI's rules read it, for which `_` and `-` are one (RFC 3875 s4.1.18).
pub(super) fn plain(name: &HeaderName) -> Cow<'_, str> {
    let name = name.as_str();
    if name.contains('_') { name.replace('_', "-").into() } else { name.into() }
}

fn is_of_url(name: &HeaderName) -> bool {
    let name = plain(name);
    OF_URL.iter().any(|start| name.starts_with(start)) && !OF_CLIENT.contains(&&*name)
}

/// How keys are made.
pub(super) struct Keys {
    parts: Vec<Selector>,
    per: Per,
    query: Counted,
}

/// What the upstream is sent in the place of a request's target, and of what an earlier filter made of that.
pub(super) type Instead = (Option<PathAndQuery>, Option<Box<str>>);

/// Whose answers are kept apart.
enum Per {
    /// Each known caller's.
    Caller,
    /// Nobody's.
    Nobody,
    /// Those of each value of this.
    Selected(Selector),
}

impl Keys {
    pub(super) fn new(options: &Options) -> Result<Self, BuildError> {
        let per = match (&options.per, options.shared) {
            (Some(_), true) => {
                return Err(BuildError::at(
                    "shared",
                    "`per` says whose answers are kept apart; remove one of both",
                ));
            }
            (Some(selector), false) => Per::Selected(selector.clone()),
            (None, true) => Per::Nobody,
            (None, false) => Per::Caller,
        };
        let QueryOptions { only, except, sort } = options.key.query.clone();
        if only.is_some() && !except.is_empty() {
            let mut error = BuildError::at("key", "`only` names all that count; remove `except`");
            error.path.push("query");
            return Err(error);
        }
        Ok(Self { parts: options.key.parts.clone(), per, query: Counted { only, except, sort } })
    }

    /// What keys are made of beside the URL and the route.
    pub(super) fn selectors(&self) -> impl Iterator<Item = &Selector> {
        let selected = match &self.per {
            Per::Selected(selector) => Some(selector),
            Per::Caller | Per::Nobody => None,
        };
        self.parts.iter().chain(selected)
    }

    /// Whether callers are told apart by all that is known of them.
    pub(super) fn by_identity(&self) -> bool {
        matches!(self.per, Per::Caller)
    }

    /// Whether credentials are a part of the key.
    pub(super) fn has_credentials(&self) -> bool {
        let is = |selector: &Selector| matches!(selector, Selector::Part(Part::Header(name)) if *name == AUTHORIZATION);
        let per = matches!(&self.per, Per::Selected(selector) if is(selector));
        per || self.parts.iter().any(is)
    }

    /// How queries are counted.
    pub(super) fn counted(&self) -> &Counted {
        &self.query
    }

    /// The URL that a request's key begins with.
    pub(super) fn url(&self, request: &RequestHeader, ctx: &Context) -> Option<Vec<u8>> {
        url(request, ctx, self.query.of(request.uri.query()).as_deref())
    }

    /// A request's key, and what the upstream is sent instead where a part of it is not in the key.
    pub(super) fn write(&self, request: &RequestHeader, ctx: &Context) -> Option<(Vec<u8>, Instead)> {
        let asked = request.uri.query();
        let query = self.query.of(asked);
        let mut key = url(request, ctx, query.as_deref())?;
        let target = if query.as_deref() == asked {
            None
        } else {
            let path = request.uri.path();
            let target = query.as_deref().map_or_else(|| path.to_owned(), |query| format!("{path}?{query}"));
            Some(PathAndQuery::try_from(target).ok()?)
        };
        if key.contains(&0) {
            return None;
        }
        key.push(0);
        key.extend_from_slice(&ctx.tenant.0.to_be_bytes());
        write_part(ctx.route.as_bytes(), &mut key);
        let made = ctx.policies.upstream_path.as_deref();
        let counted = made.map(|made| self.counted_of(made));
        write_part(counted.as_deref().unwrap_or_default().as_bytes(), &mut key);
        self.write_caller(request, ctx, &mut key);
        for selector in &self.parts {
            write_selected(selector, request, ctx, &mut key);
        }
        for (name, value) in request.headers.iter().filter(|(name, _)| is_of_url(name)) {
            write_part(name.as_str().as_bytes(), &mut key);
            write_part(value.as_bytes(), &mut key);
        }
        for line in request.headers.get_all(FORWARDED) {
            write_forwarded(line.as_bytes(), &mut key);
        }
        let upstream_path = counted.filter(|counted| Some(&**counted) != made);
        Some((key, (target, upstream_path.map(|counted| counted.into_owned().into()))))
    }

    /// A path with what of its query counts.
    fn counted_of<'a>(&self, target: &'a str) -> Cow<'a, str> {
        let Some((path, query)) = target.split_once('?') else { return target.into() };
        match self.query.of(Some(query)) {
            Some(counted) if counted == query => target.into(),
            Some(counted) => format!("{path}?{counted}").into(),
            None => path.into(),
        }
    }

    fn write_caller(&self, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) {
        match &self.per {
            Per::Nobody => key.push(0),
            Per::Caller => {
                let consumer = ctx.consumer.as_ref().map(|consumer| &*consumer.name);
                let subject = ctx.principal.as_ref().map(|principal| &*principal.subject);
                for part in [ctx.identity.as_deref(), consumer, subject] {
                    key.push(u8::from(part.is_some()));
                    write_part(part.unwrap_or_default().as_bytes(), key);
                }
            }
            Per::Selected(selector) => write_selected(selector, request, ctx, key),
        }
    }
}

/// What `Forwarded` says beside who the client is (RFC 7239 s4): all that is not plainly that.
fn write_forwarded(line: &[u8], key: &mut Vec<u8>) {
    let of_client = |pair: &&[u8]| {
        let name = pair.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii();
        pair.is_empty() || [&b"for"[..], b"by"].iter().any(|own| name.eq_ignore_ascii_case(own))
    };
    let pairs = line.split(|byte| matches!(byte, b',' | b';')).map(<[u8]>::trim_ascii);
    for pair in pairs.filter(|pair| !of_client(pair)) {
        write_part(FORWARDED.as_str().as_bytes(), key);
        write_part(pair, key);
    }
}

/// A part of a request; those that lack it are alike, and like no other.
fn write_selected(selector: &Selector, request: &RequestHeader, ctx: &Context, key: &mut Vec<u8>) {
    let start = key.len();
    key.push(1);
    if !selector.write_every_key(request, ctx, key) {
        key.truncate(start);
        key.push(0);
    }
}
