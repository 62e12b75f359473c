use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::{ProptestConfig, any, prop, proptest};

use crate::testing::{Chain, Request, chain, get, refused};

fn from(address: &str) -> Request {
    let address = address.parse().expect("an address");
    get("/").with(|ctx| ctx.client.address = address)
}

/// How many of so many requests pass.
async fn passing(chain: &Chain, requests: usize, request: impl Fn() -> Request) -> usize {
    let mut passing = 0;
    for _ in 0..requests {
        passing += usize::from(chain.send(request()).await.ctx.ended_by.is_none());
    }
    passing
}

#[tokio::test]
async fn third_request_in_a_second_is_refused_with_retry_after() {
    let chain = chain("- rate_limit: {per: ip, limit: 2/s}");
    chain.send(get("/")).await.continues();
    chain.send(get("/")).await.continues();
    chain.send(get("/")).await.responds(429).header("retry-after", "1");
    chain.clock.advance(Duration::from_millis(500));
    chain.send(get("/")).await.continues();
    chain.send(get("/")).await.responds(429);
}

#[tokio::test]
async fn what_is_refused_takes_nothing() {
    let chain = chain("- rate_limit: {per: ip, limit: 1/min}");
    chain.send(get("/")).await.continues();
    for second in 1..60 {
        chain.clock.advance(Duration::from_secs(1));
        // RFC 9110 s10.2.3: how long to wait.
        chain.send(get("/")).await.responds(429).header("retry-after", &(60 - second).to_string());
    }
    chain.clock.advance(Duration::from_secs(1));
    chain.send(get("/")).await.continues();
}

#[tokio::test]
async fn a_burst_may_come_at_once_and_then_only_the_rate() {
    let chain = chain("- rate_limit: {per: ip, limit: 10/s, burst: 25}");
    assert_eq!(passing(&chain, 100, || get("/")).await, 25);
    chain.clock.advance(Duration::from_secs(1));
    assert_eq!(passing(&chain, 100, || get("/")).await, 10);
    chain.clock.advance(Duration::from_secs(3600));
    assert_eq!(passing(&chain, 100, || get("/")).await, 25);
}

#[tokio::test]
async fn a_retry_after_that_is_kept_to_is_enough() {
    let chain = chain("- rate_limit: {per: ip, limit: 7/min, burst: 3, cost: 2}");
    for _ in 0..50 {
        let sent = chain.send(get("/")).await;
        if sent.ctx.ended_by.is_none() {
            continue;
        }
        let wait = sent.responds(429).field("retry-after").expect("Retry-After");
        chain.clock.advance(Duration::from_secs(wait.parse().expect("whole seconds")));
        chain.send(get("/")).await.continues();
    }
}

#[tokio::test]
async fn clients_have_budgets_of_their_own() {
    let chain = chain("- rate_limit: {per: ip, limit: 1/min}");
    for address in ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1"] {
        chain.send(from(address)).await.continues();
        chain.send(from(address)).await.responds(429);
    }
}

#[tokio::test]
async fn all_addresses_of_an_ipv6_network_are_one_client() {
    let chain = chain("- rate_limit: {per: ip, limit: 1/min}");
    chain.send(from("2001:db8::1")).await.continues();
    chain.send(from("2001:db8::ffff:1")).await.responds(429);
    chain.send(from("192.0.2.7")).await.continues();
    chain.send(from("::ffff:192.0.2.7")).await.responds(429);
}

#[tokio::test]
async fn requests_without_a_key_share_a_budget() {
    let chain = chain("- rate_limit: {per: header:x-key, limit: 1/min}");
    chain.send(get("/").header("x-key", "a")).await.continues();
    chain.send(get("/").header("x-key", "")).await.continues();
    chain.send(from("192.0.2.1")).await.continues();
    chain.send(from("192.0.2.2")).await.responds(429);
    chain.send(get("/").header("x-key", "b")).await.continues();
}

#[tokio::test]
async fn the_first_key_that_is_there_counts_and_so_does_a_tuple() {
    let either = chain("- rate_limit: {per: [header:x-key, ip], limit: 1/min}");
    either.send(from("192.0.2.1").header("x-key", "192.0.2.1")).await.continues();
    either.send(from("192.0.2.2").header("x-key", "192.0.2.1")).await.responds(429);
    either.send(from("192.0.2.1")).await.continues();
    let both = chain("- rate_limit: {per: {all: [header:x-key, ip]}, limit: 1/min}");
    both.send(from("192.0.2.1").header("x-key", "a")).await.continues();
    both.send(from("192.0.2.2").header("x-key", "a")).await.continues();
    both.send(from("192.0.2.1").header("x-key", "a")).await.responds(429);
}

#[tokio::test]
async fn tenants_do_not_use_up_each_others_budgets() {
    let chain = chain("- rate_limit: {per: route, limit: 1/min}");
    for tenant in 0..3 {
        let of = || get("/").with(|ctx| ctx.tenant = crate::world::TenantId(tenant));
        chain.send(of()).await.continues();
        chain.send(of()).await.responds(429);
    }
}

#[tokio::test]
async fn who_breaks_one_rule_is_not_charged_by_the_others() {
    let chain = chain(
        "- rate_limit: {rules: [{name: fast, per: ip, limit: 1/s}, {name: slow, per: ip, limit: 5/min}]}",
    );
    let mut passed = 0;
    for _ in 0..5 {
        passed += passing(&chain, 10, || get("/")).await;
        chain.clock.advance(Duration::from_secs(1));
    }
    assert_eq!(passed, 5, "ten times refused each second, and nothing lost");
    let refused = chain.send(get("/")).await.responds(429);
    refused.header("retry-after", "7").header("ratelimit", "\"slow\";r=0;t=7");
}

#[tokio::test]
async fn costs_are_taken_of_limit_and_burst() {
    let chain = chain("- rate_limit: {per: ip, limit: 10/s, burst: 10, cost: 3}");
    assert_eq!(passing(&chain, 10, || get("/")).await, 3);
    let refused = chain.send(get("/")).await.responds(429);
    refused
        .header("ratelimit-policy", "\"10/s\";q=10;w=1;tollhouse-cost=3")
        .header("ratelimit", "\"10/s\";r=1;t=1");
}

#[tokio::test]
async fn answers_tell_where_the_client_stands() {
    let chain = chain("- rate_limit: {per: ip, limit: 60/min, burst: 5}\n  name: gentle");
    let answer = chain.answer(get("/"), &[]).await;
    // draft-ietf-httpapi-ratelimit-headers-11, s3 and s4.
    let answer = answer.header("ratelimit-policy", "\"gentle\";q=60;w=60;tollhouse-burst=5");
    answer.header("ratelimit", "\"gentle\";r=4;t=1").no_header("retry-after");
}

#[tokio::test]
async fn retry_after_does_not_end_before_the_effective_window() {
    // draft-ietf-httpapi-ratelimit-headers-11, s6.
    let chain = chain(
        "- rate_limit: {per: ip, limit: 2/min}\n  name: slow\n- rate_limit: {per: ip, limit: 1/s}\n  name: fast",
    );
    chain.send(get("/")).await.continues();
    let refused = chain.send(get("/")).await.responds(429);
    refused.header("retry-after", "30").header("ratelimit", "\"slow\";r=0;t=30");
}

#[tokio::test]
async fn limits_of_several_filters_are_told_together_and_the_tightest_alone() {
    let chain = chain(
        "- rate_limit: {per: ip, limit: 10/s}\n- rate_limit: {per: ip, limit: 3/s}\n\
         - rate_limit: {per: ip, limit: 5/s}",
    );
    let answer = chain.answer(get("/"), &[]).await;
    let answer = answer.header("ratelimit-policy", "\"10/s\";q=10;w=1, \"3/s\";q=3;w=1, \"5/s\";q=5;w=1");
    answer.header("ratelimit", "\"3/s\";r=2;t=1");
}

#[tokio::test]
async fn what_an_origin_says_of_its_own_limits_stays() {
    // draft-ietf-httpapi-ratelimit-headers-11, s7.2.
    let chain = chain("- rate_limit: {per: ip, limit: 10/s}");
    let fields = [("ratelimit-policy", "\"o\";q=5;w=9"), ("ratelimit", "\"o\";r=1;t=9")];
    let answer = chain.answer(get("/"), &fields).await;
    let answer = answer.header("ratelimit-policy", "\"o\";q=5;w=9, \"10/s\";q=10;w=1");
    answer.header("ratelimit", "\"o\";r=1;t=9, \"10/s\";r=9;t=1");
}

#[tokio::test]
async fn a_silent_limit_only_refuses() {
    let chain =
        chain("- rate_limit: {per: ip, limit: 1/s, headers: false}\n- rate_limit: {per: ip, limit: 9/s}");
    chain.answer(get("/"), &[]).await.header("ratelimit-policy", "\"9/s\";q=9;w=1");
    let refused = chain.send(get("/")).await.responds(429);
    refused.header("retry-after", "1").no_header("ratelimit").no_header("ratelimit-policy");
}

#[tokio::test]
async fn a_dry_run_counts_refuses_nobody_and_tells_nothing() {
    let chain =
        chain("- rate_limit: {per: ip, limit: 1/h}\n  dry_run: true\n- rate_limit: {per: ip, limit: 9/s}");
    chain.send(get("/")).await.continues();
    let sent = chain.send(get("/")).await.continues();
    let would =
        |decision: &crate::context::Decision| decision.verdict == crate::context::Verdict::WouldAnswer;
    assert!(sent.ctx.decisions().iter().any(would));
    chain.answer(get("/"), &[]).await.header("ratelimit-policy", "\"9/s\";q=9;w=1");
}

#[tokio::test]
async fn a_refusal_names_its_limit() {
    let chain = chain("- rate_limit: {per: ip, limit: 1/h}\n  name: strict");
    let sent = chain.send(get("/")).await.continues();
    assert_eq!(sent.ctx.decisions()[0].reason, "limit `strict` leaves 0");
    let sent = chain.send(get("/")).await;
    let ended = sent.ctx.ended_by.as_ref().expect("ended");
    assert_eq!(
        (ended.filter, ended.reason.as_deref()),
        ("rate_limit", Some("the limit `strict` is used up"))
    );
}

#[test]
fn options_that_make_no_sense_are_refused_at_their_place() {
    for (options, told) in [
        ("{}", ": no limit: add `per` and `limit`, or `rules`"),
        ("{per: ip}", ": no limit: add `per` and `limit`, or `rules`"),
        ("{per: ip, limit: 0/s}", "limit: expected a rate above zero"),
        ("{per: ip, limit: 1000001/s}", "limit: expected at most `1000000/s`"),
        ("{per: ip, limit: 1/h, burst: 10000}", "burst: takes more than a year to come back at 1/h"),
        ("{per: ip, limit: 2/s, cost: 3}", "cost: is more than the 2 of `burst`"),
        ("{per: ip, limit: 2/s, burst: 0}", "burst: expected a whole number, one or more"),
        ("{per: adress, limit: 2/s}", "per: expected `ip`"),
        ("{per: ip, rules: [{per: ip, limit: 1/s}]}", "per: belongs into each of the `rules`"),
        (
            "{rules: [{per: ip, limit: 1/s}, {per: host, limit: 1/s}]}",
            "rules[1]: another rule is called `1/s`",
        ),
        ("{rules: [{per: ip, limit: 1/s, name: a b}]}", "rules[0].name: expected a name"),
        ("{rules: [{per: ip, limit: 1/s}, {per: ip, limit: 9/s, cost: 10}]}", "rules[1].cost: is more than"),
    ] {
        let message = refused(&format!("- rate_limit: {options}"));
        assert!(message.starts_with(told), "{options}: {message}");
    }
}

/// Eight threads ask until they are refused; how many requests passed.
fn storm(chain: &Chain) -> u64 {
    let ask = || {
        let mut passed = 0_u64;
        let passes =
            || chain.send(get("/")).now_or_never().expect("memory does not wait").ctx.ended_by.is_none();
        while passes() {
            passed += 1;
        }
        passed
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn eight_threads_never_get_more_than_burst_and_rate_in_any_window_nor_less(
        count in 1_u32..50,
        period in prop::sample::select(vec![("s", 1_u64), ("min", 60)]),
        burst in 1_u32..40,
        pauses in prop::collection::vec(any::<u32>(), 1..12),
    ) {
        let chain = chain(&format!("- rate_limit: {{per: ip, limit: {count}/{}, burst: {burst}}}", period.0));
        let nanos = period.1 * 1_000_000_000;
        // When, in nanoseconds, and how many passed by then.
        let (mut now, mut sum) = (0_u64, 0_u64);
        let mut history = vec![(0_u64, 0_u64)];
        for pause in pauses {
            let passed = storm(&chain);
            sum += passed;
            for (begin, before) in &history {
                let most = u128::from(burst) + u128::from(now - begin) * u128::from(count) / u128::from(nanos);
                assert!(u128::from(sum - before) <= most, "{} in {} ns", sum - before, now - begin);
            }
            let pause = u64::from(pause) * period.1;
            chain.clock.advance(Duration::from_nanos(pause));
            now += pause;
            history.push((now, sum));
        }
        // What they asked for all the time they got: all the budget that came back while it was not whole.
        let interval = nanos.div_ceil(u64::from(count));
        let whole = interval * u64::from(burst);
        let mut budget = whole;
        let mut got = 0;
        let mut last = 0;
        for (at, _) in &history[..history.len() - 1] {
            budget = (budget + (at - last)).min(whole);
            got += budget / interval;
            budget %= interval;
            last = *at;
        }
        assert_eq!(sum, got);
    }
}
