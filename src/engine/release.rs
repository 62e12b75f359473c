//! The version and the variant of a request.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::caching::Ask;
use tollhouse_filters::context::Context;
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::selector::write_part;

use super::find::{InPath, is_preflight};
use super::{Decision, Exchange};
use crate::release::{Asked, Why};
use crate::snapshot::{Action, Route, Snapshot};
use crate::upstream::Upstream;

/// Ends that are the client's doing: it was too slow, sent too much, or went away.
const OF_CLIENTS: [u16; 3] = [408, 413, 499];

/// The version and the variant of a request, for routes that have any.
#[derive(Debug, Clone, Default)]
pub struct Release {
    /// The version that it gets.
    pub asked: Option<Asked>,
    /// Why it gets its variant.
    pub why: Option<Why>,
    /// Which of its route's ways it goes.
    pub branch: usize,
    /// Its path as it was sent, where a version was taken away from it.
    pub whole_path: Option<Box<str>>,
    /// Why it gets no version.
    refused: Option<Problem>,
}

/// Finds out which version a request asks for, if its route has versions.
pub(super) fn begin(
    route: &Route,
    in_path: Option<InPath>,
    request: &RequestHeader,
    ctx: &mut Context,
) -> Option<Box<Release>> {
    let mut release = match (&route.versions, &route.action, &in_path) {
        (None, Action::Upstream(_) | Action::Answer(_) | Action::NotFound, None) => return None,
        _ => Box::<Release>::default(),
    };
    if let Some(versions) = &route.versions {
        match versions.resolve(request, in_path.as_ref().map(|in_path| &*in_path.segment)) {
            Ok(Some(asked)) if asked.is_named() || !route.splits_versions() => {
                ctx.version = Some(versions.get(asked).name.clone());
                release.refused = versions.refusal(asked);
                release.take(asked, &route.action);
            }
            // A split between versions finds one behind the filters, which see none.
            Ok(_) if route.splits_versions() => {}
            Ok(_) => release.refused = Some(versions.unnamed()),
            Err(problem) => release.refused = Some(problem),
        }
    }
    release.whole_path = in_path.map(|in_path| in_path.whole);
    Some(release)
}

/// Drops what chooses variants on other routes than this one.
pub(super) fn drop_forcing(snapshot: &Snapshot, route: &Route, request: &mut RequestHeader) {
    let own: Option<&HeaderName> = match &route.action {
        Action::Split(split) => split.split.forced_by(),
        _ => None,
    };
    for name in snapshot.forcing_headers.iter().filter(|name| Some(*name) != own) {
        request.remove_header(name);
    }
}

impl Release {
    /// Notes the version that a request gets, and which way that is.
    fn take(&mut self, asked: Asked, action: &Action) {
        self.asked = Some(asked);
        match action {
            Action::Versions(_) => self.branch = 1 + asked.version,
            Action::Split(split) if split.versions.is_some() && asked.is_named() => {
                self.branch = 1 + split.upstreams.len() + asked.version;
            }
            _ => {}
        }
    }

    /// Says in an answer what becomes of its version.
    pub(super) fn write_fields(&self, route: &Route, ctx: &Context, response: &mut ResponseHeader) {
        if let Some(versions) = &route.versions {
            versions.write_fields(self.asked, &ctx.path, response);
        }
    }

    /// Counts a request that is over.
    pub(super) fn count(&self, route: &Route, ctx: &Context) {
        if let (Some(versions), Some(asked)) = (&route.versions, self.asked) {
            versions.count(asked, ctx.consumer.as_ref().map(|consumer| &consumer.name));
        }
    }
}

impl Exchange {
    /// Notes for a ramp with which status a request ended that went to one of its variants, whose answer may have broken
    /// off, and how long the variant took, if that is known; an end that is the client's doing tells nothing of it.
    pub fn note_for_ramp(&self, status: u16, broke_off: bool, took: Option<Duration>) {
        let Action::Split(split) = &self.route.action else { return };
        let (Some(ramp), Some(_)) = (split.split.ramp(), &self.ctx.upstream) else { return };
        let variant = self.branch().checked_sub(1).filter(|at| *at < split.upstreams.len());
        let Some(variant) = variant.filter(|_| !OF_CLIENTS.contains(&status)) else { return };
        // What its fallback answered is nothing that the variant can do.
        let failed = self.turned_away || self.diverted || broke_off || status >= 500;
        // Nor is the time that it took: a refusal takes none.
        ramp.note(variant, failed, took.filter(|_| !self.turned_away));
    }

    /// Which of its route's ways the request goes.
    #[must_use]
    pub fn branch(&self) -> usize {
        self.release.as_ref().map_or(0, |release| release.branch)
    }

    /// The path as it was sent, a version in it included.
    #[must_use]
    pub fn sent_path<'a>(&'a self, request: &'a RequestHeader) -> &'a str {
        let whole = self.release.as_ref().and_then(|release| release.whole_path.as_deref());
        whole.unwrap_or_else(|| request.uri.path())
    }

    /// Why the request gets no version, which ends it; of a preflight nothing is asked yet, since browsers
    /// name no version in it.
    pub(super) fn refused_version(&mut self, request: &RequestHeader) -> Option<Problem> {
        let release = self.release.as_mut()?;
        release.refused.take_if(|_| !is_preflight(request) || !self.stack.answers_preflight())
    }

    /// Holds a request for a cache, which must not give what was made for one listener, by other steps, or of one
    /// version or variant for another.
    pub(super) fn held_for_cache(&mut self, mut ask: Box<Ask>, request: &mut RequestHeader) -> Decision {
        write_part(self.ctx.listener.as_bytes(), &mut ask.key);
        self.entered.write_key(&mut ask.key);
        if self.release.is_some() {
            if matches!(self.route.action, Action::Split(_))
                && let Err(problem) = self.released(request)
            {
                return Decision::Reply(problem.into());
            }
            for name in [&self.ctx.version, &self.ctx.variant] {
                write_part(name.as_deref().unwrap_or_default().as_bytes(), &mut ask.key);
            }
        }
        Decision::Cache(ask)
    }

    /// Where the version or the variant of the request goes.
    pub(super) fn released(&mut self, request: &mut RequestHeader) -> Result<Arc<Upstream>, Problem> {
        let internal = || Problem::new(&problem::INTERNAL);
        let release = self.release.as_mut().ok_or_else(internal)?;
        if let Some(problem) = release.refused.take() {
            return Err(problem);
        }
        if let Action::Split(split) = &self.route.action
            && release.branch == 0
        {
            let chosen = split.split.choose(request, &self.ctx)?;
            release.branch = 1 + chosen.variant;
            release.why = Some(chosen.why);
            self.ctx.variant = Some(split.split.variants()[chosen.variant].name.clone());
            if let (Some(all), Some(versions)) = (&split.versions, &self.route.versions) {
                let asked = Asked::unasked(all.of[chosen.variant]);
                release.asked = Some(asked);
                self.ctx.version = Some(versions.get(asked).name.clone());
                versions.refusal(asked).map_or(Ok(()), Err)?;
            }
        } else if let Action::Split(split) = &self.route.action
            && let Some(header) = split.split.forced_by()
        {
            // The version was named otherwise.
            request.remove_header(header);
        }
        let (_, upstream) = self.route.branch(release.branch);
        upstream.cloned().ok_or_else(internal)
    }
}
