//! Another process: whether it lives, its end, and a request to end.
//!
//! By its descriptor rather than by its number: a number may come to mean another process while
//! we look, a descriptor cannot; and its end can be waited for without asking again and again.

#![expect(unsafe_code, reason = "the standard library has no process descriptors")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// A process that was there when it was opened.
pub struct Process {
    descriptor: OwnedFd,
}

/// What came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Exited,
    Met,
    TimedOut,
}

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

impl Process {
    /// `None` if there is no such process.
    pub fn open(pid: u32) -> io::Result<Option<Process>> {
        // A number that the kernel would not take for one process.
        let Some(pid) = libc::pid_t::try_from(pid).ok().filter(|&pid| 0 < pid) else {
            return Ok(None);
        };
        // SAFETY: two integers, no memory of ours.
        let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match i32::try_from(result) {
            Ok(descriptor) if 0 <= descriptor => {
                // SAFETY: the kernel has just made it for us, and nobody else knows it.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                Ok(Some(Process { descriptor }))
            }
            _ => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
                // The number of a thread that is not a process.
                error if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
                error => Err(error),
            },
        }
    }

    /// Whether it has not ended. One that ended and that its parent has not asked about yet has.
    pub fn is_running(&self) -> io::Result<bool> {
        self.exits_within(Duration::ZERO).map(|exited| !exited)
    }

    pub fn exits_within(&self, timeout: Duration) -> io::Result<bool> {
        let mut poll =
            libc::pollfd { fd: self.descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one live `pollfd`, and its count; the call does not keep it.
        match unsafe { libc::poll(&mut poll, 1, timeout_ms) } {
            0 => Ok(false),
            1 => Ok(true),
            _ => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => Ok(false),
                error => Err(error),
            },
        }
    }

    /// Waits until it ends, or until something else holds.
    pub fn wait(
        &self,
        timeout: Duration,
        mut condition: impl FnMut() -> bool,
    ) -> io::Result<Outcome> {
        let start = Instant::now();
        loop {
            if self.exits_within(LOOK_EVERY)? {
                return Ok(Outcome::Exited);
            }
            if condition() {
                return Ok(Outcome::Met);
            }
            if timeout <= start.elapsed() {
                return Ok(Outcome::TimedOut);
            }
        }
    }

    /// Asks it to end in order.
    pub fn terminate(&self) -> io::Result<()> {
        // SAFETY: integers and a null pointer, which stands for what `kill` would tell the
        // process; no memory of ours.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.descriptor.as_raw_fd(),
                libc::SIGTERM,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_is_seen_to_run_and_to_end() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        assert!(process.is_running().unwrap());
        let long = Duration::from_secs(60);
        assert_eq!(process.wait(Duration::ZERO, || false).unwrap(), Outcome::TimedOut);
        assert_eq!(process.wait(long, || true).unwrap(), Outcome::Met);
        process.terminate().unwrap();
        // Its parent, which is us, has not asked yet: it counts as ended all the same.
        assert_eq!(process.wait(long, || false).unwrap(), Outcome::Exited);
        assert!(!process.is_running().unwrap());
        child.wait().unwrap();
        assert!(Process::open(child.id()).unwrap().is_none());
    }

    #[test]
    fn there_is_no_process_of_an_impossible_number() {
        for pid in [0, u32::MAX, i32::MAX as u32] {
            assert!(Process::open(pid).unwrap().is_none(), "{pid}");
        }
    }
}
