//! The route of a request, and the version that its path names.

use std::sync::Arc;

use http::{HeaderValue, Method, header};
use pingora::http::RequestHeader;
use tollhouse_filters::condition::RequestView;
use tollhouse_filters::context::Context;
use tollhouse_filters::path::{Captures, NormalPath};
use tollhouse_filters::problem::{self, Problem};

use super::intake::set_target;
use crate::release::looks_like_a_version;
use crate::routing::{Find, ListenerId, RouteId, View};
use crate::snapshot::{Route, Snapshot};

/// What was found for a request.
pub(super) struct Found {
    /// Its route.
    pub(super) route: Arc<Route>,
    /// What it ends with if no filter answers: its method is not allowed.
    pub(super) not_allowed: Option<Problem>,
    /// The version that its path named.
    pub(super) in_path: Option<InPath>,
}

/// A version that a path named, and that was taken away from it.
pub(super) struct InPath {
    /// What stood there, such as `v2`.
    pub(super) segment: Box<str>,
    /// The path as it was.
    pub(super) whole: Box<str>,
}

impl Found {
    /// No route.
    pub(super) fn nothing(snapshot: &Snapshot) -> Self {
        Self { route: snapshot.unrouted.clone(), not_allowed: None, in_path: None }
    }
}

/// Finds a request's route.
pub(super) fn find(
    snapshot: &Snapshot,
    listener: ListenerId,
    request: &mut RequestHeader,
    ctx: &mut Context,
) -> Found {
    if snapshot.reads_path_versions
        && let Some(found) = without_version(snapshot, listener, request, ctx)
    {
        return found;
    }
    let view = View { listener, request: ctx.view(request) };
    let (found, not_allowed) = look(snapshot, &view);
    let Some((id, captures)) = found else { return Found { not_allowed, ..Found::nothing(snapshot) } };
    ctx.captures = captures;
    Found { route: snapshot.route(id).clone(), not_allowed, in_path: None }
}

/// The best route, and what a request ends with whose method is not allowed.
fn look(snapshot: &Snapshot, view: &View<'_>) -> (Option<(RouteId, Captures)>, Option<Problem>) {
    match snapshot.router.find(view) {
        Find::Route { id, captures } => (Some((id, captures)), None),
        Find::None => (None, None),
        Find::MethodNotAllowed { allow } => (preflight(snapshot, view), Some(method_not_allowed(&allow))),
    }
}

/// The route of a path without the version that it begins with, if that route's service reads versions there.
fn without_version(
    snapshot: &Snapshot,
    listener: ListenerId,
    request: &mut RequestHeader,
    ctx: &mut Context,
) -> Option<Found> {
    let (segment, path) = ctx.path.split_first()?;
    let view = View { listener, request: RequestView { path: &path, ..ctx.view(request) } };
    let id = match snapshot.router.find(&view) {
        Find::Route { id, .. } => id,
        Find::MethodNotAllowed { allow } => match snapshot.router.find_for_method(&view, allow.first()?) {
            Find::Route { id, .. } => id,
            _ => return None,
        },
        Find::None => return None,
    };
    let versions = snapshot.route(id).versions.as_ref().filter(|versions| versions.reads_path())?;
    let meant = looks_like_a_version(segment)
        || (segment.starts_with(['v', 'V']) && versions.named(segment).is_some());
    if !meant || is_spelt_out(snapshot, listener, segment, &ctx.view(request)) {
        return None;
    }
    let (found, not_allowed) = look(snapshot, &view);
    let in_path = InPath { segment: segment.into(), whole: request.uri.path().into() };
    let route = match found {
        Some((id, captures)) => {
            ctx.captures = captures;
            snapshot.route(id).clone()
        }
        None => snapshot.unrouted.clone(),
    };
    strip(request, &path)?;
    ctx.path = path;
    ctx.whole_path = Some(in_path.whole.clone());
    Some(Found { route, not_allowed, in_path: Some(in_path) })
}

/// Whether the path as it is belongs to a route that spells this segment out and reads no versions there.
fn is_spelt_out(snapshot: &Snapshot, listener: ListenerId, segment: &str, request: &RequestView<'_>) -> bool {
    let view = View { listener, request: *request };
    let Find::Route { id, .. } = snapshot.router.find(&view) else { return false };
    snapshot.router.begins_with(id, segment) && !snapshot.route(id).reads_path_version()
}

/// Puts the path without the version into the request, for filters and the upstream alike.
fn strip(request: &mut RequestHeader, path: &NormalPath) -> Option<()> {
    let target = match request.uri.query() {
        Some(query) => format!("{}?{query}", path.wire()),
        None => path.wire().to_owned(),
    };
    set_target(request, &target)
}

/// Whether a browser asks beforehand whether it may send a request (Fetch s4.8).
pub(super) fn is_preflight(request: &RequestHeader) -> bool {
    request.method == Method::OPTIONS
        && request.headers.contains_key(header::ORIGIN)
        && request.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

/// A CORS preflight asks on behalf of another method: it takes that method's route, if that route answers it.
fn preflight(snapshot: &Snapshot, view: &View<'_>) -> Option<(RouteId, Captures)> {
    let headers = view.request.headers;
    if view.request.method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    let method = Method::from_bytes(headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.as_bytes()).ok()?;
    let Find::Route { id, captures } = snapshot.router.find_for_method(view, &method) else { return None };
    snapshot.stack(view.listener, snapshot.route(id)).answers_preflight().then_some((id, captures))
}

fn method_not_allowed(allow: &[Method]) -> Problem {
    let list = allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let value = HeaderValue::from_str(&list).expect("methods are tokens");
    Problem::new(&problem::METHOD_NOT_ALLOWED).header(header::ALLOW, value)
}
