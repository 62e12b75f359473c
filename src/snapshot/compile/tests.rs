//! What compiling does beside making snapshots.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use futures_util::future::BoxFuture;
use tollhouse_filters::builtin;
use tollhouse_filters::world::Tasks;

use super::*;
use crate::source::load_str;

/// Counts tasks, and runs none.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Tasks for Counting {
    fn spawn(&self, _: BoxFuture<'static, ()>, _: BoxFuture<'static, ()>) {
        self.0.fetch_add(1, Relaxed);
    }
}

/// Whether a document that is to serve has nothing wrong with it, and how many tasks were begun for it.
fn compiled(routes: &str) -> (bool, usize) {
    let text = format!(
        "{{version: 1, listeners: [{{name: main, address: '127.0.0.1:0'}}], routes: [{routes}],
        identities: {{corp: {{type: jwt, algorithms: [EdDSA], jwks_uri: 'https://id.test/keys'}}}}}}"
    );
    let loaded = Arc::new(load_str(&text, "t.yaml", None, &|_| None).expect("a document"));
    let tasks = Arc::new(Counting::default());
    let (registry, world) = (builtin(), World::dry().with_tasks(tasks.clone()));
    let compiler =
        Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Live, roster: None };
    (compiler.compile(&loaded).is_ok(), tasks.0.load(Relaxed))
}

#[test]
fn nothing_is_fetched_for_a_document_that_cannot_be_read() {
    assert_eq!(compiled("{name: r, respond: {}}"), (true, 1));
    assert_eq!(compiled("{name: r, respond: {body: '${env:NOT_SET}'}}"), (false, 0));
    assert_eq!(compiled("{name: r, respond: {}, colour: red}"), (false, 0));
}
