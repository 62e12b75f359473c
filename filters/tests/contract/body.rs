//! Whole bodies, pieces of bodies, attempts.

use super::harness::probes;

#[tokio::test]
async fn whole_bodies_pass_the_steps_that_ask_for_them_in_order() {
    let gateway = probes(
        "[{probe: {max_bytes: 20, append: b}, name: a}, {probe: {}, name: without},
          {probe: {max_bytes: 10, append: c}, name: z}, {probe: {max_bytes: 1}, name: s, when: {methods: [PUT]}}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.wants_body(), Some(10), "the smallest of those entered");
    assert_eq!(run.body("a").await, (None, "abc".to_owned()));
    assert_eq!(run.journal()[3..], ["a body", "z body"]);
    assert_eq!(run.head.headers["x-body"], "3");
}

#[tokio::test]
async fn a_reply_to_a_body_ends_the_request_there() {
    let gateway = probes(
        "[{probe: {max_bytes: 9}, name: a}, {probe: {max_bytes: 9, body: reply}, name: b},
          {probe: {max_bytes: 9}, name: c}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.body("x").await.0, Some(418));
    assert_eq!(run.journal()[3..], ["a body", "b body"]);
    // Every one of them was entered with the head.
    assert_eq!(run.response().await, Ok(3));
}

#[tokio::test]
async fn nobody_asks_for_a_body_when_no_step_does() {
    let (run, _) = probes("[{probe: {}, name: a}]").send("/").await;
    assert_eq!(run.wants_body(), None);
}

#[tokio::test]
async fn pieces_of_a_request_pass_in_order_and_can_be_refused() {
    let gateway = probes("[{probe: {}, name: a}, {probe: {}, name: b}]");
    assert!(gateway.stack.sees_request_chunks() && gateway.stack.sees_response_chunks());
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.request_chunk("x", true), None);
    assert_eq!(run.journal()[2..], ["a request chunk", "b request chunk"]);
    let (mut run, _) =
        probes("[{probe: {request_chunk: reply}, name: a}, {probe: {}, name: b}]").send("/").await;
    assert_eq!(run.request_chunk("x", true), Some(418));
    assert_eq!(run.journal()[2..], ["a request chunk"]);
}

#[tokio::test]
async fn pieces_of_a_request_can_be_changed_and_held_back() {
    let gateway = probes(
        "[{probe: {append: '.a'}, name: a}, {probe: {request_chunk: hold_back}, name: b},
          {probe: {append: '.c'}, name: c}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.request_piece("1", false).as_deref(), Ok(".c"));
    assert_eq!(run.request_piece("2", true).as_deref(), Ok("1.a2.a.c"));
}

#[tokio::test]
async fn pieces_of_an_answer_pass_in_reverse_and_can_be_held_back() {
    let gateway = probes(
        "[{probe: {append: '.a'}, name: a}, {probe: {response_chunk: hold_back}, name: b},
          {probe: {append: '.c'}, name: c}]",
    );
    let (mut run, _) = gateway.send("/").await;
    assert_eq!(run.response_chunk("1", false).as_deref(), Ok(""));
    assert_eq!(run.response_chunk("2", false).as_deref(), Ok(""));
    assert_eq!(run.response_chunk("3", true).as_deref(), Ok("1.c2.c3.c.a"));
    assert_eq!(run.journal()[3..6], ["c response chunk", "b response chunk", "a response chunk"]);
}

#[tokio::test]
async fn each_attempt_gets_a_fresh_copy_of_the_head() {
    let (mut run, _) = probes("[{probe: {}, name: a}, {probe: {}, name: b}]").send("/").await;
    for attempt in ["1", "2"] {
        let (status, head) = run.attempt(attempt.parse().expect("a number")).await;
        assert_eq!(status, None);
        let seen: Vec<_> = head.headers.get_all("x-attempt").iter().collect();
        assert_eq!(seen, [attempt, attempt], "one line of each step");
    }
    assert!(!run.head.headers.contains_key("x-attempt"));
    assert_eq!(run.journal()[2..], ["a upstream", "b upstream", "a upstream", "b upstream"]);
}
