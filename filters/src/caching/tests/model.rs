//! Freshness against a simple model: a timeline of whole seconds on which each rule marks what it allows.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Model {
    Serve,
    ServeAndRevalidate,
    Validate,
}

/// What RFC 9111 s4.2, s5.2.1 and RFC 5861 s3 say, each rule by itself. A purge makes stale what is fresh, and what was
/// stale before no less so: the number of seconds that s3 has it served has an end for both.
fn model(facts: &Facts, asked: &RequestDirectives, standing: Standing, elapsed: i64) -> Model {
    let purged = standing != Standing::Good;
    if standing == Standing::InDoubt {
        return Model::Validate;
    }
    let age = i64::from(facts.initial_age) + elapsed;
    let lifetime = i64::from(facts.lifetime);
    let fresh = age < lifetime && !purged;
    let staleness = (age - lifetime).max(0);
    if asked.no_cache || facts.no_cache || asked.max_age.is_some_and(|most| age > i64::from(most)) {
        return Model::Validate;
    }
    if fresh {
        let enough = asked.min_fresh.is_none_or(|least| lifetime >= age + i64::from(least));
        return if enough { Model::Serve } else { Model::Validate };
    }
    let stale_allowed = !facts.no_stale;
    if stale_allowed && !purged && asked.max_stale.is_some_and(|most| staleness <= i64::from(most)) {
        return Model::Serve;
    }
    let revalidating = staleness < i64::from(facts.while_revalidate) && asked.min_fresh.is_none();
    if stale_allowed && revalidating { Model::ServeAndRevalidate } else { Model::Validate }
}

prop_compose! {
    fn some_facts()(
        received in 0u64..10_000, initial_age in 0u32..200, lifetime in 0u32..200, swr in 0u32..100,
        if_error in 0u32..100, no_cache in prop::bool::weighted(0.1), no_stale in prop::bool::weighted(0.3),
    ) -> Facts {
        Facts {
            received: received * 1000, initial_age, lifetime, while_revalidate: swr, if_error, if_unreachable: 0,
            no_cache, no_stale: no_stale || no_cache,
        }
    }
}

prop_compose! {
    fn some_request()(
        no_cache in prop::bool::weighted(0.1), max_age in prop::option::weighted(0.3, 0u32..300),
        min_fresh in prop::option::weighted(0.3, 0u32..200), max_stale in prop::option::weighted(0.3, 0u32..200),
    ) -> RequestDirectives {
        RequestDirectives { no_cache, max_age, min_fresh, max_stale, ..RequestDirectives::default() }
    }
}

fn some_standing() -> impl Strategy<Value = Standing> {
    prop_oneof![8 => Just(Standing::Good), 1 => Just(Standing::Stale), 1 => Just(Standing::InDoubt)]
}

proptest! {
    #[test]
    fn freshness_is_what_the_model_says(
        facts in some_facts(), asked in some_request(), standing in some_standing(), elapsed in 0u64..500,
    ) {
        let judged = judge(&facts, &asked, standing, facts.received + elapsed * 1000);
        let expected = model(&facts, &asked, standing, elapsed.cast_signed());
        let got = match judged.serve {
            Serve::AsItIs => Model::Serve,
            Serve::AndRevalidate => Model::ServeAndRevalidate,
            Serve::AfterValidation(_) => Model::Validate,
        };
        prop_assert_eq!(got, expected);
        prop_assert_eq!(judged.age, u64::from(facts.initial_age) + elapsed);
    }

    #[test]
    fn time_makes_nothing_fresh_again(
        facts in some_facts(), asked in some_request(), one in 0u64..400_000, two in 0u64..400_000,
    ) {
        let (early, late) = (one.min(two), one.max(two));
        let serves = |at: u64| judge(&facts, &asked, Standing::Good, facts.received + at).serve == Serve::AsItIs;
        // Only `max-stale` counts from where freshness ends, and it does so once.
        prop_assume!(asked.min_fresh.is_none());
        prop_assert!(!serves(late) || serves(early));
    }

    #[test]
    fn no_answer_is_served_stale_that_forbids_it(
        facts in some_facts(), asked in some_request(), reached in any::<bool>(), elapsed in 0u64..500_000,
    ) {
        let now = facts.received + elapsed;
        let judged = judge(&facts, &asked, Standing::Good, now);
        if facts.no_stale && facts.left(now).is_err() {
            prop_assert!(matches!(judged.serve, Serve::AfterValidation(_)));
            prop_assert!(!serves_on_error(&facts, &asked, Standing::Good, (reached, now)));
        }
    }

    #[test]
    fn nobody_gets_what_is_in_doubt_before_it_is_validated(
        facts in some_facts(), asked in some_request(), reached in any::<bool>(), elapsed in 0u64..500_000,
    ) {
        let now = facts.received + elapsed;
        let judged = judge(&facts, &asked, Standing::InDoubt, now);
        prop_assert!(matches!(judged.serve, Serve::AfterValidation(_)));
        prop_assert!(!serves_on_error(&facts, &asked, Standing::InDoubt, (reached, now)));
    }

    #[test]
    fn no_field_of_an_answer_makes_storing_panic(
        control in ".{0,60}", age in ".{0,20}", expires in ".{0,40}", vary in ".{0,60}", cdn in ".{0,40}",
    ) {
        let mut map = HeaderMap::new();
        for (name, value) in [
            ("cache-control", control), ("age", age), ("expires", expires), ("vary", vary), ("cdn-cache-control", cdn),
        ] {
            if let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) {
                map.append(HeaderName::from_static(name), value);
            }
        }
        let times = Times { sent: 5, received: 4 };
        let _ = facts(&Rules::default(), (&Method::GET, &map), (StatusCode::OK, &map), times);
        let _ = RequestDirectives::of(&map);
        let _ = ranged(map.get("age").map_or(b"", |value| value.as_bytes()), 3);
    }
}
