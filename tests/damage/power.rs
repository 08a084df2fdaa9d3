//! Power cuts: a server under load on a disk that remembers, cut at many instants.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use crate::PATIENCE;
use crate::client::now;
use crate::damage::{Op, logs};
use crate::disk::{Broken, Disk, Keep, Mounted};
use crate::image::{BACK_ENDS, marked_zxid};
use crate::load::{Act, History, Sizes, Writer};
use crate::random::Random;
use crate::server::{Folder, Setup, not_run};
use crate::verdict::{Finding, Judge, Outcome, Verdict, wait_until_served};

/// For each back end and load; `CUTS=n` for more.
const CUTS: usize = 2;

/// How far the durable watermark may be behind what was acknowledged: 200 ms of the server's own, and
/// what a crowded machine and a disk served by this very process add to that.
const LAG_MAX: Duration = Duration::from_millis(600);

/// What a client knew when: the place of an acknowledged write, how many events the disk had then,
/// and the time.
#[derive(Clone, Copy)]
struct Known {
    zxid: i64,
    events: usize,
    at: Duration,
}

struct Run {
    disk: Disk,
    history: History,
    known: Vec<Known>,
    /// The first event under load, and the last.
    events: (usize, usize),
    /// The last event of the full load.
    full: usize,
}

/// What a run is like: logs that roll while snapshots are taken, or one log for seconds, with nothing
/// to do for the server but to write it.
#[derive(Clone, Copy)]
struct Load {
    name: &'static str,
    settings: &'static [&'static str],
    sizes: Sizes,
    took: Duration,
    /// Behind so many, it is one write after the other.
    bytes: u64,
    /// And so many of those at most. With `bytes`, this bounds what the disk has to hold: the
    /// faster a server, the more snapshots it would leave in the same time.
    single_writes_max: usize,
}

/// How much of its disk a run may fill. The server ends when there is no room for its log.
const FILLED_PERCENT_MAX: usize = 75;

const LOADS: [Load; 2] = [
    Load {
        name: "rolls",
        settings: &["snapCount=2000", "preAllocSize=1024"],
        sizes: Sizes(100, 2_000),
        took: Duration::from_millis(1_500),
        bytes: 9_000_000,
        single_writes_max: 4_000,
    },
    Load {
        name: "one log",
        settings: &["snapCount=1000000", "preAllocSize=16384"],
        sizes: Sizes(2_000, 8_000),
        took: Duration::from_secs(2),
        bytes: 40_000_000,
        single_writes_max: 40_000,
    },
];

fn setup(settings: &[&str], path: &Path) -> Setup {
    Setup::new(settings).data(&path.join("data"))
}

/// A server under load on a disk that remembers.
fn run(folder: &Folder, load: Load, settings: &[&str], seed: u64, what: &str) -> Option<Run> {
    const MIB: usize = 160;
    let mut disk = Disk::new(folder.path(), MIB, what)?;
    let mut server = setup(settings, &disk.path()).start(folder);
    wait_until_served(&server);
    if settings.iter().any(|setting| setting.ends_with("direct"))
        && server.said().contains("logs are mapped")
    {
        not_run(what, "no direct writes on this file system");
        return None;
    }
    let mut history = History::default();
    let mut known = Vec::new();
    let began = now();
    let (first, full);
    {
        let mut note = |place: usize| {
            known.push((place, disk.count(), began.elapsed()));
        };
        let mut writer = Writer::new(server.address, &mut history, seed, load.sizes);
        first = disk.count();
        writer.on_acknowledged = Some(&mut note);
        let end = began.elapsed() + load.took;
        let is_enough =
            |writer: &Writer<'_>| end < began.elapsed() || load.bytes < writer.acknowledged_bytes;
        assert!(writer.load(is_enough), "{what}: the server ended: {}", server.said());
        full = disk.count();
        for _ in 0..load.single_writes_max {
            if end < began.elapsed() {
                break;
            }
            writer.create_few(1, 60);
        }
        writer.fill();
        assert!(server.is_running(), "{what}: the server ended: {}", server.said());
        server.kill();
        writer.drain();
    }
    let filled_bytes = bytes_on_disk(&disk.path());
    assert!(
        filled_bytes < (MIB << 20) / 100 * FILLED_PERCENT_MAX,
        "{what}: {filled_bytes} bytes of {MIB} MiB are filled: a little more ends the server",
    );
    let last = disk.count();
    disk.unmount();
    let known = known.into_iter().map(|(place, events, at): (usize, usize, Duration)| Known {
        zxid: history.writes[place].zxid,
        events,
        at,
    });
    let known = known.collect();
    Some(Run { disk, history, known, events: (first, last), full })
}

/// The bytes of all files below `path`, as the file system allocated them.
fn bytes_on_disk(path: &Path) -> usize {
    const BLOCK_BYTES: u64 = 512;
    let entries = fs::read_dir(path).expect("the folder can be read");
    let bytes = entries.map(|entry| {
        let path = entry.expect("an entry can be read").path();
        let found = fs::symlink_metadata(&path).expect("the file is there");
        if found.is_dir() { bytes_on_disk(&path) } else { (found.blocks() * BLOCK_BYTES) as usize }
    });
    bytes.sum()
}

impl Judge<'_> {
    /// The verdict on a file system that is mounted there.
    fn judge_mounted(&self, settings: &[&str], path: &Path) -> Outcome {
        let start = Folder::new("damage-cut");
        self.judge_at(&setup(settings, path), &start, path)
    }
}

impl Run {
    /// The last that a client was told before event `count`. What it heard later, it may have been
    /// told before, which only makes this weaker.
    fn told(&self, count: usize) -> Option<&Known> {
        self.known.iter().rfind(|known| known.events <= count)
    }

    /// Cuts the power after `count` events and starts on what is left. Says how far the watermark
    /// was behind, too.
    fn cut(
        &self,
        folder: &Folder,
        settings: &[&str],
        count: usize,
        keep: Keep,
        random: &mut Random,
    ) -> (Outcome, Option<Duration>) {
        let mounted = Mounted::new(&self.disk.cut(count, keep, random), folder.path());
        let told = self.told(count);
        let lag = told.and_then(|told| self.lag(told, mounted.path()));
        let acknowledged = told.map_or(0, |known| known.zxid);
        (self.judge(acknowledged).judge_mounted(settings, mounted.path()), lag)
    }

    fn judge(&self, acknowledged: i64) -> Judge<'_> {
        Judge { acknowledged, ..Judge::of(&self.history) }
    }

    /// Flips a bit of a record that was acknowledged so long before the cut that the watermark has
    /// to tell.
    /// `None`: a crowded machine has acknowledged nothing so early.
    fn cut_and_flip(
        &self,
        folder: &Folder,
        settings: &[&str],
        random: &mut Random,
    ) -> Option<Outcome> {
        let (_, last) = self.events;
        let mounted = Mounted::new(&self.disk.cut(last, Keep::Some, random), folder.path());
        let told = self.told(last).expect("there was load");
        let old = self.known.iter().rfind(|known| known.at + LAG_MAX < told.at)?;
        let log = logs(mounted.path(), "data").pop().expect("there is a log");
        let record = log.records.iter().rfind(|record| record.zxid <= old.zxid);
        let offset = record.expect("it is in the last log").offset + 40;
        let flip = Op::Flip { file: log.name, offset, bit: 2 };
        flip.apply(mounted.path(), mounted.path()).expect("it can be written");
        Some(self.judge(told.zxid).judge_mounted(settings, mounted.path()))
    }

    /// How long before the cut the last write was acknowledged that the watermark covers.
    fn lag(&self, told: &Known, path: &Path) -> Option<Duration> {
        let marked = marked_zxid(&path.join("data/ringkeeper.watermark"))?;
        let first_behind = self.known.iter().find(|known| marked < known.zxid)?;
        Some(told.at.saturating_sub(first_behind.at))
    }
}

fn cuts() -> usize {
    std::env::var("CUTS").map_or(CUTS, |cuts| cuts.parse().expect("CUTS is a number"))
}

fn seed() -> u64 {
    let seed = std::env::var("SEED").map(|seed| seed.parse().expect("SEED is a number"));
    seed.unwrap_or_else(|_| u64::from(std::process::id()) << 20)
}

#[test]
fn a_power_cut_at_any_instant_loses_nothing_that_was_acknowledged() {
    let seed = seed();
    let mut failures = Vec::new();
    for (back_end, load) in BACK_ENDS.iter().flat_map(|end| LOADS.map(|load| (end, load))) {
        let what = format!("power cuts, {back_end}, {}", load.name);
        let back_end = format!("ringkeeper.txnLog.backEnd={back_end}");
        let settings = [load.settings, &[back_end.as_str()]].concat();
        let folder = Folder::new("damage-power");
        let Some(run) = run(&folder, load, &settings, seed, &what) else { continue };
        let mut random = Random::new(seed);
        let (first, last) = run.events;
        let mut lags = Vec::new();
        let mut findings = Vec::new();
        let mut counts = [0; 2];
        for number in 0..cuts() {
            let end = if number % 4 == 3 { last } else { run.full };
            let count = first + random.below((end - first) as u64) as usize + 1;
            let keep = [Keep::Nothing, Keep::Some, Keep::All, Keep::Some][number % 4];
            let (outcome, lag) = run.cut(&folder, &settings, count, keep, &mut random);
            lags.extend(lag);
            let what = format!("cut {number} after {count} events, {keep:?}");
            let said = outcome.last_lines();
            match outcome.verdict {
                Verdict::Whole => counts[0] += 1,
                Verdict::Prefix => counts[1] += 1,
                // A power cut is no damage.
                Verdict::Refused => findings.push(format!("{what}: refused\n{said}")),
                Verdict::Finding(Finding { kind, what: found }) => {
                    findings.push(format!("{what}: {kind}: {found}\n{said}"));
                }
            }
        }
        if load.name == "one log" {
            match run.cut_and_flip(&folder, &settings, &mut random) {
                None => not_run(&format!("{what}, a bit of an old record"), "none is so old"),
                Some(Outcome { verdict: Verdict::Refused, .. }) => {}
                Some(outcome) => {
                    let (verdict, said) = (&outcome.verdict, outcome.last_lines());
                    findings.push(format!("a bit of an old record: {verdict:?}\n{said}"));
                }
            }
        }
        lags.sort();
        let [whole, prefix] = counts;
        let lag_max = lags.last().copied().unwrap_or_default();
        eprintln!(
            "{what}: {} cuts among {} events and {} acknowledged writes: {whole} served whole, \
             {prefix} a prefix, {} findings; the watermark was up to {} ms behind (SEED={seed})",
            cuts(),
            last - first,
            run.known.len(),
            findings.len(),
            lag_max.as_millis(),
        );
        if LAG_MAX <= lag_max {
            findings.push(format!("the watermark was {} ms behind", lag_max.as_millis()));
        }
        failures.extend(findings.into_iter().map(|finding| format!("{what}: {finding}")));
    }
    assert!(failures.is_empty(), "SEED={seed}:\n{}", failures.join("\n\n"));
}

/// The start after a power cut cuts logs, copies what it cuts, and writes. It may be cut off itself.
#[test]
fn a_power_cut_during_a_start_loses_nothing_either() {
    let seed = seed();
    for back_end in BACK_ENDS {
        let what = format!("power cuts during a start, {back_end}");
        let back_end = format!("ringkeeper.txnLog.backEnd={back_end}");
        let settings = [LOADS[0].settings, &[back_end.as_str()]].concat();
        let folder = Folder::new("damage-again");
        let Some(run) = run(&folder, LOADS[0], &settings, seed, &what) else { continue };
        let mut random = Random::new(seed);
        let (first, last) = (run.events.0, run.full);
        let mut cut_count = 0;
        for number in 0..cuts().div_ceil(3) {
            let count = first + random.below((last - first) as u64) as usize + 1;
            let acknowledged = run.told(count).map_or(0, |known| known.zxid);
            let again = Folder::new("damage-again-start");
            let base = run.disk.cut(count, Keep::Some, &mut random);
            let Some(mut disk) = Disk::with(again.path(), base, &what) else { return };
            let server = setup(&settings, &disk.path()).start(&again);
            let served = wait_until_served(&server);
            // What it serves was read by someone.
            let served_count = disk.count();
            server.kill();
            disk.unmount();
            let end = disk.count();
            for _ in 0..4 {
                let count = random.below(end as u64 + 1) as usize;
                let keep = *random.pick(&[Keep::Nothing, Keep::Some, Keep::Some, Keep::All]);
                let mounted = Mounted::new(&disk.cut(count, keep, &mut random), again.path());
                let told = if served_count <= count { served } else { acknowledged };
                let outcome = run.judge(told).judge_mounted(&settings, mounted.path());
                drop(mounted);
                if !matches!(outcome.verdict, Verdict::Whole | Verdict::Prefix) {
                    let (verdict, said) = (&outcome.verdict, outcome.last_lines());
                    panic!(
                        "{what}: start {number}, cut after {count} of {end} events, {keep:?}, \
                         SEED={seed}: {verdict:?}\n{said}"
                    );
                }
                cut_count += 1;
            }
        }
        eprintln!("{what}: {cut_count} cuts, nothing lost (SEED={seed})");
    }
}

/// Without syncs a power cut loses writes. Where none are lost, the test above sees nothing.
#[test]
fn the_canary_dies_without_syncs() {
    const CUTS_MAX: usize = 24;
    let what = "power cuts without syncs";
    let seed = seed();
    let folder = Folder::new("damage-canary");
    let settings = [LOADS[0].settings, &["forceSync=no"]].concat();
    let Some(run) = run(&folder, LOADS[0], &settings, seed, what) else { return };
    let mut random = Random::new(seed);
    let (first, last) = run.events;
    for number in 0..CUTS_MAX {
        let count = first + random.below((last - first).max(1) as u64) as usize + 1;
        let keep = [Keep::Nothing, Keep::Some][number % 2];
        let (outcome, _) = run.cut(&folder, &settings, count, keep, &mut random);
        if !matches!(outcome.verdict, Verdict::Whole | Verdict::Prefix) {
            let nth = number + 1;
            return eprintln!("{what}: cut {nth} lost acknowledged writes, as one of them must");
        }
    }
    panic!("{CUTS_MAX} power cuts lose nothing even without syncs: the harness is blind");
}

/// A sync that fails leaves pages in the page cache that were never stored and count as clean. Who
/// reads them at the next start serves what a power cut takes away.
#[test]
fn what_a_failed_sync_never_stored_is_not_served() {
    for back_end in BACK_ENDS {
        let what = format!("a sync that fails, {back_end}");
        let folder = Folder::new("damage-failed-sync");
        let Some(mut disk) = Disk::new(folder.path(), 128, &what) else { return };
        let setting = format!("ringkeeper.txnLog.backEnd={back_end}");
        let settings = ["preAllocSize=1024", &setting];
        let setup = setup(&settings, &disk.path());
        let server = setup.start(&folder);
        let mut history = History::default();
        let mut writer = Writer::new(server.address, &mut history, seed(), Sizes(100, 100));
        // So much that the snapshot at the next start takes a moment.
        writer.create_many(4_000, 1_500);
        // Data of records, and nothing of the file system's own.
        disk.break_with(Some(Broken::Writes(b"/c/")));
        writer.fill();
        let (status, said) = server.wait(PATIENCE);
        writer.drain();
        assert_eq!(status.code(), Some(10), "{what}: {said}");
        disk.break_with(None);
        let acknowledged = history.acknowledged();
        let server = setup.start(&folder);
        let served = wait_until_served(&server);
        // The power fails once it serves, before there is a snapshot of what it has read.
        let count = disk.count();
        server.kill();
        assert!(
            acknowledged <= served,
            "{what}: acknowledged 0x{acknowledged:x}, served 0x{served:x}"
        );
        disk.unmount();
        let cut = disk.cut(count, Keep::Nothing, &mut Random::new(1));
        let mounted = Mounted::new(&cut, folder.path());
        // Whoever had read it was told.
        history.settle(served);
        let judge = Judge { acknowledged: served, ..Judge::of(&history) };
        let outcome = judge.judge_mounted(&settings, mounted.path());
        drop(mounted);
        if let Verdict::Finding(finding) = &outcome.verdict {
            panic!("{what}, after a power cut: {finding:?}: {}", outcome.last_lines());
        }
    }
}

/// A disk that cannot read what it has: neither a snapshot nor a log may be left aside for that.
#[test]
fn what_the_disk_cannot_read_is_named_and_refused() {
    let what = "a disk that cannot read";
    let folder = Folder::new("damage-unreadable");
    let Some(disk) = Disk::new(folder.path(), 64, what) else { return };
    let mut history = History::default();
    let with_snapshots = setup(&["preAllocSize=1024", "snapCount=50"], &disk.path());
    let server = with_snapshots.start(&folder);
    let mut writer = Writer::new(server.address, &mut history, seed(), Sizes(100, 100));
    writer.create_few(200, 100);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    // In no snapshot.
    let setup = setup(&["preAllocSize=1024"], &disk.path());
    let server = setup.start(&folder);
    let mut writer = Writer::new(server.address, &mut history, seed(), Sizes(100, 100));
    writer.send(Act::Create, "/c/broken-sector".to_owned(), 100);
    writer.finish();
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    for (pattern, name) in
        [(Broken::Reads(b"ZKSN"), "snapshot."), (Broken::Reads(b"/c/broken-sector"), "log.")]
    {
        // In neither case anything of it may be in the page cache.
        disk.mount_again();
        disk.break_with(Some(pattern));
        let start = Folder::new("damage-unreadable-start");
        let server = setup.start(&start);
        let (status, said) = server.wait(PATIENCE);
        disk.break_with(None);
        assert_ne!(status.code(), Some(0), "{what}: {said}");
        let named = said.lines().any(|line| {
            line.contains("ERROR") && line.contains(name) && line.contains("nput/output error")
        });
        assert!(named, "{what}: {name} is not named: {said}");
    }
    // And nothing has come of it.
    disk.mount_again();
    let start = Folder::new("damage-unreadable-whole");
    let judge = Judge { must_serve: true, sent: i64::MAX, ..Judge::of(&history) };
    let outcome = judge.judge_at(&setup, &start, &disk.path());
    assert!(matches!(outcome.verdict, Verdict::Whole | Verdict::Prefix), "{:?}", outcome.verdict);
}
