//! The numbers that must not mix, and the time.
//!
//! `Display` is what ZooKeeper prints: zxids and session ids in lower-case hex with `0x`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// A place in history: the epoch in the high 32 bits, a counter in the low 32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Zxid(pub i64);

impl Zxid {
    pub const ZERO: Zxid = Zxid(0);
    pub const MIN: Zxid = Zxid(i64::MIN);

    #[must_use]
    pub const fn new(epoch: Epoch, counter: u32) -> Zxid {
        Zxid(((epoch.0 as i64) << 32) | counter as i64)
    }

    #[must_use]
    pub const fn epoch(self) -> Epoch {
        Epoch((self.0 >> 32) as u32)
    }

    #[must_use]
    pub const fn counter(self) -> u32 {
        self.0 as u32
    }

    /// The zxid that follows where no leader begins a new epoch: after the last counter of one
    /// epoch comes zero of the next, as ZooKeeper's standalone server has it, which counts on in
    /// one long (`ZooKeeperServer.getNextZxid`).
    #[must_use]
    pub const fn next(self) -> Zxid {
        Zxid(self.0 + 1)
    }
}

impl fmt::Display for Zxid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// One leader's term of office.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u32);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// A server of an ensemble: the number in its `myid`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerId(pub i64);

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A session: lives across connections and servers. The top byte is the server that made it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub i64);

impl SessionId {
    /// The last byte of the number of the server that made it.
    #[must_use]
    pub const fn server(self) -> u8 {
        (self.0 as u64 >> 56) as u8
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The highest session id seen of each server: none up to there may be given out again, for the
/// client that had it may still come back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HighestSessions(BTreeMap<u8, SessionId>);

impl HighestSessions {
    pub fn note(&mut self, session: SessionId) {
        let highest = self.0.entry(session.server()).or_insert(session);
        *highest = session.max(*highest);
    }

    pub fn note_all(&mut self, other: &HighestSessions) {
        other.0.values().for_each(|session| self.note(*session));
    }

    /// Of the server that made `session`, too.
    #[must_use]
    pub fn of_server_of(&self, session: SessionId) -> Option<SessionId> {
        self.0.get(&session.server()).copied()
    }
}

/// The number a client gives a request; the reply repeats it. Negative ones have meanings of
/// their own (`record::op::xid`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Xid(pub i32);

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The time, as the shell (or the simulator) read it once for a whole step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Never goes back; milliseconds since an arbitrary start. Deadlines are in this.
    pub monotonic_ms: i64,
    /// Milliseconds since 1970. Stamps transactions; may jump.
    pub wall_ms: i64,
}

/// A moment on the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deadline(pub i64);

impl Deadline {
    #[must_use]
    pub const fn is_due(self, now: Now) -> bool {
        self.0 <= now.monotonic_ms
    }
}

/// An address as Java prints it: IPv6 in eight groups without zeros in front, none left out. An
/// IPv4 address in IPv6's clothes is an IPv4 address to Java.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressText(pub IpAddr);

impl fmt::Display for AddressText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.to_canonical() {
            IpAddr::V4(address) => address.fmt(f),
            IpAddr::V6(address) => {
                let [first, rest @ ..] = address.segments();
                write!(f, "{first:x}")?;
                rest.iter().try_for_each(|group| write!(f, ":{group:x}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zxid_is_an_epoch_and_a_counter() {
        let zxid = Zxid::new(Epoch(3), 7);
        assert_eq!(zxid.to_string(), "0x300000007");
        assert_eq!((zxid.epoch(), zxid.counter()), (Epoch(3), 7));
        assert_eq!(Zxid::new(Epoch(3), u32::MAX).next(), Zxid::new(Epoch(4), 0));
        assert_eq!(SessionId(-1).to_string(), "0xffffffffffffffff");
    }

    #[test]
    fn the_highest_session_is_known_by_server() {
        let of = |server: i64, n: i64| SessionId(server << 56 | n);
        let mut highest = HighestSessions::default();
        for session in [of(1, 7), of(2, 9), of(1, 5), of(0xff, 1), of(0xff, 2)] {
            highest.note(session);
        }
        let mut all = HighestSessions::default();
        all.note(of(2, 10));
        all.note_all(&highest);
        for (server, n) in [(1, 7), (2, 10), (0xff, 2)] {
            assert_eq!(all.of_server_of(of(server, 0)), Some(of(server, n)));
        }
        assert_eq!(all.of_server_of(of(3, 0)), None);
    }

    #[test]
    fn addresses_print_as_java_prints_them() {
        let text = |address: &str| AddressText(address.parse().unwrap()).to_string();
        assert_eq!(text("127.0.0.1"), "127.0.0.1");
        assert_eq!(text("::1"), "0:0:0:0:0:0:0:1");
        assert_eq!(text("2001:db8::ff00:42:8329"), "2001:db8:0:0:0:ff00:42:8329");
        assert_eq!(text("::ffff:10.0.0.1"), "10.0.0.1");
    }
}
