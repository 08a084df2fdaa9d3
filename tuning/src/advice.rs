//! What to make of a host: one finding per item, with what to change and why.

use std::fmt;

use serde::Serialize;

use crate::host::{Disk, Host, IoUring, Limit};
use crate::probe::{BackEnd, SyncLatency};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Weight {
    Fine,
    /// It costs speed, or will at some size.
    Advice,
    /// A server would not start, or would not be durable.
    Problem,
}

/// An item of the host, what it is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) item: &'static str,
    pub(crate) value: String,
    pub(crate) weight: Weight,
    pub(crate) advice: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.weight {
            Weight::Fine => " ",
            Weight::Advice => "~",
            Weight::Problem => "!",
        };
        write!(f, "{mark} {:<18} {}", self.item, self.value)?;
        match &self.advice {
            Some(advice) => write!(f, "\n  {:<18} -> {advice}", ""),
            None => Ok(()),
        }
    }
}

/// An advice and its weight, or none.
type Verdict = Option<(Weight, String)>;

fn advice(text: impl Into<String>) -> Verdict {
    Some((Weight::Advice, text.into()))
}

fn problem(text: impl Into<String>) -> Verdict {
    Some((Weight::Problem, text.into()))
}

/// What a server locks for its rings at least.
const LOCKED_BYTES_NEEDED: u64 = 512 << 10;
/// Enough for a busy server's clients; a hard limit below is worth a line.
const OPEN_FILES_ADVISED: u64 = 65_536;
/// The oldest kernel that the server's executors run on.
const KERNEL_NEEDED: (u32, u32) = (5, 8);
/// A sync of one small batch that takes longer holds back every lone writer.
const SYNC_US_ADVISED: f64 = 5000.0;
/// What one sync of a busy log holds is mostly below this.
const LOG_BATCH_BYTES_MAX: u32 = 64 << 10;
/// The other log's share of the time from which on a change is worth it.
const CLEARLY_BETTER: f64 = 0.9;

/// All findings, in the order in which they are to be read.
#[must_use]
pub(crate) fn findings(host: &Host, sync: &[SyncLatency]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut found = |item, value: String, verdict: Verdict| {
        let (weight, advice) = match verdict {
            Some((weight, advice)) => (weight, Some(advice)),
            None => (Weight::Fine, None),
        };
        findings.push(Finding { item, value, weight, advice });
    };
    found("CPUs", cpus(host), cpus_verdict(host));
    found("CPU governor", known(host.cpus.governor.as_ref()), governor_verdict(host));
    found("memory", memory(host), memory_verdict(host));
    found("swap", swap(host), swap_verdict(host));
    found("huge pages", known(host.memory.transparent_hugepages.as_ref()), hugepages_verdict(host));
    found("kernel", known(host.kernel.release.as_ref()), kernel_verdict(host));
    found("io_uring", io_uring(host), io_uring_verdict(host));
    found("locked memory", limit(host.limits.locked_bytes, " bytes"), locked_verdict(host));
    found("open files", limit(host.limits.open_files, ""), open_files_verdict(host));
    found("somaxconn", known(host.kernel.somaxconn.as_ref()), somaxconn_verdict(host));
    if let Some(disk) = &host.disk {
        found("data disk", described(disk), disk_verdict(disk));
        found("free space", disk.free_bytes.map_or_else(unknown, bytes), space_verdict(disk));
    }
    for (number, latency) in sync.iter().enumerate() {
        let value = format!(
            "{} {} in {:.0} µs, p99 {:.0}, max {:.0} ({} syncs)",
            latency.back_end,
            bytes(latency.batch_bytes.into()),
            latency.p50_us,
            latency.p99_us,
            latency.max_us,
            latency.count
        );
        found("sync", value, if number == 0 { sync_verdict(latency) } else { None });
    }
    if !sync.is_empty() {
        let (value, verdict) = log_verdict(sync);
        found("log", value, verdict);
    }
    findings
}

fn unknown() -> String {
    "not known".to_owned()
}

fn known(value: Option<&impl ToString>) -> String {
    value.map_or_else(unknown, ToString::to_string)
}

fn bytes(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.into_iter().find(|&(unit, _)| unit <= bytes) {
        Some((unit, name)) if bytes.is_multiple_of(unit) => format!("{} {name}", bytes / unit),
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} bytes"),
    }
}

fn limit(limit: Option<Limit>, unit: &str) -> String {
    let side = |value: Option<u64>| match value {
        Some(value) => format!("{value}{unit}"),
        None => "unlimited".to_owned(),
    };
    limit.map_or_else(unknown, |limit| format!("{}, hard {}", side(limit.soft), side(limit.hard)))
}

fn cpus(host: &Host) -> String {
    let cpus = &host.cpus;
    let mut text = format!("{} online, {} allowed", cpus.online.len(), cpus.allowed.len());
    if let Some(quota) = cpus.quota {
        text.push_str(&format!(", a quota of {quota:.2}"));
    }
    if let Some(model) = &cpus.model {
        text.push_str(&format!(", {model}"));
    }
    match cpus.numa_nodes {
        Some(1) => text.push_str(", 1 NUMA node"),
        Some(nodes) => text.push_str(&format!(", {nodes} NUMA nodes")),
        None => {}
    }
    match cpus.has_smt {
        Some(true) => text.push_str(", SMT"),
        Some(false) => text.push_str(", no SMT"),
        None => {}
    }
    text
}

fn cpus_verdict(host: &Host) -> Verdict {
    let cpus = &host.cpus;
    let allowed = cpus.allowed.len();
    if let Some(quota) = cpus.quota.filter(|&quota| quota < allowed as f64) {
        return advice(format!(
            "the control group gives {quota:.2} CPUs of time on {allowed}: a core that has used \
             its share stands still until the next period. Allow a set of whole CPUs (cpuset) \
             instead of a quota"
        ));
    }
    if cpus.numa_nodes.is_some_and(|nodes| 1 < nodes) {
        return advice(
            "keep the server on one NUMA node (numactl --cpunodebind --membind): every core reads \
             one tree",
        );
    }
    match allowed {
        1 => advice("one CPU: sessions and writes share it. Two or more serve them side by side"),
        _ => None,
    }
}

fn governor_verdict(host: &Host) -> Verdict {
    match host.cpus.governor.as_deref() {
        Some("powersave" | "conservative" | "ondemand") => {
            advice("cpupower frequency-set --governor performance: a slow clock is latency")
        }
        _ => None,
    }
}

fn memory(host: &Host) -> String {
    let memory = &host.memory;
    let total = memory.total_bytes.map_or_else(unknown, bytes);
    let available = memory.available_bytes.map_or_else(unknown, bytes);
    match memory.limit_bytes {
        Some(limit) => format!("{total}, {available} available, limited to {}", bytes(limit)),
        None => format!("{total}, {available} available"),
    }
}

fn memory_verdict(host: &Host) -> Verdict {
    let memory = &host.memory;
    let limit = memory.limit_bytes.into_iter().chain(memory.total_bytes).min()?;
    (limit < 256 << 20).then(|| {
        let text = "the tree lives in memory: about 350 bytes a znode and its data. Less than \
                    256 MiB holds a small one only";
        (Weight::Advice, text.to_owned())
    })
}

fn swap(host: &Host) -> String {
    let swappiness = known(host.memory.swappiness.as_ref());
    let swap = host.memory.swap_bytes.map_or_else(unknown, bytes);
    format!("{swap}, swappiness {swappiness}")
}

fn swap_verdict(host: &Host) -> Verdict {
    let has_swap = host.memory.swap_bytes.is_some_and(|bytes| 0 < bytes);
    let is_eager = host.memory.swappiness.is_some_and(|swappiness| 1 < swappiness);
    (has_swap && is_eager).then(|| {
        let text = "sysctl vm.swappiness=1: a tree that is swapped out answers in milliseconds, \
                    and sessions expire";
        (Weight::Advice, text.to_owned())
    })
}

fn hugepages_verdict(host: &Host) -> Verdict {
    match host.memory.transparent_hugepages.as_deref() {
        Some("always") => advice(
            "echo madvise >/sys/kernel/mm/transparent_hugepage/enabled: with 'always', memory grows \
             by 2 MiB steps and the kernel stops threads to compact it",
        ),
        _ => None,
    }
}

fn kernel_verdict(host: &Host) -> Verdict {
    let release = host.kernel.release.as_deref()?;
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let version = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
    let (major, minor) = KERNEL_NEEDED;
    (version < KERNEL_NEEDED)
        .then(|| (Weight::Problem, format!("Linux {major}.{minor} or newer is needed")))
}

fn io_uring(host: &Host) -> String {
    let tried = match &host.kernel.io_uring {
        IoUring::Works => "works".to_owned(),
        IoUring::Fails(error) => format!("fails: {error}"),
        IoUring::Untried => "not tried".to_owned(),
    };
    match host.kernel.io_uring_disabled {
        Some(disabled) => format!("{tried} (kernel.io_uring_disabled={disabled})"),
        None => tried,
    }
}

fn io_uring_verdict(host: &Host) -> Verdict {
    match (&host.kernel.io_uring, host.kernel.io_uring_disabled) {
        (IoUring::Works | IoUring::Untried, _) => None,
        (IoUring::Fails(_), Some(1 | 2)) => problem(
            "sysctl kernel.io_uring_disabled=0, or 1 and the server in kernel.io_uring_group",
        ),
        (IoUring::Fails(_), _) => problem(
            "a container's filter forbids it: allow io_uring_setup, io_uring_enter and \
             io_uring_register (docker: a --security-opt seccomp= profile with these)",
        ),
    }
}

fn locked_verdict(host: &Host) -> Verdict {
    let hard = host.limits.locked_bytes?.hard?;
    (hard < LOCKED_BYTES_NEEDED).then(|| {
        let text = format!(
            "{} at least: LimitMEMLOCK= in the unit, ulimit -l, or docker --ulimit memlock=",
            bytes(LOCKED_BYTES_NEEDED)
        );
        (Weight::Problem, text)
    })
}

fn open_files_verdict(host: &Host) -> Verdict {
    let hard = host.limits.open_files?.hard?;
    (hard < OPEN_FILES_ADVISED).then(|| {
        let text = format!(
            "each client takes one: {hard} clients at most, less a few. LimitNOFILE= in the unit, \
             or ulimit -Hn"
        );
        (Weight::Advice, text)
    })
}

fn somaxconn_verdict(host: &Host) -> Verdict {
    let somaxconn = host.kernel.somaxconn?;
    (somaxconn < 1024).then(|| {
        let text = "sysctl net.core.somaxconn=4096: when all clients come back at once, those that \
                    do not fit the queue try again a second later";
        (Weight::Advice, text.to_owned())
    })
}

fn described(disk: &Disk) -> String {
    let Disk { mount_point, source, file_system, options, scheduler, rotates, write_cache, .. } =
        disk;
    let mut text = format!("{source}, {file_system} at {mount_point} ({})", options.join(","));
    match rotates {
        Some(true) => text.push_str(", rotating"),
        Some(false) => text.push_str(", not rotating"),
        None => {}
    }
    for (name, value) in [("scheduler", scheduler), ("cache", write_cache)] {
        if let Some(value) = value {
            text.push_str(&format!(", {name} {value}"));
        }
    }
    text
}

fn disk_verdict(disk: &Disk) -> Verdict {
    let has = |names: &[&str]| disk.options.iter().any(|option| names.contains(&option.as_str()));
    let file_system = disk.file_system.as_str();
    if has(&["ro"]) {
        problem("it is mounted read-only")
    } else if matches!(file_system, "tmpfs" | "ramfs") {
        problem("this is memory: what is acknowledged is gone after a restart of the machine")
    } else if has(&["nobarrier", "barrier=0"]) {
        problem("mount it with barriers: without them a power loss loses what was synced")
    } else if file_system.starts_with("nfs")
        || file_system.starts_with("fuse")
        || matches!(file_system, "cifs" | "smb3" | "9p" | "virtiofs" | "ceph")
    {
        advice("a network file system: each write waits for it, and locks on it may not hold")
    } else if file_system == "overlay" {
        advice("a container's own layer: put the data on a volume, which outlives the container")
    } else if matches!(file_system, "btrfs" | "zfs") {
        advice("copy on write: every sync writes metadata too. ext4 or xfs sync faster")
    } else if disk.rotates == Some(true) && disk.scheduler.as_deref() == Some("bfq") {
        advice("scheduler mq-deadline: bfq makes a lone sync wait for others")
    } else {
        None
    }
}

fn space_verdict(disk: &Disk) -> Verdict {
    let free = disk.free_bytes?;
    (free < 1 << 30).then(|| {
        let text = "less than 1 GiB: logs are reserved ahead, and a server that cannot log stops";
        (Weight::Advice, text.to_owned())
    })
}

fn sync_verdict(latency: &SyncLatency) -> Verdict {
    (SYNC_US_ADVISED < latency.p50_us).then(|| {
        let text = format!(
            "a lone writer gets {:.0} writes a second at most. Put dataLogDir on a disk that syncs \
             faster, and on nothing else's",
            1e6 / latency.p50_us
        );
        (Weight::Advice, text)
    })
}

/// Which of the log's two manners suits the disk. The default is kept unless the other is clearly
/// better.
fn log_verdict(sync: &[SyncLatency]) -> (String, Verdict) {
    let total = |back_end| {
        let small = |latency: &&SyncLatency| {
            latency.back_end == back_end && latency.batch_bytes <= LOG_BATCH_BYTES_MAX
        };
        sync.iter().filter(small).map(|latency| latency.p50_us).sum::<f64>()
    };
    let (direct, mapped) = (total(BackEnd::Direct), total(BackEnd::Mapped));
    if direct == 0.0 {
        let value = "mapped: the file system knows no direct writes, which the server sees itself";
        (value.to_owned(), None)
    } else if mapped < CLEARLY_BETTER * direct {
        let text = format!(
            "ringkeeper.txnLog.backEnd=mapped: its syncs take {:.2} of the time",
            mapped / direct
        );
        (BackEnd::Direct.to_string(), advice(text))
    } else {
        (format!("direct, {:.2} of the mapped log's time", direct / mapped), None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has nothing to be said about.
    fn fine() -> Host {
        let mut host = Host::default();
        host.cpus.online = vec![0, 1];
        host.cpus.allowed = vec![0, 1];
        host.cpus.numa_nodes = Some(1);
        host.memory.total_bytes = Some(8 << 30);
        host.memory.swap_bytes = Some(0);
        host.memory.swappiness = Some(60);
        host.memory.transparent_hugepages = Some("madvise".to_owned());
        host.kernel.release = Some("6.18.44-generic".to_owned());
        host.kernel.io_uring = IoUring::Works;
        host.kernel.somaxconn = Some(4096);
        host.limits.locked_bytes = Some(Limit { soft: Some(8 << 20), hard: Some(8 << 20) });
        host.limits.open_files = Some(Limit { soft: Some(1024), hard: Some(1 << 20) });
        host.disk = Some(Disk {
            file_system: "ext4".to_owned(),
            options: vec!["rw".to_owned()],
            free_bytes: Some(1 << 40),
            ..Disk::default()
        });
        host
    }

    fn latency(back_end: BackEnd, p50_us: f64) -> SyncLatency {
        SyncLatency {
            back_end,
            batch_bytes: 1024,
            count: 9,
            p50_us,
            p99_us: p50_us,
            max_us: p50_us,
        }
    }

    fn both(direct: f64, mapped: f64) -> [SyncLatency; 2] {
        [latency(BackEnd::Direct, direct), latency(BackEnd::Mapped, mapped)]
    }

    #[test]
    fn a_host_that_is_fine_gets_no_advice() {
        for finding in findings(&fine(), &both(200.0, 200.0)) {
            assert_eq!(finding.weight, Weight::Fine, "{finding}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said_and_not_judged() {
        for finding in findings(&Host::default(), &[]) {
            assert_eq!(finding.weight, Weight::Fine, "{finding}");
        }
    }

    #[test]
    fn each_hindrance_is_found_and_weighed() {
        type Change = fn(&mut Host);
        let cases: &[(&str, Weight, Change)] = &[
            ("CPUs", Weight::Advice, |host| host.cpus.allowed = vec![0]),
            ("CPUs", Weight::Advice, |host| host.cpus.quota = Some(1.5)),
            ("CPUs", Weight::Advice, |host| host.cpus.numa_nodes = Some(2)),
            ("CPU governor", Weight::Advice, |host| {
                host.cpus.governor = Some("powersave".to_owned());
            }),
            ("memory", Weight::Advice, |host| host.memory.limit_bytes = Some(128 << 20)),
            ("swap", Weight::Advice, |host| host.memory.swap_bytes = Some(1 << 30)),
            ("huge pages", Weight::Advice, |host| {
                host.memory.transparent_hugepages = Some("always".to_owned());
            }),
            ("kernel", Weight::Problem, |host| host.kernel.release = Some("5.4.0".to_owned())),
            ("io_uring", Weight::Problem, |host| {
                host.kernel.io_uring = IoUring::Fails("Operation not permitted".to_owned());
            }),
            ("locked memory", Weight::Problem, |host| {
                host.limits.locked_bytes = Some(Limit { soft: Some(65_536), hard: Some(65_536) });
            }),
            ("open files", Weight::Advice, |host| {
                host.limits.open_files = Some(Limit { soft: Some(1024), hard: Some(4096) });
            }),
            ("somaxconn", Weight::Advice, |host| host.kernel.somaxconn = Some(128)),
            ("data disk", Weight::Problem, |host| {
                host.disk.as_mut().unwrap().file_system = "tmpfs".to_owned();
            }),
            ("data disk", Weight::Problem, |host| {
                host.disk.as_mut().unwrap().options.push("nobarrier".to_owned());
            }),
            ("data disk", Weight::Advice, |host| {
                host.disk.as_mut().unwrap().file_system = "nfs4".to_owned();
            }),
            ("free space", Weight::Advice, |host| {
                host.disk.as_mut().unwrap().free_bytes = Some(1 << 20);
            }),
        ];
        for (item, weight, change) in cases {
            let mut host = fine();
            change(&mut host);
            assert_eq!(worst_of(&host, &both(200.0, 200.0)), [(*item, *weight)]);
        }
        assert_eq!(worst_of(&fine(), &both(20_000.0, 20_000.0)), [("sync", Weight::Advice)]);
    }

    #[test]
    fn the_log_that_suits_the_disk_is_named() {
        assert_eq!(worst_of(&fine(), &both(200.0, 190.0)), []);
        assert_eq!(worst_of(&fine(), &both(200.0, 100.0)), [("log", Weight::Advice)]);
        let log = findings(&fine(), &both(200.0, 100.0)).pop().unwrap();
        assert!(log.advice.unwrap().contains("backEnd=mapped"));
        // Where there is no choice there is no advice.
        assert_eq!(worst_of(&fine(), &[latency(BackEnd::Mapped, 100.0)]), []);
    }

    fn worst_of(host: &Host, sync: &[SyncLatency]) -> Vec<(&'static str, Weight)> {
        findings(host, sync)
            .into_iter()
            .filter(|finding| finding.weight != Weight::Fine)
            .map(|finding| (finding.item, finding.weight))
            .collect()
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(512), "512 bytes");
        assert_eq!(bytes(1024), "1 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
    }
}
