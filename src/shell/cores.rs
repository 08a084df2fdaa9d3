//! Which CPU is which core.
//!
//! The pipeline has a thread, each shard one. What the machine allows decides how many:
//!
//! ```text
//! 1, 2 CPUs  pipeline and one shard share a thread: hops cost more than a second core brings
//! n CPUs     pipeline on one, n - 1 shards
//! ```
//!
//! The CPUs are those of this process (`sched_getaffinity`), not those of the machine: a
//! container is often given a few of many. A CPU quota below their number counts as well, and
//! then nothing is pinned: a quota is time, not places.

use std::io;
use std::thread::available_parallelism;

use super::sys;

/// Cores are pinned where at least this many CPUs are ours. With fewer, the scheduler must be
/// free to move them out of the way of the background thread and of clients on this machine.
const PINNED_FROM_CPUS: usize = 4;

/// With so few CPUs, one thread is all that there is room for beside the kernel's own.
const SHARED_UP_TO_CPUS: usize = 2;

/// The user's wishes; `None` leaves the choice to us.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wishes {
    pub(crate) shards: Option<usize>,
    pub(crate) pinned: Option<bool>,
}

/// Where each core runs. A place without a number is any CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) pipeline: Option<usize>,
    pub(crate) shards: Vec<Option<usize>>,
    /// The only shard lives on the pipeline's thread.
    pub(crate) shared: bool,
}

impl Layout {
    /// All on one thread, wherever it finds a CPU.
    pub(crate) fn one_core() -> Layout {
        Layout { pipeline: None, shards: vec![None], shared: true }
    }

    /// The layout for this process on this machine.
    pub(crate) fn of_this_machine(wishes: Wishes) -> io::Result<Layout> {
        let cpus = sys::allowed_cpus()?;
        let quota = available_parallelism().map_or(cpus.len(), usize::from);
        Ok(Layout::of(&cpus, quota, wishes))
    }

    /// `cpus` are the numbers of those we may use, `quota` how many of them we may keep busy.
    fn of(cpus: &[usize], quota: usize, wishes: Wishes) -> Layout {
        let usable = cpus.len().min(quota).max(1);
        let Some(shards) = wishes.shards.or((SHARED_UP_TO_CPUS < usable).then(|| usable - 1))
        else {
            return Layout::one_core();
        };
        let fits = shards < cpus.len();
        let by_default = PINNED_FROM_CPUS <= usable && usable == cpus.len() && shards < usable;
        let place = |core: usize| {
            (fits && wishes.pinned.unwrap_or(by_default)).then(|| cpus.get(core).copied()).flatten()
        };
        Layout { pipeline: place(0), shards: (1..=shards).map(place).collect(), shared: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(cpus: &[usize], quota: usize) -> Layout {
        Layout::of(cpus, quota, Wishes::default())
    }

    #[test]
    fn one_cpu_runs_both_kinds_of_core() {
        assert_eq!(layout(&[3], 1), Layout::one_core());
        assert_eq!(layout(&[0, 1, 2, 3], 1), layout(&[3], 1), "a quota of one CPU is one CPU");
    }

    #[test]
    fn two_cpus_run_one_thread_unless_told_otherwise() {
        assert_eq!(layout(&[0, 1], 2), layout(&[3], 1));
        let wishes = Wishes { shards: Some(1), pinned: None };
        let two = Layout { pipeline: None, shards: vec![None], shared: false };
        assert_eq!(Layout::of(&[0, 1], 2, wishes), two);
        assert_eq!(layout(&[0, 1, 2], 3), Layout { shards: vec![None; 2], ..two });
    }

    #[test]
    fn many_cpus_are_pinned_by_their_own_numbers() {
        let many = layout(&[2, 3, 6, 7], 4);
        assert_eq!(many.pipeline, Some(2));
        assert_eq!(many.shards, vec![Some(3), Some(6), Some(7)]);
    }

    #[test]
    fn a_quota_below_the_cpus_pins_nothing() {
        let some = layout(&[0, 1, 2, 3, 4, 5, 6, 7], 4);
        assert_eq!(some, Layout { pipeline: None, shards: vec![None; 3], shared: false });
    }

    #[test]
    fn wishes_win_as_far_as_there_are_cpus() {
        let wishes = Wishes { shards: Some(1), pinned: Some(true) };
        let pinned = Layout::of(&[0, 1], 2, wishes);
        assert_eq!((pinned.pipeline, pinned.shards), (Some(0), vec![Some(1)]));
        let wishes = Wishes { shards: Some(5), pinned: Some(true) };
        assert_eq!(Layout::of(&[0, 1], 2, wishes).shards, vec![None; 5]);
    }

    #[test]
    fn this_machine_has_a_layout() {
        let layout = Layout::of_this_machine(Wishes::default()).unwrap();
        assert!(!layout.shards.is_empty());
    }
}
