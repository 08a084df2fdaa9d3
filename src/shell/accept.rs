//! The acceptor: a thread that takes new connections and gives each to the shard with the fewest.
//!
//! It accepts with plain system calls: a storm of connections has no business on a core that serves
//! clients.
//!
//! Limits are exact: a connection counts from here until its end is seen and acted on, by a ticket
//! that travels with the socket. Its place is free from then on, for its client may be back already;
//! its descriptor only once that is closed, when the ticket is dropped.
//!
//! Who comes may bring back a session that is about to expire. So shards can ask up to when all who
//! came were given to one of them (`Arrivals`): after a stall, many may wait for us to accept them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;
use parking_lot::Mutex;
use tracing::{info, warn};

use super::clock::Clock;
use super::sys;
use crate::config::Endpoint;
use crate::exchange::ShardId;
use crate::metrics::{Counter, Recorder};

/// How long the acceptor waits when there are no descriptors left.
const BACK_OFF: Duration = Duration::from_millis(20);
/// How often it says that it waits.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Descriptors that connections leave to the rest of the server. A log that cannot be begun for
/// want of one would end it.
const RESERVED_FILES: usize = 32;
/// How many are accepted before it is noted how far we are. More than may wait.
const PASS_MAX: usize = 1 << 16;

/// What new connections are told and measured by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AcceptOptions {
    /// Of one address; `None`: any number.
    pub(crate) max_per_address: Option<usize>,
    pub(crate) max: Option<usize>,
    pub(crate) keep_alive: bool,
}

/// A client that has come.
pub(crate) struct Accepted {
    pub(crate) socket: TcpStream,
    pub(crate) remote: SocketAddr,
    pub(crate) ticket: Ticket,
    /// Not before this moment of the monotonic clock.
    pub(crate) came_after_ms: i64,
}

/// A port that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

impl BindError {
    pub(crate) fn into_source(self) -> io::Error {
        self.source
    }
}

/// How many connections may wait to be accepted, unless the configuration says so: with fewer, a
/// crowd that comes back at once would lose its first packets and wait a second to send them again.
/// The kernel allows no more than net.core.somaxconn.
const BACKLOG: u32 = 4096;

/// Listens on a port.
pub(crate) fn listen(endpoint: Endpoint, backlog: Option<u32>) -> Result<TcpListener, BindError> {
    let text = match endpoint.address {
        None => format!("0.0.0.0/0.0.0.0:{}", endpoint.port),
        Some(IpAddr::V4(address)) => format!("/{address}:{}", endpoint.port),
        Some(IpAddr::V6(address)) => format!("/[{address}]:{}", endpoint.port),
    };
    info!(target: "ringkeeper::shell::accept", "binding to port {text}");
    let bound =
        match endpoint.address {
            Some(address) => bind(SocketAddr::new(address, endpoint.port)),
            // One socket for both families, where there is a second.
            None => bind(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), endpoint.port)).or_else(
                |error| match error.source.raw_os_error() {
                    Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL) => {
                        bind(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), endpoint.port))
                    }
                    _ => Err(error),
                },
            ),
        };
    let listener = bound?;
    let prepare = || -> io::Result<()> {
        let backlog = backlog.unwrap_or(BACKLOG);
        sys::set_backlog(&listener, i32::try_from(backlog).unwrap_or(i32::MAX))?;
        listener.set_nonblocking(true)
    };
    let address = listener.local_addr().map_err(|source| BindError {
        address: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), endpoint.port),
        source,
    })?;
    prepare().map_err(|source| BindError { address, source })?;
    Ok(listener)
}

/// std sets SO_REUSEADDR, so that a restart need not wait for the connections of the run before.
fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    TcpListener::bind(address).map_err(|source| BindError { address, source })
}

/// Who is connected, and how many.
pub(crate) struct Admission {
    options: AcceptOptions,
    per_address: Mutex<HashMap<IpAddr, usize>>,
    total: AtomicUsize,
    /// Those that connections have, or had and that are not closed yet.
    descriptors: AtomicUsize,
    /// How many connections each shard has.
    by_shard: Box<[CachePadded<AtomicUsize>]>,
}

impl Admission {
    pub(crate) fn new(options: AcceptOptions, shards: usize) -> Arc<Admission> {
        Arc::new(Admission {
            options,
            per_address: Mutex::default(),
            total: AtomicUsize::new(0),
            descriptors: AtomicUsize::new(0),
            by_shard: (0..shards).map(|_| CachePadded::default()).collect(),
        })
    }

    /// A place for a connection, if there is one for this address.
    fn admit(self: &Arc<Admission>, remote: IpAddr) -> Option<Ticket> {
        if !self.count_in(remote) {
            return None;
        }
        let loads = self.by_shard.iter().map(|load| load.load(Ordering::Relaxed));
        let (shard, _) = loads.enumerate().min_by_key(|&(_, load)| load)?;
        self.by_shard[shard].fetch_add(1, Ordering::Relaxed);
        self.descriptors.fetch_add(1, Ordering::Relaxed);
        let shard = ShardId(u16::try_from(shard).expect("there are fewer shards than 65536"));
        Some(Ticket { admission: Arc::clone(self), remote, shard, has_place: true })
    }

    fn count_in(&self, remote: IpAddr) -> bool {
        if let Some(max) = self.options.max
            && max <= self.total.load(Ordering::Relaxed)
        {
            warn!(target: "ringkeeper::shell::accept", "Too many connections - max is {max}");
            return false;
        }
        let mut per_address = self.per_address.lock();
        let count = per_address.entry(remote).or_insert(0);
        if let Some(max) = self.options.max_per_address
            && max <= *count
        {
            let from = remote.to_canonical();
            warn!(
                target: "ringkeeper::shell::accept",
                "Too many connections from /{from} - max is {max}"
            );
            return false;
        }
        *count += 1;
        self.total.fetch_add(1, Ordering::Relaxed);
        true
    }
}

/// A connection's place and descriptor; to be dropped after the socket.
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    remote: IpAddr,
    /// The shard that the connection goes to.
    shard: ShardId,
    has_place: bool,
}

impl Ticket {
    /// The connection is over, and others may have its place; its socket is closed later.
    pub(crate) fn leave(&mut self) {
        if !std::mem::take(&mut self.has_place) {
            return;
        }
        self.admission.by_shard[usize::from(self.shard.0)].fetch_sub(1, Ordering::Relaxed);
        self.admission.total.fetch_sub(1, Ordering::Relaxed);
        let mut per_address = self.admission.per_address.lock();
        if let Some(count) = per_address.get_mut(&self.remote) {
            *count -= 1;
            if *count == 0 {
                per_address.remove(&self.remote);
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.leave();
        self.admission.descriptors.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How far the acceptor is behind those who come.
pub(crate) struct Arrivals {
    clock: Clock,
    /// Gone once no more are accepted.
    listeners: Weak<[TcpListener]>,
    /// Somebody may be on the way from a port to a shard.
    is_accepting: AtomicBool,
    /// Whoever came by then was given to a shard, or turned away, or could not be accepted.
    given_until_ms: AtomicI64,
}

impl Arrivals {
    pub(crate) fn new(clock: Clock, listeners: &Arc<[TcpListener]>) -> Arc<Arrivals> {
        Arc::new(Arrivals {
            clock,
            listeners: Arc::downgrade(listeners),
            is_accepting: AtomicBool::new(false),
            given_until_ms: AtomicI64::new(clock.now().monotonic_ms),
        })
    }

    /// Up to when all who came are with a shard. To be asked before the shard looks whom it has
    /// been given.
    pub(crate) fn given_until_ms(&self) -> i64 {
        let now_ms = self.clock.now().monotonic_ms;
        let waits = self.listeners.upgrade().is_some_and(|listeners| {
            let sources: Vec<BorrowedFd<'_>> = listeners.iter().map(|of| of.as_fd()).collect();
            sys::is_any_readable(&sources).unwrap_or(false)
        });
        // In this order: whoever does not wait any more is either given, or we see this.
        if !waits && !self.is_accepting.load(Ordering::SeqCst) {
            self.given_until_ms.fetch_max(now_ms, Ordering::SeqCst);
        }
        self.given_until_ms.load(Ordering::SeqCst)
    }

    /// Accepts by `accept`, which takes all who wait.
    fn pass(&self, accept: impl FnOnce(i64)) {
        self.is_accepting.store(true, Ordering::SeqCst);
        let began_ms = self.clock.now().monotonic_ms;
        accept(self.given_until_ms.load(Ordering::SeqCst));
        self.given_until_ms.fetch_max(began_ms, Ordering::SeqCst);
        self.is_accepting.store(false, Ordering::SeqCst);
    }
}

/// A handle on the thread.
pub(crate) struct Acceptor {
    /// Closing this end wakes the thread and ends it.
    stop: Option<io::PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Acceptor {
    /// Starts accepting; `give` hands a client to its shard.
    pub(crate) fn start(
        listeners: Arc<[TcpListener]>,
        arrivals: Arc<Arrivals>,
        admission: Arc<Admission>,
        recorder: Recorder,
        give: impl Fn(ShardId, Accepted) + Send + 'static,
    ) -> io::Result<Acceptor> {
        let (stopped, stop) = io::pipe()?;
        let room = room_for_connections()?;
        let thread = thread::Builder::new().name("acceptor".to_owned()).spawn(move || {
            let mut sources: Vec<BorrowedFd<'_>> = vec![stopped.as_fd()];
            sources.extend(listeners.iter().map(|listener| listener.as_fd()));
            let mut pause = Pause::default();
            loop {
                match sys::wait_readable(&sources) {
                    Ok(true) => return,
                    Ok(false) => {}
                    Err(error) => warn!(%error, "waiting for connections"),
                }
                let mut failed = None;
                arrivals.pass(|came_after_ms| {
                    let give = |socket, remote, ticket: Ticket| {
                        give(ticket.shard, Accepted { socket, remote, ticket, came_after_ms });
                    };
                    for listener in &*listeners {
                        let accepted = accept_all(listener, room, &admission, &recorder, &give);
                        failed = accepted.err().or(failed.take());
                    }
                });
                // Those who wait meanwhile must not keep others from expiring: so they would stay.
                if let Some(error) = failed {
                    pause.wait(&error);
                }
            }
        })?;
        Ok(Acceptor { stop: Some(stop), thread: Some(thread) })
    }

    /// Closes the ports. Whoever connects from here on is refused by the kernel.
    pub(crate) fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How many connections there are descriptors for, once all else is open.
fn room_for_connections() -> io::Result<usize> {
    let limit = usize::try_from(sys::open_files_limit()?.soft).unwrap_or(usize::MAX);
    let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    Ok(limit.saturating_sub(open + RESERVED_FILES).max(1))
}

/// Waits for somebody to leave.
///
/// Where descriptors or memory are used up, accepting fails at once every time: trying on would
/// burn the CPU, and saying so every time would fill the log.
#[derive(Default)]
struct Pause {
    said: Option<Instant>,
}

impl Pause {
    fn wait(&mut self, error: &io::Error) {
        if self.said.is_none_or(|said| SAY_EVERY <= said.elapsed()) {
            self.said = Some(Instant::now());
            warn!(%error, "no connection can be accepted; trying again");
        }
        thread::sleep(BACK_OFF);
    }
}

/// Takes all that have come, or as many as can be.
fn accept_all(
    listener: &TcpListener,
    room: usize,
    admission: &Arc<Admission>,
    recorder: &Recorder,
    give: &impl Fn(TcpStream, SocketAddr, Ticket),
) -> io::Result<()> {
    for _ in 0..PASS_MAX {
        if room <= admission.descriptors.load(Ordering::Relaxed) {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let (socket, remote) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => return Ok(()),
                Some(libc::EINTR | libc::ECONNABORTED) => continue,
                _ => return Err(error),
            },
        };
        let Some(ticket) = admission.admit(remote.ip()) else {
            // The excess is cut off, as ZooKeeper cuts it off.
            let _ = sys::set_reset_on_close(&socket);
            recorder.add(Counter::ConnectionRejected, 1);
            continue;
        };
        let prepared = socket.set_nodelay(true).and_then(|()| {
            if admission.options.keep_alive { sys::set_keepalive(&socket) } else { Ok(()) }
        });
        // It fails for a socket that is gone already, which the shard will find out.
        drop(prepared);
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        give(socket, remote, ticket);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use crossbeam::channel;

    use super::*;
    use crate::metrics::Metrics;

    const OPTIONS: AcceptOptions =
        AcceptOptions { max_per_address: None, max: None, keep_alive: true };

    const PATIENCE: Duration = Duration::from_secs(10);

    fn started(
        options: AcceptOptions,
        shards: usize,
    ) -> (SocketAddr, Acceptor, channel::Receiver<(ShardId, Accepted)>) {
        let endpoint = Endpoint { address: Some(Ipv4Addr::LOCALHOST.into()), port: 0 };
        let listener = listen(endpoint, Some(10)).unwrap();
        let address = listener.local_addr().unwrap();
        let (give, taken) = channel::unbounded();
        let recorder = Metrics::new(1).1.remove(0);
        let admission = Admission::new(options, shards);
        let listeners: Arc<[TcpListener]> = [listener].into();
        let arrivals = Arrivals::new(Clock::start(), &listeners);
        let acceptor =
            Acceptor::start(listeners, arrivals, admission, recorder, move |shard, client| {
                give.send((shard, client)).unwrap();
            });
        (address, acceptor.unwrap(), taken)
    }

    /// Waits until the clock has gone on.
    fn next_ms(clock: Clock) -> i64 {
        let now_ms = clock.now().monotonic_ms;
        while clock.now().monotonic_ms == now_ms {
            std::hint::spin_loop();
        }
        clock.now().monotonic_ms
    }

    #[test]
    fn whoever_waits_to_be_accepted_holds_back_what_is_known() {
        let endpoint = Endpoint { address: Some(Ipv4Addr::LOCALHOST.into()), port: 0 };
        let listeners: Arc<[TcpListener]> = [listen(endpoint, Some(10)).unwrap()].into();
        let clock = Clock::start();
        let arrivals = Arrivals::new(clock, &listeners);
        let before_ms = next_ms(clock);
        assert!(before_ms <= arrivals.given_until_ms());
        let known_ms = arrivals.given_until_ms();
        next_ms(clock);
        let _client = TcpStream::connect(listeners[0].local_addr().unwrap()).unwrap();
        next_ms(clock);
        assert_eq!(arrivals.given_until_ms(), known_ms, "it waits at the port");
        arrivals.pass(|came_after_ms| {
            assert_eq!(came_after_ms, known_ms);
            drop(listeners[0].accept().unwrap());
            next_ms(clock);
            assert_eq!(arrivals.given_until_ms(), known_ms, "it is on its way");
        });
        assert!(known_ms < arrivals.given_until_ms());
        drop(listeners);
        let later_ms = next_ms(clock);
        assert!(later_ms <= arrivals.given_until_ms(), "nobody comes any more");
    }

    #[test]
    fn each_client_goes_to_the_shard_with_the_fewest() {
        let (address, mut acceptor, taken) = started(OPTIONS, 3);
        let mut clients = Vec::new();
        let mut kept = Vec::new();
        for _ in 0..6 {
            clients.push(TcpStream::connect(address).unwrap());
            kept.push(taken.recv_timeout(PATIENCE).unwrap());
        }
        let mut shards: Vec<u16> = kept.iter().map(|(shard, _)| shard.0).collect();
        shards.sort_unstable();
        assert_eq!(shards, [0, 0, 1, 1, 2, 2]);
        kept.retain(|(shard, _)| shard.0 != 1);
        clients.push(TcpStream::connect(address).unwrap());
        assert_eq!(taken.recv_timeout(PATIENCE).unwrap().0, ShardId(1));
        acceptor.stop();
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn the_limit_by_address_is_exact_and_frees_with_the_ticket() {
        let options = AcceptOptions { max_per_address: Some(2), ..OPTIONS };
        let (address, _acceptor, taken) = started(options, 1);
        let connect = || TcpStream::connect(address).unwrap();
        let _clients = [connect(), connect()];
        let first = taken.recv_timeout(PATIENCE).unwrap();
        let _second = taken.recv_timeout(PATIENCE).unwrap();
        let mut excess = connect();
        excess.set_read_timeout(Some(PATIENCE)).unwrap();
        let cut = excess.read(&mut [0]);
        assert!(
            matches!(&cut, Ok(0)) || cut.is_err_and(|e| e.kind() == io::ErrorKind::ConnectionReset)
        );
        assert!(taken.is_empty());
        drop(first);
        let _third = connect();
        taken.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn a_place_is_free_before_its_descriptor_is() {
        let endpoint = Endpoint { address: Some(Ipv4Addr::LOCALHOST.into()), port: 0 };
        let listener = listen(endpoint, Some(10)).unwrap();
        let recorder = Metrics::new(1).1.remove(0);
        let admission = Admission::new(AcceptOptions { max: Some(1), ..OPTIONS }, 1);
        let given = std::cell::RefCell::new(Vec::new());
        let accept = || {
            let give = |socket, _, ticket| given.borrow_mut().push((socket, ticket));
            accept_all(&listener, 1, &admission, &recorder, &give)
        };
        let connect = || TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _first = connect();
        // All that there is room for is taken, and so the port is left alone.
        assert_eq!(accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        let (socket, mut ticket) = given.borrow_mut().pop().expect("the first was accepted");
        ticket.leave();
        assert!(admission.total.load(Ordering::Relaxed) == 0, "the place is free");
        let _second = connect();
        assert_eq!(accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert!(given.borrow().is_empty(), "the descriptor is not");
        drop((socket, ticket));
        assert_eq!(accept().unwrap_err().raw_os_error(), Some(libc::EMFILE));
        assert_eq!(given.borrow().len(), 1, "the second");
    }

    #[test]
    fn the_limit_of_all_counts_every_address() {
        let admission = Admission::new(AcceptOptions { max: Some(2), ..OPTIONS }, 1);
        let [a, b, c] = [1, 2, 3].map(|last| IpAddr::from([127, 0, 0, last]));
        let first = admission.admit(a);
        let second = admission.admit(b);
        assert!(first.is_some() && second.is_some());
        assert!(admission.admit(c).is_none());
        drop(second);
        assert!(admission.admit(c).is_some());
    }
}
