//! How long the data disk takes to make a batch of writes durable, in the two manners that the
//! server's log has (`ringkeeper.txnLog.backEnd`).

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use ringkeeper::storage::blocks::{BLOCK_BYTES, Block};
use serde::Serialize;

use crate::{Fault, sys};

/// What a group commit may gather: one small transaction, a full batch, a large value.
const BATCH_BYTES: [u32; 5] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, BATCH_BYTES_MAX];
const BATCH_BYTES_MAX: u32 = 1 << 20;
/// The file that is written, from front to end and again.
const FILE_BYTES: u32 = 16 << 20;
const SYNCS_MAX: usize = 300;

/// How a log's bytes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackEnd {
    /// Past the page cache, into blocks that were zeroed before.
    Direct,
    /// Through the page cache, into blocks that were only reserved, and a sync.
    Mapped,
}

impl fmt::Display for BackEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BackEnd::Direct => "direct",
            BackEnd::Mapped => "mapped",
        })
    }
}

/// The time until a batch is durable, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct SyncLatency {
    pub(crate) back_end: BackEnd,
    pub(crate) batch_bytes: u32,
    pub(crate) count: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

/// Measures in files of its own, which are gone afterwards. `within` bounds the whole. Where the
/// file system knows no direct writes, none are in the answer.
pub(crate) fn sync_latency(directory: &Path, within: Duration) -> Result<Vec<SyncLatency>, Fault> {
    let mut blocks = vec![Block::ZERO; BATCH_BYTES_MAX as usize / BLOCK_BYTES];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut blocks);
    bytes.fill(0x5a);
    let within = within / (2 * BATCH_BYTES.len()) as u32;
    let mut latencies = Vec::new();
    for back_end in [BackEnd::Direct, BackEnd::Mapped] {
        let scratch = Scratch::create(directory)?;
        let fault = |source| Fault::File { path: scratch.path.clone(), source };
        let file = match scratch.prepare(back_end) {
            Err(error) if back_end == BackEnd::Direct && is_unsupported(&error) => continue,
            file => file.map_err(fault)?,
        };
        for batch_bytes in BATCH_BYTES {
            let written = match back_end {
                BackEnd::Direct => batch_bytes.next_multiple_of(BLOCK_BYTES as u32),
                BackEnd::Mapped => batch_bytes,
            };
            let until = now() + within;
            let mut times = Vec::new();
            let mut offset = 0;
            while times.is_empty() || (times.len() < SYNCS_MAX && now() < until) {
                let since = now();
                file.write_all_at(&bytes[..written as usize], offset).map_err(fault)?;
                if back_end == BackEnd::Mapped {
                    file.sync_data().map_err(fault)?;
                }
                times.push(since.elapsed());
                offset = (offset + u64::from(written)) % u64::from(FILE_BYTES);
            }
            latencies.push(SyncLatency::of(back_end, batch_bytes, &mut times));
        }
    }
    Ok(latencies)
}

/// Whether this says that a file system cannot be written to past the page cache.
fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

impl SyncLatency {
    fn of(back_end: BackEnd, batch_bytes: u32, times: &mut [Duration]) -> SyncLatency {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        SyncLatency {
            back_end,
            batch_bytes,
            count: times.len(),
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a latency is measured by the clock")]
fn now() -> Instant {
    Instant::now()
}

/// A file that is deleted with this.
struct Scratch {
    file: File,
    path: PathBuf,
}

impl Scratch {
    fn create(directory: &Path) -> Result<Scratch, Fault> {
        let path = directory.join(format!(".tuning-probe-{}", process::id()));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => Ok(Scratch { file, path }),
            Err(source) => Err(Fault::File { path, source }),
        }
    }

    /// Its blocks, as the server has them before it writes.
    fn prepare(&self, back_end: BackEnd) -> io::Result<File> {
        sys::reserve(&self.file, FILE_BYTES)?;
        let mut options = OpenOptions::new();
        options.write(true);
        if back_end == BackEnd::Direct {
            let zeros = vec![Block::ZERO; BATCH_BYTES_MAX as usize / BLOCK_BYTES];
            let zeros: &[u8] = bytemuck::cast_slice(&zeros);
            let direct = options.custom_flags(libc::O_DIRECT).open(&self.path)?;
            for offset in (0..u64::from(FILE_BYTES)).step_by(zeros.len()) {
                direct.write_all_at(zeros, offset)?;
            }
            options.custom_flags(libc::O_DIRECT | libc::O_DSYNC);
        }
        self.file.sync_all()?;
        options.open(&self.path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // If it cannot be removed, a small file with a telling name stays.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_the_sorted_times() {
        let mut times: Vec<_> = (1..=100).rev().map(Duration::from_micros).collect();
        let latency = SyncLatency::of(BackEnd::Direct, 1024, &mut times);
        assert_eq!((latency.p50_us, latency.p99_us, latency.max_us), (50.0, 99.0, 100.0));
        assert_eq!(
            SyncLatency::of(BackEnd::Mapped, 1, &mut [Duration::from_micros(7)]).p50_us,
            7.0
        );
    }

    #[test]
    fn the_probe_measures_every_batch_and_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("tuning-test-{}", process::id()));
        std::fs::create_dir(&directory).unwrap();
        let latencies = sync_latency(&directory, Duration::from_millis(50));
        let left = std::fs::read_dir(&directory).unwrap().count();
        std::fs::remove_dir_all(&directory).unwrap();
        let latencies = latencies.unwrap();
        let of = |back_end| {
            let of = latencies.iter().filter(|latency| latency.back_end == back_end);
            of.map(|latency| latency.batch_bytes).collect::<Vec<_>>()
        };
        assert_eq!(of(BackEnd::Mapped), BATCH_BYTES);
        match of(BackEnd::Direct).as_slice() {
            [] => eprintln!("NOT RUN: no direct writes here"),
            direct => assert_eq!(direct, BATCH_BYTES),
        }
        assert!(latencies.iter().all(|latency| 0.0 < latency.p50_us && 0 < latency.count));
        assert_eq!(left, 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = sync_latency(Path::new("/nowhere/at/all"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
