//! Steps that fail, run dry, are cancelled or panic.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use tollhouse_filters::outcome::{FilterError, Reply};
use tollhouse_filters::world::TenantId;

use super::harness::probes;

/// The status and the problem's code of a step that fails like this.
async fn answer_to(act: &str, siblings: &str) -> Option<(u16, &'static str)> {
    let gateway = probes(&format!("[{{probe: {{request: {act}}}, name: a{siblings}}}]"));
    let reply = gateway.begin("/").reply().await?;
    let Reply::Problem(problem) = reply else { panic!("not a problem") };
    Some((problem.status(), problem.kind.code))
}

#[tokio::test]
async fn a_failure_is_503_of_a_dependency_and_500_of_the_filter() {
    assert_eq!(answer_to("unavailable", "").await, Some((503, "filter-unavailable")));
    assert_eq!(answer_to("internal", "").await, Some((500, "internal")));
}

#[tokio::test]
async fn with_on_error_continue_the_request_goes_on() {
    assert_eq!(answer_to("unavailable", ", on_error: continue").await, None);
    assert_eq!(answer_to("internal", ", on_error: continue").await, None);
    let gateway = probes("[{probe: {request: internal}, name: a, on_error: continue}, {probe: {}, name: b}]");
    let (run, _) = gateway.send("/").await;
    assert_eq!(run.journal(), ["a request", "b request"]);
    assert_eq!(gateway.decided("failed"), Some(1));
    assert!(run.ctx.ended_by.is_none());
}

#[tokio::test]
async fn each_phase_before_the_answer_fails_as_on_error_says() {
    for (siblings, expected) in [("", Some(503)), (", on_error: continue", None)] {
        let options = "max_bytes: 9, body: unavailable, request_chunk: unavailable, upstream: unavailable";
        let gateway = probes(&format!("[{{probe: {{{options}}}, name: a{siblings}}}]"));
        let (mut run, _) = gateway.send("/").await;
        assert_eq!(run.body("").await.0, expected);
        assert_eq!(run.request_chunk("x", false), expected);
        assert_eq!(run.attempt(1).await.0, expected);
    }
}

#[tokio::test]
async fn a_failure_in_an_answer_aborts_it_whatever_on_error_says() {
    let gateway = probes(
        "[{probe: {}, name: a},
          {probe: {response: internal, response_chunk: unavailable}, name: b, on_error: continue}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.response().await, Err(FilterError::Internal("a bug".to_owned())));
    assert!(matches!(run.response_chunk("x", false), Err(FilterError::Unavailable(_))));
    assert!(!run.journal().contains(&"a response".to_owned()), "the answer goes no further");
    assert_eq!(gateway.decided("failed"), Some(2));
}

#[tokio::test]
async fn a_dry_run_counts_and_changes_nothing() {
    let gateway = probes(
        "[{probe: {request: change}, name: a, dry_run: true},
          {probe: {request: reply, max_bytes: 1}, name: b, dry_run: true}]",
    );
    let (mut run, status) = gateway.send("/").await;
    assert_eq!(status, None);
    assert_eq!(run.journal(), ["a request", "b request"]);
    assert!(!run.head.headers.contains_key("x-changed"));
    assert_eq!(run.ctx.policies, Default::default());
    assert!(run.ctx.principal.is_none() && run.ctx.ended_by.is_none() && run.ctx.variant.is_none());
    assert_eq!(run.ctx.tenant, TenantId(0));
    assert_eq!(run.wants_body(), None);
    assert_eq!(run.response().await, Ok(0));
    assert_eq!((gateway.decided("would_answer"), gateway.decided("answered")), (Some(1), Some(0)));
}

#[tokio::test]
async fn a_dry_run_that_fails_ends_no_request() {
    for act in ["unavailable", "internal"] {
        let gateway = probes(&format!("[{{probe: {{request: {act}}}, name: a, dry_run: true}}]"));
        let (run, status) = gateway.send("/").await;
        assert_eq!(status, None, "{act}");
        assert!(run.ctx.ended_by.is_none());
        assert_eq!(gateway.decided("failed"), Some(1));
    }
}

#[tokio::test]
async fn guards_live_as_long_as_the_request() {
    let gateway = probes("[{probe: {}, name: a}, {probe: {}, name: b}]");
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(gateway.guards(), 2);
    run.finish(200);
    drop(run);
    assert_eq!(gateway.guards(), 0);
}

#[tokio::test]
async fn a_request_given_up_while_a_filter_waits_drops_its_guards() {
    let gateway = probes("[{probe: {}, name: a}, {probe: {request: wait}, name: b}]");
    let mut run = gateway.begin("/");
    let mut request = Box::pin(run.request());
    assert!((&mut request).now_or_never().is_none(), "it waits");
    assert_eq!(gateway.guards(), 3);
    drop(request);
    assert_eq!(gateway.guards(), 2, "what only the future held is gone");
    run.finish(499);
    assert_eq!(run.journal(), ["a request", "b finish 499", "a finish 499"]);
    drop(run);
    assert_eq!(gateway.guards(), 0);
}

#[tokio::test]
async fn a_panic_is_the_end_of_one_request_only() {
    let gateway =
        probes("[{probe: {}, name: a}, {probe: {request: panic}, name: b, when: {paths: [/panic]}}]");
    let request = async {
        gateway.send("/panic").await;
    };
    assert!(AssertUnwindSafe(request).catch_unwind().await.is_err());
    assert_eq!(gateway.guards(), 0, "guards are dropped as the stack unwinds");
    let (run, status) = gateway.send("/").await;
    assert_eq!((status, run.journal()), (None, vec!["a request".to_owned()]));
}
