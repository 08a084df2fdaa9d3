//! The state of a server as plain values, and how operators are shown it.
//!
//! Nothing here asks anyone. Whoever has the state (the shell) gathers what an answer needs and
//! hands it in, and each answer is a function of it; `four_letter::Needs` says which parts those
//! are, because some of them (watches, sizes) cost something to gather.
//!
//! - `four_letter.rs`: the words on the client port, as text;
//! - `lists.rs`: those of their answers that may be long, as they grow.
//!
//! Monitoring reads these answers with patterns that were made for ZooKeeper's, so they are
//! ZooKeeper's to the byte: numbers, dates and addresses are printed as Java prints them.

pub mod four_letter;
pub mod lists;

use std::fmt;
use std::net::SocketAddr;

use crate::metrics::Readings;
use crate::types::{AddressText, ServerId, SessionId, Zxid};

/// The ZooKeeper release that this server does what of. Monitoring takes the first three numbers
/// of the version and decides by them what to ask for.
pub const PARITY: &str = "3.9.4";

/// The version in every answer. `built_on` is `yyyy-MM-dd HH:mm UTC`.
#[must_use]
pub fn version(built_on: &str) -> String {
    format!("{PARITY}-ringkeeper-{}, built on {built_on}", env!("CARGO_PKG_VERSION"))
}

/// All that answers are made of.
#[derive(Clone, Debug)]
pub struct State {
    /// As `version` makes it.
    pub version: String,
    /// What `envi` shows after the version: `host.name`, `os.name` and so on, in order.
    pub environment: Vec<(String, String)>,
    /// ZooKeeper's bits of what to trace. Kept and shown, of no other effect.
    pub trace_mask: i64,
    /// `None` while the server does not serve: before it has recovered, or without a quorum.
    pub serving: Option<Serving>,
}

/// `ZooTrace`'s mask until a client sets another.
pub const TRACE_MASK_DEFAULT: i64 = 306;

/// The state of a server that serves, without what answers list. Parts that a word does not need may
/// be left empty.
#[derive(Clone, Debug)]
pub struct Serving {
    pub mode: Mode,
    /// The last zxid applied.
    pub zxid: Zxid,
    pub gauges: Gauges,
    pub readings: Readings,
    pub configuration: Configuration,
    pub zone: Zone,
    pub sizes: Sizes,
    /// The tree's digest after every 128th transaction, oldest first.
    pub digests: Vec<(Zxid, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Standalone,
    Leader,
    Follower,
    Observer,
    ReadOnly,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Standalone => "standalone",
            Mode::Leader => "leader",
            Mode::Follower => "follower",
            Mode::Observer => "observer",
            Mode::ReadOnly => "read-only",
        })
    }
}

/// What is counted at the moment of asking, rather than as it happens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    pub connections: u64,
    pub outstanding_requests: u64,
    pub znodes: u64,
    pub ephemerals: u64,
    /// Of all kinds, child watches included.
    pub watches: u64,
    /// Bytes of paths and data.
    pub data_bytes: u64,
    pub global_sessions: u64,
    /// `None` where no session is its server's alone.
    pub local_sessions: Option<u64>,
    pub uptime_ms: u64,
    pub open_files: u64,
    pub open_files_max: u64,
    /// Of the connection throttle; 0 without.
    pub drop_probability: f64,
    pub outstanding_tls_handshakes: u64,
    /// Limits and use of quotas, for each top namespace with a quota.
    pub quotas: Vec<QuotaGauges>,
    /// Of a server of an ensemble; `None` of one that is alone or read-only.
    pub quorum: Option<QuorumGauges>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuorumGauges {
    /// How many servers vote.
    pub voters: u64,
    /// The server that an observer is sent transactions by.
    pub observer_master: Option<ServerId>,
    /// Observers that this server sends transactions. A follower of ZooKeeper's may have some.
    pub synced_observers: u64,
    /// Of a leader.
    pub leader: Option<LeaderGauges>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderGauges {
    /// How long it has led.
    pub uptime_ms: u64,
    /// Connections of learners, also of those that do not serve clients yet.
    pub connected: u64,
    pub learners: Vec<LearnerGauges>,
    pub pending_syncs: u64,
    /// `None` before the first proposal.
    pub proposal_bytes: Option<ProposalBytes>,
}

/// A learner that serves clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LearnerGauges {
    pub server: ServerId,
    pub kind: LearnerKind,
    /// Transactions that its leader does not know it to have, and since when it lacks the first.
    pub lag_txns: u64,
    pub lag_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LearnerKind {
    Follower,
    NonVotingFollower,
    Observer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposalBytes {
    pub last: u64,
    pub min: u64,
    pub max: u64,
}

/// -1 where there is no limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuotaGauges {
    pub namespace: String,
    pub count_limit: i64,
    pub bytes_limit: i64,
    pub count_usage: i64,
    pub bytes_usage: i64,
}

/// What `conf` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// `None` without a listener.
    pub client_port: Option<u16>,
    pub secure_client_port: Option<u16>,
    /// Absolute, `version-2` included.
    pub data_dir: String,
    pub data_log_dir: String,
    pub tick_time_ms: i64,
    /// Per address; 0 is no limit.
    pub max_client_cnxns: i64,
    pub min_session_timeout_ms: i64,
    pub max_session_timeout_ms: i64,
    /// -1: the system's own.
    pub client_port_listen_backlog: i64,
    pub server_id: i64,
    /// `None` for a server that is alone.
    pub quorum: Option<QuorumConfiguration>,
}

/// What `conf` shows of a server of an ensemble besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuorumConfiguration {
    pub init_limit_ticks: i64,
    pub sync_limit_ticks: i64,
    /// One for each address of this server.
    pub election_ports: Vec<u16>,
    pub quorum_ports: Vec<u16>,
    pub is_observer: bool,
    /// All servers and the version, as `/zookeeper/config` holds them.
    pub membership: String,
}

/// Sums of the lengths of the files in the two directories; 64 MiB for a log that is preallocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub data_dir_bytes: u64,
    pub data_log_dir_bytes: u64,
}

/// One client's connection, or one that asks a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub remote: SocketAddr,
    pub interest: Interest,
    /// Requests received and not yet answered.
    pub outstanding: u64,
    pub received: u64,
    pub sent: u64,
    /// When the connection is closed if nothing comes, on the wall clock.
    pub expires_at_ms: i64,
    /// `None` until the handshake.
    pub session: Option<ConnectionSession>,
}

/// What a connection waits for, as ZooKeeper's selector had it: 1 reading, 4 writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Of the connection that asks: it is done with reading.
    Nothing = 0,
    Read = 1,
    Write = 4,
    Both = 5,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionSession {
    pub id: SessionId,
    /// `NA`, `GETD` and so on: `Request.op2String`.
    pub last_operation: &'static str,
    pub established_at_ms: i64,
    pub timeout_ms: i64,
    /// `None` before the first request with an xid of its own.
    pub last_cxid: Option<i64>,
    /// `None` before the first reply.
    pub last_zxid: Option<Zxid>,
    /// On the monotonic clock; 0 before the first.
    pub last_response_at_ms: i64,
    pub latency: ConnectionLatency,
}

/// Milliseconds. All 0 before the first reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionLatency {
    pub last: u64,
    pub min: u64,
    pub average: u64,
    pub max: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Session {
    pub id: SessionId,
    pub timeout_ms: i64,
    /// When it expires if nothing is heard, on the wall clock; sessions of one bucket have the
    /// same time.
    pub expires_at_ms: i64,
    /// Only this server knows it.
    pub is_local: bool,
}

/// The local time zone, as it is at the time of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    pub offset_s: i32,
    /// `UTC`, `CET`, `GMT+03:00`.
    pub abbreviation: String,
}

impl Zone {
    #[must_use]
    pub fn utc() -> Zone {
        Zone { offset_s: 0, abbreviation: "UTC".to_owned() }
    }
}

/// A moment on the wall clock as `java.util.Date.toString` has it: `Fri Nov 20 13:23:49 UTC 2026`.
struct DateText<'a> {
    at_ms: i64,
    zone: &'a Zone,
}

const DAY_S: i64 = 24 * 60 * 60;

impl fmt::Display for DateText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 1970-01-01 was a Thursday.
        const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let local_s = self.at_ms.div_euclid(1000) + i64::from(self.zone.offset_s);
        let (day, second) = (local_s.div_euclid(DAY_S), local_s.rem_euclid(DAY_S));
        let (year, month, day_of_month) = civil_from_days(day);
        write!(
            f,
            "{} {} {day_of_month:02} {:02}:{:02}:{:02} {} {year:04}",
            WEEKDAYS[day.rem_euclid(7) as usize],
            MONTHS[month - 1],
            second / 3600,
            second / 60 % 60,
            second % 60,
            self.zone.abbreviation,
        )
    }
}

/// Year, month from 1, and day from 1, of a day counted from 1970-01-01, in the Gregorian
/// calendar. Years begin in March here, so that the leap day is a year's last.
fn civil_from_days(days: i64) -> (i64, usize, i64) {
    const ERA_DAYS: i64 = 400 * 365 + 97;
    const MARCH_OF_YEAR_0: i64 = -719_468;
    let day = days - MARCH_OF_YEAR_0;
    let (era, day_of_era) = (day.div_euclid(ERA_DAYS), day.rem_euclid(ERA_DAYS));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / (ERA_DAYS - 1)) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * months_from_march + 2) / 5 + 1;
    let month = if months_from_march < 10 { months_from_march + 3 } else { months_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as usize, day_of_month)
}

/// A socket address as Java prints it: `/127.0.0.1:56464`, `/[0:0:0:0:0:0:0:1]:56464`.
struct RemoteText(SocketAddr);

impl fmt::Display for RemoteText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = AddressText(self.0.ip());
        if self.0.ip().to_canonical().is_ipv4() {
            write!(f, "/{host}:{}", self.0.port())
        } else {
            write!(f, "/[{host}]:{}", self.0.port())
        }
    }
}

/// A number as `Double.toString` has it: at least one decimal, powers of ten from ten million up
/// and below a thousandth.
struct DoubleText(f64);

impl fmt::Display for DoubleText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = self.0.abs();
        if size == 0.0 || (1e-3..1e7).contains(&size) {
            return write!(f, "{:?}", self.0);
        }
        if !self.0.is_finite() {
            return f.write_str(match self.0 {
                infinite if infinite == f64::INFINITY => "Infinity",
                infinite if infinite == f64::NEG_INFINITY => "-Infinity",
                _ => "NaN",
            });
        }
        let text = format!("{:E}", self.0);
        match text.split_once('E') {
            Some((digits, exponent)) if !digits.contains('.') => write!(f, "{digits}.0E{exponent}"),
            _ => f.write_str(&text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_of_the_line_it_claims() {
        let version = version("2026-07-17 18:55 UTC");
        assert!(version.starts_with("3.9.4-ringkeeper-"), "{version}");
        assert!(version.ends_with(", built on 2026-07-17 18:55 UTC"), "{version}");
    }

    #[test]
    fn dates_print_as_java_prints_them() {
        let cet = Zone { offset_s: 3600, abbreviation: "CET".to_owned() };
        for (at_ms, zone, text) in [
            (0, &Zone::utc(), "Thu Jan 01 00:00:00 UTC 1970"),
            (-1, &Zone::utc(), "Wed Dec 31 23:59:59 UTC 1969"),
            (951_782_400_000, &Zone::utc(), "Tue Feb 29 00:00:00 UTC 2000"),
            (1_709_251_199_999, &Zone::utc(), "Thu Feb 29 23:59:59 UTC 2024"),
            (1_709_251_199_999, &cet, "Fri Mar 01 00:59:59 CET 2024"),
            (1_795_181_029_000, &Zone::utc(), "Fri Nov 20 13:23:49 UTC 2026"),
            (4_107_542_399_000, &Zone::utc(), "Sun Feb 28 23:59:59 UTC 2100"),
            (4_107_542_400_000, &Zone::utc(), "Mon Mar 01 00:00:00 UTC 2100"),
        ] {
            assert_eq!(DateText { at_ms, zone }.to_string(), text);
        }
    }

    #[test]
    fn every_day_has_one_date() {
        let mut before = civil_from_days(-800_000);
        for day in -799_999..800_000 {
            let date = civil_from_days(day);
            let (year, month, day_of_month) = before;
            let is_next_day = date == (year, month, day_of_month + 1);
            let is_next_month = date == (year, month + 1, 1) && 28 <= day_of_month;
            let is_next_year = date == (year + 1, 1, 1) && (month, day_of_month) == (12, 31);
            assert!(is_next_day || is_next_month || is_next_year, "{before:?} then {date:?}");
            before = date;
        }
    }

    #[test]
    fn addresses_print_as_java_prints_them() {
        let text = |address: &str| RemoteText(address.parse().unwrap()).to_string();
        assert_eq!(text("127.0.0.1:56464"), "/127.0.0.1:56464");
        assert_eq!(text("[::1]:2181"), "/[0:0:0:0:0:0:0:1]:2181");
        assert_eq!(text("[::ffff:10.0.0.1]:2181"), "/10.0.0.1:2181");
    }

    #[test]
    fn numbers_print_as_java_prints_them() {
        for (number, text) in [
            (0.0, "0.0"),
            (4.5, "4.5"),
            (6.5833, "6.5833"),
            (9_999_999.5, "9999999.5"),
            (1e7, "1.0E7"),
            (123_456_789.25, "1.2345678925E8"),
            (0.001, "0.001"),
            (0.0005, "5.0E-4"),
            (-2.0, "-2.0"),
            (f64::NAN, "NaN"),
        ] {
            assert_eq!(DoubleText(number).to_string(), text);
        }
    }
}
