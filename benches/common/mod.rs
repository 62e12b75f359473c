//! Documents, snapshots and requests that the benchmarks share.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use pingora::http::RequestHeader;
use tollhouse::engine::Connection;
use tollhouse::routing::ListenerId;
use tollhouse::snapshot::{Compiler, Mode, Snapshot};
use tollhouse::source::{Loaded, load_str};
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::World;

/// A document of this many routes, all with the same chain of five filters.
pub(crate) fn document(routes: usize) -> String {
    let mut text = String::from(
        r#"version: 1
admin: {address: none}
listeners:
  - {name: main, address: "127.0.0.1:0"}
upstreams:
  - name: users
    backends: [{address: "127.0.0.1:9"}]
chains:
  edge:
    - request_id: {}
    - cors: {origins: ["https://app.example.com"], credentials: true}
    - headers:
        request: {set: {x-gateway: tollhouse}}
        response: {set: {x-served-by: tollhouse}, remove: [server]}
    - body_limit: {request: 1MiB}
    - headers: {response: {set: {cache-control: no-store}}}
      when: {methods: [POST, PUT]}
routes:
"#,
    );
    for number in 0..routes {
        write!(
            text,
            "  - name: route-{number}\n    match:\n      paths: [\"/service-{number:05}/items/{{id}}\"]\n      \
             methods: [GET, POST]\n    filters: [{{chain: edge}}]\n    upstream: users\n"
        )
        .expect("writing to a String cannot fail");
    }
    text
}

/// The path of a request for the route of this number; equally long for each.
pub(crate) fn target(number: usize) -> String {
    format!("/service-{number:05}/items/42?page=2")
}

/// Reads a document into its located tree.
pub(crate) fn load(text: &str) -> Arc<Loaded> {
    Arc::new(load_str(text, "bench.yaml", None, &|_| None).expect("a valid document"))
}

/// Compiles a document that was read, with the built-in filters and a dry world.
pub(crate) fn compile(loaded: &Arc<Loaded>, registry: &Registry, world: &World) -> Snapshot {
    let compiler = Compiler { registry, world, previous: None, mode: Mode::Dry, roster: None };
    compiler.compile(loaded).expect("a valid document")
}

/// The snapshot of a document of this many routes.
pub(crate) fn snapshot(routes: usize) -> Arc<Snapshot> {
    Arc::new(compile(&load(&document(routes)), &tollhouse_filters::builtin(), &World::dry()))
}

/// A request as a browser sends it.
pub(crate) fn request(target: &str) -> RequestHeader {
    let mut head = RequestHeader::build("GET", target.as_bytes(), None).expect("a valid request");
    for (name, value) in [
        ("host", "api.example.com"),
        ("user-agent", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"),
        ("accept", "application/json"),
        ("accept-encoding", "gzip, deflate, br"),
        ("origin", "https://app.example.com"),
        ("cookie", "session=abcdefghijklmnop; theme=dark"),
    ] {
        head.insert_header(name, value).expect("a valid field");
    }
    head
}

/// A client on the only listener.
pub(crate) fn connection() -> Connection {
    Connection { listener: ListenerId(0), peer: Some(SocketAddr::from(([192, 0, 2, 1], 50000))), tls: None }
}
