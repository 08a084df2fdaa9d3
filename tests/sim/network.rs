//! Client streams: bytes that arrive late and in pieces, and connections that end.
//!
//! Each direction is a queue of bytes. An event takes the next piece off its front; another ends
//! the direction once it is empty. What a crash or a cut leaves of a queue may still arrive.
//!
//! Towards the server, bytes first arrive in its socket, whatever it is doing, and then they are
//! read, or lie there for as long as their shard stalls or does not want them.

use std::collections::BTreeMap;

use ringkeeper::exchange::ConnectionId;

use crate::rng::Rng;

pub(crate) type LinkId = u64;

/// One direction of a link.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) bytes: Vec<u8>,
    /// Nothing comes behind what is queued.
    pub(crate) ended: bool,
    /// So many at the front lie in the server's socket.
    pub(crate) arrived: usize,
    /// Since when there are some.
    pub(crate) arrived_us: i64,
    /// How many have ever arrived there.
    pub(crate) arrived_ever: u64,
    /// How many the client has ever taken.
    pub(crate) taken_ever: u64,
    /// An event is on its way that has more of it arrive in the server's socket.
    pub(crate) travels: bool,
    /// An event is on its way that takes from the front.
    pub(crate) scheduled: bool,
    /// Whoever reads does not want any for now.
    pub(crate) paused: bool,
}

/// One client's connection to one shard.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) client: usize,
    pub(crate) shard: usize,
    pub(crate) connection: ConnectionId,
    pub(crate) to_server: Stream,
    pub(crate) to_client: Stream,
    pub(crate) client_gone: bool,
    pub(crate) server_gone: bool,
    /// Nothing passes any more, and nobody is told.
    pub(crate) dead: bool,
    /// The session that the server has answered with.
    pub(crate) session: Option<i64>,
    /// The session that its first so many bytes ask for.
    pub(crate) resumes: Option<(i64, u64)>,
    /// While it is not read from: what had arrived and what was taken at the last look.
    pub(crate) look: Option<(u64, u64)>,
    /// The first bytes to the client, up to where the session's id ends.
    head: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct Network {
    links: BTreeMap<LinkId, Link>,
    next: LinkId,
}

/// Length, protocol version, timeout, session.
const HEAD_BYTES: usize = 4 + 4 + 4 + 8;

impl Network {
    pub(crate) fn connect(
        &mut self,
        client: usize,
        shard: usize,
        connection: ConnectionId,
    ) -> LinkId {
        self.next += 1;
        let link = Link {
            client,
            shard,
            connection,
            to_server: Stream::default(),
            to_client: Stream::default(),
            client_gone: false,
            server_gone: false,
            dead: false,
            session: None,
            resumes: None,
            look: None,
            head: Vec::new(),
        };
        self.links.insert(self.next, link);
        self.next
    }

    pub(crate) fn find(&mut self, id: LinkId) -> Option<&mut Link> {
        self.links.get_mut(&id)
    }

    pub(crate) fn ids(&self) -> Vec<LinkId> {
        self.links.keys().copied().collect()
    }

    /// Those that a shard has not left.
    pub(crate) fn of_shard(&self, shard: usize) -> Vec<LinkId> {
        let is_of = |link: &Link| link.shard == shard && !link.server_gone;
        self.links.iter().filter(|(_, link)| is_of(link)).map(|(&id, _)| id).collect()
    }

    pub(crate) fn of_connection(&self, shard: usize, connection: ConnectionId) -> Option<LinkId> {
        let is_it =
            |link: &Link| link.shard == shard && link.connection == connection && !link.server_gone;
        self.links.iter().find(|(_, link)| is_it(link)).map(|(&id, _)| id)
    }

    /// Whether nothing is on its way to any client.
    pub(crate) fn is_idle(&self) -> bool {
        self.links.values().all(|link| link.client_gone || link.to_client.bytes.is_empty())
    }

    /// Forgets a link that both sides have left.
    pub(crate) fn forget_if_gone(&mut self, id: LinkId) {
        if self.links.get(&id).is_some_and(|link| link.client_gone && link.server_gone) {
            self.links.remove(&id);
        }
    }
}

impl Link {
    /// The server has written.
    pub(crate) fn send_to_client(&mut self, bytes: &[u8]) {
        if self.head.len() < HEAD_BYTES {
            let count = bytes.len().min(HEAD_BYTES - self.head.len());
            self.head.extend_from_slice(&bytes[..count]);
            if let Some(session) = self.head.get(12..HEAD_BYTES) {
                let session = i64::from_be_bytes(session.try_into().expect("eight bytes"));
                self.session = Some(session).filter(|&session| session != 0);
            }
        }
        if !self.dead && !self.to_client.ended {
            self.to_client.bytes.extend_from_slice(bytes);
        }
    }
}

impl Stream {
    /// The next piece: often all of it.
    pub(crate) fn take_piece(&mut self, rng: &mut Rng) -> Vec<u8> {
        let count = match rng.below(4) {
            0 => rng.between(1, self.bytes.len().max(1) as i64) as usize,
            _ => self.bytes.len(),
        };
        self.taken_ever += count.min(self.bytes.len()) as u64;
        self.bytes.drain(..count.min(self.bytes.len())).collect()
    }

    /// More arrives in the server's socket: often all that is under way.
    pub(crate) fn arrive(&mut self, now_us: i64, rng: &mut Rng) {
        let count = match (self.bytes.len() - self.arrived, rng.below(4)) {
            (left @ 1.., 0) => rng.between(1, left as i64) as usize,
            (left, _) => left,
        };
        if self.arrived == 0 {
            self.arrived_us = now_us;
        }
        self.arrived += count;
        self.arrived_ever += count as u64;
    }

    /// What the server reads: often all that has arrived.
    pub(crate) fn read_piece(&mut self, rng: &mut Rng) -> Vec<u8> {
        let count = match rng.below(4) {
            0 => rng.between(1, self.arrived.max(1) as i64) as usize,
            _ => self.arrived,
        };
        let count = count.min(self.arrived);
        self.arrived -= count;
        self.bytes.drain(..count).collect()
    }

    /// Nothing of it is read any more.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.arrived = 0;
    }

    /// A part of what is under way still arrives, and then no more.
    pub(crate) fn break_off(&mut self, rng: &mut Rng) {
        let count = rng.between(self.arrived as i64, self.bytes.len() as i64) as usize;
        self.bytes.truncate(count);
        self.ended = true;
    }
}
