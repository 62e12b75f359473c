//! Splits: a share of the requests for each of several variants.
//!
//! Weighted rendezvous hashing decides: each key draws a number for each variant, and the best one for its
//! weight gets it. A variant whose weight is raised takes keys from the others and gives none away. A ramp goes by
//! the same draws, so it begins with who has the new variant already, and moves nobody but to that one.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use tollhouse_filters::context::Context;
use tollhouse_filters::draw::{fraction, hash, mix, seed};
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::selector::Selector;
use tollhouse_filters::when::When;
use tollhouse_filters::world::Rng;

use super::Ramp;

/// A share of the requests for each of several variants.
pub struct Split {
    variants: Box<[Variant]>,
    sticky_by: Option<Selector>,
    force: Option<Force>,
    ramp: Option<Ramp>,
    rng: Arc<dyn Rng>,
}

/// One variant.
#[derive(Debug)]
pub struct Variant {
    /// Its name: that of an upstream or of a version.
    pub name: Arc<str>,
    weight: u16,
    seed: u64,
}

/// Who may choose a variant, and how.
pub struct Force {
    /// The field that names the variant.
    pub header: HeaderName,
    /// Who may.
    pub when: When,
}

/// The variant of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Its place among the variants.
    pub variant: usize,
    /// Why this one.
    pub why: Why,
}

/// Why a request gets a variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// Its client named it.
    Forced,
    /// What it sticks by says so.
    Sticky,
    /// It was drawn.
    Drawn,
}

impl Why {
    /// As explanations say it.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::Sticky => "sticky",
            Self::Drawn => "drawn",
        }
    }
}

impl Split {
    /// A split between these variants, of which one at least has a weight; `salt` makes the same keys fall
    /// differently than in other splits.
    #[must_use]
    pub fn new(
        variants: impl IntoIterator<Item = (Arc<str>, u16)>,
        salt: &str,
        sticky_by: Option<Selector>,
        force: Option<Force>,
        rng: Arc<dyn Rng>,
    ) -> Self {
        let variants = variants.into_iter().map(|(name, weight)| {
            let seed = seed(&format!("{salt}\n{name}"), 0);
            Variant { name, weight, seed }
        });
        Self { variants: variants.collect(), sticky_by, force, ramp: None, rng }
    }

    /// With a weight that moves.
    #[must_use]
    pub fn ramping(self, ramp: Option<Ramp>) -> Self {
        Self { ramp, ..self }
    }

    /// The weight that moves.
    #[must_use]
    pub fn ramp(&self) -> Option<&Ramp> {
        self.ramp.as_ref()
    }

    /// The variants, in order.
    #[must_use]
    pub fn variants(&self) -> &[Variant] {
        &self.variants
    }

    /// The field by which testers choose their variant.
    #[must_use]
    pub fn forced_by(&self) -> Option<&HeaderName> {
        self.force.as_ref().map(|force| &force.header)
    }

    /// Chooses a request's variant, and takes away the field by which it may have named one.
    ///
    /// # Errors
    /// 400 where it names a variant that does not exist.
    pub fn choose(&self, request: &mut RequestHeader, ctx: &Context) -> Result<Chosen, Problem> {
        if let Some(force) = &self.force {
            let wish = force.wish(request, ctx);
            request.remove_header(&force.header);
            if let Some(wish) = wish {
                let variant = self.named(&wish).ok_or_else(|| self.unknown())?;
                return Ok(Chosen { variant, why: Why::Forced });
            }
        }
        let mut key = Vec::new();
        let sticky = self.sticky_by.as_ref().is_some_and(|by| by.write_key(request, ctx, &mut key));
        let (key, why) = if sticky { (hash(&key), Why::Sticky) } else { (self.rng.u64(), Why::Drawn) };
        Ok(Chosen { variant: self.of(key), why })
    }

    /// The variant of a key.
    fn of(&self, key: u64) -> usize {
        let weighed = self.variants.iter().enumerate().filter(|(_, variant)| variant.weight > 0);
        let scored = weighed.map(|(at, variant)| (at, variant.draw(key) / variant.weight()));
        // A document whose weights are all 0 is refused.
        let best = scored.min_by(|one, two| one.1.total_cmp(&two.1)).map_or(0, |(at, _)| at);
        match &self.ramp {
            Some(ramp) if best == ramp.from || best == ramp.to => ramp.side(self.between(ramp, best, key)),
            _ => best,
        }
    }

    /// Where a key that falls to one of the two variants of a ramp lies between them, all keys evenly from 0 to 1. Those
    /// that have the new one by the written weights lie below its share of what both have.
    fn between(&self, ramp: &Ramp, best: usize, key: u64) -> f64 {
        let (old, new) = (&self.variants[ramp.from], &self.variants[ramp.to]);
        let (old_draw, new_draw) = (old.draw(key), new.draw(key));
        // By what is written, not by what others weigh: another weight of theirs moves nobody between these two.
        if self.variants.len() == 2 {
            // The new one is the best for weights of this share and for all of a greater one.
            return new_draw / (old_draw + new_draw);
        }
        // Of keys that beat others, draws are small: only by how much the better of both wins still lies evenly,
        // whatever it won with.
        let both = old.weight() + new.weight();
        if best == ramp.to {
            let lead = old_draw - new_draw / new.weight() * old.weight();
            new.weight() / both * (-lead).exp()
        } else {
            let lead = new_draw - old_draw / old.weight() * new.weight();
            1.0 - old.weight() / both * (-lead).exp()
        }
    }

    fn named(&self, name: &HeaderValue) -> Option<usize> {
        self.variants.iter().position(|variant| name == &*variant.name)
    }

    fn unknown(&self) -> Problem {
        let names: Vec<String> = self.variants.iter().map(|variant| format!("`{}`", variant.name)).collect();
        let detail = format!("there is no such variant; there are: {}", names.join(", "));
        Problem::new(&problem::BAD_REQUEST).detail(detail)
    }
}

impl Variant {
    fn weight(&self) -> f64 {
        f64::from(self.weight)
    }

    /// What this key draws for it, of an exponential distribution; the less for its weight, the better.
    fn draw(&self, key: u64) -> f64 {
        -fraction(mix(key ^ self.seed)).ln()
    }
}

impl Force {
    /// What the request asks for, if it may.
    fn wish(&self, request: &RequestHeader, ctx: &Context) -> Option<HeaderValue> {
        let named = request.headers.get(&self.header)?;
        // Where nobody can tell, it may not.
        (self.when.holds(request, ctx) == Ok(true)).then(|| named.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use tollhouse_filters::path::normalize;
    use tollhouse_filters::when::WhenSpec;
    use tollhouse_filters::world::{ManualClock, SeededRng, World};

    use super::*;
    use crate::config;

    fn split(weights: &[u16], salt: &str) -> Split {
        let names = ["a", "b", "c", "d", "e"].map(Arc::from);
        let variants = names.into_iter().zip(weights.iter().copied());
        let by = Some(Selector::parse("header:x-user").expect("a selector"));
        Split::new(variants, salt, by, None, Arc::new(SeededRng::new(1)))
    }

    /// With a ramp from `a` to `b`, a fifth of the way every two hours; of one that is not `settled`, nothing moves.
    fn ramping(weights: &[u16], salt: &str, route: &str, world: &World, settled: bool) -> Split {
        let written = "{from: a, to: b, over: 10h, steps: 5}";
        let written: config::Ramp = serde_yaml::from_str(written).expect("a ramp");
        let ramp = Ramp::new(&written, route, ((0, weights[0]), (1, weights[1])), world, settled);
        split(weights, salt).ramping(Some(ramp))
    }

    fn request(fields: &[(&'static str, &str)]) -> (RequestHeader, Context) {
        let mut request = RequestHeader::build("GET", b"/", None).expect("valid");
        for (name, value) in fields {
            request.insert_header(*name, *value).expect("valid");
        }
        let path = normalize("/", &Default::default()).expect("valid");
        (request, Context::for_tests(path, std::time::Instant::now()))
    }

    fn of(split: &Split, user: u32) -> usize {
        let (mut request, ctx) = request(&[("x-user", &user.to_string())]);
        let chosen = split.choose(&mut request, &ctx).expect("chosen");
        assert_eq!(chosen.why, Why::Sticky);
        chosen.variant
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn raising_a_weight_moves_users_to_that_variant_and_nowhere_else(
            weights in prop::collection::vec(0_u16..=1000, 2..=5),
            raised in any::<prop::sample::Index>(),
            by in 1_u16..=1000,
            salt in "[a-z]{0,8}",
            first_user in any::<u32>(),
        ) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let raised = raised.index(weights.len());
            let mut more = weights.clone();
            more[raised] += by;
            let (before, after) = (split(&weights, &salt), split(&more, &salt));
            for user in (0..300).map(|user| first_user.wrapping_add(user)) {
                let (old, new) = (of(&before, user), of(&after, user));
                prop_assert!(new == old || new == raised, "{user}: from {old} to {new}");
                prop_assert!(more[new] > 0);
            }
        }

        #[test]
        fn a_ramp_begins_with_who_has_the_new_variant_and_moves_others_to_it_and_nowhere_else(
            weights in prop::collection::vec(0_u16..=1000, 2..=5),
            salt in "[a-z]{0,8}",
            first_user in any::<u32>(),
        ) {
            prop_assume!(weights[0] > 0);
            let users: Vec<u32> = (0..300).map(|user| first_user.wrapping_add(user)).collect();
            let all = |split: &Split| users.iter().map(|user| of(split, *user)).collect::<Vec<_>>();
            let mut before = all(&split(&weights, &salt));
            let still = ramping(&weights, &salt, "route", &World::dry(), false);
            prop_assert_eq!(&all(&still), &before);
            let clock = Arc::new(ManualClock::new());
            let moving = ramping(&weights, &salt, "route", &World::dry_at(clock.clone()), true);
            for _ in 0..5 {
                let now = all(&moving);
                for (old, new) in before.iter().zip(&now) {
                    prop_assert!(new == old || (*old, *new) == (0, 1), "from {old} to {new}");
                }
                before = now;
                clock.advance(Duration::from_secs(2 * 3600));
            }
            prop_assert!(!before.contains(&0), "at the end the new one has all");
        }

        #[test]
        fn the_weight_of_a_third_variant_moves_nobody_between_the_two_of_a_ramp(
            old in 1_u16..=1000,
            new in 0_u16..=1000,
            third in 1_u16..=1000,
            salt in "[a-z]{0,8}",
            first_user in any::<u32>(),
        ) {
            // Both a fifth of the way.
            let beside = |third: u16| ramping(&[old, new, third], &salt, "route", &World::dry(), true);
            let (none, some) = (beside(0), beside(third));
            for user in (0..300).map(|user| first_user.wrapping_add(user)) {
                let (before, after) = (of(&none, user), of(&some, user));
                prop_assert!(after == before || after == 2, "{user}: from {before} to {after}");
            }
        }
    }

    #[test]
    fn a_ramp_moves_its_share_of_what_both_have_also_where_there_is_a_third() {
        for (weights, expected) in [([100, 0, 100], [8000, 2000]), ([90, 10, 100], [7200, 2800])] {
            let split = ramping(&weights, "salt", "route", &World::dry(), true);
            let mut counts = [0_i32; 3];
            (0..20_000).for_each(|user| counts[of(&split, user)] += 1);
            for (count, expected) in counts.into_iter().zip(expected.into_iter().chain([10_000])) {
                assert!((count - expected).abs() < 350, "{weights:?}: {counts:?}");
            }
        }
    }

    #[test]
    fn ramps_of_one_salt_move_the_same_users_who_stay_when_the_weights_are_written_out() {
        let world = World::dry();
        let [one, two] = ["one", "two"].map(|route| ramping(&[100, 0], "spring", route, &world, true));
        let written = split(&[80, 20], "spring");
        for user in 0..2000 {
            let expected = of(&written, user);
            assert_eq!((of(&one, user), of(&two, user)), (expected, expected), "{user}");
        }
    }

    #[test]
    fn shares_are_those_of_the_weights() {
        let split = split(&[70, 20, 10], "salt");
        let mut counts = [0_i32; 3];
        (0..20_000).for_each(|user| counts[of(&split, user)] += 1);
        for (count, expected) in counts.into_iter().zip([14_000, 4000, 2000]) {
            // Five standard deviations of the largest.
            assert!((count - expected).abs() < 350, "{counts:?}");
        }
    }

    #[test]
    fn users_fall_differently_in_splits_of_another_salt() {
        let (one, two) = (split(&[50, 50], "one"), split(&[50, 50], "two"));
        let same = (0..2000).filter(|user| of(&one, *user) == of(&two, *user)).count();
        assert!((800..1200).contains(&same), "{same}");
    }

    #[test]
    fn who_has_nothing_to_stick_by_is_drawn_anew() {
        let split = split(&[50, 50], "salt");
        let mut counts = [0; 2];
        for _ in 0..1000 {
            let (mut request, ctx) = request(&[]);
            let chosen = split.choose(&mut request, &ctx).expect("chosen");
            assert_eq!(chosen.why, Why::Drawn);
            counts[chosen.variant] += 1;
        }
        assert!(counts.iter().all(|count| *count > 400), "{counts:?}");
    }

    #[test]
    fn testers_choose_and_others_do_not() {
        let when: WhenSpec =
            serde_json::from_value(serde_json::json!({"headers": {"x-tester": "1"}})).expect("spec");
        let force = Force { header: HeaderName::from_static("x-variant"), when: When::new(when) };
        let names = ["a", "b"].map(Arc::from).into_iter().zip([100, 0]);
        let split = Split::new(names, "", None, Some(force), Arc::new(SeededRng::new(1)));
        let choose = |fields: &[(&'static str, &str)]| {
            let (mut request, ctx) = request(fields);
            let chosen = split.choose(&mut request, &ctx);
            assert!(!request.headers.contains_key("x-variant"), "no upstream sees it");
            chosen.map(|chosen| (chosen.variant, chosen.why)).map_err(|problem| problem.status())
        };
        assert_eq!(choose(&[("x-tester", "1"), ("x-variant", "b")]), Ok((1, Why::Forced)));
        assert_eq!(choose(&[("x-variant", "b")]), Ok((0, Why::Drawn)));
        assert_eq!(choose(&[("x-tester", "1")]), Ok((0, Why::Drawn)));
        assert_eq!(choose(&[("x-tester", "1"), ("x-variant", "c")]), Err(400));
    }
}
