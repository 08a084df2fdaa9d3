//! The system calls that std does not offer, each behind a safe face.

#![expect(unsafe_code, reason = "calls into libc")]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, size_of};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// The value of a call that says -1 and sets errno when it fails.
fn checked(value: libc::c_int) -> io::Result<libc::c_int> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// The numbers of the CPUs that this process may run on.
pub(crate) fn allowed_cpus() -> io::Result<Vec<usize>> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    // SAFETY: the kernel writes at most the size given, and an all-zero set is a valid one.
    checked(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), set.as_mut_ptr()) })?;
    // SAFETY: zeroed above, and filled in by the call that succeeded.
    let set = unsafe { set.assume_init() };
    let setsize = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: CPU_ISSET reads a bit of `set`, and `cpu` stays below the number of its bits.
    Ok((0..setsize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &set) }).collect())
}

/// Has the calling thread run on one CPU only.
pub(crate) fn pin_to(cpu: usize) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::cpu_set_t>::zeroed();
    if usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) <= cpu {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero set is a valid one, `cpu` is below the number of its bits, and the call
    // only reads it.
    checked(unsafe {
        libc::CPU_SET(cpu, set.assume_init_mut());
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set.as_ptr())
    })?;
    Ok(())
}

/// Makes the calling thread nicer to all others, by so much.
pub(crate) fn give_way(niceness: libc::c_int) -> io::Result<()> {
    // SAFETY: two numbers; a thread may always ask for its own priority.
    let now = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    // SAFETY: three numbers.
    checked(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, now + niceness) }).map(drop)
}

/// Fails with the reason why this process may not make and remove what is in a directory.
pub(crate) fn may_write(path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mode = libc::W_OK | libc::X_OK;
    // SAFETY: the path is a text with its end, and lives longer than the call.
    let found = unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), mode, libc::AT_EACCESS) };
    checked(found).map(drop)
}

/// A soft and a hard limit, in the units of the resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// How much memory this process may lock, in bytes.
pub(crate) fn memlock_limit() -> io::Result<Limit> {
    limit_of(libc::RLIMIT_MEMLOCK)
}

pub(crate) fn set_memlock_limit(limit: Limit) -> io::Result<()> {
    set_limit_of(libc::RLIMIT_MEMLOCK, limit)
}

/// How many files this process may have open.
pub(crate) fn open_files_limit() -> io::Result<Limit> {
    limit_of(libc::RLIMIT_NOFILE)
}

pub(crate) fn set_open_files_limit(limit: Limit) -> io::Result<()> {
    set_limit_of(libc::RLIMIT_NOFILE, limit)
}

fn limit_of(resource: libc::__rlimit_resource_t) -> io::Result<Limit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` outlives the call, which writes that one struct.
    checked(unsafe { libc::getrlimit(resource, &raw mut limit) })?;
    Ok(Limit { soft: limit.rlim_cur, hard: limit.rlim_max })
}

fn set_limit_of(resource: libc::__rlimit_resource_t, limit: Limit) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `limit` outlives the call, which only reads it.
    checked(unsafe { libc::setrlimit(resource, &raw const limit) })?;
    Ok(())
}

/// Makes a small io_uring and lets it go: whether the kernel lets us have one at all.
pub(crate) fn try_io_uring() -> io::Result<()> {
    // struct io_uring_params: 120 bytes of which a plain ring needs none set.
    let mut params = [0_u32; 30];
    // SAFETY: the kernel reads and writes the 120 bytes of `params`, which outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4_u32, params.as_mut_ptr()) };
    if fd == -1 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Gives a file real blocks from its beginning to `len`, reading as zero where nothing was
/// written, and makes it that long. A full disk is an error here and nowhere later.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<()> {
    let len = libc::off_t::try_from(len).map_err(io::Error::other)?;
    loop {
        // SAFETY: a descriptor and three numbers.
        match checked(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, len) }) {
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Has the kernel forget what it holds of a file in memory and the disk has too.
pub(crate) fn drop_clean_pages(file: &File) -> io::Result<()> {
    // SAFETY: numbers only; the descriptor outlives the call.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Sends what the socket takes at this moment, without waiting and without SIGPIPE.
pub(crate) fn send_now(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: pointer and length are those of `bytes`, which the call only reads.
    let sent = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// The same of several pieces, one behind the other. The kernel takes 1024 at most.
pub(crate) fn send_gathered_now(
    socket: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: an all-zero message is a valid one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // `IoSlice` has the form of `iovec` by its own promise.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len();
    // SAFETY: the message outlives the call, which only reads it and what the pieces borrow.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Takes what a socket has at this moment, without waiting; 0 is the end.
pub(crate) fn receive_now(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    let (start, len) = (buffer.as_mut_ptr(), buffer.len());
    // SAFETY: pointer and length are those of `buffer`, which the call only writes.
    let taken = unsafe { libc::recv(socket.as_raw_fd(), start.cast(), len, libc::MSG_DONTWAIT) };
    usize::try_from(taken).map_err(|_| io::Error::last_os_error())
}

/// How many bytes have arrived in a socket and were not read.
pub(crate) fn unread_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    queued_bytes(socket, libc::FIONREAD)
}

/// How many bytes were written to a socket that its peer has not acknowledged.
pub(crate) fn untaken_bytes(socket: BorrowedFd<'_>) -> io::Result<u64> {
    queued_bytes(socket, libc::TIOCOUTQ)
}

fn queued_bytes(socket: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<u64> {
    let mut count: libc::c_int = 0;
    // SAFETY: both requests write one `int`, to `count`, which outlives the call.
    checked(unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut count) })?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Ends one or both directions of a connection. One that is gone already is none to end.
pub(crate) fn shut(socket: BorrowedFd<'_>, how: Shutdown) {
    let how = match how {
        Shutdown::Read => libc::SHUT_RD,
        Shutdown::Write => libc::SHUT_WR,
        Shutdown::Both => libc::SHUT_RDWR,
    };
    // SAFETY: a descriptor and a number.
    let _ = unsafe { libc::shutdown(socket.as_raw_fd(), how) };
}

/// Sets how many connections may wait to be accepted; a listening socket may be told again.
pub(crate) fn set_backlog(listener: &TcpListener, backlog: i32) -> io::Result<()> {
    // SAFETY: a descriptor and a number.
    checked(unsafe { libc::listen(listener.as_raw_fd(), backlog) })?;
    Ok(())
}

/// Has the kernel probe a silent peer (SO_KEEPALIVE).
pub(crate) fn set_keepalive(socket: &TcpStream) -> io::Result<()> {
    set_option(socket.as_raw_fd(), libc::SO_KEEPALIVE, 1_i32)
}

/// Has a close of this socket reset the connection instead of ending it politely.
pub(crate) fn set_reset_on_close(socket: &TcpStream) -> io::Result<()> {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    set_option(socket.as_raw_fd(), libc::SO_LINGER, linger)
}

fn set_option<T: Copy>(socket: RawFd, option: libc::c_int, value: T) -> io::Result<()> {
    let len = libc::socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of `value`, a plain C value that the call only reads.
    checked(unsafe {
        libc::setsockopt(socket, libc::SOL_SOCKET, option, (&raw const value).cast(), len)
    })?;
    Ok(())
}

/// Waits until one of `sources` can be read or has ended; true if the first of them has.
pub(crate) fn wait_readable(sources: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let polled = poll(sources, libc::POLLIN, -1)?;
    Ok(polled.first().is_some_and(|first| first.revents != 0))
}

/// Waits until one of `sources` can be read or has ended, or the time is over: false.
pub(crate) fn wait_readable_for(sources: &[BorrowedFd<'_>], time: Duration) -> io::Result<bool> {
    let polled = poll(sources, libc::POLLIN, i32::try_from(time.as_millis()).unwrap_or(i32::MAX))?;
    Ok(polled.iter().any(|source| source.revents != 0))
}

/// Whether one of `sources` can be read, or has ended.
pub(crate) fn is_any_readable(sources: &[BorrowedFd<'_>]) -> io::Result<bool> {
    let polled = poll(sources, libc::POLLIN, 0)?;
    Ok(polled.iter().any(|source| source.revents != 0))
}

/// Waits until something can be written, or never again.
pub(crate) fn wait_writable(file: BorrowedFd<'_>) -> io::Result<()> {
    poll(&[file], libc::POLLOUT, -1).map(drop)
}

fn poll(
    files: &[BorrowedFd<'_>],
    events: libc::c_short,
    timeout_ms: i32,
) -> io::Result<Vec<libc::pollfd>> {
    let mut polled: Vec<libc::pollfd> =
        files.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 }).collect();
    let count = libc::nfds_t::try_from(polled.len()).map_err(io::Error::other)?;
    loop {
        // SAFETY: pointer and count are those of `polled`, whose descriptors are borrowed.
        match checked(unsafe { libc::poll(polled.as_mut_ptr(), count, timeout_ms) }) {
            Ok(_) => return Ok(polled),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The signals that ask the server to stop.
fn stop_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `sigemptyset` initialises the set that the others then change; none can fail with
    // these arguments.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
        libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
        set.assume_init()
    }
}

/// Keeps SIGTERM and SIGINT from killing us, in this thread and in all that it starts later; they
/// wait for `wait_stop_signal`.
pub(crate) fn block_stop_signals() -> io::Result<()> {
    let set = stop_signals();
    // SAFETY: `set` is initialised and only read; the old mask is not asked for.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Does something with SIGTERM and SIGINT kept from this thread, and from those begun meanwhile.
pub(crate) fn without_stop_signals<T>(act: impl FnOnce() -> T) -> io::Result<T> {
    let set = stop_signals();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: `set` is initialised and only read; `before` outlives the call, which writes it.
    match unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, before.as_mut_ptr()) } {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let result = act();
    // SAFETY: `before` was filled in by the call that succeeded.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    Ok(result)
}

/// Waits for SIGTERM or SIGINT and says which it was.
pub(crate) fn wait_stop_signal() -> io::Result<i32> {
    let set = stop_signals();
    let mut signal = 0;
    loop {
        // SAFETY: both pointers are to values that outlive the call.
        match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
            0 => return Ok(signal),
            libc::EINTR => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// Ends the process without running anything more.
pub(crate) fn exit_at_once(code: i32) -> ! {
    // SAFETY: `_exit` takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Has a store into a mapped log that the file system then cannot hold end the process with a
/// clear word. Logs are allocated ahead, so this takes a file system that breaks its promise
/// (copy-on-write, thin volumes) or somebody who cuts our files.
pub(crate) fn catch_bus_errors() -> io::Result<()> {
    extern "C" fn on_bus_error(_: libc::c_int) {
        const TEXT: &[u8] = b"ringkeeper: SIGBUS: the file system took back space that was \
            allocated for the transaction log, or the file was cut; stopping, nothing more is \
            acknowledged\n";
        let mut room = libc::pollfd { fd: libc::STDERR_FILENO, events: libc::POLLOUT, revents: 0 };
        // SAFETY: `poll`, `write` and `_exit` are allowed in a signal handler, `room` is live and
        // TEXT is static. A pipe that is full would keep the process.
        unsafe {
            if libc::poll(&raw mut room, 1, 0) == 1 {
                libc::write(libc::STDERR_FILENO, TEXT.as_ptr().cast(), TEXT.len());
            }
            libc::_exit(10);
        }
    }
    let handler: extern "C" fn(libc::c_int) = on_bus_error;
    // SAFETY: the handler only calls what a signal handler may call.
    let before = unsafe { libc::signal(libc::SIGBUS, handler as libc::sighandler_t) };
    if before == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What the user that this process runs as is called.
pub(crate) fn user_name() -> Option<String> {
    let mut entry = MaybeUninit::<libc::passwd>::zeroed();
    let mut texts = vec![0; 4096];
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to values that outlive the call, `texts` with its length. `found`
    // is null or `entry` then, whose texts lie in `texts`.
    unsafe {
        let uid = libc::geteuid();
        let texts: *mut libc::c_char = texts.as_mut_ptr();
        let errno = libc::getpwuid_r(uid, entry.as_mut_ptr(), texts, 4096, &raw mut found);
        if errno != 0 || found.is_null() {
            return None;
        }
        Some(CStr::from_ptr((*found).pw_name).to_str().ok()?.to_owned())
    }
}

/// How far local time is ahead of UTC at a moment, in seconds, and what the zone is called then.
pub(crate) fn local_zone(at_s: i64) -> Option<(i32, String)> {
    let mut local = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are to values that outlive the call, and `localtime_r` keeps its state
    // to itself. It reads TZ, which nothing in this process changes.
    let local = unsafe {
        if libc::localtime_r(&raw const at_s, local.as_mut_ptr()).is_null() {
            return None;
        }
        local.assume_init()
    };
    if local.tm_zone.is_null() {
        return None;
    }
    // SAFETY: `localtime_r` has set it to the zone's name, which the C library keeps.
    let name = unsafe { CStr::from_ptr(local.tm_zone) };
    Some((i32::try_from(local.tm_gmtoff).ok()?, name.to_str().ok()?.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_of_this_process_are_known() {
        assert!(!allowed_cpus().unwrap().is_empty());
    }

    #[test]
    fn local_time_has_a_zone() {
        let (offset_s, name) = local_zone(1_795_181_029).unwrap();
        assert!((-50_400..=50_400).contains(&offset_s), "{offset_s}");
        assert!(!name.is_empty());
    }

    #[test]
    fn a_soft_limit_can_be_set_to_what_it_is() {
        let limit = open_files_limit().unwrap();
        assert!(limit.soft <= limit.hard);
        set_open_files_limit(limit).unwrap();
        assert_eq!(open_files_limit().unwrap(), limit);
    }
}
