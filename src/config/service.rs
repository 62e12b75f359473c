//! `services`: what the routes of one API share.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::spec::Item;

use super::Name;

/// An API: what its routes share.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// Where its requests go, unless a route says otherwise.
    #[serde(default)]
    pub upstream: Option<Name>,
    /// Filters for every request of the API; after the listener's, before the route's.
    #[serde(default)]
    pub filters: Vec<Item>,
}
