//! What the kernel must allow before the first core starts.
//!
//! Where io_uring is forbidden, as in many containers, the answer names the setting to change.
//! Some kernels count rings as locked memory. Where less than 512 KiB of it are allowed, as in other
//! containers, the server runs on one core, with one ring. Snapshots are then written without glommio:
//! its executor looks at the limit and asks for as much, even as root.

use std::io;

use tracing::{debug, warn};

use super::sys::{self, Limit};

/// What the rings of a few cores may take, and what an executor of glommio insists on.
const MEMLOCK_BYTES: u64 = 512 * 1024;

/// This machine does not let us run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PreflightError {
    #[error(
        "io_uring is switched off on this kernel (kernel.io_uring_disabled = {setting}): allow it with \
         `sysctl kernel.io_uring_disabled=0`, or with 1 and this user in the group of kernel.io_uring_group"
    )]
    SwitchedOff { setting: String },
    #[error(
        "io_uring is forbidden here ({source}), most likely by the container's seccomp profile: allow the system calls \
         io_uring_setup, io_uring_enter and io_uring_register in it, or run with \
         `docker run --security-opt seccomp=unconfined` (Kubernetes: `seccompProfile: {{type: Unconfined}}`)"
    )]
    Forbidden { source: io::Error },
    #[error("this kernel has no io_uring ({source}): Linux 5.13 or newer is needed")]
    Missing { source: io::Error },
    #[error("io_uring cannot be set up: {source}")]
    Failed { source: io::Error },
    #[error("the limit on {what} cannot be read or raised: {source}")]
    Limit { what: &'static str, source: io::Error },
}

/// What this machine lets us have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Locked memory for more rings than one.
    pub(crate) many_rings: bool,
}

/// Raises what limits may be raised, and finds out what can start.
pub(crate) fn check() -> Result<Allowed, PreflightError> {
    raise_open_files()?;
    let many_rings = raise_memlock()?;
    try_io_uring()?;
    Ok(Allowed { many_rings })
}

/// One descriptor per connection: the soft limit of many shells, 1024, is for programs that use
/// `select`.
fn raise_open_files() -> Result<(), PreflightError> {
    let failed = |source| PreflightError::Limit { what: "open files", source };
    let limit = sys::open_files_limit().map_err(failed)?;
    if limit.soft < limit.hard {
        sys::set_open_files_limit(Limit { soft: limit.hard, ..limit }).map_err(failed)?;
    }
    Ok(())
}

/// Whether it is enough for more rings than one.
fn raise_memlock() -> Result<bool, PreflightError> {
    let failed = |source| PreflightError::Limit { what: "locked memory", source };
    let limit = sys::memlock_limit().map_err(failed)?;
    let wanted = wanted_memlock(limit);
    if wanted == limit {
        return Ok(true);
    }
    match sys::set_memlock_limit(wanted) {
        Ok(()) => {
            debug!(soft_bytes = wanted.soft, hard_bytes = wanted.hard, "locked memory raised");
            Ok(true)
        }
        // Only a process with CAP_SYS_RESOURCE may go above its hard limit.
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            let _ = sys::set_memlock_limit(Limit { soft: limit.hard, ..limit });
            warn!("{}", too_little_memlock(limit.hard));
            Ok(false)
        }
        Err(source) => Err(failed(source)),
    }
}

fn too_little_memlock(hard_bytes: u64) -> String {
    format!(
        "the limit on locked memory is {} KiB, and 512 KiB are needed for more than one core: raise it with \
         `ulimit -l 512` (a shell), `LimitMEMLOCK=infinity` (a systemd unit), `docker run --ulimit memlock=-1:-1` \
         (Docker), or `default-ulimits` in /etc/docker/daemon.json (Kubernetes nodes on Docker)",
        hard_bytes / 1024
    )
}

/// All that the hard limit allows, and where that is not enough, what is enough.
fn wanted_memlock(limit: Limit) -> Limit {
    let hard = limit.hard.max(MEMLOCK_BYTES);
    Limit { soft: hard, hard }
}

fn try_io_uring() -> Result<(), PreflightError> {
    let Err(source) = sys::try_io_uring() else { return Ok(()) };
    let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    Err(refusal(source, setting.as_deref().map(str::trim)))
}

/// What a failed `io_uring_setup` means, given the text of kernel.io_uring_disabled.
fn refusal(source: io::Error, setting: Option<&str>) -> PreflightError {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => match setting {
            Some(setting @ ("1" | "2")) => {
                PreflightError::SwitchedOff { setting: setting.to_owned() }
            }
            _ => PreflightError::Forbidden { source },
        },
        // A seccomp profile may answer with ENOSYS as well; a kernel that has the setting has
        // io_uring.
        Some(libc::ENOSYS) if setting.is_some() => PreflightError::Forbidden { source },
        Some(libc::ENOSYS) => PreflightError::Missing { source },
        _ => PreflightError::Failed { source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locked_memory_is_raised_to_what_is_allowed_or_needed() {
        let small = Limit { soft: 65_536, hard: 65_536 };
        assert_eq!(wanted_memlock(small), Limit { soft: 524_288, hard: 524_288 });
        let low = Limit { soft: 65_536, hard: 8 << 20 };
        assert_eq!(wanted_memlock(low), Limit { soft: 8 << 20, hard: 8 << 20 });
        let open = Limit { soft: u64::MAX, hard: u64::MAX };
        assert_eq!(wanted_memlock(open), open);
    }

    #[test]
    fn a_refusal_names_the_setting_to_change() {
        let os = io::Error::from_raw_os_error;
        let text = |e: PreflightError| e.to_string();
        assert!(text(refusal(os(libc::EPERM), Some("2"))).contains("io_uring_disabled=0"));
        assert!(text(refusal(os(libc::EPERM), Some("0"))).contains("seccomp"));
        assert!(text(refusal(os(libc::ENOSYS), Some("0"))).contains("seccomp"));
        assert!(text(refusal(os(libc::ENOSYS), None)).contains("5.13"));
        assert!(too_little_memlock(65_536).contains("is 64 KiB"));
    }

    #[test]
    fn this_machine_may_run_the_server() {
        check().unwrap();
    }
}
