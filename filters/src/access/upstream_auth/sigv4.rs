//! AWS Signature Version 4, as "Create a signed AWS API request" of AWS's documentation describes it.

use std::borrow::Cow;

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use sha2::{Digest, Sha256};

use crate::condition::raw_pairs;
use crate::path::decode_bytes;
use crate::template::push_encoded;
use crate::values::{Secret, hex};

/// In the place of the hash of a body that is not signed.
pub(super) const UNSIGNED: &str = "UNSIGNED-PAYLOAD";

/// Who signs, and for what.
pub(super) struct Signer {
    pub(super) access_key_id: String,
    pub(super) secret_access_key: Secret,
    pub(super) region: String,
    pub(super) service: String,
    pub(super) paths: Paths,
}

/// What becomes of paths: all services but S3 take them without dots and doubled slashes, encoded once more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paths {
    pub(super) normalize: bool,
    pub(super) encode_again: bool,
}

impl Paths {
    pub(super) fn of(service: &str) -> Self {
        let others = service != "s3";
        Self { normalize: others, encode_again: others }
    }
}

/// What is signed.
pub(super) struct Message<'a> {
    pub(super) method: &'a str,
    /// As it is sent.
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    /// Names in lower case, in any order, each perhaps several times.
    pub(super) fields: &'a [(String, String)],
    /// The hash of the body, or [`UNSIGNED`].
    pub(super) payload: &'a str,
}

/// A moment as signatures write it: `20150830T123600Z`.
pub(super) struct Moment<'a>(pub(super) &'a str);

impl Moment<'_> {
    fn day(&self) -> &str {
        self.0.get(..8).unwrap_or(self.0)
    }
}

impl Signer {
    /// The value of `Authorization`.
    pub(super) fn authorization(&self, message: &Message<'_>, moment: &Moment<'_>) -> String {
        let (canonical, names) = self.canonical(message);
        let to_sign = self.string_to_sign(&canonical, moment);
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{}, SignedHeaders={names}, Signature={}",
            self.access_key_id,
            self.scope(moment),
            hex(self.signature(&to_sign, moment).as_ref()),
        )
    }

    /// The canonical request, and the names of its fields.
    fn canonical(&self, message: &Message<'_>) -> (String, String) {
        let fields = canonical_fields(message.fields);
        let names = fields.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let mut text = format!(
            "{}\n{}\n{}\n",
            message.method,
            canonical_path(message.path, self.paths),
            canonical_query(message.query)
        );
        for (name, value) in &fields {
            text.extend([*name, ":", value, "\n"]);
        }
        text.extend(["\n", &names, "\n", message.payload]);
        (text, names)
    }

    fn scope(&self, moment: &Moment<'_>) -> String {
        format!("{}/{}/{}/aws4_request", moment.day(), self.region, self.service)
    }

    fn string_to_sign(&self, canonical: &str, moment: &Moment<'_>) -> String {
        format!("AWS4-HMAC-SHA256\n{}\n{}\n{}", moment.0, self.scope(moment), hash(canonical.as_bytes()))
    }

    fn signature(&self, to_sign: &str, moment: &Moment<'_>) -> aws_lc_rs::hmac::Tag {
        let secret = zeroize::Zeroizing::new(format!("AWS4{}", self.secret_access_key.expose()));
        let mut key = Key::new(HMAC_SHA256, secret.as_bytes());
        for part in [moment.day(), &self.region, &self.service, "aws4_request"] {
            key = Key::new(HMAC_SHA256, sign(&key, part.as_bytes()).as_ref());
        }
        sign(&key, to_sign.as_bytes())
    }
}

/// The SHA-256 of a body, in hexadecimal digits.
pub(super) fn hash(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Fields by name, the values of each trimmed and joined.
fn canonical_fields(fields: &[(String, String)]) -> Vec<(&str, String)> {
    let mut sorted: Vec<&(String, String)> = fields.iter().collect();
    // Stable: the values of one name stay in their order.
    sorted.sort_by(|one, other| one.0.cmp(&other.0));
    let mut canonical: Vec<(&str, String)> = Vec::with_capacity(sorted.len());
    for (name, value) in sorted {
        let value = value.split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        match canonical.last_mut() {
            Some((last, values)) if *last == *name => values.extend([",", &value]),
            _ => canonical.push((name, value)),
        }
    }
    canonical
}

fn canonical_path(path: &str, paths: Paths) -> String {
    let path = if paths.normalize { normalized(path) } else { path.to_owned() };
    let once: Cow<'_, [u8]> = if paths.encode_again { path.as_bytes().into() } else { decode_bytes(&path) };
    let mut text = String::with_capacity(once.len() + 16);
    push_encoded(&mut text, &once, b"-._~/");
    if text.is_empty() { "/".to_owned() } else { text }
}

/// Without dot segments and doubled slashes.
fn normalized(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    format!("/{}{end}", kept.join("/"))
}

fn canonical_query(query: &str) -> String {
    let encoded = |text: &str| {
        let text: Cow<'_, str> = if text.contains('+') { text.replace('+', " ").into() } else { text.into() };
        let mut out = String::with_capacity(text.len());
        // All but unreserved characters (RFC 3986 s2.3), and as bytes: what is signed is what is sent, be it UTF-8 or not.
        push_encoded(&mut out, &decode_bytes(&text), b"-._~");
        out
    };
    let mut pairs: Vec<(String, String)> =
        raw_pairs(query).map(|(name, value)| (encoded(name), encoded(value))).collect();
    pairs.sort();
    pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Suite {
        tests: Vec<Vector>,
    }

    #[derive(Deserialize)]
    struct Vector {
        name: String,
        token: Option<String>,
        omit_token: bool,
        normalize: bool,
        sign_body: bool,
        request: String,
        canonical: String,
        string_to_sign: String,
        authorization: String,
    }

    const MOMENT: Moment<'static> = Moment("20150830T123600Z");

    /// Method, path, query, fields and body of a request of the suite.
    fn parts(request: &str) -> (String, String, String, Vec<(String, String)>, String) {
        let (head, body) = request.split_once("\n\n").unwrap_or((request.trim_end(), ""));
        let mut lines = head.lines();
        let line = lines.next().expect("a request line");
        let (method, rest) = line.split_once(' ').expect("a method");
        let (target, _) = rest.rsplit_once(' ').expect("a version");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut fields: Vec<(String, String)> = Vec::new();
        for line in lines {
            match (line.starts_with(' '), fields.last_mut()) {
                // A folded line.
                (true, Some((_, value))) => value.extend([" ", line.trim()]),
                _ => {
                    let (name, value) = line.split_once(':').expect("a field");
                    fields.push((name.to_ascii_lowercase(), value.to_owned()));
                }
            }
        }
        (method.into(), path.into(), query.into(), fields, body.into())
    }

    #[test]
    fn the_vectors_of_awss_own_suite_are_signed_as_they_say() {
        let suite: Suite = serde_json::from_str(include_str!("sigv4_vectors.json")).expect("vectors");
        assert_eq!(suite.tests.len(), 38);
        for vector in suite.tests {
            let (method, path, query, mut fields, body) = parts(&vector.request);
            let payload = hash(body.as_bytes());
            fields.push(("x-amz-date".into(), MOMENT.0.into()));
            if let Some(token) = vector.token.filter(|_| !vector.omit_token) {
                fields.push(("x-amz-security-token".into(), token));
            }
            if vector.sign_body {
                fields.push(("x-amz-content-sha256".into(), payload.clone()));
            }
            let signer = Signer {
                access_key_id: "AKIDEXAMPLE".into(),
                secret_access_key: Secret::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
                region: "us-east-1".into(),
                service: "service".into(),
                paths: Paths { normalize: vector.normalize, encode_again: false },
            };
            let message =
                Message { method: &method, path: &path, query: &query, fields: &fields, payload: &payload };
            let (canonical, _) = signer.canonical(&message);
            assert_eq!(canonical, vector.canonical, "{}", vector.name);
            assert_eq!(signer.string_to_sign(&canonical, &MOMENT), vector.string_to_sign, "{}", vector.name);
            assert_eq!(signer.authorization(&message, &MOMENT), vector.authorization, "{}", vector.name);
        }
    }

    #[test]
    fn all_services_but_s3_have_what_is_encoded_encoded_again() {
        assert_eq!(canonical_path("/a%20b//c", Paths::of("execute-api")), "/a%2520b/c");
        assert_eq!(canonical_path("/a%20b//c", Paths::of("s3")), "/a%20b//c");
        assert_eq!(canonical_path("/", Paths::of("s3")), "/");
        assert_eq!(canonical_path("", Paths::of("lambda")), "/");
    }

    #[test]
    fn what_is_not_utf_8_is_signed_as_it_is_sent() {
        // "Create a signed AWS API request": each byte but those of unreserved characters is `%` and two digits.
        assert_eq!(canonical_query("prefix=%E9&%ff=%C3%A9+b"), "%FF=%C3%A9%20b&prefix=%E9");
        assert_eq!(canonical_path("/b/%E9%C3", Paths::of("s3")), "/b/%E9%C3");
        assert_eq!(canonical_path("/b/%E9", Paths::of("lambda")), "/b/%25E9");
    }
}
