//! `/api/revocations`: tokens that no longer hold.

use std::time::SystemTime;

use axum::Json;
use axum::extract::rejection::{JsonRejection, QueryRejection};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tollhouse_filters::world::{Full, Revocation, Revoked};

use super::AdminState;
use super::problem::{later, problem};

/// The longest `jti` or `sub` that is taken, in bytes.
const LONGEST: usize = 1024;

/// Tokens that are to hold no longer. Of one identity: the one with this `jti`, those with this `sub`, or, if
/// neither is given, all that were issued before a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Revoke")]
pub(super) struct Wish {
    /// The identity whose tokens they are, of type `jwt`, `introspection` or `oidc`.
    identity: String,
    /// The `jti` of the token.
    #[serde(default)]
    jti: Option<String>,
    /// The `sub` of the tokens.
    #[serde(default)]
    sub: Option<String>,
    /// Only tokens that were issued (`iat`) before this, in Unix seconds; those that do not tell count as such.
    #[serde(default)]
    issued_before: Option<u64>,
    /// When the last of these tokens ends, in Unix seconds, as in their `exp`: that long the entry is kept, and an
    /// hour longer.
    expires: u64,
}

/// Which entry is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    identity: String,
    jti: Option<String>,
    sub: Option<String>,
}

/// Which entries are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    identity: Option<String>,
}

/// Every entry.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Revocations")]
pub(super) struct RevocationList {
    /// By identity, and by what they are about.
    revocations: Vec<RevocationView>,
}

impl RevocationList {
    fn of(state: &AdminState, identity: Option<&str>) -> Self {
        let list = state.revocations.list(identity);
        Self { revocations: list.into_iter().map(RevocationView::from).collect() }
    }
}

/// One entry.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Revocation")]
pub(super) struct RevocationView {
    /// The identity whose tokens they are.
    identity: String,
    /// The `jti` of the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    jti: Option<String>,
    /// The `sub` of the tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    sub: Option<String>,
    /// Only tokens that were issued before this, in Unix seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    issued_before: Option<u64>,
    /// When the last of these tokens ends, in Unix seconds.
    expires: u64,
}

impl From<Revocation> for RevocationView {
    fn from(Revocation { identity, which, issued_before, expires }: Revocation) -> Self {
        let (jti, sub) = match which {
            Revoked::Jti(jti) => (Some(jti.into()), None),
            Revoked::Sub(sub) => (None, Some(sub.into())),
            Revoked::All {} => (None, None),
        };
        Self { identity: identity.to_string(), jti, sub, issued_before, expires }
    }
}

/// Every entry.
pub(super) async fn all(
    State(state): State<AdminState>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    match wanted {
        Ok(Query(Wanted { identity })) => {
            Json(RevocationList::of(&state, identity.as_deref())).into_response()
        }
        Err(rejection) => problem(rejection.status(), &rejection.body_text()),
    }
}

/// Adds an entry, which counts as soon as this is answered.
pub(super) async fn add(
    State(state): State<AdminState>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Response {
    let wish = match wish {
        Ok(Json(wish)) => wish,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let revocation = match wish.revocation(&state) {
        Ok(revocation) => revocation,
        Err(reason) => return problem(StatusCode::UNPROCESSABLE_ENTITY, reason),
    };
    match state.revocations.add(revocation.clone()) {
        Ok(is_new) => {
            let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
            (status, Json(RevocationView::from(revocation))).into_response()
        }
        Err(full) => refused(full),
    }
}

/// Takes an entry out.
pub(super) async fn remove(
    State(state): State<AdminState>,
    which: Result<Query<Which>, QueryRejection>,
) -> Response {
    let Which { identity, jti, sub } = match which {
        Ok(Query(which)) => which,
        Err(rejection) => return problem(rejection.status(), &rejection.body_text()),
    };
    let Some(which) = one_of(jti, sub) else {
        return problem(StatusCode::BAD_REQUEST, BOTH);
    };
    match state.revocations.remove(&identity, &which) {
        Ok(true) => Json(RevocationList::of(&state, Some(&identity))).into_response(),
        Ok(false) => problem(StatusCode::NOT_FOUND, "there is no such entry"),
        Err(full) => refused(full),
    }
}

const BOTH: &str = "give one of `jti` and `sub`; they are entries of their own";

fn one_of(jti: Option<String>, sub: Option<String>) -> Option<Revoked> {
    match (jti, sub) {
        (Some(jti), None) => Some(Revoked::Jti(jti.into())),
        (None, Some(sub)) => Some(Revoked::Sub(sub.into())),
        (None, None) => Some(Revoked::All {}),
        (Some(_), Some(_)) => None,
    }
}

fn refused(full: Full) -> Response {
    match full {
        Full::HandedOver => later(&full.to_string()),
        Full::TooMany => problem(StatusCode::INSUFFICIENT_STORAGE, &full.to_string()),
    }
}

impl Wish {
    /// The entry, if it can be one.
    fn revocation(self, state: &AdminState) -> Result<Revocation, &'static str> {
        let Self { identity, jti, sub, issued_before, expires } = self;
        let snapshot = state.live.load();
        let known = snapshot.identities.get(&identity).filter(|identity| identity.is_revocable());
        let identity =
            known.ok_or("no identity of type `jwt`, `introspection` or `oidc` has this name")?.name().clone();
        let which = one_of(jti, sub).ok_or(BOTH)?;
        match (&which, issued_before) {
            (Revoked::Jti(_), Some(_)) => return Err("`issued_before` is for many tokens, and `jti` is one"),
            (Revoked::All {}, None) => return Err("say which tokens: `jti`, `sub` or `issued_before`"),
            (Revoked::Jti(text) | Revoked::Sub(text), _) if text.len() > LONGEST => {
                return Err("`jti` and `sub` have at most 1024 bytes");
            }
            _ => {}
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        if expires <= now {
            return Err("`expires` is in the past; these tokens have ended");
        }
        Ok(Revocation { identity, which, issued_before, expires })
    }
}
