//! The manual says what the program does: keys, defaults, problems, metrics, fields of the log.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

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

/// Whether a text in quotes is the name of a metric. No other one is like that: modules of `tollhouse_filters` stand in
/// no quotes, and files, sockets, stores and user agents are called `tollhouse` or `tollhouse-..`.
fn is_metric(text: &str) -> bool {
    let is_one = ["tollhouse_", "process_"].iter().any(|prefix| text.starts_with(prefix));
    is_one && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

/// A source up to its tests.
fn code(file: &Path) -> String {
    let text = read(file);
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned()
}

/// Names of metrics in all sources of a folder but tests.
fn metrics_in(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.file_stem().is_some_and(|stem| stem == "tests") {
            continue;
        }
        if path.is_dir() {
            found.extend(metrics_in(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.extend(code(&path).split('"').filter(|text| is_metric(text)).map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_metric_is_in_the_manual_and_no_other() {
    let manual = read(&project("src/manual/operations.md"));
    let mut metrics = metrics_in(&project("src"));
    metrics.extend(metrics_in(&project("filters/src")));
    assert!(metrics.len() > 80, "metrics are not where they were: {metrics:?}");
    let rows = manual.lines().filter_map(|line| Some(line.strip_prefix("| `")?.split_once('`')?.0));
    let rows: BTreeSet<String> = rows.filter(|name| is_metric(name)).map(str::to_owned).collect();
    let differing: Vec<&String> = metrics.symmetric_difference(&rows).collect();
    assert!(differing.is_empty(), "in the sources or in the manual only: {differing:?}");
}

#[test]
fn every_field_of_the_log_is_in_the_manual() {
    let manual = read(&project("src/manual/operations.md"));
    let names = |file: &str, pattern: &str| -> Vec<String> {
        let regex = regex::Regex::new(pattern).expect("a pattern");
        regex.captures_iter(&code(&project(file))).map(|found| found[1].to_owned()).collect()
    };
    let fields = names(
        "src/observe/access_log/line.rs",
        "(?:serialize_entry\\(|optional\\(map, |field\\(map, )\"([a-z_]+)\"",
    );
    let of_templates = names("src/observe/access_log/layout.rs", "(?m)^    \\(\"([a-z._]+)\", Field::");
    assert!(fields.len() > 20 && of_templates.len() > 25, "{fields:?} {of_templates:?}");
    for name in fields.iter().chain(&of_templates) {
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
