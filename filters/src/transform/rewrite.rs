//! `rewrite`: changes the path that the upstream sees.
//!
//! ```yaml
//! - rewrite: {strip_prefix: /api}
//! - rewrite: {path: "/v2/users/${path.id}"}
//! ```

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::path::{DotSegments, PathRules, normalize};
use crate::phase::{OnRequest, Phases};
use crate::problem::{INVALID_PATH, Problem};
use crate::template::{Escape, Template};

/// A new path, or changes of its beginning; the query stays.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Removed from the beginning, on a segment boundary; a path without it stays as it is.
    pub strip_prefix: Option<String>,
    /// Put before the path, after `strip_prefix`.
    pub add_prefix: Option<String>,
    /// The whole new path; a template whose values are percent-encoded.
    pub path: Option<Template>,
}

/// See the [module](self).
pub struct Rewrite {
    strip: String,
    add: String,
    path: Option<Template>,
}

impl Filter for Rewrite {
    const NAME: &'static str = "rewrite";
    type Options = Options;

    fn build(options: Options, _: &mut Build<'_>) -> Result<Phases, BuildError> {
        let prefixes = options.strip_prefix.is_some() || options.add_prefix.is_some();
        match &options.path {
            Some(_) if prefixes => {
                return Err(BuildError::new("`path` replaces the whole path; remove it or the prefixes"));
            }
            Some(path) if !path.to_string().starts_with('/') => {
                return Err(BuildError::at("path", "expected a path that starts with `/`"));
            }
            None if !prefixes => {
                return Err(BuildError::new(
                    "nothing to rewrite: add `strip_prefix`, `add_prefix` or `path`",
                ));
            }
            _ => {}
        }
        let filter = Self {
            strip: prefix("strip_prefix", options.strip_prefix)?,
            add: prefix("add_prefix", options.add_prefix)?,
            path: options.path,
        };
        Ok(Phases::new().on_request(Arc::new(filter)))
    }
}

/// A normalised prefix without its last slash; empty when none was written.
fn prefix(option: &str, written: Option<String>) -> Result<String, BuildError> {
    let Some(written) = written else { return Ok(String::new()) };
    let normal = normalize(&written, &PathRules::default())
        .map_err(|error| BuildError::at(option, format!("expected a path such as `/api`: {error}")))?;
    Ok(normal.wire().trim_end_matches('/').to_owned())
}

impl Rewrite {
    fn rewritten<'a>(&self, request: &'a RequestHeader, ctx: &Context) -> Cow<'a, str> {
        if let Some(template) = &self.path {
            return template.render(request, ctx, Escape::Url).into();
        }
        let path = request.uri.path();
        // Compared and cut in one and the same form, so that lengths agree.
        let rest = path.strip_prefix(&*self.strip).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let rest = rest.unwrap_or(path);
        match (self.add.as_str(), rest) {
            ("", "") => "/".into(),
            ("", rest) => rest.into(),
            (add, rest) => format!("{add}{rest}").into(),
        }
    }
}

#[async_trait]
impl OnRequest for Rewrite {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        // RFC 9112 s3.2.4: this asks about the server, and is no path.
        if request.uri.path() == "*" {
            return Ok(Outcome::Continue);
        }
        let path = self.rewritten(request, ctx);
        // What was put together may mean something else than its parts did, and a value of `..` another place.
        let rules = PathRules { dot_segments: DotSegments::Reject, ..PathRules::default() };
        let Ok(normal) = normalize(&path, &rules) else {
            return Ok(Problem::new(&INVALID_PATH).detail("the rewritten path is not valid").into());
        };
        let target = match request.uri.query() {
            Some(query) => format!("{}?{query}", normal.wire()),
            None => normal.wire().to_owned(),
        };
        ctx.decide(Verdict::Changed, "path", &[("to", &target)]);
        ctx.policies.upstream_path = Some(target.into());
        Ok(Outcome::Continue)
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get, refused, send};

    async fn rewritten(filter: &str, target: &str) -> Option<String> {
        chain(filter)
            .send(get(target))
            .await
            .continues()
            .ctx
            .policies
            .upstream_path
            .as_deref()
            .map(str::to_owned)
    }

    #[tokio::test]
    async fn a_prefix_is_stripped_on_a_segment_boundary_only() {
        let strip = "- rewrite: {strip_prefix: /api}";
        assert_eq!(rewritten(strip, "/api/users?x=1").await.as_deref(), Some("/users?x=1"));
        assert_eq!(rewritten(strip, "/api").await.as_deref(), Some("/"));
        assert_eq!(rewritten(strip, "/apiary").await.as_deref(), Some("/apiary"));
    }

    #[tokio::test]
    async fn a_prefix_is_added_after_one_was_stripped() {
        assert_eq!(
            rewritten("- rewrite: {strip_prefix: /api, add_prefix: /v2/}", "/api/x").await.as_deref(),
            Some("/v2/x")
        );
    }

    #[tokio::test]
    async fn the_asterisk_that_stands_for_the_server_stays_as_it_is() {
        for options in ["{add_prefix: /v2}", "{strip_prefix: /api}", "{path: /v2}"] {
            let sent = chain(&format!("- rewrite: {options}")).send(send("OPTIONS", "*")).await.continues();
            assert_eq!(sent.ctx.policies.upstream_path, None, "{options}");
        }
    }

    #[tokio::test]
    async fn a_value_stays_in_its_segment() {
        let chain = chain("- rewrite: {path: '/u/${query.id}'}");
        for id in ["../admin", "..", ".", "%2e%2e"] {
            let sent = chain.send(get(&format!("/?id={id}"))).await;
            assert_eq!(sent.responds(400).status(), 400, "{id}");
        }
    }

    #[test]
    fn there_must_be_one_thing_to_do() {
        assert!(refused("- rewrite: {}").contains("nothing to rewrite"));
        assert!(refused("- rewrite: {path: /a, strip_prefix: /b}").contains("whole path"));
        assert!(refused("- rewrite: {path: a}").contains("starts with"));
    }
}
