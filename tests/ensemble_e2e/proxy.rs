//! Proxies between servers: one for each direction of calling and each port, so that what one server
//! sends to another can be held back, whoever has called.
//!
//! What is cut is held back, as a network does it: a connection made meanwhile is accepted and silent,
//! and after the cut everything goes on its way.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use crate::ensemble::Id;
use crate::ports;

/// How long until a change is noticed.
const LOOK: Duration = Duration::from_millis(5);

/// What becomes of all that one server sends to another.
type Way = Arc<AtomicU8>;

const OPEN: u8 = 0;
/// It is held back.
const HELD: u8 = 1;
/// Connections are closed, with what was held back in them.
const SEVERED: u8 = 2;

pub(crate) struct Proxies {
    /// By caller and called: the quorum and the election port.
    places: BTreeMap<(Id, Id), [SocketAddr; 2]>,
    ways: BTreeMap<(Id, Id), Way>,
    is_over: Arc<AtomicBool>,
}

impl Proxies {
    /// `places` are the real quorum and election ports.
    pub(crate) fn start(places: &BTreeMap<Id, [SocketAddr; 2]>) -> Proxies {
        let is_over = Arc::new(AtomicBool::new(false));
        let pairs = || {
            let pair = |from: Id| places.keys().map(move |&to| (from, to));
            places.keys().flat_map(move |&from| pair(from)).filter(|(from, to)| from != to)
        };
        let ways: BTreeMap<(Id, Id), Way> = pairs().map(|pair| (pair, Way::default())).collect();
        let mut proxied = BTreeMap::new();
        for (from, to) in pairs() {
            let there = Arc::clone(&ways[&(from, to)]);
            let back = Arc::clone(&ways[&(to, from)]);
            let start = |target| {
                let listener = ports::listen();
                let place = listener.local_addr().unwrap();
                let link = Link {
                    target,
                    there: Arc::clone(&there),
                    back: Arc::clone(&back),
                    is_over: Arc::clone(&is_over),
                };
                thread::spawn(move || link.run(&listener));
                place
            };
            proxied.insert((from, to), places[&to].map(start));
        }
        Proxies { places: proxied, ways, is_over }
    }

    /// Where `from` reaches the quorum and the election port of `to`.
    pub(crate) fn places(&self, from: Id, to: Id) -> [SocketAddr; 2] {
        self.places[&(from, to)]
    }

    /// Holds back what `from` sends to `to`.
    pub(crate) fn cut(&self, from: Id, to: Id) {
        self.ways[&(from, to)].store(HELD, Ordering::Relaxed);
    }

    /// Closes the connections between two servers, and each new one, and forgets what was held back.
    pub(crate) fn sever(&self, one: Id, other: Id) {
        for pair in [(one, other), (other, one)] {
            self.ways[&pair].store(SEVERED, Ordering::Relaxed);
        }
    }

    pub(crate) fn heal(&self) {
        self.ways.values().for_each(|way| way.store(OPEN, Ordering::Relaxed));
    }
}

impl Drop for Proxies {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

struct Link {
    target: SocketAddr,
    there: Way,
    back: Way,
    is_over: Arc<AtomicBool>,
}

impl Link {
    fn run(&self, listener: &TcpListener) {
        listener.set_nonblocking(true).unwrap();
        while !self.is_over.load(Ordering::Relaxed) {
            let Ok((caller, _)) = listener.accept() else {
                thread::park_timeout(LOOK);
                continue;
            };
            caller.set_nonblocking(false).unwrap();
            // Nobody listens: the caller sees its connection closed.
            let Ok(called) = TcpStream::connect(self.target) else { continue };
            for socket in [&caller, &called] {
                socket.set_nodelay(true).unwrap();
                socket.set_read_timeout(Some(LOOK)).unwrap();
            }
            let (caller_too, called_too) = (caller.try_clone(), called.try_clone());
            let (Ok(caller_too), Ok(called_too)) = (caller_too, called_too) else { continue };
            for (from, to, way) in
                [(caller, called, &self.there), (called_too, caller_too, &self.back)]
            {
                let (way, is_over) = (Arc::clone(way), Arc::clone(&self.is_over));
                thread::spawn(move || pump(from, to, &way, &is_over));
            }
        }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, way: &Way, is_over: &AtomicBool) {
    let mut chunk = vec![0; 64 << 10];
    while !is_over.load(Ordering::Relaxed) {
        let read = from.read(&mut chunk);
        while way.load(Ordering::Relaxed) == HELD && !is_over.load(Ordering::Relaxed) {
            thread::park_timeout(LOOK);
        }
        if way.load(Ordering::Relaxed) == SEVERED {
            break;
        }
        match read {
            Ok(0) => break,
            Ok(count) if to.write_all(&chunk[..count]).is_err() => break,
            Ok(_) => {}
            Err(error)
                if [ErrorKind::WouldBlock, ErrorKind::TimedOut, ErrorKind::Interrupted]
                    .contains(&error.kind()) => {}
            Err(_) => break,
        }
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
