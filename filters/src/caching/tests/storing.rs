//! What may be stored (RFC 9111 s3), and for how long it is fresh (s4.2).

use std::time::{Duration, SystemTime};

use super::*;

const NOW: u64 = 1_800_000_000_000;

fn at(seconds: i64) -> String {
    let base = SystemTime::UNIX_EPOCH + Duration::from_millis(NOW);
    let time = if seconds < 0 {
        base - Duration::from_secs(seconds.unsigned_abs())
    } else {
        base + Duration::from_secs(seconds.unsigned_abs())
    };
    httpdate::fmt_http_date(time)
}

fn store_with(
    rules: &Rules,
    request: &[(&'static str, &str)],
    status: u16,
    answer: &[(&'static str, &str)],
) -> Result<Facts, NotStored> {
    let status = StatusCode::from_u16(status).unwrap();
    let times = Times { sent: NOW, received: NOW };
    facts(rules, (&Method::GET, &fields(request)), (status, &fields(answer)), times)
}

fn store(answer: &[(&'static str, &str)]) -> Result<Facts, NotStored> {
    store_with(&Rules::default(), &[], 200, answer)
}

#[test]
fn what_is_forbidden_is_not_stored_as_rfc_9111_s3_says() {
    let fresh = ("cache-control", "max-age=60");
    assert_eq!(store(&[fresh]).unwrap().lifetime, 60);
    assert_eq!(store(&[fresh, ("cache-control", "no-store")]), Err(NotStored::NoStore));
    assert_eq!(store(&[fresh, ("cache-control", "private")]), Err(NotStored::Private));
    assert_eq!(store(&[fresh, ("vary", "*")]), Err(NotStored::VaryAny));
    assert_eq!(store(&[fresh, ("set-cookie", "a=b")]), Err(NotStored::SetCookie));
    assert_eq!(store(&[]), Err(NotStored::NotFresh));
    let rules = Rules { set_cookie: true, ..Rules::default() };
    assert!(store_with(&rules, &[], 200, &[fresh, ("set-cookie", "a=b")]).is_ok());
    let asked = [("cache-control", "no-store")];
    assert_eq!(store_with(&Rules::default(), &asked, 200, &[fresh]), Err(NotStored::RequestNoStore));
    let times = Times { sent: NOW, received: NOW };
    for method in [Method::HEAD, Method::POST, Method::PUT] {
        let stored =
            facts(&Rules::default(), (&method, &fields(&[])), (StatusCode::OK, &fields(&[fresh])), times);
        assert_eq!(stored, Err(NotStored::Method), "{method}");
    }
}

#[test]
fn parts_and_interim_answers_are_not_stored() {
    for status in [103, 206, 304] {
        let stored = store_with(&Rules::default(), &[], status, &[("cache-control", "max-age=60")]);
        assert_eq!(stored, Err(NotStored::Status), "{status}");
    }
    for status in [200, 299, 302, 403, 500, 599] {
        let stored = store_with(&Rules::default(), &[], status, &[("cache-control", "max-age=60")]);
        assert!(stored.is_ok(), "{status}: the origin says how long it is fresh");
    }
}

#[test]
fn answers_about_who_asks_are_never_stored_as_rfc_6585_s3_to_s6_say() {
    let ruled = Rules { statuses: vec![("400-599".parse().unwrap(), 60)], ..Rules::default() };
    for status in [428, 429, 431, 511] {
        for control in ["max-age=60", "public, s-maxage=60", "no-store, must-understand, max-age=60"] {
            let stored = store_with(&ruled, &[], status, &[("cache-control", control)]);
            assert_eq!(stored, Err(NotStored::Asker), "{status} {control}");
        }
        assert_eq!(store_with(&ruled, &[], status, &[]), Err(NotStored::Asker), "{status}");
    }
    assert!(store_with(&ruled, &[], 430, &[]).is_ok());
    // It says nothing of what others are answered, nor of the next answer.
    assert!(NotStored::Asker.is_of_request() && !NotStored::Asker.will_last());
}

#[test]
fn answers_to_credentials_are_for_all_only_if_they_say_so_as_rfc_9111_s3_5_says() {
    let asked = [("authorization", "Basic Zm9vOmJhcg==")];
    let with = |control: &str| store_with(&Rules::default(), &asked, 200, &[("cache-control", control)]);
    assert_eq!(with("max-age=60"), Err(NotStored::Authorization));
    for control in ["max-age=60, public", "s-maxage=60", "max-age=60, must-revalidate"] {
        assert!(with(control).is_ok(), "{control}");
    }
    let rules = Rules { ttl: Some(60), ..Rules::default() };
    assert_eq!(
        store_with(&rules, &asked, 200, &[]),
        Err(NotStored::Authorization),
        "whatever the operator's ttl"
    );
    let keyed = Rules { credentials: true, ..rules };
    assert!(store_with(&keyed, &asked, 200, &[]).is_ok());
}

#[test]
fn must_understand_outweighs_no_store_for_who_understands_as_rfc_9111_s5_2_2_3_says() {
    let answer = [("cache-control", "max-age=60, no-store, must-understand")];
    assert!(store_with(&Rules::default(), &[], 200, &answer).is_ok());
    assert_eq!(store_with(&Rules::default(), &[], 299, &answer), Err(NotStored::NotUnderstood));
}

#[test]
fn freshness_is_said_in_this_order_as_rfc_9111_s4_2_1_says() {
    let (date, later) = (at(0), at(100));
    let lifetime = |answer: &[(&'static str, &str)]| store(answer).map(|facts| facts.lifetime);
    let expires = [("date", &*date), ("expires", &*later)];
    assert_eq!(lifetime(&expires), Ok(100));
    assert_eq!(lifetime(&[expires[0], expires[1], ("cache-control", "max-age=7")]), Ok(7));
    assert_eq!(lifetime(&[("cache-control", "max-age=7, s-maxage=8")]), Ok(8));
    assert_eq!(lifetime(&[expires[0], expires[1], ("cdn-cache-control", "max-age=9")]), Ok(9));
    for wrong in ["0", "-1", "tomorrow", "Thu, 18 Aug 2050 02:01:18 UTC"] {
        let answer = [("date", &*date), ("expires", wrong)];
        assert_eq!(lifetime(&answer), Err(NotStored::NotFresh), "s5.3: {wrong}");
    }
    let twice = [expires[0], expires[1], ("expires", &*later)];
    assert_eq!(lifetime(&twice), Err(NotStored::NotFresh), "s4.2.1: two are none");
    assert_eq!(lifetime(&[("expires", &*later)]), Ok(100), "without `Date`, from when it came");
}

#[test]
fn the_age_on_the_way_counts_as_rfc_9111_s4_2_3_says() {
    let age = |answer: &[(&'static str, &str)], times| {
        let lines: Vec<_> = answer.iter().copied().chain([("cache-control", "max-age=9999999999")]).collect();
        facts(&Rules::default(), (&Method::GET, &fields(&[])), (StatusCode::OK, &fields(&lines)), times)
            .unwrap()
            .initial_age
    };
    let now = Times { sent: NOW, received: NOW };
    assert_eq!(age(&[("age", "30")], now), 30);
    assert_eq!(age(&[("age", "30"), ("date", &at(-50))], now), 50, "the larger of both");
    assert_eq!(age(&[("age", "30")], Times { sent: NOW - 5000, received: NOW }), 35, "and the way itself");
    assert_eq!(age(&[("date", &at(50))], now), 0, "a clock that is fast makes nothing younger than new");
    for (value, counts) in
        [("abc", 0), ("-7200", 0), ("7200.0", 0), ("7200, 0", 7200), ("7200;a=b", 7200), ("0, 7200", 0)]
    {
        assert_eq!(age(&[("age", value)], now), counts, "s5.1: {value}");
    }
    assert_eq!(age(&[("age", "0"), ("age", "7200")], now), 0, "the first line");
    let old = store(&[("cache-control", "max-age=60"), ("age", "2147483648")]);
    assert_eq!(old, Err(NotStored::NotFresh));
}

#[test]
fn the_operator_says_it_where_the_origin_does_not() {
    let rules = Rules {
        ttl: Some(30),
        statuses: vec![("404".parse().unwrap(), 5), ("500-599".parse().unwrap(), 1)],
        ..Rules::default()
    };
    let lifetime = |status, answer: &[(&'static str, &str)]| {
        store_with(&rules, &[], status, answer).map(|facts| facts.lifetime)
    };
    assert_eq!(lifetime(200, &[]), Ok(30));
    assert_eq!(lifetime(404, &[]), Ok(5));
    assert_eq!(lifetime(503, &[]), Ok(1));
    assert_eq!(lifetime(403, &[]), Err(NotStored::NotFresh), "`ttl` is for answers that are good");
    assert_eq!(lifetime(200, &[("cache-control", "max-age=7")]), Ok(7));
    assert_eq!(lifetime(200, &[("cache-control", "no-store")]), Err(NotStored::NoStore));
    assert_eq!(lifetime(200, &[("age", "100")]), Ok(130), "from when it came");
    let rules = Rules { overrides: true, ..rules };
    let overridden = |control: &str| store_with(&rules, &[], 200, &[("cache-control", control)]);
    assert_eq!(overridden("max-age=7").unwrap().lifetime, 30);
    assert_eq!(overridden("private, max-age=7"), Err(NotStored::Private), "what is forbidden stays so");
}

#[test]
fn nobody_guesses_unless_told_to_as_rfc_9111_s4_2_2_lets() {
    let changed = at(-1000);
    let answer = [("last-modified", &*changed), ("date", &*at(0))];
    assert_eq!(store(&answer).map(|facts| facts.lifetime), Ok(0), "it is kept to be validated");
    let rules = Rules { heuristic: Some(0.1), ..Rules::default() };
    let guessed = |status| store_with(&rules, &[], status, &answer).map(|facts| facts.lifetime);
    assert_eq!((guessed(200), guessed(404)), (Ok(100), Ok(100)));
    assert_eq!(guessed(503), Err(NotStored::NotFresh));
    let long_ago = at(-100_000_000);
    let old = store_with(&rules, &[], 200, &[("last-modified", &long_ago), ("date", &at(0))]);
    assert_eq!(old.map(|facts| facts.lifetime), Ok(86_400));
}

#[test]
fn what_nobody_called_fresh_is_only_kept_to_be_validated() {
    let rules = Rules { if_unreachable: 3600, if_error: 60, ..Rules::default() };
    let limits = |rules: &Rules, answer: &[(&'static str, &str)]| {
        let lines: Vec<_> = answer.iter().copied().chain([("etag", "\"a\"")]).collect();
        store_with(rules, &[], 200, &lines).map(|facts| (facts.if_unreachable, facts.if_error))
    };
    assert_eq!(limits(&rules, &[]), Ok((0, 60)), "what the operator allows after errors holds");
    assert_eq!(limits(&rules, &[("cache-control", "public")]), Ok((0, 60)));
    let (date, changed) = (at(0), at(-1000));
    let dated = [("date", &*date), ("last-modified", &*changed)];
    assert_eq!(limits(&rules, &dated), Ok((0, 60)));
    for said in [("cache-control", "max-age=0"), ("cache-control", "max-age=9"), ("expires", "0")] {
        assert_eq!(limits(&rules, &[said]), Ok((3600, 60)), "{said:?}");
    }
    for by_rule in [
        Rules { ttl: Some(0), ..rules.clone() },
        Rules { statuses: vec![("200".parse().unwrap(), 0)], ..rules.clone() },
        Rules { heuristic: Some(0.1), ..rules.clone() },
    ] {
        assert_eq!(limits(&by_rule, &dated), Ok((3600, 60)), "{by_rule:?}");
    }
}

#[test]
fn no_rule_has_an_error_served_beyond_its_time() {
    let rules = Rules {
        statuses: vec![("404".parse().unwrap(), 1), ("500-599".parse().unwrap(), 1)],
        while_revalidate: 10,
        if_error: 60,
        if_unreachable: 3600,
        ..Rules::default()
    };
    let limits = |status, control| {
        let facts = store_with(&rules, &[], status, &[("cache-control", control)]).unwrap();
        [facts.lifetime, facts.while_revalidate, facts.if_error, facts.if_unreachable]
    };
    assert_eq!(limits(404, ""), [1, 10, 60, 3600]);
    for status in [500, 501, 503, 599] {
        assert_eq!(limits(status, ""), [1, 0, 0, 0], "{status}");
        let said = "max-age=5, stale-while-revalidate=6, stale-if-error=7";
        assert_eq!(limits(status, said), [5, 6, 7, 0], "{status}: its origin may say so");
    }
}

#[test]
fn what_cannot_be_used_is_not_kept() {
    assert_eq!(store(&[("cache-control", "max-age=0")]), Err(NotStored::NotFresh));
    assert_eq!(store(&[("cache-control", "no-cache, max-age=60")]), Err(NotStored::NotFresh));
    let facts = store(&[("cache-control", "no-cache"), ("etag", "\"a\"")]).unwrap();
    assert!(facts.no_cache && facts.no_stale);
}
