//! What the gateway tells about itself: access log and metrics.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::observe::access_log::{Format, To};
use crate::observe::metrics::DEFAULT_MAX_SERIES;
pub use crate::observe::redact::Redaction;

/// What the gateway tells about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Observability {
    /// One line for each request. Default: JSON on standard output. Example: `{to: /var/log/tollhouse/access.log}`.
    #[serde(default)]
    pub access_log: AccessLog,
    /// Numbers for Prometheus, served by the admin listener at `/metrics`. Default: `{max_series: 20000}`. Example:
    /// `{max_series: 100000}`.
    #[serde(default)]
    pub metrics: Metrics,
}

/// One line for each request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AccessLog {
    /// `json`, one object a line; `combined` or `clf`, as Apache and NGINX write them; `none` for no access log; or a
    /// template of one line, whose fields are in the manual's chapter on operations. Default: `json`. Example:
    /// `"${client.address} ${request.method} ${request.path} ${status} ${elapsed_ms}"`.
    #[serde(default)]
    pub format: Format,
    /// `stdout`, `stderr`, or the path of a file, which is opened anew when it is rotated away. Default: `stdout`.
    /// Example: `/var/log/tollhouse/access.log`.
    #[serde(default)]
    pub to: To,
    /// Header fields (`header:NAME`) and query parameters (`query:NAME`, by their decoded name, letter case matters)
    /// whose values are written as `***`. Always hidden besides: `header:authorization`, `header:cookie`,
    /// `query:access_token`, `query:api_key`. Default: `[]`. Example: `[header:user-agent, "query:token"]`.
    #[serde(default)]
    pub redact: Vec<Redaction>,
}

/// Numbers for Prometheus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Most combinations of metric and label values held at once; what is beyond is counted under labels that are all
    /// `other`. A histogram counts as one. Changes need an upgrade. Default: `20000`. Example: `100000`.
    #[serde(default = "default_max_series")]
    pub max_series: usize,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { max_series: default_max_series() }
    }
}

fn default_max_series() -> usize {
    DEFAULT_MAX_SERIES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(yaml: &str) -> Result<Observability, serde_yaml::Error> {
        serde_yaml::from_str(yaml)
    }

    #[test]
    fn the_example_of_the_manual_is_read() {
        let read = parse(
            "access_log: {format: json, to: stdout, redact: [header:authorization, query:api_key]}\n\
             metrics: {max_series: 20000}",
        )
        .unwrap();
        assert_eq!(read.access_log.redact.len(), 2);
        assert_eq!(read.access_log.to, To::Stdout);
        assert_eq!(read.metrics, Metrics::default());
    }

    #[test]
    fn everything_has_a_default() {
        assert_eq!(parse("{}").unwrap(), Observability::default());
        assert_eq!(parse("access_log: {format: none}").unwrap().access_log.format, Format::Off);
        assert_eq!(parse("metrics: {}").unwrap().metrics.max_series, 20_000);
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        for bad in [
            "access_log: {format: off}",
            "access_log: {format: text}",
            "access_log: {format: '${no_field}'}",
            "access_log: {file: x}",
            "access_log: {redact: [cookie:sid]}",
            "access_log: {to: ''}",
            "metrics: {max_series: -1}",
            "logs: {}",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_back_reads_the_same() {
        let read = parse("access_log: {format: none, to: /tmp/x, redact: ['query:Token']}").unwrap();
        assert_eq!(parse(&serde_yaml::to_string(&read).unwrap()).unwrap(), read);
    }
}
