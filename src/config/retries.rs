//! What is tried again, as the user writes it.

use std::borrow::Cow;
use std::fmt;

use http::Method;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tollhouse_filters::condition::MethodName;
use tollhouse_filters::values::{ByteSize, DurationRange, Percent, Scalar, StatusRange, Timeout};

/// What is tried again, on another backend while there is one. Nothing is, once an answer has begun to go to the client.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retries {
    /// Further attempts; one over a connection that turned out to be closed does not count. Default: `1`. Example: `2`.
    #[schemars(range(max = 10))]
    pub max: u8,
    /// What an attempt is repeated after: `connect`, `reset`, `refused_stream`, `stale`, statuses, `grpc:NAME`. Default: `[connect, refused_stream, stale]`. Example: `[connect, reset, 503]`.
    pub conditions: Vec<Condition>,
    /// The methods whose requests are repeated where the backend may have seen them: `idempotent` (RFC 9110 s9.2.2), `all`, or a list. Default: `idempotent`. Example: `[GET, HEAD]`.
    pub methods: Methods,
    /// Whether a request with an `Idempotency-Key` is repeated whatever its method. Default: `false`. Example: `true`.
    pub idempotency_key: bool,
    /// A retry waits for a random part of the first, doubled with each one up to the last. Default: `25ms..250ms`. Example: `10ms..1s`.
    pub backoff: DurationRange,
    /// For one attempt, from its start to the head of the answer; an attempt over it counts as `reset`. Default: `none`. Example: `500ms`.
    pub per_try: Timeout,
    /// Retries as a share of the requests of the last ten seconds, and ten besides. Default: `20%`. Example: `10%`.
    pub budget: Percent,
    /// The largest part of a request's body that is kept for another attempt, at most 64 KiB; a body that a filter collected is repeated whatever its size. Default: `64KiB`. Example: `16KiB`.
    pub body_bytes: ByteSize,
}

/// Retries of a route instead of its upstream's; the budget stays the upstream's.
#[derive(Debug, Clone, Default, PartialEq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RouteRetries {
    /// Further attempts.
    #[schemars(range(max = 10))]
    pub max: Option<u8>,
    /// What an attempt is repeated after.
    pub conditions: Option<Vec<Condition>>,
    /// The methods whose requests are repeated where the backend may have seen them.
    pub methods: Option<Methods>,
    /// Whether a request with an `Idempotency-Key` is repeated whatever its method.
    pub idempotency_key: Option<bool>,
    /// How long a retry waits.
    pub backoff: Option<DurationRange>,
    /// For one attempt, from its start to the head of the answer.
    pub per_try: Option<Timeout>,
}

/// Something that an attempt is repeated after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No connection, or one that was closed before the request was sent: whatever the method.
    Connect,
    /// The backend broke the connection or the protocol before the head of its answer was here, or took too long.
    Reset,
    /// The backend says that it did not process the request (RFC 9113 s8.7): whatever the method.
    RefusedStream,
    /// A kept connection was closed without a word, after the request had been sent.
    Stale,
    /// An answer with such a status.
    Status(StatusRange),
    /// An answer of gRPC that is this status and no more (a head without messages).
    Grpc(u8),
}

/// Whose requests are repeated although the backend may have seen them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Methods {
    /// Those that may be done twice (RFC 9110 s9.2.2).
    #[default]
    Idempotent,
    /// All.
    All,
    /// These.
    These(Vec<Method>),
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            max: 1,
            conditions: vec![Condition::Connect, Condition::RefusedStream, Condition::Stale],
            methods: Methods::Idempotent,
            idempotency_key: false,
            backoff: DurationRange::from_millis(25, 250),
            per_try: Timeout::NONE,
            budget: Percent::from_whole(20),
            body_bytes: ByteSize::from_kib(64),
        }
    }
}

impl Retries {
    /// These with a route's own in the place of some.
    #[must_use]
    pub fn narrowed(&self, route: &RouteRetries) -> Self {
        let RouteRetries { max, conditions, methods, idempotency_key, backoff, per_try } = route.clone();
        Self {
            max: max.unwrap_or(self.max),
            conditions: conditions.unwrap_or_else(|| self.conditions.clone()),
            methods: methods.unwrap_or_else(|| self.methods.clone()),
            idempotency_key: idempotency_key.unwrap_or(self.idempotency_key),
            backoff: backoff.unwrap_or(self.backoff),
            per_try: per_try.unwrap_or(self.per_try),
            ..self.clone()
        }
    }
}

/// Statuses of gRPC by their number less one; `OK` is none to retry after.
const GRPC: [&str; 16] = [
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

impl Scalar for Condition {
    const EXPECTED: &'static str = "`connect`, `reset`, `refused_stream`, `stale`, a status from 400 to 599 such as `503` \
                                    or `500-599`, or a status of gRPC such as `grpc:unavailable`";
    const PATTERN: Option<&'static str> = Some(
        "^(connect|reset|refused_stream|stale|[45][0-9]{2}(-[45][0-9]{2})?|grpc:(cancelled|unknown|\
         invalid_argument|deadline_exceeded|not_found|already_exists|permission_denied|resource_exhausted|\
         failed_precondition|aborted|out_of_range|unimplemented|internal|unavailable|data_loss|unauthenticated))$",
    );
    const EXAMPLE: &'static str = "connect";
    const INTEGERS: bool = true;

    fn read(text: &str) -> Option<Self> {
        Some(match text {
            "connect" => Self::Connect,
            "reset" => Self::Reset,
            "refused_stream" => Self::RefusedStream,
            "stale" => Self::Stale,
            _ => match text.strip_prefix("grpc:") {
                Some(name) => {
                    let at = GRPC.iter().position(|known| *known == name)?;
                    Self::Grpc(u8::try_from(at + 1).ok()?)
                }
                None => {
                    let range = StatusRange::read(text).filter(|_| text.starts_with(['4', '5']))?;
                    Self::Status(range)
                }
            },
        })
    }
}

tollhouse_filters::scalar!(Condition);

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Reset => f.write_str("reset"),
            Self::RefusedStream => f.write_str("refused_stream"),
            Self::Stale => f.write_str("stale"),
            Self::Status(range) => range.fmt(f),
            Self::Grpc(status) => {
                let at = usize::from(*status).wrapping_sub(1);
                write!(f, "grpc:{}", GRPC.get(at).copied().unwrap_or("unknown"))
            }
        }
    }
}

impl Serialize for Methods {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Idempotent => serializer.serialize_str("idempotent"),
            Self::All => serializer.serialize_str("all"),
            Self::These(list) => serializer.collect_seq(list.iter().map(Method::as_str)),
        }
    }
}

impl<'de> Deserialize<'de> for Methods {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MethodsVisitor)
    }
}

struct MethodsVisitor;

impl<'de> Visitor<'de> for MethodsVisitor {
    type Value = Methods;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("`idempotent`, `all`, or a list of methods such as `[GET, HEAD]`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Methods, E> {
        match text {
            "idempotent" => Ok(Methods::Idempotent),
            "all" => Ok(Methods::All),
            _ => Err(E::custom("expected `idempotent`, `all`, or a list of methods such as `[GET, HEAD]`")),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Methods, A::Error> {
        let mut methods = Vec::new();
        while let Some(name) = list.next_element::<MethodName>()? {
            methods.push(name.into());
        }
        Ok(Methods::These(methods))
    }
}

impl JsonSchema for Methods {
    fn schema_name() -> Cow<'static, str> {
        "RetriedMethods".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let method = generator.subschema_for::<MethodName>();
        json_schema!({
            "anyOf": [{"enum": ["idempotent", "all"]}, {"type": "array", "items": method}],
            "examples": ["idempotent", ["GET", "HEAD"]],
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_read_back_what_they_write() {
        for text in ["connect", "reset", "refused_stream", "stale", "503", "500-599", "grpc:unavailable"] {
            assert_eq!(text.parse::<Condition>().unwrap().to_string(), text);
        }
        assert_eq!("grpc:unavailable".parse(), Ok(Condition::Grpc(14)));
        for text in ["", "5xx", "200", "399-500", "600", "grpc:ok", "grpc:14", "timeout", "Connect"] {
            assert!(text.parse::<Condition>().is_err(), "{text}");
        }
    }

    #[test]
    fn methods_are_a_word_or_a_list() {
        for (written, methods) in [
            (json!("idempotent"), Methods::Idempotent),
            (json!("all"), Methods::All),
            (json!(["GET", "POST"]), Methods::These(vec![Method::GET, Method::POST])),
        ] {
            let read: Methods = serde_json::from_value(written.clone()).unwrap();
            assert_eq!((&read, serde_json::to_value(&read).unwrap()), (&methods, written));
        }
        for written in [json!("safe"), json!(["get"]), json!({}), json!(1)] {
            assert!(serde_json::from_value::<Methods>(written).is_err());
        }
    }

    #[test]
    fn a_route_replaces_what_it_writes_and_nothing_else() {
        let upstream = Retries { max: 3, budget: Percent::from_whole(5), ..Retries::default() };
        let route: RouteRetries = serde_json::from_value(json!({"max": 0, "conditions": [503]})).unwrap();
        let narrowed = upstream.narrowed(&route);
        assert_eq!((narrowed.max, narrowed.conditions.len()), (0, 1));
        assert_eq!(narrowed, Retries { max: 0, conditions: narrowed.conditions.clone(), ..upstream });
    }
}
