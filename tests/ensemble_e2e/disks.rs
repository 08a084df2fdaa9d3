//! Members whose disks were cleared or damaged while they were down.

use std::fs;
use std::path::{Path, PathBuf};

use crate::client::now;
use crate::ensemble::{Ensemble, Id, Plan, SYNC_LIMIT};
use crate::load::Load;
use crate::random::Random;
use crate::server::{not_run, succeeds};

/// What happens to a disk.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Damage {
    /// All but `myid`.
    Cleared,
    /// All but `myid` and the files of the epochs.
    ClearedButEpochs,
    /// A bit of a record in the newest log.
    FlippedBit,
    /// The newest log is gone.
    LostLog,
    /// The watermark is gone.
    LostWatermark,
    /// All logs and snapshots are there, and the files of the epochs are not.
    LostEpochs,
}

pub(crate) const ALL: [Damage; 6] = [
    Damage::Cleared,
    Damage::ClearedButEpochs,
    Damage::FlippedBit,
    Damage::LostLog,
    Damage::LostWatermark,
    Damage::LostEpochs,
];

fn newest_log(version: &Path) -> PathBuf {
    let logs = fs::read_dir(version).unwrap().filter_map(|entry| {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let zxid = u64::from_str_radix(name.strip_prefix("log.")?, 16).ok()?;
        Some((zxid, path))
    });
    logs.max().expect("there is a log").1
}

/// Damages, and says what was done.
pub(crate) fn damage(data: &Path, damage: Damage, random: &mut Random) -> String {
    let version = data.join("version-2");
    let watermark = data.join("ringkeeper.watermark");
    let epochs = ["acceptedEpoch", "currentEpoch"].map(|name| version.join(name));
    match damage {
        Damage::Cleared => {
            fs::remove_dir_all(&version).unwrap();
            fs::remove_file(&watermark).unwrap();
        }
        Damage::ClearedButEpochs => {
            for entry in fs::read_dir(&version).unwrap() {
                let path = entry.unwrap().path();
                if !epochs.contains(&path) {
                    fs::remove_file(path).unwrap();
                }
            }
            fs::remove_file(&watermark).unwrap();
        }
        Damage::FlippedBit => {
            let path = newest_log(&version);
            let mut bytes = fs::read(&path).unwrap();
            let end = bytes.iter().rposition(|&byte| byte != 0).expect("there are records");
            if end < 64 {
                return format!("nothing: {} has no records", path.display());
            }
            let place = 16 + random.below(end - 32);
            bytes[place] ^= 1 << random.below(8);
            fs::write(&path, bytes).unwrap();
            return format!("{damage:?} at byte {place} of {end} of {}", path.display());
        }
        Damage::LostLog => fs::remove_file(newest_log(&version)).unwrap(),
        Damage::LostWatermark => fs::remove_file(&watermark).unwrap(),
        Damage::LostEpochs => epochs.iter().for_each(|path| fs::remove_file(path).unwrap()),
    }
    format!("{damage:?}")
}

/// Whether a server does not vouch for what it has.
fn is_doubted(ensemble: &Ensemble, id: Id) -> bool {
    ensemble.server(id).said().contains("it neither votes nor leads")
}

fn run(name: &str, pick: fn(&Ensemble, &mut Random) -> Id) {
    let mut random = Random::of_test(name);
    let plan = Plan { settings: vec!["snapCount=400", "preAllocSize=64"], ..Plan::of(3) };
    let mut ensemble = Ensemble::started(name, &plan);
    let load = Load::start(&ensemble, &mut random, 6);
    for what in ALL {
        load.wait_writes(300);
        let victim = pick(&ensemble, &mut random);
        ensemble.kill(victim);
        load.wait_writes(50);
        let done = damage(&ensemble.members[&victim].data, what, &mut random);
        load.mark();
        ensemble.start(victim);
        ensemble.wait_serving(&[victim]);
        if matches!(what, Damage::ClearedButEpochs) {
            assert!(is_doubted(&ensemble, victim), "it has lost what it had acknowledged");
        }
        println!(
            "{name}: server {victim}: {done}; doubted: {}; {:?} without a write",
            is_doubted(&ensemble, victim),
            load.gap()
        );
        ensemble.wait_all();
        // What it has from the leader is as good as any.
        ensemble.kill(victim);
        ensemble.start(victim);
        ensemble.wait_all();
        assert!(!is_doubted(&ensemble, victim), "server {victim} has healed: {}", ensemble.tell());
        // It counts again: one of the others may go.
        let leader = ensemble.wait_leader();
        let other = ensemble.ids().into_iter().find(|&id| id != victim && id != leader).unwrap();
        ensemble.kill(other);
        load.wait_writes(100);
        ensemble.start(other);
        ensemble.wait_all();
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_follower_with_a_damaged_disk_heals() {
    run("damaged-follower", |ensemble, random| {
        let leader = ensemble.wait_leader();
        let followers: Vec<Id> = ensemble.ids().into_iter().filter(|&id| id != leader).collect();
        followers[random.below(2)]
    });
}

#[test]
fn a_lost_leader_with_a_damaged_disk_heals() {
    run("damaged-leader", |ensemble, _| ensemble.wait_leader());
}

/// An ext4 of its own for one member, which can be made to hang. All is undone at the end.
struct Volume {
    path: PathBuf,
    is_frozen: bool,
}

impl Volume {
    /// `None`, said why, where none can be mounted.
    fn mount_at(path: &Path, image: &Path) -> Option<Volume> {
        fs::File::create(image).and_then(|file| file.set_len(256 << 20)).unwrap();
        let (shown, at) = (image.display().to_string(), path.display().to_string());
        let is_mounted = succeeds(&["mkfs.ext4", "-q", "-F", &shown])
            && succeeds(&["mount", "-o", "loop", &shown, &at]);
        if !is_mounted {
            not_run("a disk that hangs", "no ext4 can be mounted (not root, or no loop devices)");
            return None;
        }
        Some(Volume { path: path.to_path_buf(), is_frozen: false })
    }

    /// From now on nothing that writes comes back.
    fn freeze(&mut self) -> bool {
        self.is_frozen = succeeds(&["fsfreeze", "-f", &self.path.display().to_string()]);
        if !self.is_frozen {
            not_run("a disk that hangs", "fsfreeze does not work");
        }
        self.is_frozen
    }

    fn thaw(&mut self) {
        if std::mem::take(&mut self.is_frozen) {
            assert!(succeeds(&["fsfreeze", "-u", &self.path.display().to_string()]));
        }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.thaw();
        succeeds(&["umount", "--lazy", &self.path.display().to_string()]);
    }
}

#[test]
fn a_member_whose_disk_hangs_stops_nobody() {
    const ITS: Id = 3;
    let mut random = Random::of_test("hangs");
    let mut ensemble = Ensemble::new("hangs", &Plan::of(3));
    let data = ensemble.members[&ITS].data.clone();
    let image = ensemble.folder.path().join("image");
    // It is dropped before the servers, which could not end otherwise.
    let Some(mut volume) = Volume::mount_at(&data, &image) else { return };
    fs::write(data.join("myid"), format!("{ITS}\n")).unwrap();
    for id in ensemble.ids() {
        ensemble.start(id);
    }
    ensemble.wait_all();
    let load = Load::start(&ensemble, &mut random, 6);
    for is_leader in [false, true] {
        // Whoever is stopped does not lead any more.
        while (ensemble.wait_leader() == ITS) != is_leader {
            let leader = ensemble.wait_leader();
            ensemble.terminate(leader);
            load.wait_writes(20);
            ensemble.start(leader);
            ensemble.wait_all();
        }
        load.wait_writes(100);
        load.mark();
        if !volume.freeze() {
            return;
        }
        let (since, log) = (now(), newest_log(&data.join("version-2")));
        let before = fs::read(&log).unwrap();
        if is_leader {
            // It has nobody follow a log that stands still.
            ensemble.wait_state(ITS, "LOOKING");
            let others: Vec<Id> = ensemble.ids().into_iter().filter(|&id| id != ITS).collect();
            ensemble.wait_leader_among(&others);
        }
        // Long enough for everybody to notice.
        while now() - since < 2 * SYNC_LIMIT {
            load.wait_writes(50);
        }
        assert!(
            before == fs::read(&log).unwrap(),
            "its disk hangs, and something was logged there"
        );
        let gap = load.gap();
        println!("hangs: the disk of server {ITS}, leader: {is_leader}: {gap:?} without a write");
        volume.thaw();
        ensemble.wait_all();
        load.wait_writes(100);
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

/// A leader does not wait for an observer, which says that it is alive whatever its disk does.
#[test]
fn an_observer_whose_disk_hangs_takes_no_more_than_it_may() {
    const ITS: Id = 4;
    let mut random = Random::of_test("observer-hangs");
    let settings = vec!["ringkeeper.txnLog.unsyncedBytesMax=65536"];
    let plan = Plan { observers: 1, settings, ..Plan::of(3) };
    let mut ensemble = Ensemble::new("observer-hangs", &plan);
    let data = ensemble.members[&ITS].data.clone();
    let image = ensemble.folder.path().join("image");
    let Some(mut volume) = Volume::mount_at(&data, &image) else { return };
    fs::write(data.join("myid"), format!("{ITS}\n")).unwrap();
    for id in ensemble.ids() {
        ensemble.start(id);
    }
    ensemble.wait_all();
    let load = Load::start(&ensemble, &mut random, 6);
    load.wait_writes(100);
    if !volume.freeze() {
        return;
    }
    // At the bound it stops to read, so its leader does not hear of it and lets it go.
    ensemble.wait_state(ITS, "LOOKING");
    load.wait_writes(100);
    assert_eq!(ensemble.state(ITS), Some("LOOKING"), "it waits for its disk");
    volume.thaw();
    ensemble.wait_all();
    load.wait_writes(100);
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}
