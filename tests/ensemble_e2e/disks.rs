//! Members whose disks were cleared or damaged while they were down.

use std::fs;
use std::path::{Path, PathBuf};

use crate::ensemble::{Ensemble, Id, Plan};
use crate::load::Load;
use crate::random::Random;

/// What happens to a disk.
#[derive(Clone, Copy, Debug)]
enum Damage {
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

const ALL: [Damage; 6] = [
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
fn damage(data: &Path, damage: Damage, random: &mut Random) -> String {
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
            assert!(200 < end, "the newest log holds a few records");
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
        println!("{name}: server {victim}: {done}; {:?} without a write", load.gap());
        ensemble.wait_all();
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
