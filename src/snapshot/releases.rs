//! From written versions and splits to those that requests use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tollhouse_filters::filter::Fact;
use tollhouse_filters::path::PathRules;
use tollhouse_filters::plan::Plans;
use tollhouse_filters::selector::Selector;
use tollhouse_filters::tree::Path;
use tollhouse_filters::when::{When, WhenSpec};
use tollhouse_filters::world::{UpstreamId, World};

use super::compile::{Faults, did_you_mean};
use super::names::Names;
use super::routes::Service;
use crate::config::{self, ApiVersion, Name};
use crate::release::{Force, Ramp, Split, Versions, bare};

/// The shortest and the longest time over which a ramp is watched.
const MIN_WINDOW: Duration = Duration::from_secs(1);
const MAX_WINDOW: Duration = Duration::from_secs(24 * 60 * 60);

/// The versions of a service, and where the requests of each go if it says so.
pub(super) struct BuiltVersions {
    pub(super) versions: Arc<Versions>,
    pub(super) upstreams: Vec<Option<UpstreamId>>,
}

/// A split whose upstreams are still ids.
#[derive(Clone)]
pub(super) struct SplitPlan {
    pub(super) split: Arc<Split>,
    /// By variant.
    pub(super) upstreams: Vec<UpstreamId>,
    /// Where variants are versions: which, and the upstream of every version.
    pub(super) versions: Option<(Vec<usize>, Vec<UpstreamId>)>,
    /// What has to be known before a variant is chosen.
    pub(super) needs: Vec<Fact>,
}

impl SplitPlan {
    /// Every upstream that requests may go to.
    pub(super) fn all_upstreams(&self) -> impl Iterator<Item = UpstreamId> {
        let versions = self.versions.iter().flat_map(|(_, upstreams)| upstreams);
        self.upstreams.iter().chain(versions).copied()
    }
}

/// What conditions are checked against.
pub(super) struct Known<'a> {
    /// The names of all versions of all services.
    pub(super) versions: BTreeSet<Arc<str>>,
    pub(super) plans: &'a Plans,
    /// How paths are normalised.
    pub(super) paths: PathRules,
}

impl<'a> Known<'a> {
    pub(super) fn of(document: &config::Document, plans: &'a Plans) -> Self {
        let versions = document.services.iter().flat_map(|service| service.versions.keys());
        Self { versions: versions.map(Name::shared).collect(), plans, paths: document.server.paths }
    }
}

/// Checks that a condition can hold and that what it names exists, and has its paths normalised.
pub(super) fn check_when(when: &mut WhenSpec, known: &Known<'_>, path: &Path, faults: &mut Faults<'_>) {
    for error in when.settle(&known.paths, Some(known.plans)) {
        faults.add_with_hint(&path.concat(&error.path), error.message, error.hint);
    }
    let names = &known.versions;
    for (at, name) in when.version.iter().enumerate().filter(|(_, name)| !names.contains(name.as_str())) {
        let hint = did_you_mean(name, names.iter().map(|name| &**name));
        let path = path.join("version").join(at);
        faults.given(&["services"]).add_unknown(&path, format!("no service has a version `{name}`"), hint);
    }
}

/// Builds the versions of a service, if it has some.
pub(super) fn versions(
    service: &config::Service,
    names: &Names<'_>,
    world: &World,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Option<BuiltVersions> {
    match (&service.versioning, service.versions.is_empty()) {
        (None, true) => return None,
        (None, false) => {
            faults.add(&path.join("versions"), "needs `versioning`, which says how requests name a version");
            return None;
        }
        (Some(_), true) => {
            faults.add(&path.join("versioning"), "needs `versions`");
            return None;
        }
        (Some(versioning), false) => check_versioning(versioning, service, path, faults),
    }
    let versions = path.join("versions");
    let mut known: BTreeMap<String, &Name> = BTreeMap::new();
    let mut upstreams = Vec::with_capacity(service.versions.len());
    for (name, version) in &service.versions {
        let path = versions.join(name.as_str());
        if let Some(other) = known.insert(bare(name.as_str()).to_ascii_lowercase(), name) {
            faults.add(&path, format!("is the same as `{other}`: case and a `v` before it mean nothing"));
        }
        if name.as_str().contains('/') {
            faults.add(&path, "a version's name is one segment of a path, without `/`");
        }
        check_version(name, version, service, &path, faults);
        let upstream = version.upstream.as_ref();
        upstreams.push(upstream.and_then(|name| names.upstream(name, &path.join("upstream"), faults)));
    }
    let versions = Versions::new(service, world)?;
    Some(BuiltVersions { versions: Arc::new(versions), upstreams })
}

fn check_versioning(
    versioning: &config::Versioning,
    service: &config::Service,
    path: &Path,
    faults: &mut Faults<'_>,
) {
    let path = path.join("versioning");
    if versioning.from.is_empty() {
        faults.add(&path.join("from"), "at least one place is needed, such as `path`");
    }
    for (at, source) in versioning.from.iter().enumerate() {
        if versioning.from[..at].contains(source) {
            faults.add(&path.join("from").join(at), format!("`{source}` is listed already"));
        }
    }
    if let Some(name) = &versioning.default {
        check_name(name, service, &path.join("default"), faults);
    }
}

fn check_name(name: &Name, service: &config::Service, path: &Path, faults: &mut Faults<'_>) {
    if !service.versions.contains_key(name) {
        let hint = did_you_mean(name.as_str(), service.versions.keys().map(Name::as_str));
        faults.add_with_hint(path, format!("the service has no version `{name}`"), hint);
    }
}

fn check_version(
    name: &Name,
    version: &ApiVersion,
    service: &config::Service,
    path: &Path,
    faults: &mut Faults<'_>,
) {
    let goes = version.deprecated.is_some() || version.sunset.is_some();
    if let Some(successor) = &version.successor {
        check_name(successor, service, &path.join("successor"), faults);
        if successor == name {
            faults.add(&path.join("successor"), "is the version itself");
        }
    }
    for (key, written) in [("successor", version.successor.is_some()), ("docs", version.docs.is_some())] {
        if written && !goes {
            faults.add(&path.join(key), "is for a version with `deprecated` or `sunset`");
        }
    }
    if let (Some(deprecated), Some(sunset)) = (version.deprecated, version.sunset)
        && sunset < deprecated
    {
        // RFC 9745 s4.
        faults.add(&path.join("sunset"), "is before `deprecated`");
    }
    for (at, brownout) in version.brownouts.iter().enumerate() {
        let path = path.join("brownouts").join(at);
        match version.sunset {
            None => faults.add(&path, "is for a version with a `sunset`"),
            Some(sunset) if sunset <= brownout.at => faults.add(&path.join("at"), "is not before `sunset`"),
            Some(_) => {}
        }
        if brownout.every.is_some_and(|every| every <= brownout.length) {
            faults.add(&path.join("every"), "is not longer than `for`");
        }
    }
}

/// Builds the split of a route.
pub(super) fn split(
    written: &config::Split,
    route: &Name,
    service: Option<&Service>,
    names: &Names<'_>,
    (world, live): (&World, bool),
    (path, faults): (&Path, &mut Faults<'_>),
) -> Option<SplitPlan> {
    let weights = match (written.to.is_empty(), written.versions.is_empty()) {
        (false, true) => &written.to,
        (true, false) => &written.versions,
        _ => {
            faults.add(path, "a split has one of `to` and `versions`");
            return None;
        }
    };
    if weights.values().all(|weight| *weight == 0) {
        faults.add(path, "at least one weight must be greater than 0");
    }
    if written.salt.is_some() && written.sticky_by.is_none() {
        faults.add(&path.join("salt"), "is for `sticky_by`; without it, each request is drawn anew");
    }
    let sticky = written.sticky_by.as_ref().map(Selector::needs).unwrap_or_default();
    let mut needs = sticky;
    let force = written.force.as_ref().map(|force| {
        let mut when = force.when.clone();
        check_when(&mut when, names.known, &path.join("force").join("when"), faults);
        let when = When::new(when);
        needs.extend(when.needs());
        Force { header: force.header.clone().into(), when }
    });
    let (upstreams, versions) = if written.versions.is_empty() {
        let path = path.join("to");
        let named = weights.keys().map(|name| names.upstream(name, &path.join(name.as_str()), faults));
        (named.collect::<Vec<_>>().into_iter().collect::<Option<Vec<_>>>()?, None)
    } else {
        let (of, all) = variants_of(weights, service, &path.join("versions"), faults)?;
        (of.iter().map(|version| all[*version]).collect(), Some((of, all)))
    };
    let salt = written.salt.as_deref().unwrap_or(route.as_str());
    let variants = weights.iter().map(|(name, weight)| (name.shared(), *weight));
    let split = Split::new(variants, salt, written.sticky_by.clone(), force, world.rng.clone());
    let ramp = written.ramp.as_ref().and_then(|ramp| {
        let between = check_ramp(ramp, weights, &path.join("ramp"), faults)?;
        Some(Ramp::new(ramp, route.as_str(), between, world, !live))
    });
    let split = split.ramping(ramp);
    Some(SplitPlan { split: Arc::new(split), upstreams, versions, needs })
}

/// The place and the weight of a variant.
type Weighed = (usize, u16);

/// The variants between which a ramp goes.
fn check_ramp(
    ramp: &config::Ramp,
    weights: &BTreeMap<Name, u16>,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Option<(Weighed, Weighed)> {
    let mut find = |key: &str, name: &Name| {
        let found = weights.iter().enumerate().find(|(_, (known, _))| *known == name);
        if found.is_none() {
            let hint = did_you_mean(name.as_str(), weights.keys().map(Name::as_str));
            faults.add_with_hint(&path.join(key), format!("the split has no variant `{name}`"), hint);
        }
        found.map(|(at, (_, weight))| (at, *weight))
    };
    let (from, to) = (find("from", &ramp.from), find("to", &ramp.to));
    if ramp.from == ramp.to {
        faults.add(&path.join("to"), "is the same as `from`");
    }
    if !(1..=1000).contains(&ramp.steps) {
        faults.add(&path.join("steps"), "expected 1 to 1000");
    }
    if let Some(abort_if) = &ramp.abort_if {
        let path = path.join("abort_if");
        if abort_if.error_ratio.is_none() && abort_if.p99.is_none() {
            faults.add(&path, "one of `error_ratio` and `p99` is needed");
        }
        let window = abort_if.window.get();
        if !(MIN_WINDOW..=MAX_WINDOW).contains(&window) {
            faults.add(&path.join("window"), "expected 1s to 1d");
        }
    }
    let (from, to) = (from?, to?);
    let (weight, sum) = (u32::from(to.1), u32::from(from.1) + u32::from(to.1));
    if u32::from(ramp.until.hundredths()) * sum <= weight * 10_000 {
        let message = format!("is no more than `{}` has by its weight", ramp.to);
        faults.add(&path.join("until"), message);
    }
    Some((from, to))
}

/// The versions that are variants, and the upstream of every version.
fn variants_of(
    weights: &BTreeMap<Name, u16>,
    service: Option<&Service>,
    path: &Path,
    faults: &mut Faults<'_>,
) -> Option<(Vec<usize>, Vec<UpstreamId>)> {
    let Some((service, built)) = service.and_then(|service| Some((service, service.versions.as_ref()?)))
    else {
        faults.given(&["services"]).add(path, "needs a `service` that has versions");
        return None;
    };
    let exact = |name: &Name| built.versions.names().position(|known| **known == *name.as_str());
    let mut of = Vec::with_capacity(weights.len());
    for name in weights.keys() {
        match exact(name) {
            Some(version) => of.push(version),
            None => {
                let hint = did_you_mean(name.as_str(), built.versions.names().map(|name| &**name));
                let message = format!("the service has no version `{name}`");
                faults.given(&["services"]).add_with_hint(&path.join(name.as_str()), message, hint);
            }
        }
    }
    let all = service.version_upstreams(path, faults)?;
    (of.len() == weights.len()).then_some((of, all))
}
