//! Splits: a share of the requests for each of several variants.
//!
//! Weighted rendezvous hashing decides: each key draws a number for each variant, and the best one for its
//! weight gets it. A variant whose weight is raised takes keys from the others and gives none away.

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
        let weighed = self.variants.iter().enumerate().map(|(at, variant)| (at, variant, self.weight(at)));
        let drawn = weighed.filter(|(_, _, weight)| *weight > 0);
        let scored = drawn
            .map(|(at, variant, weight)| (at, -fraction(mix(key ^ variant.seed)).ln() / f64::from(weight)));
        // A document whose weights are all 0 is refused.
        let best = scored.min_by(|one, two| one.1.total_cmp(&two.1)).map_or(0, |(at, _)| at);
        match &self.ramp {
            Some(ramp) if ramp.from == best => ramp.side(key),
            _ => best,
        }
    }

    /// The two variants of a ramp are one here, so that what moves between them touches no other.
    fn weight(&self, at: usize) -> u32 {
        match &self.ramp {
            Some(ramp) if ramp.from == at => ramp.weight,
            Some(ramp) if ramp.to == at => 0,
            _ => u32::from(self.variants[at].weight),
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
    use proptest::prelude::*;
    use tollhouse_filters::path::normalize;
    use tollhouse_filters::when::WhenSpec;
    use tollhouse_filters::world::SeededRng;

    use super::*;

    fn split(weights: &[u16], salt: &str) -> Split {
        let names = ["a", "b", "c", "d", "e"].map(Arc::from);
        let variants = names.into_iter().zip(weights.iter().copied());
        let by = Some(Selector::parse("header:x-user").expect("a selector"));
        Split::new(variants, salt, by, None, Arc::new(SeededRng::new(1)))
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
