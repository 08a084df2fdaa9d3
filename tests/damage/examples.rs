//! What was once lost, each as it was seen: kept apart from the matrix because each says more than
//! a verdict, and some need a load of their own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::damage::{Op, create_record, logs, named_zxid};
use crate::image::{BACK_ENDS, copy_folder};
use crate::load::{Act, History, Sizes, Writer, value};
use crate::matrix::AsOther;
use crate::server::{Folder, Server, Setup, until};
use crate::verdict::{Judge, LOST, Outcome, Verdict, wait_until_served};

/// A directory that a server was killed or stopped on, and what was acknowledged.
struct Stage {
    folder: Folder,
    settings: Vec<String>,
    is_apart: bool,
    history: History,
}

impl Stage {
    /// Where the first server runs.
    fn new(name: &str, settings: &[&str], is_apart: bool) -> Stage {
        let settings = settings.iter().map(|&setting| setting.to_owned()).collect();
        let folder = Folder::new(&format!("damage-{name}"));
        Stage { folder, settings, is_apart, history: History::default() }
    }

    fn setup(&self, path: &Path) -> Setup {
        let mut settings = self.settings.clone();
        if self.is_apart {
            settings.push(format!("dataLogDir={}", path.join("logs").display()));
        }
        self.setup_with(path, &settings)
    }

    fn setup_with(&self, path: &Path, settings: &[String]) -> Setup {
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        Setup::new(&settings).data(&path.join("data"))
    }

    /// Runs `load` against a server and kills it at once.
    fn kill_after(&mut self, load: impl FnOnce(&mut Writer<'_>)) {
        let server = self.setup(self.folder.path()).start(&self.folder);
        let mut writer = Writer::new(server.address, &mut self.history, 1, Sizes(200, 2_000));
        load(&mut writer);
        server.kill();
        writer.drain();
    }

    /// A copy of the directories, for one start.
    fn copy(&self) -> Folder {
        let copy = Folder::new("damage-copy");
        for part in ["data", "logs"] {
            let from = self.folder.path().join(part);
            if from.exists() {
                copy_folder(&from, &copy.path().join(part)).expect("there is room");
            }
        }
        copy
    }

    /// What comes of a start on a copy that `damage` was done to.
    fn judge(&self, must_serve: bool, damage: impl FnOnce(&Path)) -> Outcome {
        let copy = self.copy();
        damage(copy.path());
        let judge = Judge { must_serve, twice: true, ..Judge::of(&self.history) };
        judge.judge(&self.setup(copy.path()), &copy)
    }

    fn log_directory(&self) -> &'static str {
        if self.is_apart { "logs" } else { "data" }
    }

    /// The path of the newest log with records below the stage, and its records' offsets and ends.
    fn newest_log(&self) -> (String, Vec<(usize, usize)>) {
        let logs = logs(self.folder.path(), self.log_directory());
        let newest = logs.into_iter().rfind(|log| !log.records.is_empty()).expect("there are logs");
        let places = newest.records.iter().map(|record| (record.offset, record.end)).collect();
        (newest.name, places)
    }
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[offset] ^= 4;
    fs::write(path, bytes).unwrap();
}

fn holds(outcome: &Outcome, what: &str) {
    if let Verdict::Finding(finding) = &outcome.verdict {
        panic!("{what}: {}: {}\n{}", finding.kind, finding.what, outcome.last_lines());
    }
}

fn is_refused(outcome: &Outcome, what: &str, words: &[&str]) {
    holds(outcome, what);
    assert_eq!(outcome.verdict, Verdict::Refused, "{what}: {}", outcome.last_lines());
    for word in words {
        assert!(outcome.said.contains(word), "{what}: {word:?} is not in {}", outcome.said);
    }
}

fn is_whole(outcome: &Outcome, what: &str) {
    holds(outcome, what);
    assert_ne!(outcome.verdict, Verdict::Refused, "{what}: {}", outcome.last_lines());
}

fn back_end(name: &str) -> String {
    format!("ringkeeper.txnLog.backEnd={name}")
}

/// 20,144 creates at full rate, SIGKILL, one bit of a payload, wherever it is.
#[test]
fn one_bit_after_a_kill_at_full_rate_takes_nothing_that_was_acknowledged() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("bit", &[&back_end(name)], false);
        stage.kill_after(|writer| writer.create_many(20_144, 400));
        assert_eq!(stage.history.writes.len(), 20_144 + 17);
        let (log, places) = stage.newest_log();
        for part in [10, 2] {
            let (offset, _) = places[places.len() / part];
            let outcome = stage.judge(false, |path| flip(&path.join(&log), offset + 60));
            is_refused(&outcome, &format!("{name}, a bit at 1/{part} of the log"), &[&log]);
        }
    }
}

/// A server that has little to do, and is killed within a second.
#[test]
fn one_bit_after_two_hundred_writes_takes_nothing_that_was_acknowledged() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("few", &[&back_end(name)], false);
        stage.kill_after(|writer| writer.create_few(200, 100));
        let (log, places) = stage.newest_log();
        for index in [0, places.len() / 2, places.len() - 1] {
            let (offset, _) = places[index];
            let outcome = stage.judge(false, |path| flip(&path.join(&log), offset + 40));
            is_refused(&outcome, &format!("{name}, a bit of record {index}"), &[&log]);
        }
    }
}

/// After a power cut the watermark is somewhat behind. Of a direct log one extent is on its way at a
/// time, so whole records far behind a broken one say that it was durable.
#[test]
fn what_follows_far_behind_says_damage_whatever_the_watermark_says() {
    let mut stage = Stage::new("stale", &[&back_end("direct")], false);
    let mark = stage.folder.path().join("data/ringkeeper.watermark");
    let mut stale = Vec::new();
    stage.kill_after(|writer| {
        writer.create_few(5, 100);
        stale = fs::read(&mark).unwrap();
        writer.create_many(6_000, 4_000);
    });
    let (log, places) = stage.newest_log();
    let (offset, _) = places[places.len() / 20];
    let outcome = stage.judge(false, |path| {
        fs::write(path.join("data/ringkeeper.watermark"), &stale).unwrap();
        flip(&path.join(&log), offset + 60);
    });
    is_refused(&outcome, "a bit, with 22 MB of whole records behind it", &[&log]);
    // And that mark by itself is no harm.
    let outcome = stage.judge(true, |path| {
        fs::write(path.join("data/ringkeeper.watermark"), &stale).unwrap();
    });
    is_whole(&outcome, "a watermark that is behind");
}

#[test]
fn the_newest_log_is_missed_at_once() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("missed", &[&back_end(name)], false);
        stage.kill_after(|writer| writer.create_many(3_000, 400));
        let (log, places) = stage.newest_log();
        let half = places[places.len() / 2].1;
        let changes: [(&str, &dyn Fn(PathBuf)); 4] = [
            ("removed", &|path| fs::remove_file(path).unwrap()),
            ("emptied", &|path| fs::write(path, b"").unwrap()),
            ("cut to its header", &|path| {
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..16]).unwrap();
            }),
            ("cut in half", &|path| {
                let bytes = fs::read(&path).unwrap();
                fs::write(&path, &bytes[..half]).unwrap();
            }),
        ];
        for (what, change) in changes {
            let outcome = stage.judge(false, |path| change(path.join(&log)));
            is_refused(&outcome, &format!("{name}, {log} {what}"), &["log."]);
        }
    }
}

/// Behind what was acknowledged a crash may leave anything. It is cut, and kept.
#[test]
fn what_is_cut_is_kept_and_said() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("kept", &[&back_end(name)], true);
        stage.kill_after(|writer| writer.create_few(20, 300));
        let (log, places) = stage.newest_log();
        let end = places.last().unwrap().1;
        // Half a record of a transaction that nobody was told of.
        let copy = stage.copy();
        let path = copy.path().join(&log);
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(bytes.len().max(end + 4096), 0);
        let mut torn = vec![0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 1, 0];
        torn.extend_from_slice(&value(1, 100));
        bytes[end..end + torn.len()].copy_from_slice(&torn);
        fs::write(&path, bytes).unwrap();
        let judge = Judge { twice: true, must_serve: true, ..Judge::of(&stage.history) };
        let outcome = judge.judge(&stage.setup(copy.path()), &copy);
        is_whole(&outcome, name);
        let kept = fs::read_dir(copy.path().join("logs/ringkeeper.torn")).expect("copies are kept");
        let kept: Vec<Vec<u8>> =
            kept.map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        let is_kept = kept.iter().any(|kept| kept.starts_with(&torn));
        assert!(is_kept, "{name}: the bytes from {end} on are not kept: {}", outcome.said);
        let warned = outcome.said.lines().any(|line| {
            line.contains("WARN") && line.contains("0x") && line.contains(&torn.len().to_string())
        });
        assert!(warned, "{name}: no warning says the zxid and how much: {}", outcome.said);
        assert!(!outcome.said.contains("was never acknowledged"), "nobody knows that here");
    }
}

/// A start that a power cut ends may leave a copy, and the log with other bytes at that place than
/// those that were copied: a truncation zeroes the rest of a block before it is durable itself.
#[test]
fn a_copy_of_what_was_cut_is_not_overwritten() {
    let mut stage = Stage::new("kept-twice", &[], false);
    stage.kill_after(|writer| writer.create_few(20, 300));
    let (log, places) = stage.newest_log();
    let end = places.last().unwrap().1;
    let tear = |folder: &Path, torn: &[u8]| {
        let path = folder.join(&log);
        let mut bytes = fs::read(&path).unwrap();
        bytes.resize(bytes.len().max(end + 4096), 0);
        bytes[end..end + torn.len()].copy_from_slice(torn);
        fs::write(path, bytes).unwrap();
    };
    let mut torn = [&[0, 0, 0, 0, 1, 2, 3, 4, 0, 0, 1, 0][..], &value(1, 200)].concat();
    let first = stage.copy();
    tear(first.path(), &torn);
    let judge = Judge { must_serve: true, ..Judge::of(&stage.history) };
    is_whole(&judge.judge(&stage.setup(first.path()), &first), "the first start");
    let second = stage.copy();
    let copies = first.path().join("data/ringkeeper.torn");
    copy_folder(&copies, &second.path().join("data/ringkeeper.torn")).unwrap();
    let whole = torn.clone();
    torn[..100].fill(0);
    tear(second.path(), &torn);
    // It finds what is nowhere any more.
    is_whole(&judge.judge(&stage.setup(second.path()), &second), "the second start");
    let copies = fs::read_dir(second.path().join("data/ringkeeper.torn")).unwrap();
    let mut copies = copies.map(|entry| fs::read(entry.unwrap().path()).unwrap());
    assert!(copies.any(|copy| copy == whole), "the first copy is gone");
}

/// The limit on what clients send says nothing of what is in the log.
#[test]
fn a_smaller_limit_on_packets_deletes_nothing() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("limit", &[&back_end(name)], false);
        let large = stage.setup(stage.folder.path()).flag("-Djute.maxbuffer=8000000");
        let server = large.start(&stage.folder);
        let mut writer = Writer::new(server.address, &mut stage.history, 1, Sizes(0, 0));
        writer.create_few(10, 100);
        writer.create_few(1, 5_000_000);
        writer.create_few(10, 100);
        server.kill();
        let outcome = stage.judge(true, |_| {});
        is_whole(&outcome, &format!("{name}, five megabytes under the default limit"));
        let copy = stage.copy();
        let judge = Judge { must_serve: true, twice: true, ..Judge::of(&stage.history) };
        let small = stage.setup(copy.path()).flag("-Djute.maxbuffer=1024");
        is_whole(&judge.judge(&small, &copy), &format!("{name}, under the smallest limit"));
    }
}

/// A directory for logs that is not what it was: not mounted, not named, another one.
#[test]
fn logs_that_are_absent_as_a_whole_are_missed() {
    for name in BACK_ENDS {
        let mut stage = Stage::new("absent", &[&back_end(name)], true);
        stage.kill_after(|writer| writer.create_many(300, 100));
        type Change<'a> = (&'a str, &'a str, &'a dyn Fn(&Path));
        let changes: [Change<'_>; 6] = [
            ("missing", "logs", &|path| fs::remove_dir_all(path.join("logs")).unwrap()),
            ("empty", "logs", &|path| {
                fs::remove_dir_all(path.join("logs")).unwrap();
                fs::create_dir(path.join("logs")).unwrap();
            }),
            ("without version-2", "logs", &|path| {
                fs::remove_dir_all(path.join("logs/version-2")).unwrap();
            }),
            ("left out", "", &|_| {}),
            ("another, empty", "other", &|path| fs::create_dir(path.join("other")).unwrap()),
            ("another that is not there", "nowhere", &|_| {}),
        ];
        for (what, logs, change) in changes {
            let copy = stage.copy();
            change(copy.path());
            let mut settings = stage.settings.clone();
            if !logs.is_empty() {
                settings.push(format!("dataLogDir={}", copy.path().join(logs).display()));
            }
            let setup = stage.setup_with(copy.path(), &settings);
            let outcome = Judge::of(&stage.history).judge(&setup, &copy);
            let what = format!("{name}, dataLogDir {what}");
            let data = copy.path().join("data").display().to_string();
            let logs = copy.path().join(if logs.is_empty() { "data" } else { logs });
            is_refused(&outcome, &what, &[&data, &logs.display().to_string()]);
        }
    }
}

#[test]
fn the_directory_for_snapshots_knows_where_history_ended() {
    let mut stage = Stage::new("copy-of-mark", &[], true);
    stage.kill_after(|writer| writer.create_few(50, 100));
    for part in ["data", "logs"] {
        let mark = stage.folder.path().join(part).join("ringkeeper.watermark");
        assert!(mark.exists(), "there is no {}", mark.display());
    }
}

/// What a directory has beside its newest snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    /// Older ones, and logs that reach back to the first transaction.
    All,
    /// The logs that it needs.
    Needed,
    /// No log and no watermark: a snapshot that someone has copied.
    Nothing,
}

/// A server with some snapshots, stopped, and what is left of its directory.
fn with_snapshots(name: &str, beside: Beside) -> Stage {
    let mut stage = Stage::new("snapshots", &[&back_end(name), "snapCount=20"], false);
    let settings = stage.settings.clone();
    let server = stage.setup_with(stage.folder.path(), &settings).start(&stage.folder);
    let mut writer = Writer::new(server.address, &mut stage.history, 1, Sizes(0, 0));
    let version = stage.folder.path().join("data/version-2");
    until(
        PATIENCE,
        || server.said(),
        || {
            writer.create_few(10, 100);
            3 < snapshots(&version).len()
        },
    );
    writer.create_few(5, 100);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    if beside != Beside::All {
        let [older @ .., newest] = &snapshots(&version)[..] else { panic!("there are snapshots") };
        older.iter().for_each(|path| fs::remove_file(path).unwrap());
        let holds = named_zxid(newest.to_str().unwrap());
        let mut logs = logs(stage.folder.path(), "data");
        let needed = logs.iter().rposition(|log| named_zxid(&log.name) <= holds + 1).unwrap();
        assert!(0 < needed, "there are logs that the newest snapshot makes needless");
        for log in logs.drain(..needed) {
            fs::remove_file(stage.folder.path().join(log.name)).unwrap();
        }
        is_whole(&stage.judge(true, |_| {}), "the newest snapshot and its logs are enough");
    }
    if beside == Beside::Nothing {
        for log in logs(stage.folder.path(), "data") {
            fs::remove_file(stage.folder.path().join(log.name)).unwrap();
        }
        let _ = fs::remove_file(stage.folder.path().join("data/ringkeeper.watermark"));
    }
    stage
}

/// Those of a directory, oldest first.
fn snapshots(version: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(version).unwrap().map(|entry| entry.unwrap().path());
    let is_snapshot =
        |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("snapshot.");
    let mut paths: Vec<PathBuf> = paths.filter(is_snapshot).collect();
    paths.sort_by_key(|path| named_zxid(path.to_str().unwrap()));
    paths
}

fn halve(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

#[test]
fn a_snapshot_that_is_cut_is_refused_unless_the_logs_have_all() {
    for name in BACK_ENDS {
        for beside in [Beside::Needed, Beside::Nothing] {
            let stage = with_snapshots(name, beside);
            let cut = stage.judge(false, |path| {
                snapshots(&path.join("data/version-2")).iter().for_each(|path| halve(path));
            });
            is_refused(&cut, &format!("{name}, cut in half, beside it {beside:?}"), &["snapshot."]);
        }
        let stage = with_snapshots(name, Beside::All);
        for (what, change) in
            [("cut in half", halve as fn(&Path)), ("with a bit flipped", |path| flip(path, 70))]
        {
            let outcome = stage.judge(true, |path| {
                snapshots(&path.join("data/version-2")).iter().for_each(|path| change(path));
            });
            let what = format!("{name}, all snapshots {what} where the logs have all");
            is_whole(&outcome, &what);
            let said = outcome.said.lines().any(|line| {
                ["WARN", "ERROR"].iter().any(|level| line.contains(level))
                    && line.contains("snapshot.")
            });
            assert!(said, "{what}: nothing is said of it: {}", outcome.said);
        }
    }
}

#[test]
fn a_snapshot_that_may_not_be_read_is_never_left_aside() {
    let Some(other) = AsOther::new("a snapshot that may not be read") else { return };
    for beside in [Beside::All, Beside::Needed, Beside::Nothing] {
        let stage = with_snapshots("direct", beside);
        let copy = Folder::for_anyone("damage-forbidden");
        copy_folder(&stage.folder.path().join("data"), &copy.path().join("data")).unwrap();
        let newest = snapshots(&copy.path().join("data/version-2")).pop().unwrap();
        let setup = other.take(stage.setup(copy.path()), copy.path());
        Op::Forbid(newest.display().to_string()).apply(Path::new("/"), Path::new("/")).unwrap();
        let outcome = Judge::of(&stage.history).judge(&setup, &copy);
        let newest = newest.display().to_string();
        let what = format!("the newest snapshot is mode 000, beside it {beside:?}");
        is_refused(&outcome, &what, &[&newest, "ermission denied"]);
    }
}

#[test]
fn a_snapshot_is_not_believed_for_its_name() {
    for name in BACK_ENDS {
        let stage = with_snapshots(name, Beside::All);
        let version = stage.folder.path().join("data/version-2");
        let (acknowledged, all) = (stage.history.acknowledged(), snapshots(&version));
        for (number, source) in all.iter().enumerate() {
            for zxid in [0xf_ffff, acknowledged, acknowledged - 3] {
                let to = format!("snapshot.{zxid:x}");
                let outcome = stage.judge(false, |path| {
                    let version = path.join("data/version-2");
                    let source = version.join(source.file_name().unwrap());
                    if !version.join(&to).exists() {
                        fs::copy(source, version.join(&to)).unwrap();
                    }
                });
                holds(&outcome, &format!("{name}, snapshot {number} copied as {to}"));
            }
        }
    }
}

/// As long records, at the same places, and more of them: only what they say differs.
#[test]
fn another_servers_history_is_refused_though_it_is_whole_and_goes_further() {
    for is_apart in [false, true] {
        let stages = ["ours", "theirs"].map(|name| {
            let mut stage = Stage::new(name, &[], is_apart);
            let count = if name == "ours" { 40 } else { 400 };
            stage.kill_after(|writer| writer.create_few(count, 100));
            stage
        });
        let [ours, theirs] = &stages;
        // Where logs have a directory of their own, its watermark comes along.
        let folder = if is_apart { "logs" } else { "data/version-2" };
        let outcome = ours.judge(false, |path| {
            fs::remove_dir_all(path.join(folder)).unwrap();
            copy_folder(&theirs.folder.path().join(folder), &path.join(folder)).unwrap();
        });
        let (log, _) = ours.newest_log();
        let what = format!("{folder} of another server");
        is_refused(
            &outcome,
            &what,
            &[&log, "of another history than", "data/ringkeeper.watermark"],
        );
    }
}

/// A record may be whole and still be none that a server writes: its path would end the process when
/// a snapshot is taken, at every start.
#[test]
fn a_record_that_no_server_writes_is_named_and_refused() {
    let mut stage = Stage::new("foreign", &[], false);
    stage.kill_after(|writer| writer.create_few(20, 100));
    let (log, places) = stage.newest_log();
    let (end, next) = (places.last().unwrap().1, stage.history.acknowledged() + 1);
    let append = |path: &Path, record: &[u8]| {
        let mut bytes = fs::read(path).unwrap();
        bytes.truncate(end);
        bytes.extend_from_slice(record);
        fs::write(path, bytes).unwrap();
    };
    let paths: [&[u8]; 8] = [b"/x/", b"/x//y", b"//x", b"x", b"", b"/x/./y", b"/c/..", b"/c/\0"];
    for path in paths {
        let record = create_record(next, path);
        let outcome = stage.judge(false, |folder| append(&folder.join(&log), &record));
        let what = format!("a record that creates {:?}", String::from_utf8_lossy(path));
        is_refused(&outcome, &what, &[&log, &end.to_string(), &format!("0x{next:x}")]);
    }
    // One that a server can have written is served.
    let copy = stage.copy();
    append(&copy.path().join(&log), &create_record(next, b"/c/x"));
    let server = stage.setup(copy.path()).start(&copy);
    assert_eq!(wait_until_served(&server), next);
}

#[test]
fn two_servers_do_not_share_a_directory_whose_lock_was_removed() {
    for is_apart in [false, true] {
        let stage = Stage::new("two", &[], is_apart);
        let first = stage.setup(stage.folder.path()).start(&stage.folder);
        wait_until_served(&first);
        for part in ["data", "logs"] {
            let _ = fs::remove_file(stage.folder.path().join(part).join("ringkeeper.lock"));
        }
        let mut second = stage.setup(stage.folder.path()).start(&stage.folder);
        until(
            PATIENCE,
            || "neither served nor refused".to_owned(),
            || !second.is_running() || Client::try_connect(second.address, None).is_ok(),
        );
        assert!(!second.is_running(), "two servers serve one directory: {}", second.said());
        let (status, said) = second.wait(PATIENCE);
        assert_ne!(status.code(), Some(0));
        assert!(said.contains("another server"), "{said}");
        // And where only the folder for logs is shared.
        if is_apart {
            let logs = format!("dataLogDir={}", stage.folder.path().join("logs").display());
            let setup = Setup::new(&[&logs]).data(&stage.folder.path().join("second"));
            let (status, said) = setup.start(&stage.folder).wait(PATIENCE);
            assert_ne!(status.code(), Some(0), "{said}");
            assert!(said.contains("another server"), "{said}");
        }
        let mut client = Client::connect(first.address, now() + PATIENCE).unwrap();
        client.create("/a", b"1");
        client.answer();
    }
}

#[test]
fn the_lock_overwrites_nothing_that_it_links_to() {
    let folder = Folder::new("damage-link");
    let precious = folder.path().join("precious");
    fs::write(&precious, b"to be kept").unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    symlink(&precious, folder.path().join("data/ringkeeper.lock")).unwrap();
    let mut server = Server::start(&folder, &[]);
    until(
        PATIENCE,
        || "neither served nor refused".to_owned(),
        || !server.is_running() || Client::try_connect(server.address, None).is_ok(),
    );
    assert_eq!(fs::read(&precious).unwrap(), b"to be kept");
}

/// So that a start on a directory that nothing was done to is seen to be whole: the judge is not
/// deaf, and a write that is missing is found.
#[test]
fn the_judge_sees_what_is_missing() {
    let mut stage = Stage::new("judge", &[], false);
    stage.kill_after(|writer| writer.create_few(50, 100));
    is_whole(&stage.judge(true, |_| {}), "nothing was done to it");
    // A write that nobody made is one that the server does not have.
    let mut more = stage.history.clone();
    let mut extra = more.writes.last().unwrap().clone();
    (extra.act, extra.path, extra.zxid) = (Act::Create, "/c/extra".to_owned(), extra.zxid + 1);
    more.writes.push(extra);
    let copy = stage.copy();
    let outcome = Judge::of(&more).judge(&stage.setup(copy.path()), &copy);
    let Verdict::Finding(finding) = outcome.verdict else { panic!("nothing was found") };
    assert_eq!(finding.kind, LOST);
    let mut other = stage.history.clone();
    other.writes.last_mut().unwrap().seed += 1;
    let copy = stage.copy();
    let outcome = Judge::of(&other).judge(&stage.setup(copy.path()), &copy);
    assert!(matches!(outcome.verdict, Verdict::Finding(_)), "other data are not seen");
}
