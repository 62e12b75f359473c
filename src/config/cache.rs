//! `server.cache`: what the filter `cache` stores, and where.

use std::fmt;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;
use tollhouse_filters::scalar;
use tollhouse_filters::values::{ByteSize, Name, Scalar};

/// Where the filter `cache` keeps answers: one place for the process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Memory for stored answers, with all that it takes to keep and find them.
    pub memory: ByteSize,
    /// Where answers are kept too, for what memory has no room for, and for after a restart. Default: nowhere.
    pub disk: Option<CacheDisk>,
    /// The store over which purges are shared with all gateways that name it with the same `prefix`. Default: each purges
    /// for itself.
    pub store: Option<Name>,
}

/// A directory of stored answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CacheDisk {
    /// A directory for this alone: an absolute path. It is made if there is none. Example: `/var/cache/tollhouse`.
    pub path: CacheFolder,
    /// What its files take at most. Example: `10GiB`.
    pub size: ByteSize,
}

/// The path of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFolder(PathBuf);

impl CacheFolder {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl fmt::Display for CacheFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl Scalar for CacheFolder {
    const EXPECTED: &'static str = "an absolute path such as `/var/cache/tollhouse`";
    const PATTERN: Option<&'static str> = Some("^/.*[^/]$");
    const EXAMPLE: &'static str = "/var/cache/tollhouse";

    fn read(text: &str) -> Option<Self> {
        let is_path = text.starts_with('/') && !text.ends_with('/') && !text.contains('\0');
        is_path.then(|| Self(text.into()))
    }
}

scalar!(CacheFolder);

impl Default for Cache {
    fn default() -> Self {
        Self { memory: ByteSize::from_bytes(256 << 20), disk: None, store: None }
    }
}
