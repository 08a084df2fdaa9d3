//! Who owns a znode: nobody, a session, or the server (containers and TTLs).
//!
//! One number says it (`EphemeralType`):
//!
//! ```text
//! 0                          persistent
//! 0x8000000000000000         container
//! 0xff0000 | ttl in 40 bits  TTL, where extended types are on
//! 0x80... | ttl              TTL as 3.5.3 wrote it, where that is emulated, too
//! else                       the session's id
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use super::cell::NodeRef;

pub const CONTAINER_OWNER: i64 = i64::MIN;
/// The longest TTL, in milliseconds.
pub const TTL_MS_MAX: i64 = (1 << 40) - 1;
const TTL_OWNER: i64 = 0xff << 56;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Nobody,
    Container,
    /// Milliseconds without children or new data after which it goes.
    Ttl(i64),
    Session(i64),
}

impl Owner {
    #[must_use]
    pub const fn number(self) -> i64 {
        match self {
            Owner::Nobody => 0,
            Owner::Container => CONTAINER_OWNER,
            Owner::Ttl(ttl) => TTL_OWNER | ttl,
            Owner::Session(session) => session,
        }
    }

    #[must_use]
    pub const fn of(number: i64, types: Types) -> Owner {
        match number {
            0 => Owner::Nobody,
            CONTAINER_OWNER => Owner::Container,
            _ if !types.extended => Owner::Session(number),
            _ if number >> 40 == TTL_OWNER >> 40 => Owner::Ttl(number & TTL_MS_MAX),
            // ZooKeeper takes 40 bits here as well, and would remove what was to stay longer.
            _ if types.emulate_353 && number < 0 => Owner::Ttl(number & !CONTAINER_OWNER),
            _ => Owner::Session(number),
        }
    }
}

impl Owner {
    /// Whether the number is a session's, however owner numbers are read: a TTL's may be taken for
    /// one where TTLs are off, and one of a session for a TTL of 3.5.3.
    #[must_use]
    pub const fn is_certainly_session(number: i64) -> bool {
        let types = Types { extended: true, emulate_353: true };
        matches!(Owner::of(number, types), Owner::Session(_))
    }
}

/// The settings, missing now, by which this number would be that of a TTL. It may be a session's all
/// the same, but hardly: sessions begin with the server's number and the time in milliseconds, and
/// here 16 bits of that are zero.
#[must_use]
pub const fn missing_for_ttl(number: i64, types: Types) -> Option<&'static str> {
    let of_353 = number != CONTAINER_OWNER && number >> 40 == CONTAINER_OWNER >> 40;
    match types {
        Types { extended: false, .. } if number >> 40 == TTL_OWNER >> 40 => {
            Some("zookeeper.extendedTypesEnabled=true")
        }
        Types { extended: true, emulate_353: true } => None,
        _ if of_353 => {
            Some("zookeeper.extendedTypesEnabled=true and zookeeper.emulate353TTLNodes=true")
        }
        _ => None,
    }
}

/// How owner numbers are read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Types {
    /// `zookeeper.extendedTypesEnabled`: there are TTLs.
    pub extended: bool,
    /// `zookeeper.emulate353TTLNodes`: where there are TTLs, all negative owners but a container's
    /// are such, as 3.5.3 wrote them. New ones are written as ever (`EphemeralType`).
    pub emulate_353: bool,
}

/// The znodes with an owner, by owner, in the order of their paths.
#[derive(Default)]
pub(super) struct Owned {
    sessions: BTreeMap<i64, BTreeSet<NodeRef>>,
    containers: BTreeSet<NodeRef>,
    ttls: BTreeSet<NodeRef>,
    ephemeral_count: usize,
    /// Paths that went, of the sessions of which this is noted.
    pub(super) disowned: BTreeMap<i64, Vec<String>>,
}

impl Owned {
    pub(super) fn insert(&mut self, owner: Owner, node: NodeRef) {
        match owner {
            Owner::Nobody => {}
            Owner::Container => {
                self.containers.insert(node);
            }
            Owner::Ttl(_) => {
                self.ttls.insert(node);
            }
            Owner::Session(session) => {
                self.sessions.entry(session).or_default().insert(node);
                self.ephemeral_count += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, owner: Owner, node: NodeRef) {
        match owner {
            Owner::Nobody => {}
            Owner::Container => {
                self.containers.remove(&node);
            }
            Owner::Ttl(_) => {
                self.ttls.remove(&node);
            }
            Owner::Session(session) => {
                let nodes = self.sessions.get_mut(&session).expect("it was inserted");
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.sessions.remove(&session);
                }
                self.ephemeral_count -= 1;
                if let Some(disowned) = self.disowned.get_mut(&session) {
                    disowned.push(node.path().to_owned());
                }
            }
        }
    }

    pub(super) fn of_session(&self, session: i64) -> impl Iterator<Item = NodeRef> + '_ {
        self.sessions.get(&session).into_iter().flatten().copied()
    }

    /// What a session owns from this path on, or behind another one that comes later.
    pub(super) fn of_session_from(
        &self,
        session: i64,
        first: &str,
        behind: Option<&str>,
    ) -> impl Iterator<Item = NodeRef> + '_ {
        let start = behind.map_or(Bound::Included(first), Bound::Excluded);
        let nodes = self.sessions.get(&session);
        nodes
            .map(|nodes| nodes.range::<str, _>((start, Bound::Unbounded)))
            .into_iter()
            .flatten()
            .copied()
    }

    pub(super) fn owns(&self, session: i64, path: &str) -> bool {
        self.sessions.get(&session).is_some_and(|nodes| nodes.contains(path))
    }

    /// What sessions own, by session and path, that comes after a place in this order.
    pub(super) fn after<'o>(
        &'o self,
        session: i64,
        path: &'o str,
    ) -> impl Iterator<Item = (i64, NodeRef)> + 'o {
        let of_this = self.sessions.get(&session).into_iter();
        let rest = of_this.flat_map(move |nodes| {
            nodes.range::<str, _>((Bound::Excluded(path), Bound::Unbounded))
        });
        let others = self.sessions.range((Bound::Excluded(session), Bound::Unbounded));
        rest.map(move |node| (session, *node))
            .chain(others.flat_map(|(session, nodes)| nodes.iter().map(|node| (*session, *node))))
    }

    pub(super) fn sessions(&self) -> impl Iterator<Item = i64> + '_ {
        self.sessions.keys().copied()
    }

    pub(super) fn containers(&self) -> impl Iterator<Item = NodeRef> + '_ {
        self.containers.iter().copied()
    }

    pub(super) fn ttls(&self) -> impl Iterator<Item = NodeRef> + '_ {
        self.ttls.iter().copied()
    }

    pub(super) fn ephemeral_count(&self) -> usize {
        self.ephemeral_count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_one_number() {
        let types = Types { extended: true, emulate_353: false };
        for owner in
            [Owner::Nobody, Owner::Container, Owner::Ttl(60_000), Owner::Session(0x1000_0000_0001)]
        {
            assert_eq!(Owner::of(owner.number(), types), owner);
        }
        assert_eq!(Owner::Ttl(60_000).number() as u64, 0xff00_0000_0000_ea60);
        let plain = Owner::of(Owner::Ttl(60_000).number(), Types::default());
        assert!(matches!(plain, Owner::Session(_)));
    }

    #[test]
    fn ttls_of_353_are_told_from_sessions_only_where_asked_for() {
        let old = CONTAINER_OWNER | 60_000;
        let of = |number, extended, emulate_353| Owner::of(number, Types { extended, emulate_353 });
        assert_eq!(of(old, true, true), Owner::Ttl(60_000));
        // Without TTLs there are none of 3.5.3's either.
        for (extended, emulate_353) in [(true, false), (false, true), (false, false)] {
            assert_eq!(of(old, extended, emulate_353), Owner::Session(old));
        }
        assert_eq!(of(Owner::Ttl(60_000).number(), true, true), Owner::Ttl(60_000));
        assert_eq!(of(CONTAINER_OWNER, true, true), Owner::Container);
        assert_eq!(of(CONTAINER_OWNER | 1 << 50, true, true), Owner::Ttl(1 << 50));
        assert_eq!(of(1 << 56 | 5, true, true), Owner::Session(1 << 56 | 5));
    }
}
