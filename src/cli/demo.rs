//! `tollhouse demo`: two sample services inside the process, and a gateway in front of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::{fs, io, thread};

use axum::extract::{Path, Request};
use axum::http::HeaderMap;
use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};
use tollhouse_filters::registry::Registry;

use super::{Failure, Output, print, print_json};
use crate::server::{self, Origin};

/// The demo's configuration, written where the user can edit it.
const DOCUMENT: &str = include_str!("../../conf/tollhouse.yaml");

/// Where the sample services listen; the configuration names these addresses.
const USERS: &str = "127.0.0.1:9101";
const ORDERS: &str = "127.0.0.1:9102";
/// Where the gateway listens, as the configuration says.
const GATEWAY: &str = "http://127.0.0.1:8080";
/// What there is to be asked for.
const PATHS: [&str; 3] = ["/users/1", "/orders", "/ping"];

/// Arguments of `tollhouse demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file; written first when it does not exist.
    #[arg(short, long, default_value = "tollhouse.yaml")]
    config: PathBuf,
}

pub(super) fn run(arguments: Arguments, registry: Arc<Registry>, output: Output) -> Result<(), Failure> {
    let config = arguments.config;
    if !config.exists() {
        fs::write(&config, DOCUMENT)
            .map_err(|error| Failure::Runtime(format!("cannot write {}: {error}", config.display())))?;
    }
    for (address, service) in [(USERS, users()), (ORDERS, orders())] {
        start(address, service).map_err(|error| {
            Failure::Runtime(format!("cannot start a sample service on {address}: {error}"))
        })?;
    }
    let introduce = || match output {
        Output::Text => print(introduction(&config)),
        Output::Json => print_json(&introduction_for_programs(&config)),
    };
    // Its sample services end with this process, so nothing can take its place.
    server::run(config.clone(), registry, Origin::Sole, introduce)
}

fn introduction(config: &std::path::Path) -> String {
    let asked = PATHS.map(|path| format!("curl -i {GATEWAY}{path}")).join("\n       ");
    let edited = format!("{} (changes take effect at once; Ctrl-C ends the demo)", config.display());
    format!("Tollhouse demo: {GATEWAY} in front of two sample services.\nTry:   {asked}\nEdit:  {edited}")
}

fn introduction_for_programs(config: &std::path::Path) -> Value {
    let urls = PATHS.map(|path| format!("{GATEWAY}{path}"));
    json!({"gateway": GATEWAY, "urls": urls, "config": config.display().to_string()})
}

/// Binds first, so that a busy port is an error here and not in a thread.
fn start(address: &str, service: Router) -> io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name("sample service".to_owned()).spawn(move || {
        runtime.block_on(async move {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => drop(axum::serve(listener, service).await),
                Err(error) => log::error!("a sample service cannot start: {error}"),
            }
        });
    })?;
    Ok(())
}

fn users() -> Router {
    let list = |headers: HeaderMap| async move { Json(json!([user("1", &headers), user("2", &headers)])) };
    let one = |Path(id): Path<String>, headers: HeaderMap| async move { Json(user(&id, &headers)) };
    Router::new().route("/users", get(list)).route("/users/{id}", get(one))
}

fn user(id: &str, headers: &HeaderMap) -> Value {
    let request_id = headers.get("x-request-id").and_then(|id| id.to_str().ok());
    json!({"id": id, "name": format!("User {id}"), "request_id": request_id})
}

fn orders() -> Router {
    let echo = |request: Request| async move {
        Json(json!({"service": "orders", "method": request.method().as_str(), "path": request.uri().path()}))
    };
    Router::new().fallback(any(echo))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_introduction_names_what_there_is_to_people_and_to_programs() {
        let config = PathBuf::from("my.yaml");
        assert_eq!(
            introduction(&config),
            "Tollhouse demo: http://127.0.0.1:8080 in front of two sample services.\n\
             Try:   curl -i http://127.0.0.1:8080/users/1\n       curl -i http://127.0.0.1:8080/orders\n       \
             curl -i http://127.0.0.1:8080/ping\n\
             Edit:  my.yaml (changes take effect at once; Ctrl-C ends the demo)"
        );
        let expected = json!({
            "gateway": "http://127.0.0.1:8080",
            "urls": [
                "http://127.0.0.1:8080/users/1", "http://127.0.0.1:8080/orders", "http://127.0.0.1:8080/ping"
            ],
            "config": "my.yaml"
        });
        assert_eq!(introduction_for_programs(&config), expected);
    }
}
