//! What this machine is: `/proc` and `/sys` read into plain values. What cannot be read is
//! `None`; the parsers are functions of text.

use std::fs::{self, File};
use std::path::Path;

use serde::Serialize;

use crate::{Fault, sys};

/// What matters to a server of this machine, and of the limits that this process has.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Host {
    pub(crate) cpus: Cpus,
    pub(crate) memory: Memory,
    pub(crate) kernel: Kernel,
    pub(crate) limits: Limits,
    /// Below the directory that was asked about.
    pub(crate) disk: Option<Disk>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Cpus {
    pub(crate) model: Option<String>,
    pub(crate) online: Vec<u32>,
    /// Those that this process may run on.
    pub(crate) allowed: Vec<u32>,
    pub(crate) numa_nodes: Option<usize>,
    /// Whether two CPUs share a core.
    pub(crate) has_smt: Option<bool>,
    pub(crate) governor: Option<String>,
    /// What the control group allows, in CPUs.
    pub(crate) quota: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Memory {
    pub(crate) total_bytes: Option<u64>,
    pub(crate) available_bytes: Option<u64>,
    pub(crate) swap_bytes: Option<u64>,
    pub(crate) swappiness: Option<u64>,
    /// What the control group allows.
    pub(crate) limit_bytes: Option<u64>,
    /// `always`, `madvise` or `never`.
    pub(crate) transparent_hugepages: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Kernel {
    pub(crate) release: Option<String>,
    pub(crate) io_uring: IoUring,
    /// `kernel.io_uring_disabled`: 0 allowed, 1 for one group only, 2 for nobody.
    pub(crate) io_uring_disabled: Option<u64>,
    pub(crate) somaxconn: Option<u64>,
    pub(crate) syn_backlog: Option<u64>,
}

/// What came of setting up a ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IoUring {
    Works,
    Fails(String),
    #[default]
    Untried,
}

/// A soft and a hard limit; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Limit {
    pub(crate) soft: Option<u64>,
    pub(crate) hard: Option<u64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Limits {
    pub(crate) open_files: Option<Limit>,
    pub(crate) locked_bytes: Option<Limit>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Disk {
    pub(crate) mount_point: String,
    /// What is mounted there: a device, or a file system's own name.
    pub(crate) source: String,
    pub(crate) file_system: String,
    pub(crate) options: Vec<String>,
    pub(crate) free_bytes: Option<u64>,
    pub(crate) scheduler: Option<String>,
    pub(crate) rotates: Option<bool>,
    /// `write back` or `write through`.
    pub(crate) write_cache: Option<String>,
}

impl Host {
    pub(crate) fn inspect(directory: Option<&Path>) -> Result<Host, Fault> {
        let disk = directory.map(Disk::below).transpose()?;
        let status = text("/proc/self/status").unwrap_or_default();
        let meminfo = text("/proc/meminfo").unwrap_or_default();
        let limits = text("/proc/self/limits").unwrap_or_default();
        let groups = Groups::of_self();
        Ok(Host {
            cpus: Cpus {
                model: text("/proc/cpuinfo").and_then(|cpuinfo| cpu_model(&cpuinfo)),
                online: text("/sys/devices/system/cpu/online")
                    .and_then(|list| cpu_list(&list))
                    .unwrap_or_default(),
                allowed: field(&status, "Cpus_allowed_list").and_then(cpu_list).unwrap_or_default(),
                numa_nodes: text("/sys/devices/system/node/online")
                    .and_then(|list| cpu_list(&list))
                    .map(|nodes| nodes.len()),
                has_smt: number("/sys/devices/system/cpu/smt/active").map(|active| active == 1),
                governor: text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
                quota: groups.cpus(),
            },
            memory: Memory {
                total_bytes: kib(&meminfo, "MemTotal"),
                available_bytes: kib(&meminfo, "MemAvailable"),
                swap_bytes: kib(&meminfo, "SwapTotal"),
                swappiness: number("/proc/sys/vm/swappiness"),
                limit_bytes: groups.memory_bytes(),
                transparent_hugepages: text("/sys/kernel/mm/transparent_hugepage/enabled")
                    .and_then(|choices| chosen(&choices)),
            },
            kernel: Kernel {
                release: text("/proc/sys/kernel/osrelease"),
                io_uring: match sys::try_io_uring() {
                    Ok(()) => IoUring::Works,
                    Err(error) => IoUring::Fails(error.to_string()),
                },
                io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
                somaxconn: number("/proc/sys/net/core/somaxconn"),
                syn_backlog: number("/proc/sys/net/ipv4/tcp_max_syn_backlog"),
            },
            limits: Limits {
                open_files: limit(&limits, "Max open files"),
                locked_bytes: limit(&limits, "Max locked memory"),
            },
            disk,
        })
    }
}

/// A small file's text without the line end; `None` where it cannot be read.
fn text(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim_end().to_owned())
}

fn number(path: &str) -> Option<u64> {
    text(path)?.parse().ok()
}

/// The value of a line such as `Name:\tvalue`.
fn field<'a>(lines: &'a str, name: &str) -> Option<&'a str> {
    lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// A line such as `MemTotal:  1234 kB`, in bytes.
fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let kib: u64 = field(meminfo, name)?.strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn cpu_model(cpuinfo: &str) -> Option<String> {
    // Most ARM kernels name no model; there is nothing as good to say then.
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A list such as `0-3,8`; `None` if it is none, or longer than any machine is large.
fn cpu_list(list: &str) -> Option<Vec<u32>> {
    const CPUS_MAX: u32 = 1 << 16;
    let mut cpus = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        if last < first || CPUS_MAX <= last {
            return None;
        }
        cpus.extend(first..=last);
    }
    Some(cpus)
}

/// The word in brackets: `always [madvise] never`.
fn chosen(choices: &str) -> Option<String> {
    let (_, after) = choices.split_once('[')?;
    Some(after.split_once(']')?.0.to_owned())
}

/// A row of `/proc/self/limits`: name, soft, hard, unit.
fn limit(limits: &str, name: &str) -> Option<Limit> {
    let row = limits.lines().find_map(|line| line.strip_prefix(name))?;
    let mut words = row.split_ascii_whitespace();
    let mut next = || match words.next()? {
        "unlimited" => Some(None),
        number => number.parse().ok().map(Some),
    };
    Some(Limit { soft: next()?, hard: next()? })
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq)]
struct Mount {
    device: String,
    mount_point: String,
    options: Vec<String>,
    file_system: String,
    source: String,
}

/// The mounts, in their order. Lines that are not as documented are left out.
///
/// ```text
/// 22 27 0:21 / /proc rw,relatime shared:1 - proc proc rw
/// id up dev root point options [tags…]    - type source super-options
/// ```
fn mounts(mountinfo: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(2);
        let (device, _root) = (before.next()?, before.next()?);
        let (mount_point, options) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (file_system, source) = (after.next()?, after.next()?);
        let all_options = options.split(',').chain(after.next().unwrap_or_default().split(','));
        let mut options: Vec<String> = Vec::new();
        for option in all_options.filter(|option| !option.is_empty()) {
            if !options.iter().any(|known| known == option) {
                options.push(option.to_owned());
            }
        }
        Some(Mount {
            device: device.to_owned(),
            mount_point: unescaped(mount_point),
            options,
            file_system: file_system.to_owned(),
            source: unescaped(source),
        })
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// A path as the kernel prints it: space, tab, line end and backslash as `\040` and so on.
fn unescaped(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut path = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                path.push(char::from(byte));
                path.push_str(&part[3..]);
            }
            None => {
                path.push('\\');
                path.push_str(part);
            }
        }
    }
    path
}

/// The mount that a path is on: the longest that holds it, and of these the last, which hides
/// the others.
fn mount_of<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let holds = |mount: &&Mount| path.starts_with(&mount.mount_point);
    mounts.iter().filter(holds).max_by_key(|mount| mount.mount_point.len())
}

impl Disk {
    fn below(directory: &Path) -> Result<Disk, Fault> {
        let fault = |source| Fault::File { path: directory.to_owned(), source };
        let real = directory.canonicalize().map_err(fault)?;
        let opened = File::open(&real).map_err(fault)?;
        let mounts = mounts(&text("/proc/self/mountinfo").unwrap_or_default());
        let mount = mount_of(&mounts, &real)
            .ok_or_else(|| Fault::Unmounted { path: directory.to_owned() })?;
        // A partition has its queue one level up, at its disk.
        let device = format!("/sys/dev/block/{}", mount.device);
        let queue = |name: &str| {
            text(&format!("{device}/queue/{name}"))
                .or_else(|| text(&format!("{device}/../queue/{name}")))
        };
        Ok(Disk {
            mount_point: mount.mount_point.clone(),
            source: mount.source.clone(),
            file_system: mount.file_system.clone(),
            options: mount.options.clone(),
            free_bytes: sys::free_bytes(&opened).ok(),
            scheduler: queue("scheduler").and_then(|choices| chosen(&choices)),
            rotates: queue("rotational").map(|rotational| rotational == "1"),
            write_cache: queue("write_cache"),
        })
    }
}

/// The control groups of this process: where each controller's files are, and this process'
/// place below.
struct Groups {
    v2: Option<Group>,
    v1_cpu: Option<Group>,
    v1_memory: Option<Group>,
}

#[derive(Clone, Debug, PartialEq)]
struct Group {
    mount_point: String,
    path: String,
}

impl Groups {
    fn of_self() -> Groups {
        let mounts = mounts(&text("/proc/self/mountinfo").unwrap_or_default());
        let groups = text("/proc/self/cgroup").unwrap_or_default();
        let group = |controller| group(&mounts, &groups, controller);
        Groups { v2: group(None), v1_cpu: group(Some("cpu")), v1_memory: group(Some("memory")) }
    }

    fn cpus(&self) -> Option<f64> {
        let v2 = self.v2.iter().flat_map(Group::upwards);
        let v1 = self.v1_cpu.iter().flat_map(Group::upwards);
        v2.filter_map(|folder| cpu_max(&text(&format!("{folder}/cpu.max"))?))
            .chain(v1.filter_map(|folder| {
                let quota = text(&format!("{folder}/cpu.cfs_quota_us"))?;
                cpu_max(&format!("{quota} {}", text(&format!("{folder}/cpu.cfs_period_us"))?))
            }))
            .min_by(f64::total_cmp)
    }

    fn memory_bytes(&self) -> Option<u64> {
        let v2 = self.v2.iter().flat_map(Group::upwards);
        let v1 = self.v1_memory.iter().flat_map(Group::upwards);
        v2.map(|folder| format!("{folder}/memory.max"))
            .chain(v1.map(|folder| format!("{folder}/memory.limit_in_bytes")))
            .filter_map(|path| memory_max(&text(&path)?))
            .min()
    }
}

impl Group {
    /// Its folder and all above it: the tightest of their limits holds.
    fn upwards(&self) -> Vec<String> {
        let mut folders = vec![self.mount_point.clone()];
        for (end, _) in self.path.match_indices('/').skip(1) {
            folders.push(format!("{}{}", self.mount_point, &self.path[..end]));
        }
        if 1 < self.path.len() {
            folders.push(format!("{}{}", self.mount_point, self.path));
        }
        folders
    }
}

/// Where a controller of the first version, or all of the second (`None`), has its files, and
/// this process' place there, out of `/proc/self/cgroup`: `number:controllers:path`.
fn group(mounts: &[Mount], groups: &str, controller: Option<&str>) -> Option<Group> {
    let mount = mounts.iter().find(|mount| match controller {
        None => mount.file_system == "cgroup2",
        Some(name) => {
            mount.file_system == "cgroup" && mount.options.iter().any(|option| option == name)
        }
    })?;
    let path = groups.lines().find_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let is_it = match controller {
            None => controllers.is_empty(),
            Some(name) => controllers.split(',').any(|controller| controller == name),
        };
        is_it.then(|| path.to_owned())
    })?;
    Some(Group { mount_point: mount.mount_point.clone(), path })
}

/// `cpu.max`: a quota and its period; `max` (or -1, in the first version) is none.
fn cpu_max(text: &str) -> Option<f64> {
    let (quota, period) = text.split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.trim().parse().ok()?);
    (0.0 < quota && 0.0 < period).then(|| quota / period)
}

/// `memory.max`; `max`, or a number near 2^63 in the first version, is none.
fn memory_max(text: &str) -> Option<u64> {
    text.parse().ok().filter(|&bytes| bytes < 1 << 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(cpu_list("0-3,8"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(cpu_list("0\n"), Some(vec![0]));
        for list in ["", "a", "3-1", "0-", "0-4294967295"] {
            assert_eq!(cpu_list(list), None, "{list}");
        }
    }

    #[test]
    fn fields_of_proc_are_read() {
        let meminfo = "MemTotal:       24684084 kB\nMemFree:         9762492 kB\n";
        assert_eq!(kib(meminfo, "MemTotal"), Some(24_684_084 * 1024));
        assert_eq!(kib(meminfo, "Mem"), None);
        assert_eq!(kib("MemTotal: 18446744073709551615 kB", "MemTotal"), None);
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu_model(cpuinfo).as_deref(), Some("AMD EPYC"));
        assert_eq!(cpu_model("processor\t: 0\n"), None);
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("none"), None);
    }

    #[test]
    fn limits_are_read() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max open files            1024                 20000                files\n\
                      Max locked memory         8388608              unlimited            bytes\n";
        let open_files = limit(limits, "Max open files");
        assert_eq!(open_files, Some(Limit { soft: Some(1024), hard: Some(20000) }));
        let locked = limit(limits, "Max locked memory");
        assert_eq!(locked, Some(Limit { soft: Some(8_388_608), hard: None }));
        assert_eq!(limit(limits, "Max processes"), None);
    }

    const MOUNTINFO: &str = "\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
30 27 254:16 / /data\\040disk rw,noatime shared:7 master:1 - xfs /dev/vdb1 rw,logbufs=8
31 27 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 27 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
33 27 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
rubbish
";

    #[test]
    fn the_longest_mount_that_holds_a_path_is_its_own() {
        let mounts = mounts(MOUNTINFO);
        assert_eq!(mounts.len(), 6);
        let mount = mount_of(&mounts, Path::new("/data disk/zookeeper")).unwrap();
        assert_eq!((mount.source.as_str(), mount.device.as_str()), ("/dev/vdb1", "254:16"));
        assert_eq!(mount.options, ["rw", "noatime", "logbufs=8"]);
        let mount = mount_of(&mounts, Path::new("/data disks")).unwrap();
        assert_eq!((mount.file_system.as_str(), mount.mount_point.as_str()), ("ext4", "/"));
    }

    #[test]
    fn paths_are_unescaped() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\"), "/a\\");
        assert_eq!(unescaped("/a\\9é"), "/a\\9é");
    }

    #[test]
    fn control_groups_are_found_in_both_versions() {
        let mounts = mounts(MOUNTINFO);
        let groups = "4:memory:/pods/one\n1:cpu,cpuacct:/\n0::/\n";
        let memory = group(&mounts, groups, Some("memory")).unwrap();
        assert_eq!(
            memory.upwards(),
            [
                "/sys/fs/cgroup/memory",
                "/sys/fs/cgroup/memory/pods",
                "/sys/fs/cgroup/memory/pods/one"
            ]
        );
        let cpu = group(&mounts, groups, Some("cpu")).unwrap();
        assert_eq!(cpu.upwards(), ["/sys/fs/cgroup/cpu,cpuacct"]);
        let v2 = group(&mounts, groups, None).unwrap();
        assert_eq!((v2.mount_point.as_str(), v2.path.as_str()), ("/sys/fs/cgroup/unified", "/"));
        assert_eq!(group(&mounts, groups, Some("io")), None);
    }

    #[test]
    fn quotas_are_read() {
        assert_eq!(cpu_max("150000 100000"), Some(1.5));
        assert_eq!(cpu_max("max 100000"), None);
        assert_eq!(cpu_max("-1 100000"), None);
        assert_eq!(memory_max("1073741824"), Some(1 << 30));
        assert_eq!(memory_max("max"), None);
        assert_eq!(memory_max("9223372036854771712"), None);
    }

    #[test]
    fn this_machine_can_be_inspected() {
        let host = Host::inspect(Some(Path::new("/"))).unwrap();
        assert!(!host.cpus.allowed.is_empty());
        assert!(host.memory.total_bytes.is_some_and(|bytes| 0 < bytes));
        assert_eq!(host.disk.unwrap().mount_point, "/");
        assert!(Host::inspect(Some(Path::new("/nowhere/at/all"))).is_err());
    }
}
