//! Times in UTC, as RFC 3339 and the Common Log Format write them.

use std::fmt;
use std::time::SystemTime;

/// Shows as `2026-11-21T05:06:07.123Z`; a time before 1970 shows as 1970's first moment.
pub(crate) struct Timestamp(pub(crate) SystemTime);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let millis = since.subsec_millis();
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
    }
}

/// Shows as `21/Nov/2026:05:06:07 +0000`, the time of the Common Log Format.
pub(super) struct CommonTime(pub(super) SystemTime);

impl fmt::Display for CommonTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let since = self.0.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let month = usize::try_from(month).ok().and_then(|month| MONTHS.get(month - 1)).unwrap_or(&"Jan");
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(f, "{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
    }
}

/// Year, month and day of a day counted from 1970-01-01, by Howard Hinnant's `civil_from_days`: years begin in March,
/// so that the leap day comes last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn shown(seconds: u64, millis: u64) -> String {
        let since = Duration::from_secs(seconds) + Duration::from_millis(millis);
        Timestamp(SystemTime::UNIX_EPOCH + since).to_string()
    }

    #[test]
    fn times_are_written_as_rfc_3339_in_utc() {
        assert_eq!(shown(0, 0), "1970-01-01T00:00:00.000Z");
        assert_eq!(shown(1_767_225_600, 7), "2026-01-01T00:00:00.007Z");
        assert_eq!(shown(1_000_000_000, 999), "2001-09-09T01:46:40.999Z");
        assert_eq!(shown(253_402_300_799, 0), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn leap_days_are_where_the_calendar_has_them() {
        assert_eq!(shown(951_782_400, 0), "2000-02-29T00:00:00.000Z");
        assert_eq!(shown(1_709_164_800 + 86_400, 0), "2024-03-01T00:00:00.000Z");
        assert_eq!(shown(4_107_542_400, 0), "2100-03-01T00:00:00.000Z");
    }

    /// Apache HTTP Server, mod_log_config: `%t` is `[18/Sep/2011:19:18:28 -0400]`.
    #[test]
    fn the_common_log_format_names_the_month() {
        let shown = |seconds| CommonTime(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).to_string();
        assert_eq!(shown(1_316_387_908), "18/Sep/2011:23:18:28 +0000");
        assert_eq!(shown(0), "01/Jan/1970:00:00:00 +0000");
        assert_eq!(shown(253_402_300_799), "31/Dec/9999:23:59:59 +0000");
    }

    #[test]
    fn a_clock_before_1970_does_no_harm() {
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Timestamp(before).to_string(), "1970-01-01T00:00:00.000Z");
    }
}
