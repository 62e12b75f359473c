//! `/api/stores`: stores as they are now.

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use super::AdminState;
use crate::store::StoreView;

/// Every store.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Stores")]
pub(super) struct StoreList {
    /// The generation that serves.
    generation: u64,
    /// By name.
    stores: Vec<StoreView>,
}

/// Every store, by name.
pub(super) async fn all(State(state): State<AdminState>) -> Json<StoreList> {
    let snapshot = state.live.load();
    let stores = snapshot.stores.iter().map(|store| store.view()).collect();
    Json(StoreList { generation: snapshot.generation, stores })
}
