//! The connections of the election port: who keeps which, and what is sent over it.
//!
//! Two servers have one connection, and it is always the one that the server with the larger number
//! opened (`QuorumCnxManager`). The other one may call all the same: the call tells who it is, is
//! closed, and called back.
//!
//! ```text
//! I call a larger one     connect, hello, close; it calls me
//! I call a smaller one    connect, hello, keep
//! a smaller one calls me  hello, close; I call it
//! a larger one calls me   hello, keep
//! ```
//!
//! What is sent is always the newest notification, at the time when it can be written: older ones
//! are worth nothing. A server that anything was ever sent to is sent the newest one again over each
//! new connection, since a notification can get lost in one that is closed.

use std::collections::BTreeMap;

use crate::types::{Deadline, Now, ServerId};

/// Accepted connections that have not said who they are, at most. The oldest goes for a new one.
const CALLERS_MAX: usize = 64;
/// Servers outside the configuration, at most: observers need not be in it.
const STRANGERS_MAX: usize = 1024;

/// A connection, or a call that may become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElectionLinkId(pub u64);

/// What a step asks for, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Connect to a server's election port and send the hello: at the address that it named last,
    /// or at the one of the configuration.
    Call {
        link: ElectionLinkId,
        server: ServerId,
    },
    /// Write the newest notification; `on_sent` follows.
    Tell {
        link: ElectionLinkId,
        server: ServerId,
    },
    Close {
        link: ElectionLinkId,
    },
}

/// Why a call came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallFailure {
    /// Nobody listens there.
    Refused,
    /// No answer in time.
    Silent,
    /// No such name, no way there.
    Unreachable,
}

#[derive(Debug)]
pub struct ElectionLinks {
    me: ServerId,
    /// How long an accepted connection may take to say who it is.
    hello_ms_max: i64,
    peers: BTreeMap<ServerId, Peer>,
    /// Accepted, and not known yet: the oldest first.
    callers: BTreeMap<ElectionLinkId, Deadline>,
    next: u64,
}

#[derive(Debug, Default)]
struct Peer {
    link: Option<Link>,
    call: Option<ElectionLinkId>,
    /// The newest notification is not written yet.
    has_news: bool,
    /// Something was to be sent to it before.
    is_addressed: bool,
    is_stranger: bool,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    id: ElectionLinkId,
    /// A notification is being written.
    is_sending: bool,
}

impl ElectionLinks {
    #[must_use]
    pub fn new(me: ServerId, hello_ms_max: i64) -> ElectionLinks {
        ElectionLinks {
            me,
            hello_ms_max,
            peers: BTreeMap::new(),
            callers: BTreeMap::new(),
            next: 0,
        }
    }

    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.callers.values().next().copied()
    }

    /// Whether a server has a connection that is kept.
    #[must_use]
    pub fn is_connected(&self, server: ServerId) -> bool {
        self.peers.get(&server).is_some_and(|peer| peer.link.is_some())
    }

    /// There is something new for a server.
    pub fn tell(&mut self, server: ServerId, out: &mut Vec<Ask>) {
        if server == self.me {
            return;
        }
        let peer = self.peers.entry(server).or_default();
        peer.has_news = true;
        peer.is_addressed = true;
        self.go_on(server, out);
    }

    /// Somebody connected to the election port.
    pub fn on_accepted(&mut self, now: Now, out: &mut Vec<Ask>) -> ElectionLinkId {
        let link = self.new_link();
        self.callers.insert(link, Deadline(now.monotonic_ms + self.hello_ms_max));
        if CALLERS_MAX < self.callers.len()
            && let Some((link, _)) = self.callers.pop_first()
        {
            out.push(Ask::Close { link });
        }
        link
    }

    /// An accepted connection says which server it is of. `is_known`: it is in the configuration.
    pub fn on_hello(
        &mut self,
        link: ElectionLinkId,
        server: ServerId,
        is_known: bool,
        out: &mut Vec<Ask>,
    ) {
        if self.callers.remove(&link).is_none() {
            return;
        }
        let strangers = self.peers.values().filter(|peer| peer.is_stranger).count();
        let is_new = !is_known && !self.peers.contains_key(&server);
        if server == self.me || (is_new && STRANGERS_MAX <= strangers) {
            out.push(Ask::Close { link });
            return;
        }
        let me = self.me;
        let peer = self.peers.entry(server).or_default();
        peer.is_stranger = !is_known;
        if let Some(old) = peer.link.take() {
            out.push(Ask::Close { link: old.id });
        }
        if server < me {
            out.push(Ask::Close { link });
            self.call(server, out);
        } else {
            self.keep(server, link, out);
        }
    }

    /// A call was answered, and the hello is on its way.
    pub fn on_connected(&mut self, link: ElectionLinkId, out: &mut Vec<Ask>) -> Option<ServerId> {
        let me = self.me;
        let (&server, peer) = self.peers.iter_mut().find(|(_, peer)| peer.call == Some(link))?;
        peer.call = None;
        if me < server {
            out.push(Ask::Close { link });
        } else {
            if let Some(old) = peer.link.take() {
                out.push(Ask::Close { link: old.id });
            }
            self.keep(server, link, out);
        }
        Some(server)
    }

    /// A call came to nothing. The next notification for the server is a reason to try again.
    pub fn on_call_failed(&mut self, link: ElectionLinkId) -> Option<ServerId> {
        let (&server, peer) = self.peers.iter_mut().find(|(_, peer)| peer.call == Some(link))?;
        peer.call = None;
        self.forget_stranger(server);
        Some(server)
    }

    /// A notification is written.
    pub fn on_sent(&mut self, link: ElectionLinkId, out: &mut Vec<Ask>) {
        let Some((server, peer)) = self.peer_of(link) else { return };
        if let Some(link) = &mut peer.link {
            link.is_sending = false;
        }
        self.go_on(server, out);
    }

    /// A connection is over, by the other side or by an error. Says whose it was.
    pub fn on_closed(&mut self, link: ElectionLinkId, out: &mut Vec<Ask>) -> Option<ServerId> {
        self.callers.remove(&link);
        let (server, peer) = self.peer_of(link)?;
        peer.link = None;
        if peer.has_news {
            self.go_on(server, out);
        } else {
            self.forget_stranger(server);
        }
        Some(server)
    }

    /// The server that a connection is kept with.
    #[must_use]
    pub fn server_of(&mut self, link: ElectionLinkId) -> Option<ServerId> {
        self.peer_of(link).map(|(server, _)| server)
    }

    pub fn on_time(&mut self, now: Now, out: &mut Vec<Ask>) {
        while let Some(caller) = self.callers.first_entry()
            && caller.get().is_due(now)
        {
            out.push(Ask::Close { link: caller.remove_entry().0 });
        }
    }

    fn new_link(&mut self) -> ElectionLinkId {
        self.next += 1;
        ElectionLinkId(self.next)
    }

    fn peer_of(&mut self, link: ElectionLinkId) -> Option<(ServerId, &mut Peer)> {
        let is_its = |peer: &Peer| peer.link.is_some_and(|kept| kept.id == link);
        self.peers.iter_mut().find(|(_, peer)| is_its(peer)).map(|(server, peer)| (*server, peer))
    }

    fn keep(&mut self, server: ServerId, link: ElectionLinkId, out: &mut Vec<Ask>) {
        let peer = self.peers.get_mut(&server).expect("a peer that was just seen");
        peer.link = Some(Link { id: link, is_sending: false });
        peer.has_news |= peer.is_addressed;
        if peer.has_news {
            self.go_on(server, out);
        }
    }

    fn call(&mut self, server: ServerId, out: &mut Vec<Ask>) {
        let link = self.new_link();
        let peer = self.peers.get_mut(&server).expect("a peer that was just seen");
        if peer.call.is_none() {
            peer.call = Some(link);
            out.push(Ask::Call { link, server });
        }
    }

    /// Sends what is new, or makes the way for it.
    fn go_on(&mut self, server: ServerId, out: &mut Vec<Ask>) {
        let peer = self.peers.get_mut(&server).expect("a peer that was just seen");
        match &mut peer.link {
            Some(Link { is_sending: true, .. }) => {}
            Some(link) if peer.has_news => {
                link.is_sending = true;
                peer.has_news = false;
                out.push(Ask::Tell { link: link.id, server });
            }
            Some(_) => {}
            None => self.call(server, out),
        }
    }

    /// A server that is in no configuration is known by its connection alone.
    fn forget_stranger(&mut self, server: ServerId) {
        let is_over = |peer: &Peer| peer.is_stranger && peer.link.is_none() && peer.call.is_none();
        if self.peers.get(&server).is_some_and(is_over) {
            self.peers.remove(&server);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ServerId = ServerId(5);
    const SMALLER: ServerId = ServerId(3);
    const LARGER: ServerId = ServerId(7);

    fn at(ms: i64) -> Now {
        Now { monotonic_ms: ms, wall_ms: 0 }
    }

    struct Bench {
        links: ElectionLinks,
        out: Vec<Ask>,
    }

    impl Bench {
        fn new() -> Bench {
            Bench { links: ElectionLinks::new(ME, 4000), out: Vec::new() }
        }

        fn asked(&mut self) -> Vec<Ask> {
            std::mem::take(&mut self.out)
        }

        fn tell(&mut self, server: ServerId) -> Vec<Ask> {
            self.links.tell(server, &mut self.out);
            self.asked()
        }

        /// The call that was asked for, once it is answered.
        fn connect(&mut self, server: ServerId) -> ElectionLinkId {
            let [Ask::Call { link, server: called }] = self.tell(server)[..] else { panic!() };
            assert_eq!(called, server);
            assert_eq!(self.links.on_connected(link, &mut self.out), Some(server));
            link
        }

        fn is_called_by(&mut self, server: ServerId) -> ElectionLinkId {
            let link = self.links.on_accepted(at(0), &mut self.out);
            self.links.on_hello(link, server, true, &mut self.out);
            link
        }
    }

    #[test]
    fn the_connection_that_the_larger_number_opened_is_kept() {
        let mut bench = Bench::new();
        let link = bench.connect(SMALLER);
        assert_eq!(bench.asked(), [Ask::Tell { link, server: SMALLER }]);
        let link = bench.connect(LARGER);
        assert_eq!(bench.asked(), [Ask::Close { link }]);
        assert!(bench.links.is_connected(SMALLER) && !bench.links.is_connected(LARGER));
        // The larger one calls back, and hears what there was for it.
        let link = bench.is_called_by(LARGER);
        assert_eq!(bench.asked(), [Ask::Tell { link, server: LARGER }]);
        assert!(bench.links.is_connected(LARGER));
        // A smaller one that calls has no connection, whatever is believed here.
        let kept = ElectionLinkId(1);
        let link = bench.is_called_by(SMALLER);
        let asked = bench.asked();
        let [.., Ask::Call { link: call, server: SMALLER }] = asked[..] else {
            panic!("{asked:?}")
        };
        assert_eq!(asked[..2], [Ask::Close { link: kept }, Ask::Close { link }]);
        // It calls twice, and is called back once.
        let link = bench.is_called_by(SMALLER);
        assert_eq!(bench.asked(), [Ask::Close { link }]);
        bench.links.on_connected(call, &mut bench.out);
        assert_eq!(bench.asked(), [Ask::Tell { link: call, server: SMALLER }]);
    }

    #[test]
    fn a_newer_connection_takes_the_place_of_the_older() {
        let mut bench = Bench::new();
        let old = bench.is_called_by(LARGER);
        assert_eq!(bench.asked(), []);
        let new = bench.is_called_by(LARGER);
        assert_eq!(bench.asked(), [Ask::Close { link: old }]);
        // The end of the old one is no end of the new one.
        assert_eq!(bench.links.on_closed(old, &mut bench.out), None);
        assert_eq!(bench.links.server_of(new), Some(LARGER));
        let myself = bench.is_called_by(ME);
        assert_eq!(bench.asked(), [Ask::Close { link: myself }]);
        assert_eq!(bench.tell(ME), []);
    }

    #[test]
    fn only_the_newest_is_sent_and_again_over_each_new_connection() {
        let mut bench = Bench::new();
        let link = bench.connect(SMALLER);
        assert_eq!(bench.asked(), [Ask::Tell { link, server: SMALLER }]);
        // While it is being written, what comes is one.
        assert_eq!((bench.tell(SMALLER), bench.tell(SMALLER)), (vec![], vec![]));
        bench.links.on_sent(link, &mut bench.out);
        assert_eq!(bench.asked(), [Ask::Tell { link, server: SMALLER }]);
        bench.links.on_sent(link, &mut bench.out);
        assert_eq!(bench.asked(), []);
        assert_eq!(bench.links.on_closed(link, &mut bench.out), Some(SMALLER));
        assert_eq!(bench.asked(), [], "there is nothing new");
        let link = bench.connect(SMALLER);
        assert_eq!(bench.asked(), [Ask::Tell { link, server: SMALLER }]);
        // What was not written when the connection ended makes a new one.
        assert_eq!(bench.tell(SMALLER), []);
        bench.links.on_closed(link, &mut bench.out);
        assert!(matches!(bench.asked()[..], [Ask::Call { server: SMALLER, .. }]));
    }

    #[test]
    fn a_call_that_fails_is_tried_again_with_the_next_news() {
        let mut bench = Bench::new();
        let [Ask::Call { link, .. }] = bench.tell(LARGER)[..] else { panic!() };
        assert_eq!(bench.tell(LARGER), [], "one call at a time");
        assert_eq!(bench.links.on_call_failed(link), Some(LARGER));
        assert_eq!(bench.links.on_call_failed(link), None);
        assert!(matches!(bench.tell(LARGER)[..], [Ask::Call { .. }]));
    }

    #[test]
    fn who_does_not_say_who_it_is_goes_and_so_does_who_is_one_too_many() {
        let mut bench = Bench::new();
        let first = bench.links.on_accepted(at(0), &mut bench.out);
        assert_eq!(bench.links.deadline(), Some(Deadline(4000)));
        for _ in 1..CALLERS_MAX {
            bench.links.on_accepted(at(1), &mut bench.out);
        }
        assert_eq!(bench.asked(), []);
        bench.links.on_accepted(at(2), &mut bench.out);
        assert_eq!(bench.asked(), [Ask::Close { link: first }]);
        bench.links.on_hello(first, LARGER, true, &mut bench.out);
        assert!(!bench.links.is_connected(LARGER));
        bench.links.on_time(at(4001), &mut bench.out);
        assert_eq!(bench.asked().len(), CALLERS_MAX - 1);
        bench.links.on_time(at(4002), &mut bench.out);
        assert_eq!((bench.asked().len(), bench.links.deadline()), (1, None));
    }

    #[test]
    fn strangers_are_remembered_while_they_are_connected_and_bounded() {
        let mut bench = Bench::new();
        let hello = |bench: &mut Bench, server| {
            let link = bench.links.on_accepted(at(0), &mut bench.out);
            bench.links.on_hello(link, ServerId(server), false, &mut bench.out);
            link
        };
        let links: Vec<ElectionLinkId> =
            (0..STRANGERS_MAX as i64).map(|n| hello(&mut bench, 10 + n)).collect();
        assert_eq!(bench.asked(), []);
        let one_too_many = hello(&mut bench, 9);
        assert_eq!(bench.asked(), [Ask::Close { link: one_too_many }]);
        // A member is no stranger.
        bench.is_called_by(LARGER);
        assert_eq!(bench.asked(), []);
        bench.links.on_closed(links[0], &mut bench.out);
        hello(&mut bench, 9);
        assert_eq!(bench.asked(), []);
        assert!(bench.links.is_connected(ServerId(9)) && !bench.links.is_connected(ServerId(10)));
    }
}
