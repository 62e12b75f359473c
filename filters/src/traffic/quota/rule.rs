//! One quota, checked, and what a request holds of it until it is known to count.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::calendar::Calendar;
use crate::context::Context;
use crate::filter::BuildError;
use crate::limits::{Policy, Standing};
use crate::tree::Path;
use crate::values::{self, CalendarPeriod, Quota};
use crate::world::{Charge, Clock, Decided, Ledger, Spent, StateError, Tally, TenantId};

/// Seconds of a day.
const DAY: u64 = 86_400;

/// A quota as it is written.
pub(crate) struct Written<'a> {
    /// Where it is written, and under which key.
    pub(crate) path: Path,
    pub(crate) key: &'static str,
    /// What it is called; by default the quota as it is written.
    pub(crate) name: Option<&'a str>,
    pub(crate) quota: Quota,
    pub(crate) window: Option<values::Duration>,
    pub(crate) time_zone: Option<&'a str>,
    pub(crate) cost: NonZeroU32,
}

/// One quota, checked.
pub(crate) struct Rule {
    pub(crate) name: Box<str>,
    pub(crate) policy: Arc<Policy>,
    /// What its keys begin with: counts of days are not taken for counts of months.
    prefix: Box<[u8]>,
    calendar: Calendar,
    limit: u64,
    cost: u32,
}

impl Rule {
    pub(crate) fn new(written: &Written<'_>) -> Result<Self, BuildError> {
        let place = |error: BuildError| BuildError { path: written.path.concat(&error.path), ..error };
        let (quota, cost) = (written.quota, written.cost.get());
        let (calendar, seconds) = time(written).map_err(place)?;
        if u64::from(cost) > quota.count().get() {
            let message = format!("is more than the quota of {}: no request would ever pass", quota.count());
            return Err(place(BuildError::at("cost", message)));
        }
        let name = written.name.map_or_else(|| default_name(written), str::to_owned);
        let policy = Policy::of_quota(&name, quota.count().get(), seconds, cost);
        let window = written.window.map(|window| window.get().as_secs());
        let prefix = match quota.period() {
            Some(period) => period.name().to_owned(),
            None => window.unwrap_or_default().to_string(),
        };
        Ok(Self {
            name: name.into(),
            policy: Arc::new(policy),
            prefix: format!("{prefix} ").into_bytes().into(),
            calendar,
            limit: quota.count().get(),
            cost,
        })
    }

    /// Begins a key of this quota.
    pub(crate) fn begin_key(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(&self.prefix);
    }
}

fn default_name(written: &Written<'_>) -> String {
    match written.window {
        Some(window) => format!("{}/{window}", written.quota.count()),
        None => written.quota.to_string(),
    }
}

/// How the time is cut, and how long a window is in seconds, if it is always the same.
fn time(written: &Written<'_>) -> Result<(Calendar, Option<u64>), BuildError> {
    match (written.quota.period(), written.window) {
        (Some(_), Some(_)) => {
            let message = "rolls, so the quota beside it is a bare count such as `5000`";
            Err(BuildError::at("window", message))
        }
        (None, None) => {
            let message = "expected a time for the count, as in `5000/day`, or `window` beside it";
            Err(BuildError::at(written.key, message))
        }
        (Some(period), None) => {
            let seconds = match period {
                CalendarPeriod::Day => Some(DAY),
                CalendarPeriod::Week => Some(7 * DAY),
                CalendarPeriod::Month | CalendarPeriod::Year => None,
            };
            Ok((Calendar::fixed(period, written.time_zone)?, seconds))
        }
        (None, Some(window)) => {
            if written.time_zone.is_some() {
                return Err(BuildError::at(
                    "time_zone",
                    "belongs to a quota of the calendar, such as `5000/day`",
                ));
            }
            Ok((Calendar::rolling(window)?, Some(window.get().as_secs())))
        }
    }
}

/// Units that a request holds; they are given back when this is dropped, unless they count by then.
pub(crate) struct Reservation {
    ledger: Ledger,
    by_store: bool,
    tenant: TenantId,
    keys: Vec<u8>,
    /// Where each key ends, the slot it was counted in, and the units.
    parts: Vec<(usize, u64, u64)>,
    /// Known to where the request stands, too.
    counts: Arc<AtomicBool>,
}

impl Reservation {
    /// The units count: the request was served.
    pub(crate) fn settle(&self) {
        self.counts.store(true, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.counts.load(Ordering::Relaxed) {
            return;
        }
        let mut start = 0;
        for (end, slot, cost) in self.parts.drain(..) {
            self.ledger.give_back(self.tenant, &self.keys[start..end], slot, cost, self.by_store);
            start = end;
        }
    }
}

/// What became of an attempt to reserve.
pub(crate) struct Reserved<'a> {
    /// Whether the request may pass.
    pub(crate) spent: Spent,
    /// Where it stands with each quota, in the order of the rules; nothing where nobody counts.
    pub(crate) standings: Vec<(&'a Rule, Standing)>,
    /// What it holds, if it passes and was counted.
    pub(crate) held: Option<Reservation>,
}

impl Reserved<'_> {
    /// The quota that there is too little of for the longest, if it is quotas that there is too little of.
    pub(crate) fn short(&self) -> Option<(&str, Duration)> {
        let longest = self.standings.iter().max_by_key(|(_, standing)| standing.balance.wait)?;
        let (rule, Standing { balance, .. }) = longest;
        let is_short = self.spent == Spent::No && balance.available < rule.cost.into();
        is_short.then_some((&*rule.name, balance.wait))
    }
}

/// Reserves units of each of these quotas and spends these charges, or does none of it. `keys` are the keys of the
/// quotas one after the other, and `ends` where each ends.
pub(crate) async fn reserve<'a>(
    rules: impl IntoIterator<Item = &'a Rule>,
    (keys, ends): (Vec<u8>, &[usize]),
    charges: &mut [Charge<'_>],
    (ledger, clock): (&Ledger, &dyn Clock),
    ctx: &Context,
) -> Result<Reserved<'a>, StateError> {
    let rules: Vec<&Rule> = rules.into_iter().collect();
    let now = clock.wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let starts = std::iter::once(&0).chain(ends);
    let keyed = starts.zip(ends).map(|(start, end)| &keys[*start..*end]);
    let mut tallies: Vec<Tally<'_>> = keyed
        .zip(&rules)
        .map(|(key, rule)| Tally::new(key, rule.limit, rule.cost.into(), rule.calendar.at(now)))
        .collect();
    let Decided { spent, by_store } = ledger.decide(ctx.tenant, charges, &mut tallies).await?;
    if spent == Spent::Uncounted {
        return Ok(Reserved { spent, standings: Vec::new(), held: None });
    }
    let counts = (spent == Spent::Yes).then(|| Arc::new(AtomicBool::new(false)));
    let standing = |tally: &Tally<'_>, rule: &Rule| Standing {
        policy: rule.policy.clone(),
        balance: tally.balance,
        counts: counts.clone(),
    };
    let standings = tallies.iter().zip(&rules).map(|(tally, rule)| (*rule, standing(tally, rule))).collect();
    let parts = tallies.iter().zip(ends).map(|(tally, end)| (*end, tally.window.slot, tally.cost)).collect();
    let (ledger, tenant) = (ledger.clone(), ctx.tenant);
    let held = counts.map(|counts| Reservation { ledger, by_store, tenant, keys, parts, counts });
    Ok(Reserved { spent, standings, held })
}
