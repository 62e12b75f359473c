//! `/api/identities`: what identities know now.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::identity::{EndpointState, Identity, IdentityState, KeysState};

use super::AdminState;
use crate::upstream::view::At;

/// Every identity.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Identities")]
pub(super) struct IdentityList {
    /// The generation that serves.
    generation: u64,
    /// By name.
    identities: Vec<IdentityView>,
}

/// One identity.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "IdentityState")]
struct IdentityView {
    /// Its name.
    name: String,
    /// Its type.
    #[serde(rename = "type")]
    kind: &'static str,
    /// Its keys, if they are fetched.
    keys: Option<KeysView>,
    /// Whom it asks about tokens, if it does.
    endpoint: Option<EndpointView>,
}

/// Keys that are fetched.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "KeysState")]
struct KeysView {
    /// Where they come from: a set of keys, or the issuer whose document says where that is.
    from: String,
    /// How many there are that this identity verifies with.
    count: usize,
    /// When they were last fetched.
    fetched: Option<At>,
    /// When they are fetched next.
    next: Option<At>,
    /// Why they cannot be fetched now.
    error: Option<String>,
    /// Since when that is so.
    failing_since: Option<At>,
}

/// A place that is asked about tokens.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "EndpointState")]
struct EndpointView {
    /// Where it is.
    url: String,
    /// Why it did not answer the last time.
    error: Option<String>,
    /// Since when that is so.
    failing_since: Option<At>,
}

/// Every identity, by name.
pub(super) async fn all(State(state): State<AdminState>) -> Json<IdentityList> {
    let snapshot = state.live.load();
    let identities = snapshot.identities.all().map(|identity| view(&**identity)).collect();
    Json(IdentityList { generation: snapshot.generation, identities })
}

fn view(identity: &dyn Identity) -> IdentityView {
    let IdentityState { kind, keys, endpoint } = identity.state();
    let name = identity.name().to_string();
    IdentityView { name, kind, keys: keys.map(keys_view), endpoint: endpoint.map(endpoint_view) }
}

fn keys_view(keys: KeysState) -> KeysView {
    let KeysState { from, count, fetched, next, failing } = keys;
    let (error, since) = failing.unzip();
    let at = |time: Option<std::time::SystemTime>| time.map(At::from);
    KeysView { from, count, fetched: at(fetched), next: at(next), error, failing_since: at(since) }
}

fn endpoint_view(endpoint: EndpointState) -> EndpointView {
    let (error, since) = endpoint.failing.unzip();
    EndpointView { url: endpoint.url, error, failing_since: since.map(At::from) }
}
