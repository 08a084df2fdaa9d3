//! The few system calls that `std` does not have: epoll, limits, and signals to a process we
//! started.
#![expect(unsafe_code, reason = "system calls; each is wrapped in a safe function here")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;
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

/// Clock ticks per second, the unit of CPU time in `/proc/PID/stat`.
#[must_use]
pub fn ticks_per_second() -> u64 {
    // SAFETY: takes no pointer.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100)
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

/// Has the command run in a process group of its own, and end when we end.
pub fn belongs_to_us(command: &mut Command) {
    command.process_group(0);
    // SAFETY: between fork and exec only prctl is called, which is async-signal-safe.
    unsafe {
        command.pre_exec(|| {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM))?;
            Ok(())
        });
    }
}
