//! What waits for others, on threads beside the core: taking connections, resolving names, calling.
//!
//! Each address that is listened on has a thread, and each call has one while it lasts. What comes of
//! it goes into a queue, and the core is rung.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crossbeam::queue::SegQueue;
use crossbeam::utils::CachePadded;
use tracing::{debug, warn};

use crate::config::Endpoint;
use crate::shell::mesh::Bell;
use crate::shell::{accept, sys};
use crate::zab::election_links::{self, CallFailure};

/// Connections that were taken and that the core has not seen yet, at most. One more is cut off.
const TAKEN_MAX: usize = 128;
/// Calls under way at once: one for each server that is called, and for strangers that come.
const CALLS_MAX: usize = 64;
/// Between two tries to listen on a port (`QuorumCnxManager.Listener`).
const BIND_PAUSE: Duration = Duration::from_secs(1);
/// Where descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How many connections may wait to be taken.
const BACKLOG: u32 = 128;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Port {
    Election,
    Quorum,
}

/// A name and a port, resolved anew each time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) host: String,
    pub(super) port: u16,
}

/// Whom a call is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    Election(election_links::ElectionLinkId),
    /// The call with this number.
    Leader(u64),
}

/// What has come of it.
pub(super) enum Come {
    Accepted { port: Port, socket: TcpStream, remote: SocketAddr },
    Called { caller: Caller, result: Result<TcpStream, CallFailure> },
    CannotListen { place: Place, error: io::Error },
}

struct Shared {
    come: SegQueue<Come>,
    /// Taken, and not seen by the core.
    taken: AtomicUsize,
    calls: AtomicUsize,
    bell: Arc<CachePadded<Bell>>,
}

impl Shared {
    fn tell(&self, come: Come) {
        self.come.push(come);
        self.bell.ring();
    }
}

pub(super) struct Outside {
    shared: Arc<Shared>,
    /// Closing this end ends the threads that listen.
    stop: io::PipeWriter,
    stopped: io::PipeReader,
    keep_alive: bool,
}

impl Outside {
    pub(super) fn new(bell: Arc<CachePadded<Bell>>, keep_alive: bool) -> io::Result<Outside> {
        let (stopped, stop) = io::pipe()?;
        let shared = Shared {
            come: SegQueue::new(),
            taken: AtomicUsize::new(0),
            calls: AtomicUsize::new(0),
            bell,
        };
        Ok(Outside { shared: Arc::new(shared), stop, stopped, keep_alive })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.shared.come.is_empty()
    }

    pub(super) fn next(&self) -> Option<Come> {
        let come = self.shared.come.pop()?;
        if let Come::Accepted { .. } = come {
            self.shared.taken.fetch_sub(1, Ordering::Relaxed);
        }
        Some(come)
    }

    /// Takes connections that come to a place; `None` as its host is every address of the machine.
    /// `tries`: how often it is tried to listen there; `None`: for ever.
    pub(super) fn listen(
        &self,
        port: Port,
        place: Place,
        on_all: bool,
        tries: Option<u32>,
    ) -> io::Result<()> {
        let (shared, stopped) = (Arc::clone(&self.shared), self.stopped.try_clone()?);
        let keep_alive = self.keep_alive;
        let name = match port {
            Port::Election => "links-election",
            Port::Quorum => "links-quorum",
        };
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            match bind(&place, on_all, tries, &stopped) {
                Ok(Some(listener)) => take(&listener, port, keep_alive, &stopped, &shared),
                Ok(None) => {}
                Err(error) => shared.tell(Come::CannotListen { place, error }),
            }
        })?;
        Ok(())
    }

    /// Connects to the first of these places that answers.
    pub(super) fn call(&self, caller: Caller, places: Vec<Place>, timeout: Duration) {
        let (shared, keep_alive) = (Arc::clone(&self.shared), self.keep_alive);
        let fail = |shared: &Shared| {
            shared.calls.fetch_sub(1, Ordering::Relaxed);
            shared.tell(Come::Called { caller, result: Err(CallFailure::Unreachable) });
        };
        if CALLS_MAX <= shared.calls.fetch_add(1, Ordering::Relaxed) {
            return fail(&shared);
        }
        let thread = thread::Builder::new().name("links-call".to_owned()).spawn(move || {
            let result = connect(&places, timeout)
                .inspect(|socket| prepare(socket, keep_alive))
                .map_err(|error| {
                    debug!(?places, %error, "a server cannot be reached");
                    match error.kind() {
                        io::ErrorKind::ConnectionRefused => CallFailure::Refused,
                        io::ErrorKind::TimedOut => CallFailure::Silent,
                        _ => CallFailure::Unreachable,
                    }
                });
            shared.calls.fetch_sub(1, Ordering::Relaxed);
            shared.tell(Come::Called { caller, result });
        });
        if thread.is_err() {
            fail(&self.shared);
        }
    }

    /// Ends what listens.
    pub(super) fn stop(self) {
        drop(self.stop);
    }
}

/// It fails for a socket that is gone already, which is found out soon.
fn prepare(socket: &TcpStream, keep_alive: bool) {
    let _ = socket.set_nodelay(true);
    if keep_alive {
        let _ = sys::set_keepalive(socket);
    }
}

/// `None`: stopped before.
fn bind(
    place: &Place,
    on_all: bool,
    tries: Option<u32>,
    stopped: &io::PipeReader,
) -> io::Result<Option<TcpListener>> {
    let mut tried = 0;
    loop {
        let error = match bind_once(place, on_all) {
            Ok(listener) => return Ok(Some(listener)),
            Err(error) => error,
        };
        tried += 1;
        if tries.is_some_and(|tries| tries <= tried) {
            return Err(error);
        }
        warn!(host = place.host, port = place.port, %error, "cannot listen; trying again");
        if sys::wait_readable_for(&[stopped.as_fd()], BIND_PAUSE)? {
            return Ok(None);
        }
    }
}

fn bind_once(place: &Place, on_all: bool) -> io::Result<TcpListener> {
    let address = if on_all { None } else { Some(resolve(place)?[0].ip()) };
    let endpoint = Endpoint { address, port: place.port };
    accept::listen(endpoint, Some(BACKLOG)).map_err(|error| error.into_source())
}

fn take(
    listener: &TcpListener,
    port: Port,
    keep_alive: bool,
    stopped: &io::PipeReader,
    shared: &Shared,
) {
    let sources = [stopped.as_fd(), listener.as_fd()];
    loop {
        match sys::wait_readable(&sources) {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => warn!(%error, "waiting for other servers"),
        }
        let (socket, remote) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::EINTR | libc::ECONNABORTED) => {}
                    _ => {
                        debug!(%error, "no connection of another server can be taken");
                        thread::sleep(ACCEPT_PAUSE);
                    }
                }
                continue;
            }
        };
        if TAKEN_MAX <= shared.taken.fetch_add(1, Ordering::Relaxed) {
            shared.taken.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        prepare(&socket, keep_alive);
        shared.tell(Come::Accepted { port, socket, remote });
    }
}

/// All addresses of a host, at least one.
fn resolve(place: &Place) -> io::Result<Vec<SocketAddr>> {
    let found: Vec<SocketAddr> = (place.host.as_str(), place.port).to_socket_addrs()?.collect();
    if found.is_empty() { Err(io::ErrorKind::NotFound.into()) } else { Ok(found) }
}

/// Several places are called at once, since one that does not answer takes the whole timeout.
fn connect(places: &[Place], timeout: Duration) -> io::Result<TcpStream> {
    let [place, others @ ..] = places else { return Err(io::ErrorKind::NotFound.into()) };
    if others.is_empty() {
        return connect_to(place, timeout);
    }
    let (told, outcomes) = mpsc::channel();
    for place in places {
        let (place, told) = (place.clone(), told.clone());
        let call = move || drop(told.send(connect_to(&place, timeout)));
        thread::Builder::new().name("links-call".to_owned()).spawn(call)?;
    }
    drop(told);
    let mut failed: Option<io::Error> = None;
    for outcome in outcomes {
        match outcome {
            Ok(socket) => return Ok(socket),
            // Refused is what it is only where all refuse.
            Err(error) if error.kind() != io::ErrorKind::ConnectionRefused => failed = Some(error),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Err(failed.expect("one outcome for each place"))
}

fn connect_to(place: &Place, timeout: Duration) -> io::Result<TcpStream> {
    let mut failed = None;
    for address in resolve(place)? {
        match TcpStream::connect_timeout(&address, timeout.max(Duration::from_millis(1))) {
            // A port of the ephemeral range can be connected to itself.
            Ok(socket) if socket.local_addr().ok() == Some(address) => {
                failed = Some(io::ErrorKind::ConnectionRefused.into());
            }
            Ok(socket) => return Ok(socket),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.expect("at least one address"))
}
