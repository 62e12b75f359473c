//! When the process as a whole has too much to do, as the user writes it.

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::values::{ByteSize, Duration, Percent};

/// Over a threshold, requests of the lowest priority are refused, and then those of the next; the `priority` of a route
/// says which they are, or that of the caller's plan. Nothing is refused where no threshold is written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Overload {
    /// How late the event loop may be with what is due: all worker threads are busy for as long. Default: none. Example: `100ms`.
    pub loop_delay: Option<Duration>,
    /// How much of `memory_limit` the process may have in memory. Default: none. Example: `90%`.
    pub memory: Option<Percent>,
    /// All of the memory. Default: the limit of the control group, or what the machine has. Example: `2GiB`.
    pub memory_limit: Option<ByteSize>,
}
