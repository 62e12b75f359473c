use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn written(fields: Value) -> written::Upstream {
    let mut whole = json!({"name": "users", "backends": [{"address": "127.0.0.1:9001"}]});
    for (key, value) in fields.as_object().unwrap() {
        whole[key] = value.clone();
    }
    serde_json::from_value(whole).unwrap()
}

fn build_in(base: &Path, fields: Value) -> Result<Upstream, Vec<(String, String)>> {
    Upstream::build(&written(fields), base, None)
}

fn build(fields: Value) -> Result<Upstream, Vec<(String, String)>> {
    build_in(Path::new("/nonexistent"), fields)
}

fn paths(fields: Value) -> Vec<String> {
    build(fields).unwrap_err().into_iter().map(|(path, _)| path).collect()
}

/// A directory with an authority `ca.pem`, another one `other.pem`, and a pair `client.pem`, `client.key`.
fn certificates() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["ca.pem", "other.pem", "client.pem"] {
        let made = rcgen::generate_simple_self_signed(vec!["users.internal".to_owned()]).unwrap();
        std::fs::write(dir.path().join(file), made.cert.pem()).unwrap();
        let key = dir.path().join(file).with_extension("key");
        std::fs::write(key, made.signing_key.serialize_pem()).unwrap();
    }
    std::fs::write(
        dir.path().join("bad.pem"),
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    std::fs::write(dir.path().join("empty.pem"), "").unwrap();
    // Whoever reads it waits for somebody to write.
    assert!(std::process::Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap().success());
    dir
}

#[test]
fn all_problems_are_reported_at_once_with_their_paths() {
    let fields = json!({
        "protocol": "h2c", "backends": [{"address": "127.0.0.1:1", "weight": 1001}], "retries": {"max": 11},
        "tls": {"client_cert": "client.pem"},
    });
    assert_eq!(
        paths(fields),
        ["backends[0].weight", "retries.max", "protocol", "tls.sni", "tls.client_cert"]
    );
    assert_eq!(paths(json!({"backends": [], "protocol": "h2"})), ["backends", "protocol"]);
}

#[test]
fn the_name_to_verify_is_never_empty_and_comes_from_the_host_name_by_default() {
    assert_eq!(paths(json!({"tls": {}})), ["tls.sni"]);
    assert_eq!(paths(json!({"tls": {"verify": false}})), ["tls.sni"]);
    assert_eq!(paths(json!({"tls": {"sni": ""}})), ["tls.sni"]);
    assert_eq!(paths(json!({"tls": {"sni": "a b"}})), ["tls.sni"]);
    assert!(build(json!({"tls": {}, "backends": [{"address": "users.internal:443"}]})).is_ok());
}

#[test]
fn a_name_that_is_not_resolved_leaves_the_document_valid_and_the_backend_out() {
    let upstream = build(json!({"backends": [{"address": "nowhere.invalid:80"}]})).unwrap();
    assert!(upstream.pick(b"", &Tried::default()).is_none());
    assert_eq!(upstream.unavailable(), "no backend has a known address");
}

#[test]
fn only_what_can_go_to_another_backend_is_hedged() {
    for (weights, hedged) in [(&[1, 1][..], true), (&[1, 0], false), (&[1], false), (&[1, 0, 1], true)] {
        let backend = |(at, weight): (usize, &u16)| {
            let address = format!("127.0.0.1:{}", 9001 + at);
            json!({"address": address, "weight": weight})
        };
        let backends: Vec<_> = weights.iter().enumerate().map(backend).collect();
        let upstream = build(json!({"backends": backends, "hedge": {"after": "50ms"}})).unwrap();
        assert_eq!(upstream.hedge(None).is_some(), hedged, "{weights:?}");
    }
}

#[test]
fn a_check_takes_only_keys_of_its_type_and_a_protocol_it_can_speak() {
    let active = |fields: Value| json!({"health": {"active": fields}});
    let http_only =
        json!({"type": "tcp", "path": "/", "method": "GET", "expect": [200], "body": "x", "host": "a"});
    let all = ["path", "method", "expect", "body", "host"].map(|key| format!("health.active.{key}"));
    assert_eq!(paths(active(http_only)), all);
    assert_eq!(paths(active(json!({"type": "http", "service": "a"}))), ["health.active.service"]);
    assert_eq!(paths(active(json!({"type": "http", "expect": []}))), ["health.active.expect"]);
    assert_eq!(paths(active(json!({"type": "http", "method": "HEAD", "body": "x"}))), ["health.active.body"]);
    assert_eq!(paths(active(json!({"type": "tcp", "interval": "9ms"}))), ["health.active.interval"]);
    for (protocol, tls, fine) in [
        ("http/1.1", false, false),
        ("http/1.1", true, false),
        ("auto", false, false),
        ("auto", true, true),
        ("h2", true, true),
        ("h2c", false, true),
    ] {
        let mut fields = active(json!({"type": "grpc"}));
        fields["protocol"] = protocol.into();
        if tls {
            fields["tls"] = json!({"sni": "a"});
        }
        assert_eq!(build(fields).is_ok(), fine, "{protocol}, TLS: {tls}");
    }
}

#[test]
fn probes_are_shared_where_nothing_they_depend_on_differs() {
    let key = |fields: Value| {
        let upstream = build(fields).unwrap();
        upstream.target(&upstream.backends()[0], "127.0.0.1:9001".parse().unwrap()).unwrap().key
    };
    let with = |check: Value, extra: Value| {
        let mut fields = json!({"health": {"active": check}});
        for (name, value) in extra.as_object().unwrap() {
            fields[name] = value.clone();
        }
        key(fields)
    };
    let http = || json!({"type": "http", "path": "/up"});
    let one = with(http(), json!({}));
    assert!(one == with(http(), json!({"name": "other", "retries": {"max": 3}, "timeouts": {"read": "5s"}})));
    for (check, extra) in [
        (json!({"type": "http", "path": "/down"}), json!({})),
        (json!({"type": "http", "path": "/up", "interval": "6s"}), json!({})),
        (json!({"type": "http", "path": "/up", "port": 9000}), json!({})),
        (http(), json!({"host": "users.internal"})),
        (http(), json!({"protocol": "h2c"})),
        (http(), json!({"tls": {"sni": "a"}})),
    ] {
        assert!(one != with(check.clone(), extra.clone()), "{check} {extra}");
    }
    let tcp = || json!({"type": "tcp"});
    assert!(
        with(tcp(), json!({})) == with(tcp(), json!({"protocol": "h2c", "host": "a"})),
        "nothing is sent"
    );
}

#[test]
fn what_is_found_at_a_port_of_requests_is_not_what_is_found_of_it_as_another_ones() {
    let check = json!({"active": {"type": "tcp", "port": 9443}});
    let upstream = build(json!({"protocol": "h2", "tls": {"sni": "a"}, "health": check})).unwrap();
    let backend = &upstream.backends()[0];
    let key = |address: &str| upstream.target(backend, address.parse().unwrap()).unwrap().key;
    let (own, other) = (key("192.0.2.1:9443"), key("192.0.2.1:443"));
    assert_eq!(own.address, other.address);
    assert!(own != other, "only who gets requests has to speak HTTP/2");
    assert!(other == key("192.0.2.1:444"));
}

#[test]
fn the_shape_is_the_settings_and_the_contents_of_the_files() {
    let dir = certificates();
    let fields = json!({"tls": {"sni": "users.internal", "ca": "ca.pem"}});
    let old = build_in(dir.path(), fields.clone()).unwrap();
    assert!(old.same_shape(&build_in(dir.path(), fields.clone()).unwrap()));
    std::fs::copy(dir.path().join("other.pem"), dir.path().join("ca.pem")).unwrap();
    assert!(!old.same_shape(&build_in(dir.path(), fields).unwrap()));
    assert!(!old.same_shape(&build(json!({})).unwrap()));
}

#[test]
fn unusable_files_are_errors_that_name_the_file() {
    let dir = certificates();
    for (tls, path, named) in [
        (json!({"ca": "missing.pem"}), "tls.ca", "missing.pem"),
        (json!({"ca": "bad.pem"}), "tls.ca", "bad.pem"),
        (json!({"ca": "empty.pem"}), "tls.ca", "empty.pem"),
        (json!({"ca": "pipe"}), "tls.ca", "not a file"),
        (json!({"ca": "client.key"}), "tls.ca", "client.key"),
        (json!({"client_cert": "bad.pem", "client_key": "client.key"}), "tls.client_cert", "bad.pem"),
        (json!({"client_cert": "client.pem", "client_key": "ca.pem"}), "tls.client_key", "ca.pem"),
        (json!({"client_cert": "client.pem", "client_key": "ca.key"}), "tls.client_key", "belong"),
        (json!({"client_key": "client.key"}), "tls.client_key", "client_cert"),
    ] {
        let mut tls = tls;
        tls["sni"] = "users.internal".into();
        let errors = build_in(dir.path(), json!({"tls": tls})).unwrap_err();
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert_eq!(errors[0].0, path);
        assert!(errors[0].1.contains(named), "{errors:?}");
    }
}

#[test]
fn upstreams_share_connections_only_if_protocol_and_all_trust_are_equal() {
    let dir = certificates();
    let tls = |extra: Value| {
        let mut tls = json!({"sni": "users.internal"});
        for (key, value) in extra.as_object().unwrap() {
            tls[key] = value.clone();
        }
        json!({"tls": tls})
    };
    let with_protocol = |protocol: &str| json!({"protocol": protocol});
    let h2 = json!({"protocol": "h2", "tls": {"sni": "users.internal"}});
    let all = [
        json!({}),
        with_protocol("h2c"),
        with_protocol("auto"),
        h2,
        tls(json!({})),
        tls(json!({"verify": false})),
        tls(json!({"ca": "ca.pem"})),
        tls(json!({"ca": "other.pem"})),
        tls(json!({"sni": "other.internal"})),
        tls(json!({"client_cert": "client.pem", "client_key": "client.key"})),
        tls(json!({"client_cert": "other.pem", "client_key": "other.key"})),
    ];
    let keys: std::collections::HashSet<_> = all
        .iter()
        .map(|fields| {
            let upstream = build_in(dir.path(), fields.clone()).unwrap();
            upstream.peer(&upstream.pick(b"", &Tried::default()).unwrap()).group_key
        })
        .collect();
    assert_eq!(keys.len(), all.len());
}

#[test]
fn the_peer_carries_every_limit_and_trust_setting() {
    let dir = certificates();
    let upstream = build_in(
        dir.path(),
        json!({
            "protocol": "auto", "timeouts": {"connect": "1s", "read": "3s"}, "pool": {"idle_timeout": "4s"},
            "tls": {"sni": "users.internal", "ca": "ca.pem", "client_cert": "client.pem", "client_key": "client.key"},
        }),
    )
    .unwrap();
    let peer = upstream.peer(&upstream.pick(b"", &Tried::default()).unwrap());
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    assert_eq!(peer.sni, "users.internal");
    assert!(peer.is_tls() && peer.client_cert_key.is_some());
    let options = &peer.options;
    assert_eq!((options.connection_timeout, options.total_connection_timeout), (seconds(1), seconds(1)));
    assert_eq!((options.read_timeout, options.write_timeout), (seconds(3), seconds(3)));
    assert_eq!(options.idle_timeout, seconds(4));
    assert!(options.verify_cert && options.verify_hostname);
    assert_eq!(options.ca.as_ref().map(|ca| ca.len()), Some(1));
    assert_eq!((options.alpn.get_max_http_version(), options.alpn.get_min_http_version()), (2, 1));
    assert_eq!(options.max_h2_streams, 100);
}

#[test]
fn connections_over_the_pool_limit_are_not_kept_idle() {
    let upstream = build(json!({"pool": {"idle": 1}})).unwrap();
    let first = upstream.pick(b"", &Tried::default()).unwrap();
    let second = upstream.pick(b"", &Tried::default()).unwrap();
    assert_eq!(upstream.peer(&first).options.idle_timeout, Some(Duration::from_secs(30)));
    assert_eq!(upstream.peer(&second).options.idle_timeout, Some(Duration::ZERO));
}

#[test]
fn the_host_is_preserved_the_backends_or_fixed() {
    for (host, original, seen) in [
        ("preserve", "api.example.com", "api.example.com"),
        ("preserve", "", "127.0.0.1:9001"),
        ("backend", "api.example.com", "127.0.0.1:9001"),
        ("users.internal", "api.example.com", "users.internal"),
    ] {
        let upstream = build(json!({"host": host})).unwrap();
        let picked = upstream.pick(b"", &Tried::default()).unwrap();
        assert_eq!(upstream.host_header(&picked, original), seen);
    }
}

fn rebuilt(old: &Upstream, fields: Value) -> Upstream {
    Upstream::build(&written(fields), Path::new(""), Some(old)).unwrap()
}

#[test]
fn numbers_stay_with_a_backend_whatever_else_of_its_upstream_changes() {
    let old = build(json!({"backends": [{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:2"}]})).unwrap();
    let held: Vec<_> = (0..4).map(|_| old.pick(b"", &Tried::default()).unwrap()).collect();
    let new = rebuilt(
        &old,
        json!({
            "backends": [{"address": "127.0.0.1:3"}, {"address": "127.0.0.1:2", "weight": 5}, {"address": "127.0.0.1:1"}],
            "balance": {"algorithm": "least_requests"},
        }),
    );
    assert!(!new.same_shape(&old));
    let in_flight = |upstream: &Upstream| -> Vec<_> {
        upstream.backends().iter().map(|backend| backend.in_flight()).collect()
    };
    assert_eq!(in_flight(&new), [0, 2, 2]);
    let newest = rebuilt(&new, json!({"backends": [{"address": "127.0.0.1:1", "weight": 0}]}));
    for mut picked in held {
        picked.guard.answered(200);
    }
    assert_eq!(in_flight(&newest), [0], "what ends on an old snapshot is counted on the new one");
    let drained = &newest.backends()[0];
    assert_eq!((drained.requests(), drained.failures(), drained.latency().is_some()), (2, 0, true));
    assert!(newest.pick(b"", &Tried::default()).is_none());
}

#[test]
fn numbers_are_of_one_address_and_kind_of_connection() {
    let old = build(json!({"backends": [{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1"}]})).unwrap();
    let _held: Vec<_> = (0..4).map(|_| old.pick(b"", &Tried::default()).unwrap()).collect();
    let tls = rebuilt(&old, json!({"backends": [{"address": "127.0.0.1:1"}], "tls": {"sni": "a"}}));
    assert_eq!(tls.backends()[0].requests(), 0);
    let three = json!([{"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1"}, {"address": "127.0.0.1:1"}]);
    let requests: Vec<_> = rebuilt(&old, json!({"backends": three}))
        .backends()
        .iter()
        .map(|backend| backend.requests())
        .collect();
    assert_eq!(requests, [2, 2, 0]);
}

#[test]
fn balancing_needs_a_key_where_it_goes_by_one_and_only_there() {
    for balance in [
        json!({"algorithm": "consistent_hash"}),
        json!({"hash_on": "ip"}),
        json!({"algorithm": "ewma", "hash_on": "ip"}),
    ] {
        assert_eq!(paths(json!({"balance": balance})), ["balance.hash_on"]);
    }
    assert!(build(json!({"balance": {"algorithm": "consistent_hash", "hash_on": "ip"}})).is_ok());
}

#[test]
fn a_side_call_is_balanced_by_its_own_head_and_by_nothing_when_the_key_is_incomplete() {
    let upstream =
        build(json!({"balance": {"algorithm": "consistent_hash", "hash_on": {"all": ["header:x-a", "header:x-b"]}}}))
            .unwrap();
    let mut head = RequestHeader::build("GET", b"/", None).unwrap();
    let key = |head: &RequestHeader| {
        let mut key = Vec::new();
        upstream.write_key(head, None, &mut key);
        key
    };
    head.insert_header("x-a", "1").unwrap();
    assert!(key(&head).is_empty());
    head.insert_header("x-b", "2").unwrap();
    assert!(!key(&head).is_empty());
}
