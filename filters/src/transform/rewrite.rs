//! `rewrite`: changes the path that the upstream sees.
//!
//! ```yaml
//! - rewrite: {strip_prefix: /api}
//! - rewrite: {path: "/v2/users/${path.id}"}
//! ```
//!
//! A second one goes on from what the first one made.

use std::borrow::Cow;
use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::path::{DotSegments, EncodedSlash, NormalPath, PathError, PathRules, behind, normalize};
use crate::phase::{OnRequest, Phases};
use crate::problem::{INVALID_PATH, Problem};
use crate::template::{Escape, Template};

/// For what was normalised before, by the rules of the server: it stays as it is, and means nothing else.
const NORMAL: PathRules =
    PathRules { encoded_slash: EncodedSlash::Keep, dot_segments: DotSegments::Reject, merge_slashes: false };

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
    /// As routes see paths: what one of them matched is stripped however it was spelt.
    strip: String,
    add: String,
    path: Option<Template>,
    /// How what `path` gives is normalised.
    rules: PathRules,
}

impl Filter for Rewrite {
    const NAME: &'static str = "rewrite";
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
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
        let rules = build.path_rules();
        if let Some(path) = &options.path {
            check(path, &rules.of_values())?;
            build.fills_in(path);
        }
        let filter = Self {
            strip: without_last_slash(prefix("strip_prefix", options.strip_prefix, &rules)?.matched()),
            add: without_last_slash(prefix("add_prefix", options.add_prefix, &rules)?.wire()),
            path: options.path,
            rules: rules.of_values(),
        };
        Ok(Phases::new().on_request(Arc::new(filter)))
    }
}

/// Refuses a path that no request could get, whatever is filled in.
fn check(path: &Template, rules: &PathRules) -> Result<(), BuildError> {
    if path.texts().any(|text| text.contains(['?', '#'])) {
        return Err(BuildError::at("path", "expected a path without `?` and `#`; the query stays as it is"));
    }
    // As good as any value: two digits of an escape too.
    normalize(&path.filled_with("aa"), rules)
        .map(drop)
        .map_err(|error| BuildError::at("path", format!("expected a path such as `/v2/users`: {error}")))
}

/// A normalised prefix; `/` when none was written.
fn prefix(option: &str, written: Option<String>, rules: &PathRules) -> Result<NormalPath, BuildError> {
    let rules = PathRules { dot_segments: DotSegments::Normalize, ..*rules };
    normalize(written.as_deref().unwrap_or("/"), &rules)
        .map_err(|error| BuildError::at(option, format!("expected a path such as `/api`: {error}")))
}

fn without_last_slash(prefix: &str) -> String {
    prefix.trim_end_matches('/').to_owned()
}

impl Rewrite {
    /// The new path in place of this one.
    fn rewritten(&self, path: &str, request: &RequestHeader, ctx: &Context) -> Result<NormalPath, PathError> {
        match &self.path {
            Some(template) => normalize(&template.render(request, ctx, Escape::Url), &self.rules),
            // What was put together may mean something else than its parts did.
            None => normalize(&self.moved(path), &NORMAL),
        }
    }

    /// The path with its other beginning.
    fn moved<'a>(&self, path: &'a str) -> Cow<'a, str> {
        let rest = behind(path, &self.strip, self.rules.merge_slashes).unwrap_or(path);
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
        let (path, query) = match ctx.policies.upstream_path.as_deref() {
            Some(made) => made.split_once('?').map_or((made, None), |(path, query)| (path, Some(query))),
            None => (request.uri.path(), request.uri.query()),
        };
        // RFC 9112 s3.2.4: this asks about the server, and is no path.
        if path == "*" {
            return Ok(Outcome::Continue);
        }
        let Ok(normal) = self.rewritten(path, request, ctx) else {
            return Ok(Problem::new(&INVALID_PATH).detail("the rewritten path is not valid").into());
        };
        let target = match query {
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
    async fn a_prefix_is_stripped_as_routes_see_it() {
        // RFC 3986 s3.3: some servers drop what stands behind a `;` in a segment, so no decision looks at it.
        let moved = "- rewrite: {strip_prefix: /api, add_prefix: /internal}";
        for (target, expected) in [
            ("/api;x/users/7;y?z=1", "/internal/users/7;y?z=1"),
            ("/;x/api/users/7", "/internal/users/7"),
            ("/api;x", "/internal"),
            ("/apiary;x", "/internal/apiary;x"),
        ] {
            assert_eq!(rewritten(moved, target).await.as_deref(), Some(expected), "{target}");
        }
        // RFC 3986 s6.2.2: two spellings of one path.
        for prefix in ["/$a", "/%24a", "/%24a;v=1/"] {
            let strip = format!("- rewrite: {{strip_prefix: '{prefix}'}}");
            for target in ["/$a/b", "/%24a/b", "/%24a;v=2/b"] {
                assert_eq!(rewritten(&strip, target).await.as_deref(), Some("/b"), "{prefix} {target}");
            }
        }
    }

    #[tokio::test]
    async fn a_prefix_is_added_after_one_was_stripped() {
        assert_eq!(
            rewritten("- rewrite: {strip_prefix: /api, add_prefix: /v2/}", "/api/x").await.as_deref(),
            Some("/v2/x")
        );
    }

    #[tokio::test]
    async fn a_second_rewrite_goes_on_from_the_first() {
        let strip = "- rewrite: {strip_prefix: /api}\n";
        for (second, target, expected) in [
            ("{add_prefix: /v1}", "/api/users?x=1", "/v1/users?x=1"),
            ("{strip_prefix: /users}", "/api/users/7?", "/7?"),
            ("{strip_prefix: /api}", "/api/api/x", "/x"),
            ("{path: '/u/${query.id}'}", "/api/users?id=7", "/u/7?id=7"),
        ] {
            let filters = format!("{strip}- rewrite: {second}");
            assert_eq!(rewritten(&filters, target).await.as_deref(), Some(expected), "{second} {target}");
        }
        let after_a_path = "- rewrite: {path: '/u/${query.id}'}\n- rewrite: {add_prefix: /v1}";
        assert_eq!(rewritten(after_a_path, "/x?id=7").await.as_deref(), Some("/v1/u/7?id=7"));
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

    #[test]
    fn a_path_that_no_request_could_get_is_refused() {
        for (path, why) in [
            ("/search?q=${path.q}", "without `?`"),
            ("/a#${path.part}", "without `?` and `#`"),
            ("/a/../b", "a dot segment"),
            ("/./${path.id}", "a dot segment"),
            ("/a%2Fb", "an escaped slash"),
            ("/${path.id}/c%5C", "an escaped slash or a backslash"),
            ("/50%/${path.id}", "an invalid percent-escape"),
        ] {
            let said = refused(&format!("- rewrite: {{path: '{path}'}}"));
            assert!(said.starts_with("path: expected a path") && said.contains(why), "{path}: {said}");
        }
        for path in ["/v2${request.path}", "/a..${path.id}", "/%${query.hex}", "/a%3Fb;v=1/${path.id}", "/"] {
            let _ = chain(&format!("- rewrite: {{path: '{path}'}}"));
        }
    }
}
