//! The few system calls that `std` does not have: epoll, sockets that connect without waiting,
//! limits, CPUs, and signals to a process we started.
#![expect(unsafe_code, reason = "system calls; each is wrapped in a safe function here")]

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The most events taken in one turn.
const EVENTS_MAX: usize = 256;

/// An epoll set. A file descriptor leaves it by being closed.
pub struct Poll {
    epoll: File,
    events: Vec<libc::epoll_event>,
}

/// What a descriptor is waited for. Readable is always on: a lost connection shows as it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    Read,
    ReadWrite,
}

impl Interest {
    const fn bits(self) -> u32 {
        (match self {
            Interest::Read => libc::EPOLLIN,
            Interest::ReadWrite => libc::EPOLLIN | libc::EPOLLOUT,
        }) as u32
    }
}

/// A descriptor that is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// The token it was added with.
    pub token: usize,
    pub readable: bool,
    pub writable: bool,
}

impl Poll {
    pub fn new() -> io::Result<Poll> {
        // SAFETY: takes no pointer; the descriptor is owned by the `File` from here on.
        let epoll = unsafe {
            let fd = checked(libc::epoll_create1(libc::EPOLL_CLOEXEC))?;
            // Timers of this thread as exact as the kernel makes them: requests are due at
            // moments 10 µs apart, and the default slack is 50 µs.
            libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0);
            File::from_raw_fd(fd)
        };
        Ok(Poll { epoll, events: Vec::with_capacity(EVENTS_MAX) })
    }

    pub fn add(&self, source: &impl AsRawFd, token: usize, interest: Interest) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_ADD, source.as_raw_fd(), token, interest)
    }

    pub fn change(
        &self,
        source: &impl AsRawFd,
        token: usize,
        interest: Interest,
    ) -> io::Result<()> {
        self.control(libc::EPOLL_CTL_MOD, source.as_raw_fd(), token, interest)
    }

    fn control(&self, how: i32, fd: RawFd, token: usize, interest: Interest) -> io::Result<()> {
        let mut event = libc::epoll_event { events: interest.bits(), u64: token as u64 };
        // SAFETY: `event` lives through the call, which only reads it.
        checked(unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), how, fd, &raw mut event) })?;
        Ok(())
    }

    /// Waits until something is ready or `timeout` has passed. A signal ends the wait early.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = libc::timespec {
            tv_sec: timeout.as_secs().min(3600).cast_signed() as libc::time_t,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        self.events.clear();
        // SAFETY: the kernel writes at most EVENTS_MAX events into the vector's capacity, and its
        // length is set to as many as it says it wrote. `timeout` lives through the call; no
        // signal mask is given.
        unsafe {
            let count = libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                self.events.as_mut_ptr(),
                EVENTS_MAX as libc::c_int,
                &raw const timeout,
                std::ptr::null::<libc::sigset_t>(),
                0usize,
            );
            match usize::try_from(count) {
                Ok(count) => self.events.set_len(count),
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// What the last `wait` found, by position, so that the caller may use `self` in between.
    #[must_use]
    pub fn ready(&self, position: usize) -> Option<Ready> {
        self.events.get(position).map(|event| {
            let bits = event.events.cast_signed();
            Ready {
                token: event.u64 as usize,
                readable: bits & (libc::EPOLLIN | libc::EPOLLHUP | libc::EPOLLERR) != 0,
                writable: bits & libc::EPOLLOUT != 0,
            }
        })
    }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The CPU time of a process, all its threads that ever were; 0 is our own.
pub fn process_cpu(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `clock` and `time` live through the calls, which write them.
    unsafe {
        match libc::clock_getcpuclockid(pid, &raw mut clock) {
            0 => {}
            error => return Err(io::Error::from_raw_os_error(error)),
        }
        checked(libc::clock_gettime(clock, &raw mut time))?;
    }
    Ok(duration_of(time))
}

fn duration_of(time: libc::timespec) -> Duration {
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Raises the limit on open files as far as it may go, and says how far that was.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` lives through both calls, the first of which writes it.
    unsafe {
        checked(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit))?;
        limit.rlim_cur = limit.rlim_max;
        checked(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit))?;
    }
    Ok(limit.rlim_cur)
}

/// A socket that is being connected, and does not block.
pub fn connect_nonblocking(server: SocketAddr) -> io::Result<TcpStream> {
    let family = match server {
        SocketAddr::V4(_) => libc::AF_INET,
        SocketAddr::V6(_) => libc::AF_INET6,
    };
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: takes no pointer; the descriptor is owned by the `OwnedFd` from here on.
    let socket = unsafe { OwnedFd::from_raw_fd(checked(libc::socket(family, kind, 0))?) };
    let connected = match server {
        SocketAddr::V4(server) => {
            let address = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: server.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(server.ip().octets()) },
                sin_zero: [0; 8],
            };
            connect_to(&socket, &address)
        }
        SocketAddr::V6(server) => {
            let address = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: server.port().to_be(),
                sin6_flowinfo: server.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: server.ip().octets() },
                sin6_scope_id: server.scope_id(),
            };
            connect_to(&socket, &address)
        }
    };
    match connected {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

fn connect_to<A>(socket: &OwnedFd, address: &A) -> io::Result<i32> {
    let bytes = size_of::<A>() as libc::socklen_t;
    // SAFETY: `address` is one of the kernel's socket addresses, given with its own size, and
    // lives through the call, which only reads it.
    checked(unsafe { libc::connect(socket.as_raw_fd(), (&raw const *address).cast(), bytes) })
}

/// Keeps this thread, and those it starts from here on, on some of the CPUs; none named: wherever.
pub fn stay_on(cpus: &[usize]) -> io::Result<()> {
    if cpus.is_empty() {
        return Ok(());
    }
    // SAFETY: a set of CPUs is plain bits, of which all zero is the empty set; CPU_SET is given
    // a number below the set's size; the set lives through the call, which only reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &cpu in cpus {
            if libc::CPU_SETSIZE as usize <= cpu {
                return Err(io::Error::other(format!("there is no CPU {cpu}")));
            }
            libc::CPU_SET(cpu, &mut set);
        }
        checked(libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set))?;
    }
    Ok(())
}

/// How many CPUs there are, whichever of them we may use.
#[must_use]
pub fn cpus() -> usize {
    // SAFETY: takes no pointer.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) }).unwrap_or(1)
}

/// The CPU time of the calling thread.
#[must_use]
pub fn thread_cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` lives through the call, which writes it. The clock always exists, so that
    // the call does not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    duration_of(time)
}

/// Whether a directory is kept in memory, where nothing is ever synced.
pub fn is_in_memory(directory: &std::path::Path) -> io::Result<bool> {
    let path = std::ffi::CString::new(directory.as_os_str().as_encoded_bytes())?;
    // SAFETY: `path` ends in a zero byte; both live through the call, which writes the second,
    // plain numbers all of them.
    let kind = unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        checked(libc::statfs(path.as_ptr(), &raw mut status))?;
        status.f_type
    };
    Ok(kind == libc::TMPFS_MAGIC)
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on SIGINT and SIGTERM only set what `is_interrupted` tells, so that what we have started
/// can be ended in order. A second signal of the same kind ends us at once.
pub fn catch_interrupts() -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: an action of all zero is one with an empty mask; the handler only stores to an
        // atomic, which is async-signal-safe; `action` lives through the call, which only reads it.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_interrupt as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND | libc::SA_RESTART;
            checked(libc::sigaction(signal, &raw const action, std::ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// Whether somebody has asked us to end.
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Stops a process, and all that it started in its group, until `continue_group`.
pub fn stop_group(leader: u32) -> io::Result<()> {
    signal_group(leader, libc::SIGSTOP)
}

pub fn continue_group(leader: u32) -> io::Result<()> {
    signal_group(leader, libc::SIGCONT)
}

/// Asks a process, and all that it started in its group, to end.
pub fn terminate_group(leader: u32) -> io::Result<()> {
    signal_group(leader, libc::SIGTERM)
}

/// Ends a process, and all that it started in its group, at once.
pub fn kill_group(leader: u32) -> io::Result<()> {
    signal_group(leader, libc::SIGKILL)
}

fn signal_group(leader: u32, signal: i32) -> io::Result<()> {
    let leader = i32::try_from(leader).map_err(io::Error::other)?;
    assert!(1 < leader, "0 and 1 would mean every process");
    // SAFETY: takes no pointer.
    checked(unsafe { libc::kill(-leader, signal) })?;
    Ok(())
}

/// Has the command run in a process group of its own, on some of the CPUs (none: where we run),
/// and end when the thread that starts it ends: asked to, or killed.
pub fn belongs_to_us(command: &mut Command, cpus: &[usize], is_killed: bool) {
    command.process_group(0);
    let cpus = cpus.to_vec();
    let signal = if is_killed { libc::SIGKILL } else { libc::SIGTERM };
    // SAFETY: between fork and exec only prctl and sched_setaffinity are called, which are
    // async-signal-safe, and nothing is allocated unless a CPU does not exist.
    unsafe {
        command.pre_exec(move || {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, signal))?;
            stay_on(&cpus)
        });
    }
}
