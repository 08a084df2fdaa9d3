//! How long the data disk takes to make a batch of writes durable.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{Fault, sys};

/// What a group commit may gather: one small transaction, a full batch, a large value.
const BATCH_BYTES: [u32; 5] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 1 << 20];
/// The file that is written, from front to end and again.
const FILE_BYTES: u32 = 16 << 20;
const SYNCS_MAX: usize = 300;

/// The time of a write and an `fdatasync`, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct SyncLatency {
    pub(crate) batch_bytes: u32,
    pub(crate) count: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
}

/// Measures in a file of its own, which is gone afterwards. `within` bounds the whole.
pub(crate) fn sync_latency(directory: &Path, within: Duration) -> Result<Vec<SyncLatency>, Fault> {
    let scratch = Scratch::create(directory)?;
    let fault = |source| Fault::File { path: scratch.path.clone(), source };
    sys::reserve(&scratch.file, FILE_BYTES).map_err(fault)?;
    scratch.file.sync_all().map_err(fault)?;
    let mut latencies = Vec::new();
    for batch_bytes in BATCH_BYTES {
        let batch = vec![0x5a; batch_bytes as usize];
        let until = now() + within / BATCH_BYTES.len() as u32;
        let mut times = Vec::new();
        let mut offset = 0;
        while times.is_empty() || (times.len() < SYNCS_MAX && now() < until) {
            let since = now();
            scratch.file.write_all_at(&batch, offset).map_err(fault)?;
            scratch.file.sync_data().map_err(fault)?;
            times.push(since.elapsed());
            offset = (offset + u64::from(batch_bytes)) % u64::from(FILE_BYTES);
        }
        latencies.push(SyncLatency::of(batch_bytes, &mut times));
    }
    Ok(latencies)
}

impl SyncLatency {
    fn of(batch_bytes: u32, times: &mut [Duration]) -> SyncLatency {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e6;
        SyncLatency {
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
        let latency = SyncLatency::of(1024, &mut times);
        assert_eq!((latency.p50_us, latency.p99_us, latency.max_us), (50.0, 99.0, 100.0));
        assert_eq!(SyncLatency::of(1, &mut [Duration::from_micros(7)]).p50_us, 7.0);
    }

    #[test]
    fn the_probe_measures_every_batch_and_leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("tuning-test-{}", process::id()));
        std::fs::create_dir(&directory).unwrap();
        let latencies = sync_latency(&directory, Duration::from_millis(50));
        let left = std::fs::read_dir(&directory).unwrap().count();
        std::fs::remove_dir_all(&directory).unwrap();
        let latencies = latencies.unwrap();
        assert_eq!(
            latencies.iter().map(|latency| latency.batch_bytes).collect::<Vec<_>>(),
            BATCH_BYTES
        );
        assert!(latencies.iter().all(|latency| 0.0 < latency.p50_us && 0 < latency.count));
        assert_eq!(left, 0);
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = sync_latency(Path::new("/nowhere/at/all"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
    }
}
