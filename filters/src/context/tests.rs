use super::*;
use crate::path::{PathRules, normalize};

fn context() -> Context {
    Context::for_tests(normalize("/", &PathRules::default()).expect("a valid path"), Instant::now())
}

#[test]
fn slots_of_two_instances_do_not_meet() {
    let (one, two) = (Slot::<u32>::new(1), Slot::<u32>::new(2));
    let mut ctx = context();
    *ctx.slot_mut(one) = 7;
    assert_eq!(ctx.slot(one), Some(&7));
    assert_eq!(ctx.slot(two), None);
}

#[test]
fn a_guard_in_a_slot_is_dropped_with_the_request() {
    let guard = Arc::new(());
    let mut ctx = context();
    ctx.set_slot(Slot::new(1), guard.clone());
    assert_eq!(Arc::strong_count(&guard), 2);
    drop(ctx);
    assert_eq!(Arc::strong_count(&guard), 1);
}

#[test]
fn decisions_are_kept_only_when_asked_for() {
    let mut ctx = context();
    ctx.enter_step("cors", &Arc::from("a"));
    ctx.decide(Verdict::Passed, "first", &[]);
    ctx.keep_decisions();
    ctx.enter_step("cors", &Arc::from("a"));
    ctx.decide(Verdict::Passed, "second", &[("origin", "x")]);
    let reasons: Vec<_> = ctx.decisions().iter().map(|decision| decision.reason.as_ref()).collect();
    assert_eq!(reasons, ["second"]);
}

#[test]
fn fields_tell_of_a_body_or_a_stream_that_goes_on() {
    // RFC 9112 s6.3, and RFC 9113 s8.1: of HTTP/2 neither field has to be there.
    for (field, goes_on, expected) in [
        (None, false, false),
        (None, true, true),
        (Some(("content-length", "0")), false, false),
        (Some(("content-length", "3")), false, true),
        (Some(("transfer-encoding", "chunked")), false, true),
    ] {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a valid request");
        if let Some((name, value)) = field {
            request.insert_header(name, value).expect("a valid field");
        }
        let mut ctx = context();
        ctx.goes_on = goes_on;
        assert_eq!(ctx.has_body(&request), expected, "{field:?}");
        assert_eq!(ctx.fork().has_body(&request), expected, "{field:?}");
    }
}

#[test]
fn a_made_request_id_is_32_hexadecimal_digits() {
    assert_eq!(RequestId::Made(255).to_string(), "000000000000000000000000000000ff");
}
