//! The manual says what the program does: keys, defaults, problems, metrics, fields of the log.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{project, read, schema};

/// Headings of tables of keys, and the definitions they show; filters are found by name.
const SECTIONS: &[(&str, &str)] = &[
    ("the document", "Document"),
    ("server", "Server"),
    ("server.limits", "Limits"),
    ("server.paths", "PathRules"),
    ("server.dns", "Dns"),
    ("server.overload", "Overload"),
    ("server.cache", "Cache"),
    ("server.cache.disk", "CacheDisk"),
    ("filter cache: key", "CacheKey"),
    ("filter cache: key.query", "CacheQuery"),
    ("filter cache: purge", "CachePurge"),
    ("listeners[]", "Listener"),
    ("listeners[].tls", "ListenerTls"),
    ("listeners[].tls.certificates[]", "Certificate"),
    ("listeners[].tls.client_auth", "ClientAuth"),
    ("upstreams[]", "Upstream"),
    ("upstreams[].backends[]", "Backend"),
    ("upstreams[].discovery, type dns", "DnsDiscovery"),
    ("upstreams[].discovery, type dns_srv", "DnsSrvDiscovery"),
    ("upstreams[].discovery, type file", "FileDiscovery"),
    ("upstreams[].discovery, type consul", "ConsulDiscovery"),
    ("upstreams[].discovery, type eureka", "EurekaDiscovery"),
    ("upstreams[].discovery, type nacos", "NacosDiscovery"),
    ("upstreams[].discovery, type etcd", "EtcdDiscovery"),
    ("upstreams[].discovery, type kubernetes", "KubernetesDiscovery"),
    ("upstreams[].discovery, type zookeeper", "ZookeeperDiscovery"),
    ("upstreams[].tls", "Tls"),
    ("upstreams[].balance", "Balance"),
    ("upstreams[].balance.sticky", "Sticky"),
    ("upstreams[].health", "Health"),
    ("upstreams[].health.active", "Active"),
    ("upstreams[].health.outlier", "Outlier"),
    ("upstreams[].timeouts", "Timeouts"),
    ("upstreams[].retries", "Retries"),
    ("upstreams[].circuit_breaker", "CircuitBreaker"),
    ("upstreams[].circuit_breaker.fallback", "Fallback"),
    ("upstreams[].concurrency", "UpstreamConcurrency"),
    ("upstreams[].concurrency.adaptive", "Adaptive"),
    ("upstreams[].hedge", "Hedge"),
    ("upstreams[].pool", "Pool"),
    ("stores.NAME", "Store"),
    ("stores.NAME.tls", "StoreTls"),
    ("identities.NAME, type api_key", "ApiKeyIdentity"),
    ("identities.NAME, type basic", "BasicIdentity"),
    ("identities.NAME, type hmac", "HmacIdentity"),
    ("identities.NAME, type mtls", "MtlsIdentity"),
    ("identities.NAME, type oidc", "OidcIdentity"),
    ("identities.NAME, type introspection", "IntrospectionIdentity"),
    ("identities.NAME, type jwt", "JwtIdentity"),
    ("consumers, in a file", "ConsumerFile"),
    ("consumers[]", "Consumer"),
    ("consumers[].match[]", "ConsumerMatch"),
    ("consumers[].credentials[]", "Credential"),
    ("plans.NAME", "Plan"),
    ("plans.NAME.limits[]", "PlanLimit"),
    ("services[]", "Service"),
    ("services[].versioning", "Versioning"),
    ("services[].versions.NAME", "ApiVersion"),
    ("services[].versions.NAME.brownouts[]", "Brownout"),
    ("routes[]", "Route"),
    ("routes[].match", "Match"),
    ("routes[].split", "Split"),
    ("routes[].split.force", "Force"),
    ("routes[].split.ramp", "Ramp"),
    ("routes[].split.ramp.abort_if", "AbortIf"),
    ("routes[].timeouts", "RouteTimeouts"),
    ("routes[].retries", "RouteRetries"),
    ("when", "WhenSpec"),
    ("filter forward_auth: cache", "ForwardAuthCache"),
    ("filter upstream_auth: client_credentials", "ClientCredentials"),
    ("filter upstream_auth: basic", "UpstreamBasic"),
    ("filter upstream_auth: header", "UpstreamField"),
    ("filter upstream_auth: aws", "UpstreamAws"),
    ("filter mirror: diff", "MirrorDiffOptions"),
    ("observability", "Observability"),
    ("observability.access_log", "AccessLog"),
    ("observability.metrics", "Metrics"),
    ("admin", "Admin"),
    ("tests[]", "Test"),
    ("tests[].request", "TestRequest"),
    ("tests[].expect", "Expect"),
];

/// Rows by heading: key and default.
fn tables() -> BTreeMap<String, Vec<(String, String)>> {
    let text = read(&project("src/manual/configuration.md"));
    let mut tables: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for part in text.split("\n### `").skip(1) {
        let (heading, rest) = part.split_once('`').expect("a heading in backticks");
        let rows = rest.lines().filter(|line| line.starts_with("| `")).map(|line| {
            let mut cells = line.split(" | ");
            let key = cells.next().unwrap_or_default().trim_start_matches("| `").trim_end_matches('`');
            (key.to_owned(), cells.next().unwrap_or_default().to_owned())
        });
        tables.insert(heading.to_owned(), rows.collect());
    }
    tables
}

/// What a definition's table must hold.
fn rows(definition: &Value) -> Vec<(String, String)> {
    let required = definition["required"].as_array().cloned().unwrap_or_default();
    let properties = definition["properties"].as_object().expect("properties");
    let default = |key: &String, property: &Value| match property.get("default") {
        _ if required.contains(&Value::from(key.as_str())) => "required".to_owned(),
        None | Some(Value::Null) => "not set".to_owned(),
        Some(Value::String(text)) if !text.is_empty() => format!("`{text}`"),
        Some(value) => format!("`{value}`"),
    };
    properties.iter().map(|(key, property)| (key.clone(), default(key, property))).collect()
}

#[test]
fn every_key_is_in_the_manual_with_its_default() {
    let tables = tables();
    let definitions = &schema::schema()["$defs"];
    for &(heading, name) in SECTIONS {
        assert_eq!(tables.get(heading), Some(&rows(&definitions[name])), "{heading}");
    }
    for filter in tollhouse_filters::builtin().names() {
        let options = &definitions["FilterItem"]["properties"][filter]["anyOf"][0]["$ref"];
        let pointer = options.as_str().expect("a reference").trim_start_matches('#');
        let wanted = rows(schema::schema().pointer(pointer).expect("a definition"));
        let heading = format!("filter {filter}");
        assert_eq!(tables.get(&heading), Some(&wanted), "{heading}");
    }
}

#[test]
fn every_metric_and_field_of_the_log_is_in_the_manual() {
    let manual = read(&project("src/manual/operations.md"));
    let names = |file: &str, pattern: &str| -> Vec<String> {
        let regex = regex::Regex::new(pattern).expect("a pattern");
        let text = read(&project(file));
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        regex.captures_iter(code).map(|found| found[1].to_owned()).collect()
    };
    let mut all =
        names("src/observe/metrics/mod.rs", "const [A-Z_]+: &str = \"((?:tollhouse|process)_[a-z_]+)\"");
    all.extend(names("src/server/mod.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/release/ramp/mod.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/release/ramp/keeper.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("filters/src/traffic/mirror/report.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/release/calls.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/cache/mod.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/cache/numbers.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("filters/src/traffic/cache/numbers.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/server/people.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/upstream/export.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/store/numbers.rs", "\"(tollhouse_[a-z_]+)\""));
    all.extend(names("src/server/tls.rs", "\"(tollhouse_[a-z_]+)\""));
    let fields = names(
        "src/observe/access_log/line.rs",
        "(?:serialize_entry\\(|optional\\(map, |field\\(map, )\"([a-z_]+)\"",
    );
    let of_templates = names("src/observe/access_log/layout.rs", "(?m)^    \\(\"([a-z._]+)\", Field::");
    assert!(all.len() > 10 && fields.len() > 20 && of_templates.len() > 25, "{all:?} {fields:?}");
    for name in all.iter().chain(&fields).chain(&of_templates) {
        assert!(manual.contains(&format!("`{name}`")), "{name} is not in the manual");
    }
}

#[test]
fn every_rule_about_heads_is_in_the_manual_with_its_section() {
    let manual = read(&project("src/manual/configuration.md"));
    for rule in tollhouse::door::Rule::all() {
        let row = format!("| `{}` | {} | ", rule.name(), rule.kind().status);
        let row = manual.lines().find(|line| line.starts_with(&row));
        let section = format!(" | {} |", rule.section());
        assert!(row.is_some_and(|row| row.ends_with(&section)), "{rule:?}: {row:?}");
    }
}

#[test]
fn every_problem_is_in_the_manual() {
    let manual = read(&project("src/manual/configuration.md"));
    let registry = read(&project("filters/src/problem.rs"));
    let regex = regex::Regex::new("(?m)^ +[A-Z_]+ = ([0-9]{3}) \"([a-z-]+)\"").expect("a pattern");
    let mut seen = 0;
    for found in regex.captures_iter(&registry) {
        let row = manual.lines().find(|line| line.starts_with(&format!("| {} |", &found[1])));
        assert!(
            row.is_some_and(|row| row.contains(&format!("`{}`", &found[2]))),
            "{} {}",
            &found[1],
            &found[2]
        );
        seen += 1;
    }
    assert!(seen > 10, "problems are not where they were");
}
