//! The system calls that `std` does not have.
#![expect(unsafe_code, reason = "system calls; each is wrapped in a safe function here")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

/// Sets up the smallest ring there is, and takes it down again: the only way to know whether
/// io_uring is allowed, for a container's filter shows nowhere in `/proc`.
pub(crate) fn try_io_uring() -> io::Result<()> {
    /// `struct io_uring_params`: 120 bytes, all zero for the defaults.
    #[repr(C, align(8))]
    struct Params([u8; 120]);
    let mut params = Params([0; 120]);
    // SAFETY: `params` is as large as the kernel's structure and lives through the call; the
    // descriptor that comes back is owned from here on.
    unsafe {
        let fd = libc::syscall(libc::SYS_io_uring_setup, 1u32, &raw mut params);
        match i32::try_from(fd) {
            Ok(fd) if 0 <= fd => drop(OwnedFd::from_raw_fd(fd)),
            _ => return Err(io::Error::last_os_error()),
        }
    }
    Ok(())
}

/// Reserves a file's blocks, as the server does for its logs.
pub(crate) fn reserve(file: &File, bytes: u32) -> io::Result<()> {
    // SAFETY: takes no pointer.
    match unsafe { libc::posix_fallocate(file.as_raw_fd(), 0, bytes.into()) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// Bytes that an ordinary user may still write to a file's file system.
pub(crate) fn free_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: an all-zero `statvfs` is a valid one; it lives through the call, which writes it.
    unsafe {
        let mut stat: libc::statvfs = std::mem::zeroed();
        if libc::fstatvfs(file.as_raw_fd(), &raw mut stat) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
