//! Parsed scalars: durations, byte sizes, rates, address ranges, secrets; and digits to write.
//!
//! Each is parsed where serde meets it, cannot hold a bad value afterwards, and is written back
//! in its canonical form. No error quotes the text it refuses, which may be a substituted secret.

mod bytes;
mod date;
mod duration;
mod field;
mod list;
mod name;
mod net;
mod quota;
mod range;
mod rate;
mod regexes;
pub mod scalar;
mod secret;
mod status;
mod text;
mod url;

pub use self::bytes::{ByteRate, ByteSize};
pub use self::date::Date;
pub use self::duration::{Duration, DurationOrZero, Timeout};
pub use self::field::{FieldName, fields};
pub use self::list::at_least_one;
pub use self::name::Name;
pub use self::net::{IpSet, Network};
pub use self::quota::{CalendarPeriod, Quota};
pub use self::range::DurationRange;
pub use self::rate::{Percent, Period, Rate};
pub use self::regexes::{bounded, carried, regex, whole_regex, within};
pub use self::scalar::{Refused, Scalar};
pub use self::secret::Secret;
pub use self::status::StatusRange;
pub use self::text::{address_text, hex, push_address, push_hex};
pub use self::url::Url;
