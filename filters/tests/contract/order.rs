//! In which order steps run, and which of them.

use std::sync::Arc;

use tollhouse_filters::context::Verdict;
use tollhouse_filters::pipeline::{MAX_STEPS, Pipeline, Stack, Step};
use tollhouse_filters::registry::Registry;

use super::harness::{Probe, gateway, probes};

fn lines(text: &str) -> Vec<String> {
    text.split(", ").map(str::to_owned).collect()
}

#[tokio::test]
async fn requests_pass_listener_service_and_route_and_answers_go_back() {
    let list = |names: [&str; 2]| {
        format!("[{{probe: {{}}, name: {}}}, {{probe: {{}}, name: {}}}]", names[0], names[1])
    };
    let (listener, service, route) = (list(["a", "b"]), list(["c", "d"]), list(["e", "f"]));
    let gateway = gateway(&Registry::new().with::<Probe>(), [&listener, &service, &route]);
    let (mut run, status) = gateway.send("/").await;
    assert_eq!(status, None);
    assert_eq!(run.journal(), lines("a request, b request, c request, d request, e request, f request"));
    assert_eq!(run.response().await, Ok(6));
    run.finish(200);
    let back = "f response, e response, d response, c response, b response, a response";
    let end = "f finish 200, e finish 200, d finish 200, c finish 200, b finish 200, a finish 200";
    assert_eq!(run.journal()[6..], lines(&format!("{back}, {end}")));
}

#[tokio::test]
async fn a_reply_goes_back_through_the_steps_entered_and_no_others() {
    let gateway = gateway(
        &Registry::new().with::<Probe>(),
        [
            "[{probe: {}, name: a}, {probe: {}, name: b, when: {methods: [POST]}}]",
            "[{probe: {request: reply}, name: dry, dry_run: true}, {probe: {request: reply}, name: c}]",
            "[{probe: {}, name: d}]",
        ],
    );
    let (mut run, status) = gateway.send("/").await;
    assert_eq!(status, Some(418));
    assert_eq!(run.response().await, Ok(2));
    assert_eq!(run.response_chunk("x", true).as_deref(), Ok("x"));
    run.finish(418);
    let back = "c response, a response, c response chunk, a response chunk, c finish 418, a finish 418";
    assert_eq!(run.journal()[3..], lines(back));
    assert_eq!(run.journal()[..3], lines("a request, dry request, c request"));
    let ended = run.ctx.ended_by.expect("the step that ended it");
    assert_eq!((ended.filter, &*ended.instance), ("probe", "c"));
}

#[tokio::test]
async fn a_step_that_stands_in_several_places_takes_part_where_it_stands_first() {
    let mut gateway = probes("[{probe: {}, name: a}, {probe: {}, name: b}]");
    let [none, _, own] = gateway.stack.pipelines().clone();
    let (a, b) = (own.steps()[0].clone(), own.steps()[1].clone());
    let list = |steps: &[&Arc<Step>]| Arc::new(Pipeline::new(steps.iter().copied().cloned().collect()));
    for lists in [
        [list(&[&a]), list(&[&a, &b]), own.clone()],
        [none.clone(), list(&[&a, &a]), list(&[&b, &a])],
        [own.clone(), own.clone(), own.clone()],
    ] {
        gateway.stack = Stack::new(lists);
        let (mut run, status) = gateway.send("/").await;
        assert_eq!((status, run.journal()), (None, lines("a request, b request")));
        assert_eq!(run.request_piece("x", true).as_deref(), Ok("x"));
        assert_eq!(run.response().await, Ok(2));
        run.finish(200);
        let rest = "a request chunk, b request chunk, b response, a response, b finish 200, a finish 200";
        assert_eq!(run.journal()[2..], lines(rest));
    }
}

#[tokio::test]
async fn when_is_evaluated_once_on_entry() {
    // The first step changes what the others look at, and the head changes again after them.
    let gateway = probes(
        "[{probe: {request: change}, name: a, when: {headers: {x-changed: {present: false}}}},
          {probe: {}, name: b, when: {headers: {x-changed: {present: true}}}},
          {probe: {}, name: c, when: {headers: {x-changed: {present: false}}}}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.journal(), lines("a request, b request"));
    run.head.remove_header("x-changed");
    assert_eq!(run.response().await, Ok(2));
    assert_eq!(run.journal()[2..], lines("b response, a response"));
}

#[tokio::test]
async fn every_step_entered_is_told_of_the_end_once_however_it_came() {
    for act in ["pass", "reply", "unavailable", "internal"] {
        let gateway = probes(&format!(
            "[{{probe: {{}}, name: a}}, {{probe: {{request: {act}}}, name: b}}, {{probe: {{}}, name: c}}]"
        ));
        let (mut run, status) = gateway.send("/").await;
        run.finish(status.unwrap_or(200));
        let finished: Vec<_> = run.journal().into_iter().filter(|line| line.contains("finish")).collect();
        let (end, entered) = match status {
            None => (200, &["c", "b", "a"][..]),
            Some(status) => (status, &["b", "a"][..]),
        };
        let expected: Vec<_> = entered.iter().map(|name| format!("{name} finish {end}")).collect();
        assert_eq!(finished, expected, "{act}");
    }
}

#[tokio::test]
async fn the_decision_log_says_what_each_step_did_and_why() {
    let gateway = probes(
        "[{probe: {}, name: a, when: {methods: [POST]}},
          {probe: {request: reply}, name: b, dry_run: true},
          {probe: {request: unavailable}, name: c, on_error: continue},
          {probe: {request: reply}, name: d}]",
    );
    let (run, _) = gateway.send("/").await;
    let decided = |name: &str, verdict, reason: &str| (name.to_owned(), verdict, reason.to_owned());
    let expected = [
        decided("a", Verdict::Skipped, "`when` does not hold"),
        decided("b", Verdict::Changed, "request"),
        decided("b", Verdict::WouldAnswer, "would answer 418"),
        decided("c", Verdict::Changed, "request"),
        decided("c", Verdict::FailedOpen, "unavailable: the store is down"),
        decided("d", Verdict::Changed, "request"),
        decided("d", Verdict::Answered, "answered 418"),
    ];
    assert_eq!(run.verdicts(), expected);
}

#[tokio::test]
async fn sixty_four_steps_are_told_apart() {
    let item = |nth: usize| format!("{{probe: {{}}, name: p{nth}, when: {{paths: [/{}]}}}}", nth % 2);
    let list = (0..MAX_STEPS).map(item).collect::<Vec<_>>().join(", ");
    let gateway = probes(&format!("[{list}]"));
    let (mut run, _) = gateway.send("/1").await;
    assert_eq!(run.response().await, Ok(32));
    let odd = (0..MAX_STEPS).filter(|nth| nth % 2 == 1);
    let entered: Vec<_> = odd.clone().map(|nth| format!("p{nth} request")).collect();
    let left: Vec<_> = odd.rev().map(|nth| format!("p{nth} response")).collect();
    assert_eq!(run.journal(), [entered, left].concat());
}

#[test]
#[should_panic(expected = "the compiler of documents refuses longer pipelines")]
fn a_pipeline_of_more_steps_cannot_be_made() {
    let gateway = probes("[{probe: {}, name: a}]");
    let step = &gateway.stack.pipelines()[2].steps()[0];
    let _ = Pipeline::new(vec![step.clone(); MAX_STEPS + 1]);
}
