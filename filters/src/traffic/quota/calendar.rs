//! In which stretch of time a request falls: a day of the calendar of some place, or a part of a window that
//! rolls.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan};
use parking_lot::RwLock;

use crate::filter::BuildError;
use crate::values::{self, CalendarPeriod};
use crate::world::Window;

/// Parts of a window that rolls.
const PARTS: u32 = 60;
/// The shortest window: shorter ones are rates.
const SHORTEST: Duration = Duration::from_secs(60);
/// The longest one.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);
/// 1970-01-01 was a Thursday.
const DAYS_FROM_MONDAY: i64 = 3;

/// How the time is cut.
pub(crate) enum Calendar {
    /// By the calendar of a time zone.
    Fixed { period: CalendarPeriod, zone: TimeZone, now: RwLock<Option<Stretch>> },
    /// Into parts of this length, 60 of which make the window.
    Rolling { part: Duration },
}

/// A stretch of the calendar, in Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stretch {
    number: u64,
    begins: u64,
    ends: u64,
}

impl Calendar {
    /// The calendar of an IANA time zone, `UTC` if none is named.
    pub(crate) fn fixed(period: CalendarPeriod, zone: Option<&str>) -> Result<Self, BuildError> {
        let name = zone.unwrap_or("UTC");
        let zone = TimeZone::get(name).map_err(|_| {
            BuildError::at("time_zone", "expected the IANA name of a time zone such as `Europe/Berlin`")
        })?;
        let calendar = Self::Fixed { period, zone, now: RwLock::new(None) };
        Ok(calendar)
    }

    /// A window that rolls.
    pub(crate) fn rolling(window: values::Duration) -> Result<Self, BuildError> {
        let window = window.get();
        if !(SHORTEST..=LONGEST).contains(&window) {
            return Err(BuildError::at("window", "expected a time from `1m` to `366d`"));
        }
        // Rounded up: the parts are together never less than the window.
        let part = window.as_nanos().div_ceil(u128::from(PARTS));
        Ok(Self::Rolling { part: Duration::from_nanos(u64::try_from(part).unwrap_or(u64::MAX)) })
    }

    /// The window of this moment, which is given as the time since 1970.
    pub(crate) fn at(&self, now: Duration) -> Window {
        match self {
            Self::Rolling { part } => {
                let slot = now.as_nanos() / part.as_nanos();
                let slot = u64::try_from(slot).unwrap_or(u64::MAX - u64::from(PARTS));
                let ends = u128::from(slot + 1) * part.as_nanos();
                let ends = Duration::from_nanos(u64::try_from(ends).unwrap_or(u64::MAX));
                Window { now, slot, slots: PARTS + 1, ends, length: *part }
            }
            Self::Fixed { period, zone, now: known } => {
                let second = now.as_secs();
                let holds = |stretch: &Stretch| (stretch.begins..stretch.ends).contains(&second);
                let found = known.read().filter(holds);
                let stretch = found.unwrap_or_else(|| {
                    let stretch = stretch(*period, zone, second).unwrap_or_else(|| by_days(second));
                    *known.write() = Some(stretch);
                    stretch
                });
                let ends = Duration::from_secs(stretch.ends);
                Window { now, slot: stretch.number, slots: 1, ends, length: Duration::ZERO }
            }
        }
    }
}

/// The stretch of the calendar that a second is in; none in times that no calendar knows.
fn stretch(period: CalendarPeriod, zone: &TimeZone, second: u64) -> Option<Stretch> {
    let moment = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
    let today = zone.to_datetime(moment).date();
    let days = |date: Date| Some(date.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second() / 86_400);
    let (first, next, number) = match period {
        CalendarPeriod::Day => (today, today.tomorrow().ok()?, days(today)?),
        CalendarPeriod::Week => {
            let first = today.checked_sub(i64::from(today.weekday().to_monday_zero_offset()).days()).ok()?;
            let number = (days(first)? + DAYS_FROM_MONDAY).div_euclid(7);
            (first, first.checked_add(1.week()).ok()?, number)
        }
        CalendarPeriod::Month => {
            let first = today.first_of_month();
            let number = i64::from(first.year()) * 12 + i64::from(first.month());
            (first, first.checked_add(1.month()).ok()?, number)
        }
        CalendarPeriod::Year => {
            let first = today.first_of_year();
            (first, first.checked_add(1.year()).ok()?, first.year().into())
        }
    };
    // Where midnight is skipped, the day begins with the first moment that it has.
    let begin = |date: Date| u64::try_from(date.to_zoned(zone.clone()).ok()?.timestamp().as_second()).ok();
    let begins = begin(first).unwrap_or(0);
    Some(Stretch { number: u64::try_from(number).ok()?, begins, ends: begin(next)? })
}

/// Days of UTC, for clocks that are off by thousands of years.
fn by_days(second: u64) -> Stretch {
    let number = second / 86_400;
    Stretch { number, begins: number * 86_400, ends: (number + 1) * 86_400 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stretch of a period at a moment, as the moments at which it begins and ends.
    fn around(period: CalendarPeriod, zone: &str, moment: &str) -> (String, String) {
        let zone = TimeZone::get(zone).expect("a zone");
        let second = moment.parse::<Timestamp>().expect("a moment").as_second();
        let found = stretch(period, &zone, u64::try_from(second).expect("after 1970")).expect("a stretch");
        let text = |second: u64| {
            Timestamp::from_second(i64::try_from(second).expect("small")).expect("a moment").to_string()
        };
        (text(found.begins), text(found.ends))
    }

    fn both(begins: &str, ends: &str) -> (String, String) {
        (begins.to_owned(), ends.to_owned())
    }

    #[test]
    fn days_are_those_of_the_place_and_have_23_or_25_hours_where_the_clock_changes() {
        // Directive 2000/84/EC: at 01:00 UTC of the last Sundays in March and October.
        let day = |moment| around(CalendarPeriod::Day, "Europe/Berlin", moment);
        assert_eq!(day("2026-01-15T22:59:59Z"), both("2026-01-14T23:00:00Z", "2026-01-15T23:00:00Z"));
        assert_eq!(day("2026-03-29T12:00:00Z"), both("2026-03-28T23:00:00Z", "2026-03-29T22:00:00Z"));
        assert_eq!(day("2026-10-25T12:00:00Z"), both("2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"));
    }

    #[test]
    fn a_day_whose_midnight_is_skipped_begins_with_its_first_moment() {
        // In Cairo the clock goes from 00:00 to 01:00 on the last Friday in April (IANA tz, since 2023).
        let day = around(CalendarPeriod::Day, "Africa/Cairo", "2026-04-24T10:00:00Z");
        assert_eq!(day, both("2026-04-23T22:00:00Z", "2026-04-24T21:00:00Z"));
    }

    #[test]
    fn weeks_begin_on_mondays() {
        let week = around(CalendarPeriod::Week, "UTC", "2026-01-01T00:00:00Z");
        assert_eq!(week, both("2025-12-29T00:00:00Z", "2026-01-05T00:00:00Z"));
    }

    #[test]
    fn months_and_years_are_as_long_as_they_are() {
        let month = |moment| around(CalendarPeriod::Month, "UTC", moment);
        assert_eq!(month("2028-02-29T23:59:59Z"), both("2028-02-01T00:00:00Z", "2028-03-01T00:00:00Z"));
        assert_eq!(month("2026-12-31T23:59:59Z"), both("2026-12-01T00:00:00Z", "2027-01-01T00:00:00Z"));
        let year = around(CalendarPeriod::Year, "America/New_York", "2026-07-01T00:00:00Z");
        assert_eq!(year, both("2026-01-01T05:00:00Z", "2027-01-01T05:00:00Z"));
    }

    #[test]
    fn stretches_follow_each_other_in_number_and_time() {
        let zone = TimeZone::get("America/Sao_Paulo").expect("a zone");
        for period in [CalendarPeriod::Day, CalendarPeriod::Week, CalendarPeriod::Month, CalendarPeriod::Year]
        {
            let mut last = stretch(period, &zone, 1_500_000_000).expect("a stretch");
            for _ in 0..400 {
                let next = stretch(period, &zone, last.ends).expect("a stretch");
                assert_eq!((next.number, next.begins), (last.number + 1, last.ends));
                last = next;
            }
        }
    }

    #[test]
    fn no_clock_is_too_far_off() {
        for period in [CalendarPeriod::Day, CalendarPeriod::Year] {
            let calendar = Calendar::fixed(period, None).unwrap_or_else(|error| panic!("{}", error.message));
            for now in [Duration::ZERO, Duration::from_secs(u64::MAX / 2)] {
                assert!(calendar.at(now).ends >= now);
            }
        }
    }
}
