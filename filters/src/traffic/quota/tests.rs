use std::time::Duration;

use futures_util::FutureExt;
use proptest::prelude::{ProptestConfig, prop, proptest};

use super::{settle, share};
use crate::testing::{Chain, Request, chain, get, refused};

const DAY: Duration = Duration::from_secs(86_400);

/// Sends a request as far as a backend; whether it passed.
async fn served(chain: &Chain, request: Request) -> bool {
    let mut sent = chain.send(request).await;
    if sent.ctx.ended_by.is_some() {
        return false;
    }
    sent.attempt(1).await;
    sent.answered(200, &[]).await;
    true
}

async fn passing(chain: &Chain, requests: usize) -> usize {
    let mut passing = 0;
    for _ in 0..requests {
        passing += usize::from(served(chain, get("/")).await);
    }
    passing
}

#[tokio::test]
async fn a_day_ends_at_midnight_of_the_place() {
    // The clock of these tests starts with 2026 in UTC; Berlin is an hour ahead.
    let chain = chain("- quota: {per: ip, limit: 3/day, time_zone: Europe/Berlin}");
    assert_eq!(passing(&chain, 5).await, 3);
    let refused = chain.send(get("/")).await.responds(429);
    refused.header("retry-after", &(23 * 3600).to_string());
    chain.clock.advance(Duration::from_secs(23 * 3600 - 1));
    assert_eq!(passing(&chain, 5).await, 0);
    chain.clock.advance(Duration::from_secs(1));
    assert_eq!(passing(&chain, 5).await, 3);
}

#[tokio::test]
async fn a_month_is_told_without_a_window_and_a_day_with_one() {
    let month = chain("- quota: {per: ip, limit: 1000000/month}");
    let answer = month.answer(get("/"), &[]).await;
    let answer = answer.header("ratelimit-policy", "\"1000000/month\";q=1000000");
    answer.header("ratelimit", &format!("\"1000000/month\";r=999999;t={}", 31 * 86_400));
    let day = chain("- quota: {per: ip, limit: 10/day, cost: 3}\n  name: daily");
    let answer = day.answer(get("/"), &[]).await;
    let answer = answer.header("ratelimit-policy", "\"daily\";q=10;w=86400;tollhouse-cost=3");
    answer.header("ratelimit", "\"daily\";r=7;t=86400");
}

#[tokio::test]
async fn a_quota_is_another_problem_than_a_rate() {
    let chain = chain("- quota: {per: ip, limit: 1/day}\n  name: daily");
    assert!(served(&chain, get("/")).await);
    let sent = chain.send(get("/")).await;
    let reason = sent.ctx.ended_by.as_ref().and_then(|ended| ended.reason.clone());
    assert_eq!(reason.as_deref(), Some("the quota `daily` is used up"));
    assert_eq!(crate::problem::QUOTA_EXCEEDED.urn(), "urn:tollhouse:problem:quota-exceeded");
}

#[tokio::test]
async fn a_window_that_rolls_gives_back_what_was_used_that_long_ago() {
    let chain = chain("- quota: {per: ip, limit: 4, window: 30d}");
    assert_eq!(passing(&chain, 2).await, 2);
    chain.clock.advance(10 * DAY);
    assert_eq!(passing(&chain, 5).await, 2);
    chain.clock.advance(20 * DAY - Duration::from_secs(1));
    assert_eq!(passing(&chain, 5).await, 0);
    // A part of the window, which is twelve hours, later at most.
    chain.clock.advance(DAY / 2 + Duration::from_secs(1));
    assert_eq!(passing(&chain, 5).await, 2);
}

#[tokio::test]
async fn a_retry_after_that_is_kept_to_is_enough() {
    for options in ["limit: 3/day, time_zone: Asia/Kolkata", "limit: 3, window: 1h, cost: 2", "limit: 2/week"]
    {
        let chain = chain(&format!("- quota: {{per: ip, {options}}}"));
        for _ in 0..20 {
            chain.clock.advance(Duration::from_secs(7));
            let mut sent = chain.send(get("/")).await;
            if sent.ctx.ended_by.is_none() {
                sent.attempt(1).await;
                continue;
            }
            let wait = sent.responds(429).field("retry-after").expect("Retry-After");
            chain.clock.advance(Duration::from_secs(wait.parse().expect("whole seconds")));
            assert!(served(&chain, get("/")).await, "{options}");
        }
    }
}

#[tokio::test]
async fn only_what_was_served_counts() {
    let chain = chain("- quota: {per: ip, limit: 2/day}");
    // No backend was found.
    chain.send(get("/")).await.continues().answered(503, &[]).await;
    // The client went away before there was one.
    drop(chain.send(get("/")).await.continues());
    // So it was of a call, whose answer begins with 200 (gRPC over HTTP/2, Responses).
    chain.send(get("/")).await.continues().answered(200, &[("grpc-status", "14")]).await;
    // A filter after it answered.
    chain.send(get("/")).await.continues().answered(304, &[]).await;
    // The backend got it, and then the client went away.
    let mut sent = chain.send(get("/")).await.continues();
    sent.attempt(1).await;
    drop(sent);
    chain.send(get("/")).await.responds(429);
}

#[tokio::test]
async fn what_goes_on_beside_a_request_holds_what_that_reserved_until_it_was_sent() {
    let chain = chain("- quota: {per: ip, limit: 1/day}");
    let fork = async || {
        let mut sent = chain.send(get("/")).await.continues();
        // What upstreams are told was written, and nothing was sent.
        sent.attempt(0).await;
        let mut fork = sent.ctx.fork();
        share(&sent.ctx, &mut fork);
        fork
    };
    let first = fork().await;
    chain.send(get("/")).await.responds(429);
    drop(first);
    let second = fork().await;
    settle(&second);
    drop(second);
    chain.send(get("/")).await.responds(429);
}

#[tokio::test]
async fn what_is_under_way_is_reserved() {
    let chain = chain("- quota: {per: ip, limit: 1/day}");
    let first = chain.send(get("/")).await.continues();
    chain.send(get("/")).await.responds(429);
    drop(first);
    chain.send(get("/")).await.continues();
}

#[tokio::test]
async fn what_a_later_filter_refuses_is_given_back() {
    let chain = chain("- quota: {per: ip, limit: 3/day}\n- rate_limit: {per: ip, limit: 1/s}");
    for second in 0..3 {
        assert!(served(&chain, get("/")).await, "{second}");
        for _ in 0..5 {
            assert!(!served(&chain, get("/")).await);
        }
        chain.clock.advance(Duration::from_secs(1));
    }
    assert!(!served(&chain, get("/")).await);
}

#[tokio::test]
async fn nobody_is_told_to_wait_for_what_is_given_back() {
    let chain = chain("- quota: {per: ip, limit: 3/day}\n- rate_limit: {per: ip, limit: 1/min}");
    for _ in 0..2 {
        assert!(served(&chain, get("/")).await);
        chain.clock.advance(Duration::from_secs(60));
    }
    // It took the last unit of the day, and is not sent.
    let mut sent = chain.send(get("/")).await.continues();
    sent.answered(503, &[]).await.header("ratelimit", "\"1/min\";r=0;t=60");
    drop(sent);
    // These take it, and are refused.
    for _ in 0..3 {
        let refused = chain.send(get("/")).await.responds(429);
        refused.header("retry-after", "60").header("ratelimit", "\"1/min\";r=0;t=60");
    }
    chain.clock.advance(Duration::from_secs(60));
    assert!(served(&chain, get("/")).await);
}

#[tokio::test]
async fn a_dry_run_counts_and_refuses_nobody() {
    let chain = chain("- quota: {per: ip, limit: 1/day}\n  dry_run: true");
    chain.send(get("/")).await.continues();
    let sent = chain.send(get("/")).await.continues();
    let would =
        |decision: &crate::context::Decision| decision.verdict == crate::context::Verdict::WouldAnswer;
    assert!(sent.ctx.decisions().iter().any(would));
}

#[tokio::test]
async fn a_silent_quota_only_refuses() {
    let chain = chain("- quota: {per: ip, limit: 1/day, headers: false}");
    let mut sent = chain.send(get("/")).await.continues();
    sent.attempt(1).await;
    sent.answered(200, &[]).await.no_header("ratelimit").no_header("ratelimit-policy");
    chain.send(get("/")).await.responds(429).header("retry-after", "86400").no_header("ratelimit");
}

#[test]
fn options_that_make_no_sense_are_refused_at_their_place() {
    for (options, told) in [
        ("{limit: 1/day}", ": missing key `per`"),
        ("{per: ip, limit: 0/day}", "limit: expected a quota above zero"),
        ("{per: ip, limit: 5/h}", "limit: expected a quota above zero"),
        ("{per: ip, limit: 5}", "limit: expected a time for the count, as in `5000/day`"),
        ("{per: ip, limit: 5/day, window: 1d}", "window: rolls, so the quota beside it is a bare count"),
        ("{per: ip, limit: 5, window: 10s}", "window: expected a time from `1m` to `366d`"),
        ("{per: ip, limit: 5, window: 400d}", "window: expected a time from `1m` to `366d`"),
        ("{per: ip, limit: 5, window: 1d, time_zone: UTC}", "time_zone: belongs to a quota of the calendar"),
        ("{per: ip, limit: 5/day, time_zone: Europe/Atlantis}", "time_zone: expected the IANA name"),
        ("{per: ip, limit: 5/day, cost: 6}", "cost: is more than the quota of 5"),
    ] {
        let message = refused(&format!("- quota: {options}"));
        assert!(message.starts_with(told), "{options}: {message}");
    }
}

/// Eight threads ask until they are refused; how many requests were served.
fn storm(chain: &Chain) -> u64 {
    let ask = || {
        let mut passed = 0_u64;
        while served(chain, get("/")).now_or_never().expect("memory does not wait") {
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
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn eight_threads_never_get_more_than_the_quota_in_any_window_that_rolls(
        limit in 1_u64..60,
        window in prop::sample::select(vec![60_u64, 3600, 86_400]),
        pauses in prop::collection::vec(0_u64..100_000, 1..16),
    ) {
        let chain = chain(&format!("- quota: {{per: ip, limit: {limit}, window: {window}s}}"));
        let mut served: Vec<(u64, u64)> = Vec::new();
        let mut now = 0;
        for pause in pauses {
            let passed = storm(&chain);
            served.push((now, passed));
            let within = served.iter().filter(|(at, _)| at + window * 1000 > now);
            assert!(within.map(|(_, passed)| passed).sum::<u64>() <= limit);
            // All that was used a window and a part of it ago is there again.
            let recent = served[..served.len() - 1].iter().filter(|(at, _)| at + window * 1017 > now);
            assert!(passed >= limit - recent.map(|(_, passed)| passed).sum::<u64>().min(limit));
            let pause = pause * window / 60;
            chain.clock.advance(Duration::from_millis(pause));
            now += pause;
        }
    }

    #[test]
    fn eight_threads_get_exactly_the_quota_of_each_day(
        limit in 1_u64..60,
        hours in prop::collection::vec(0_u64..50, 1..16),
    ) {
        let chain = chain(&format!("- quota: {{per: ip, limit: {limit}/day}}"));
        let (mut now, mut last) = (0, None);
        for pause in hours {
            let today = now / 24;
            assert_eq!(storm(&chain), if last == Some(today) { 0 } else { limit });
            last = Some(today);
            chain.clock.advance(Duration::from_secs(pause * 3600));
            now += pause;
        }
    }
}
