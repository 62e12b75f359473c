//! `authenticate`: lets a request pass only if it proves who is calling.
//!
//! ```yaml
//! - authenticate: {any_of: [corp, keys], consumer_header: x-consumer-name, forward: {x-user: sub}}
//! ```
//!
//! Who cannot prove it is told how by a 401 with `WWW-Authenticate` (RFC 9110 s11.6.1). With `optional` a
//! request without any credential passes as nobody's; one with a wrong credential never does. Preflight
//! requests of CORS have no credentials, so write `cors` before.
//!
//! A caller whom the document has no consumer for counts as one of its own, named by the identity and the
//! subject: `corp:alice`. No consumer of the document can have such a name.
//!
//! A credential that was not verified does not go on: upstreams see only those that hold, and these unless their
//! identity hides them.
//!
//! Fields written for upstreams are dropped from requests of clients on every route.
//!
//! Hardened against untrusted clients: what is not verified is never looked at twice, and costs at most one
//! hash or the verification of one signature for each key that fits.

mod caller;
mod login;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use super::fields::has_meaning;
use crate::context::{Context, Slot, Verdict};
use crate::filter::{Build, BuildError, Fact, Filter};
use crate::identity::{BodyProof, Identity, Presented, Refusal, Unavailable, Verified, take_out};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, OnRequestBody, OnUpstreamRequest, Phases};
use crate::problem::{BAD_REQUEST, FORBIDDEN, Problem, UNAUTHORIZED};
use crate::values::FieldName;
use crate::world::Clock;

use caller::Caller;

/// How callers prove who they are. Exactly one of `any_of` and `all_of`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Identities of which one is enough; the first one that holds counts.
    pub any_of: Vec<String>,
    /// Identities that are all needed, for the same consumer: credentials of several consumers, or of one and of
    /// a caller whom the document has no consumer for, do not go together (403).
    pub all_of: Vec<String>,
    /// Whether a request without any credential passes too; one with a wrong credential never does.
    pub optional: bool,
    /// The field that tells upstreams the consumer's name.
    pub consumer_header: Option<FieldName>,
    /// Fields that tell upstreams claims: a field, and the claim's name. Texts go as they are, others as JSON.
    #[serde(deserialize_with = "crate::values::fields")]
    pub forward: BTreeMap<FieldName, String>,
}

/// See the [module](self).
pub struct Authenticate {
    identities: Vec<Arc<dyn Identity>>,
    all: bool,
    optional: bool,
    consumer_header: Option<HeaderName>,
    forward: Vec<(HeaderName, String)>,
    fields: Slot<Fields>,
    proofs: Slot<Proofs>,
    /// Those where users log in.
    logins: Vec<usize>,
    /// Which of those answers when the body is there.
    asked: Slot<usize>,
    cookies: Slot<Vec<HeaderValue>>,
    /// The largest body that any credential can speak of.
    max_body: Option<u64>,
    clock: Arc<dyn Clock>,
}

type Fields = Vec<(HeaderName, HeaderValue)>;
/// What the body has to be, and for which identity.
type Proofs = Vec<(Arc<dyn Identity>, BodyProof)>;

impl Filter for Authenticate {
    const NAME: &'static str = "authenticate";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        let (option, names) = match (&*options.any_of, &*options.all_of) {
            (names @ [_, ..], []) => ("any_of", names),
            ([], names @ [_, ..]) => ("all_of", names),
            _ => return Err(BuildError::new("needs identities in one of `any_of` and `all_of`")),
        };
        let identities = named(option, names, build)?;
        let all = option == "all_of";
        let mut claims = identities.iter().map(|identity| identity.has_claims());
        let has_claims = if all { claims.any(|has| has) } else { claims.all(|has| has) };
        let consumer_header = options.consumer_header.map(HeaderName::from);
        let forward = forward(options.forward, &identities)?;
        declare(consumer_header.as_ref(), &forward, build)?;
        if !options.optional {
            build.provides(Fact::Consumer);
            if has_claims {
                build.provides(Fact::Claims);
            }
        }
        let (optional, fields, proofs) = (options.optional, build.slot(), build.slot());
        let has_logins = |at: &usize| identities[*at].login().is_some();
        let logins: Vec<usize> = (0..identities.len()).filter(has_logins).collect();
        let (asked, cookies) = (build.slot(), build.slot());
        let (max_body, clock) = (identities.iter().filter_map(|one| one.max_body()).max(), build.clock());
        let writes = consumer_header.is_some() || !forward.is_empty();
        let filter = Arc::new(Self {
            identities,
            all,
            optional,
            consumer_header,
            forward,
            fields,
            proofs,
            logins,
            asked,
            cookies,
            max_body,
            clock,
        });
        let phases = Phases::new().on_request(filter.clone());
        let phases = if max_body.is_some() { phases.on_request_body(filter.clone()) } else { phases };
        let phases = if filter.logins.is_empty() { phases } else { phases.on_response(filter.clone()) };
        Ok(if writes { phases.on_upstream_request(filter) } else { phases })
    }
}

/// The identities of these names, each of which stands once.
fn named(option: &str, names: &[String], build: &Build<'_>) -> Result<Vec<Arc<dyn Identity>>, BuildError> {
    let one = |(at, name): (usize, &String)| {
        let identity = build.identity(option, at, name)?;
        if names[..at].contains(name) {
            let mut error = BuildError::at(option, format!("`{name}` stands twice"));
            error.path.push(at);
            return Err(error);
        }
        Ok(identity)
    };
    names.iter().enumerate().map(one).collect()
}

fn forward(
    written: BTreeMap<FieldName, String>,
    identities: &[Arc<dyn Identity>],
) -> Result<Vec<(HeaderName, String)>, BuildError> {
    if !written.is_empty() && !identities.iter().any(|identity| identity.has_claims()) {
        return Err(BuildError::at("forward", "none of these identities has claims"));
    }
    Ok(written.into_iter().map(|(field, claim)| (field.into(), claim)).collect())
}

/// Has clients' copies of the fields dropped, if the fields are fit for that.
fn declare(
    consumer_header: Option<&HeaderName>,
    forward: &[(HeaderName, String)],
    build: &mut Build<'_>,
) -> Result<(), BuildError> {
    let fields = forward.iter().map(|(field, _)| ("forward", Some(field.as_str()), field));
    let fields = consumer_header.map(|field| ("consumer_header", None, field)).into_iter().chain(fields);
    for (option, key, field) in fields {
        let refused = |message: &str| {
            let mut error = BuildError::at(option, message);
            key.into_iter().for_each(|key| error.path.push(key));
            error
        };
        if has_meaning(field) {
            return Err(refused("the field has a meaning of its own; choose another one"));
        }
        if build.has_credentials(field) {
            return Err(refused("an identity looks for credentials in this field; choose another one"));
        }
        if option == "forward" && consumer_header == Some(field) {
            return Err(refused("the field is `consumer_header` already"));
        }
        build.identity_header(field.clone());
    }
    Ok(())
}

/// Why a request does not pass.
enum Denied {
    /// It does not prove who calls.
    Refused(Refused),
    /// Nobody can tell now whether it does.
    Unknown(Unavailable),
}

struct Refused {
    reason: &'static str,
    /// By identity: what was wrong with its credential, if there was one.
    refusals: Vec<(usize, Option<Refusal>)>,
}

/// Keeps what a request showed: another filter may look for what this one takes out.
fn remember(identity: &dyn Identity, shown: Result<Verified, Unavailable>, ctx: &mut Context) {
    // A dry run takes out nothing.
    if !ctx.dry_run {
        // There is seldom another one.
        ctx.shown.reserve_exact(1);
        ctx.shown.push((identity.name().clone(), shown));
    }
}

impl From<Unavailable> for FilterError {
    fn from(unavailable: Unavailable) -> Self {
        Self::Later { what: unavailable.reason.into_owned(), seconds: unavailable.retry_after }
    }
}

impl Authenticate {
    /// Who calls; nobody where that is enough.
    async fn verify(
        &self,
        request: &RequestHeader,
        ctx: &mut Context,
        now: SystemTime,
    ) -> Result<Option<Caller>, Denied> {
        let (mut verified, mut refusals, mut unknown) = (Vec::new(), Vec::new(), None);
        for (at, identity) in self.identities.iter().enumerate() {
            match identity.check(request, ctx, now).await {
                Presented::Valid(one) => {
                    // Of several that are needed, nobody may be able to tell of another one.
                    if self.all || identity.hides() {
                        remember(&**identity, Ok(one.without_cookies()), ctx);
                    }
                    verified.push((identity.clone(), one));
                }
                Presented::Refused(refusal) => refusals.push((at, Some(refusal))),
                Presented::Nothing => match ctx.shown.iter().find(|(name, _)| name == identity.name()) {
                    Some((_, Ok(one))) => verified.push((identity.clone(), one.clone())),
                    Some((_, Err(why))) => unknown = unknown.or_else(|| Some(why.clone())),
                    None => refusals.push((at, None)),
                },
                Presented::Unknown(why) => {
                    remember(&**identity, Err(why.clone()), ctx);
                    unknown = unknown.or(Some(why));
                }
            }
            if !self.all && !verified.is_empty() {
                break;
            }
        }
        let is_complete = refusals.is_empty() && unknown.is_none();
        if !verified.is_empty() && (!self.all || is_complete) {
            return Ok(Some(Caller::new(verified)));
        }
        let wrong = refusals.iter().find_map(|(_, refusal)| refusal.as_ref());
        // Of several that are needed, one that is wrong cannot be made up for.
        if let Some(unknown) = unknown.filter(|_| !self.all || wrong.is_none()) {
            return Err(Denied::Unknown(unknown));
        }
        let reason = match wrong {
            Some(refusal) => refusal.reason,
            None if verified.is_empty() && self.optional => return Ok(None),
            None if verified.is_empty() => "no credentials were given",
            None => "a further credential is needed",
        };
        Err(Denied::Refused(Refused { reason, refusals }))
    }

    /// The answer to who cannot prove it: all the ways that there are.
    fn refuse(&self, refused: Refused, ctx: &mut Context) -> Outcome {
        ctx.decide(Verdict::Changed, refused.reason, &[]);
        let wrong = refused.refusals.iter().find_map(|(_, refusal)| refusal.as_ref());
        let is_ambiguous = wrong.is_some_and(|refusal| refusal.ambiguous);
        let problem = Problem::new(if is_ambiguous { &BAD_REQUEST } else { &UNAUTHORIZED });
        let challenges = refused.refusals.iter();
        let challenges = challenges.map(|(at, refusal)| self.identities[*at].challenge(refusal.as_ref()));
        let problem = challenges.fold(problem.detail(refused.reason), |problem, challenge| {
            problem.header(header::WWW_AUTHENTICATE, challenge)
        });
        problem.into()
    }

    /// Takes out what is not for the upstream: what is hidden, and what nobody verified, be it that it does not hold or
    /// that it was not looked at any more. An identity hides what is its own, not what another one verified.
    fn take_out(&self, caller: Option<&Caller>, request: &mut RequestHeader, ctx: &mut Context) {
        let proven = caller.map_or(&[][..], |caller| &caller.proven);
        for identity in &self.identities {
            let is_proven = proven.iter().any(|one| Arc::ptr_eq(one, identity));
            match is_proven {
                false => take_out(&**identity, proven, request, ctx),
                true if identity.hides() => take_out(&**identity, &[], request, ctx),
                true => {}
            }
        }
    }

    /// What upstreams are told of the caller; none if it cannot be told in fields.
    fn fields(&self, caller: &Caller) -> Option<Fields> {
        let mut fields = Vec::with_capacity(self.forward.len() + 1);
        if let Some(name) = &self.consumer_header {
            fields.push((name.clone(), caller::field_value(&caller.consumer.name)?));
        }
        for (name, claim) in &self.forward {
            if let Some(text) = caller.claim(claim) {
                fields.push((name.clone(), caller::field_value(&text)?));
            }
        }
        Some(fields)
    }
}

#[async_trait]
impl OnRequest for Authenticate {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if let Some(outcome) = self.for_login(request, ctx).await {
            return Ok(outcome);
        }
        let caller = match self.verify(request, ctx, self.clock.wall()).await {
            Ok(caller) => caller,
            Err(Denied::Refused(refused)) => {
                let invited = self.invite(&refused, request, ctx).await;
                return Ok(invited.unwrap_or_else(|| self.refuse(refused, ctx)));
            }
            Err(Denied::Unknown(why)) => {
                // It may go on as nobody's, where failures let it.
                self.take_out(None, request, ctx);
                return Err(why.into());
            }
        };
        self.take_out(caller.as_ref(), request, ctx);
        let Some(caller) = caller else {
            ctx.decide(Verdict::Passed, "no credentials were given", &[]);
            return Ok(Outcome::Continue);
        };
        let told = match self.fields(&caller) {
            Some(fields) if caller.is_one => Ok(fields),
            Some(_) => Err("the credentials are of different callers"),
            None => Err("a claim cannot be told in a header field"),
        };
        let fields = match told {
            Ok(fields) => fields,
            Err(reason) => {
                ctx.decide(Verdict::Changed, reason, &[]);
                return Ok(Problem::new(&FORBIDDEN).detail(reason).into());
            }
        };
        if !fields.is_empty() {
            ctx.set_slot(self.fields, fields);
        }
        caller.note(ctx);
        if !caller.cookies.is_empty() {
            ctx.set_slot(self.cookies, caller.cookies.clone());
        }
        let mut proofs = caller.proofs;
        let has_body = ctx.has_body(request);
        proofs.retain(|(_, proof)| *proof != BodyProof::Empty || has_body);
        if !proofs.is_empty() {
            ctx.set_slot(self.proofs, proofs);
        }
        ctx.principal = Some(caller.principal);
        ctx.consumer = Some(caller.consumer);
        ctx.identity = Some(caller.identity);
        Ok(Outcome::Continue)
    }
}

/// Where a credential speaks of the body, it is verified before the upstream sees anything of the request.
#[async_trait]
impl OnRequestBody for Authenticate {
    fn max_bytes(&self) -> u64 {
        self.max_body.unwrap_or_default()
    }

    fn wants(&self, ctx: &Context) -> bool {
        ctx.slot(self.proofs).is_some() || ctx.slot(self.asked).is_some()
    }

    async fn on_request_body(
        &self,
        request: &mut RequestHeader,
        body: &mut Bytes,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        if let Some(outcome) = self.for_login_body(request, body, ctx).await {
            return Ok(outcome);
        }
        let mut proofs = ctx.slot(self.proofs).into_iter().flatten();
        let Some((identity, _)) = proofs.find(|(_, proof)| !proof.holds(body)) else {
            return Ok(Outcome::Continue);
        };
        let refusal = Refusal::new("the body is not the one that was signed");
        let challenge = identity.challenge(Some(&refusal));
        ctx.decide(Verdict::Changed, refusal.reason, &[]);
        let problem = Problem::new(&UNAUTHORIZED).detail(refusal.reason);
        Ok(problem.header(header::WWW_AUTHENTICATE, challenge).into())
    }
}

/// On each attempt's own copy: before, a client could have them removed by naming them in `Connection`.
#[async_trait]
impl OnUpstreamRequest for Authenticate {
    async fn on_upstream_request(
        &self,
        request: &mut RequestHeader,
        _: u32,
        ctx: &mut Context,
    ) -> Result<(), FilterError> {
        for (name, value) in ctx.slot(self.fields).into_iter().flatten() {
            request.insert_header(name.clone(), value.clone())?;
        }
        Ok(())
    }
}
