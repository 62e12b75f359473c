//! `split` of a route: a share of the requests for each of several variants.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::selector::Selector;
use tollhouse_filters::values::FieldName;
use tollhouse_filters::when::WhenSpec;

use super::Name;

/// A share of the requests for each of several variants: exactly one of `to` and `versions`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Split {
    /// Upstreams and their weights, whose sum need not be 100; 0 gets nothing but what is forced. Example: `{checkout: 90, checkout-v2: 10}`.
    pub to: BTreeMap<Name, u16>,
    /// Versions of the route's service and their weights, for requests that name none. Example: `{"1": 90, "2": 10}`.
    pub versions: BTreeMap<Name, u16>,
    /// What stays with its variant: the same value, the same variant, for as long as weights stay; when a weight is raised, some move to it and none elsewhere. Default: each request is drawn anew. Example: `[consumer, "cookie:uid", ip]`.
    pub sticky_by: Option<Selector>,
    /// Makes the same values fall differently than in other splits. Default: the route's name. Example: `spring`.
    pub salt: Option<String>,
    /// Lets testers choose their variant.
    pub force: Option<Force>,
}

/// Who may choose a variant, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Force {
    /// The field that names the variant. It never reaches an upstream, nor does a client's copy on any other route. Example: `x-tollhouse-variant`.
    pub header: FieldName,
    /// Who may, as for filters. Default: everybody. Example: `{groups: [testers]}`.
    #[serde(default)]
    pub when: WhenSpec,
}
