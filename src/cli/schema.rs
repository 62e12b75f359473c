//! `tollhouse schema`: the JSON Schema of configuration files.

use tollhouse_filters::registry::Registry;

use super::{Failure, print_json};
use crate::config;

pub(super) fn run(registry: &Registry) -> Result<(), Failure> {
    print_json(&config::schema(registry))
}
