//! Whether a stored answer may be served (RFC 9111 s4.2): the one place that decides it.

use serde::{Deserialize, Serialize};

use super::RequestDirectives;

/// What was learnt of an answer when it was stored, by which it is judged ever after.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// When its head came, in milliseconds since 1970 (`response_time`, s4.2.3).
    pub received: u64,
    /// How old it was then, in seconds (`corrected_initial_age`, s4.2.3).
    pub initial_age: u32,
    /// For how many seconds it is fresh, from when it was made (s4.2.1).
    pub lifetime: u32,
    /// For how many seconds more it may be served while it is validated (RFC 5861 s3).
    pub while_revalidate: u32,
    /// For how many seconds more it may be served when the origin answers with an error (RFC 5861 s4).
    pub if_error: u32,
    /// For how many seconds more it may be served when the origin cannot be reached (s4.2.4); 0 if nobody said how long
    /// it is fresh.
    pub if_unreachable: u32,
    /// It is never served without validation (`no-cache`).
    pub no_cache: bool,
    /// It is never served stale.
    pub no_stale: bool,
}

impl Facts {
    /// How old it is, in milliseconds (`current_age`, s4.2.3); a clock that was set back makes nothing younger.
    #[must_use]
    pub fn age(&self, now: u64) -> u64 {
        u64::from(self.initial_age) * 1000 + now.saturating_sub(self.received)
    }

    /// Whether others may get it without asking for themselves, for a time at least.
    #[must_use]
    pub fn is_ever_fresh(&self) -> bool {
        self.lifetime > 0 && !self.no_cache
    }

    /// How many milliseconds of freshness are left; none, with how long it is over.
    pub fn left(&self, now: u64) -> Result<u64, u64> {
        let (age, lifetime) = (self.age(now), u64::from(self.lifetime) * 1000);
        // s4.2: fresh while the lifetime is greater than the age.
        if lifetime > age { Ok(lifetime - age) } else { Err(age - lifetime) }
    }
}

/// What was said of a stored answer since it was stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    #[default]
    Good,
    /// It is stale from now on.
    Stale,
    /// It may be gone, and nobody knows: whatever may be served stale otherwise, this is validated first.
    InDoubt,
}

/// What becomes of a stored answer that a request selects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// How old it is, in whole seconds, as `Age` says it.
    pub age: u64,
    /// For how many seconds more it is fresh; negative when it no longer is.
    pub ttl: i64,
    /// What to do.
    pub serve: Serve,
}

/// What to do with a stored answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Serve {
    /// It is the answer.
    AsItIs,
    /// It is the answer, and is to be validated meanwhile.
    AndRevalidate,
    /// It has to be validated first.
    AfterValidation(Why),
}

/// Why a stored answer has to be validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is not fresh.
    Stale,
    /// The request wants it so, or something fresher.
    Request,
}

/// Judges a stored answer at a moment (milliseconds since 1970).
#[must_use]
pub fn judge(facts: &Facts, asked: &RequestDirectives, standing: Standing, now: u64) -> Judgement {
    let left = facts.left(now);
    // A purge makes it stale, and no less so than its time has (RFC 5861 s3).
    let left = if standing == Standing::Good { left } else { Err(left.err().unwrap_or(0)) };
    let age = facts.age(now) / 1000;
    let ttl = match left {
        Ok(left) => (left / 1000).cast_signed(),
        Err(over) => -(over.div_ceil(1000).cast_signed()),
    };
    Judgement { age, ttl, serve: serve(facts, asked, (left, standing), age) }
}

fn serve(
    facts: &Facts,
    asked: &RequestDirectives,
    (left, standing): (Result<u64, u64>, Standing),
    age: u64,
) -> Serve {
    let too_old = asked.max_age.is_some_and(|most| age > u64::from(most));
    if asked.no_cache || too_old {
        return Serve::AfterValidation(Why::Request);
    }
    if facts.no_cache || standing == Standing::InDoubt {
        return Serve::AfterValidation(Why::Stale);
    }
    let within = |over: u64, seconds: u32| over < u64::from(seconds) * 1000;
    match left {
        Ok(left) if asked.min_fresh.is_some_and(|least| within(left, least)) => {
            Serve::AfterValidation(Why::Request)
        }
        Ok(_) => Serve::AsItIs,
        Err(_) if facts.no_stale => Serve::AfterValidation(Why::Stale),
        Err(over)
            if standing == Standing::Good
                && asked.max_stale.is_some_and(|most| over <= u64::from(most) * 1000) =>
        {
            Serve::AsItIs
        }
        // Who asks for an age or for freshness does not want what is stale.
        Err(over) if within(over, facts.while_revalidate) && asked.min_fresh.is_none() => {
            Serve::AndRevalidate
        }
        Err(_) => Serve::AfterValidation(Why::Stale),
    }
}

/// Whether a stored answer may be served although it should have been validated: the origin answered with an
/// error, or could not be reached at all.
#[must_use]
pub fn serves_on_error(
    facts: &Facts,
    asked: &RequestDirectives,
    standing: Standing,
    (reached, now): (bool, u64),
) -> bool {
    if facts.no_stale || facts.no_cache || asked.no_cache || standing == Standing::InDoubt {
        return false;
    }
    let over = facts.left(now).err().unwrap_or(0);
    let limit = if reached { facts.if_error } else { facts.if_error.max(facts.if_unreachable) };
    over < u64::from(limit) * 1000
}
