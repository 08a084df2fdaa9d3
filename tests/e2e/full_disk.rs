//! Disks that are full, or fail: on small volumes of their own.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::server::{Folder, Server, Setup, not_run, succeeds, until};

/// A file system of our own, gone with this.
struct Volume {
    path: PathBuf,
    is_mounted: bool,
    /// A setting of its loop device, and what it was: the device is others' after us.
    changed: Option<(PathBuf, String)>,
}

const TMPFS: &str = "tmpfs";
const EXT4: &str = "ext4";

impl Volume {
    /// `None`, said why, where none can be mounted.
    fn new(kind: &str, folder: &Path, mib: u64, test: &str) -> Option<Volume> {
        let path = folder.join(kind);
        fs::create_dir(&path).expect("the folder is ours");
        let (size, shown) = (format!("size={mib}m"), path.display().to_string());
        let mut volume = Volume { path, is_mounted: false, changed: None };
        volume.is_mounted = match kind {
            TMPFS => succeeds(&["mount", "-t", TMPFS, "-o", &size, "ringkeeper-e2e", &shown]),
            _ => volume.make_image(folder, mib) && volume.mount_image(folder),
        };
        if !volume.is_mounted {
            not_run(test, &format!("no {kind} can be mounted (not root, or no loop devices)"));
            return None;
        }
        Some(volume)
    }

    fn make_image(&self, folder: &Path, mib: u64) -> bool {
        let image = folder.join("image");
        let made = File::create(&image).and_then(|file| file.set_len(mib << 20));
        made.expect("a sparse file takes no room");
        let shown = image.display().to_string();
        succeeds(&["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", &shown])
    }

    fn mount_image(&self, folder: &Path) -> bool {
        let (image, path) = (folder.join("image"), self.path.display().to_string());
        let options = "loop,noinit_itable";
        succeeds(&["mount", "-o", options, &image.display().to_string(), &path])
    }

    /// Has every request be of one page, if the kernel lets us.
    ///
    /// A loop device takes a write that its file had room for only in part for a success. A page
    /// finds room or finds none.
    fn write_page_by_page(&mut self) -> bool {
        let path = self.path.display().to_string();
        let mut find = Command::new("findmnt");
        let find = find.args(["--noheadings", "--output", "SOURCE", &path]);
        let Ok(output) = find.output() else { return false };
        let device = String::from_utf8_lossy(&output.stdout).trim().replace("/dev/", "");
        let setting = PathBuf::from(format!("/sys/block/{device}/queue/max_sectors_kb"));
        let Ok(before) = fs::read_to_string(&setting) else { return false };
        let is_set = fs::write(&setting, "4").is_ok();
        self.changed = is_set.then_some((setting, before));
        is_set
    }

    fn restore_setting(&mut self) {
        if let Some((setting, before)) = self.changed.take()
            && let Err(error) = fs::write(&setting, before.trim())
        {
            println!("{} stays as it is: {error}", setting.display());
        }
    }

    fn unmount(&mut self) {
        self.restore_setting();
        let path = self.path.display().to_string();
        until(PATIENCE, || format!("{path} cannot be unmounted"), || succeeds(&["umount", &path]));
        self.is_mounted = false;
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }

    /// Takes all room but `left` bytes.
    fn fill(&self, left: u64) {
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let len = file.metadata().unwrap().len();
        file.set_len(len.saturating_sub(left)).unwrap();
        // What only the page cache has may not have found its place yet.
        let _ = file.sync_all();
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.restore_setting();
        if self.is_mounted {
            let _ = Command::new("umount").arg("--lazy").arg(&self.path).status();
        }
    }
}

const VALUE_BYTES: usize = 4000;

/// Creates `/v<n>` from `first` on, up to `end` or until the connection breaks. Says how many
/// were acknowledged.
fn create_until_broken(client: &mut Client, first: usize, end: usize) -> usize {
    const DEPTH: usize = 16;
    let (mut sent, mut acknowledged) = (first, first);
    while acknowledged < end {
        while sent < end.min(acknowledged + DEPTH) {
            client.create(&format!("/v{sent}"), &value(sent));
            sent += 1;
        }
        if client.flush().is_err() {
            break;
        }
        let Ok(reply) = client.reply() else { break };
        assert_eq!(reply.header.err, 0, "a write was refused");
        acknowledged += 1;
    }
    acknowledged
}

fn value(number: usize) -> Vec<u8> {
    format!("{number:08}").bytes().cycle().take(VALUE_BYTES).collect()
}

fn check_all(client: &mut Client, end: usize) {
    for number in 0..end {
        client.get(&format!("/v{number}"));
        let reply = client.replies(1).unwrap().remove(0);
        let is_there = reply.header.err == 0 && reply.data().0 == value(number);
        assert!(is_there, "/v{number} of {end} was acknowledged and is not there");
    }
}

fn connect(server: &Server) -> Client {
    Client::connect(server.address, now() + PATIENCE).unwrap()
}

#[test]
fn a_log_without_room_ends_the_server_and_loses_nothing() {
    for kind in [TMPFS, EXT4] {
        let folder = Folder::new("full-log");
        let test = format!("a log without room, on {kind}");
        let Some(volume) = Volume::new(kind, folder.path(), 32, &test) else { continue };
        let setup = Setup::new(&["preAllocSize=256"]).data(&volume.path.join("data"));
        let server = setup.start(&folder);
        let mut client = connect(&server);
        let before = create_until_broken(&mut client, 0, 20);
        volume.fill(2 << 20);
        let acknowledged = create_until_broken(&mut client, before, 1_000_000);
        let (status, output) = server.wait(PATIENCE);
        // By a signal, as SIGBUS would be, it has no code.
        assert_eq!(status.code(), Some(10), "{kind}: {output}");
        assert!(output.contains("no room for the transaction log"), "{kind}: {output}");
        assert!(!output.contains("panicked"), "{kind}: {output}");
        assert!(before < acknowledged, "{kind}: nothing was written before the disk was full");
        // Still full: it may not come up, and then says why.
        let mut server = setup.start(&folder);
        let mut said = String::new();
        until(
            PATIENCE,
            || "it neither comes up nor ends".to_owned(),
            || {
                said = server.said();
                !server.is_running() || said.contains("PrepRequestProcessor")
            },
        );
        if !server.is_running() {
            let (status, output) = server.wait(PATIENCE);
            assert_eq!(status.code(), Some(10), "{kind}: {output}");
            assert!(output.contains("No space left"), "{kind}: {output}");
        } else {
            server.kill();
        }
        volume.free();
        let server = setup.start(&folder);
        check_all(&mut connect(&server), acknowledged);
    }
}

#[test]
fn a_snapshot_without_room_is_survived_and_taken_later() {
    let folder = Folder::new("full-snapshot");
    let test = "a snapshot without room";
    let Some(volume) = Volume::new(TMPFS, folder.path(), 16, test) else { return };
    let logs = format!("dataLogDir={}", folder.path().join("logs").display());
    let setup =
        Setup::new(&[&logs, "snapCount=50", "preAllocSize=256"]).data(&volume.path.join("data"));
    let server = setup.start(&folder);
    let mut client = connect(&server);
    create_until_broken(&mut client, 0, 5);
    volume.fill(32 << 10);
    let count = |server: &Server, text: &str| server.said().matches(text).count();
    let mut end = 5;
    // Enough for another snapshot, none of which is lost.
    let mut create_more = |server: &Server| {
        let created = create_until_broken(&mut client, end, end + 60);
        assert_eq!(created, end + 60, "{}", server.said());
        end += 60;
    };
    let failure = "the snapshot could not be written";
    until(
        PATIENCE,
        || format!("no snapshot failed: {}", server.said()),
        || {
            create_more(&server);
            0 < count(&server, failure)
        },
    );
    assert!(server.said().contains("WARN"), "a snapshot that fails is not passed over in silence");
    let taken = count(&server, "Snapshot taken");
    volume.free();
    until(
        PATIENCE,
        || format!("no snapshot came after: {}", server.said()),
        || {
            create_more(&server);
            taken < count(&server, "Snapshot taken")
        },
    );
    assert!(!volume.path.join("data/version-2/ringkeeper-snapshot.tmp").exists());
    server.kill();
    let server = setup.start(&folder);
    check_all(&mut connect(&server), end);
}

#[test]
fn a_start_on_a_full_disk_says_so() {
    let folder = Folder::new("full-start");
    let test = "a start on a full disk";
    let Some(volume) = Volume::new(TMPFS, folder.path(), 4, test) else { return };
    // Room for directories and small files, and none for a log.
    volume.fill(64 << 10);
    let setup = Setup::new(&["preAllocSize=1024"]).data(&volume.path.join("data"));
    let (status, output) = setup.start(&folder).wait(PATIENCE);
    assert_eq!(status.code(), Some(10), "{output}");
    assert!(output.contains("No space left"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    let half_made = volume.path.join("data/version-2/ringkeeper-log.tmp");
    assert!(!half_made.exists(), "what could not be made keeps what little room there is");
    volume.free();
    connect(&setup.start(&folder));
}

/// A disk that has promised more than it holds: the file system on it believes to have room, and
/// what it writes is lost. This is how fdatasync comes to fail.
#[test]
fn a_failed_sync_ends_the_server_and_loses_nothing() {
    break_promise("mapped", "could not be synced");
}

/// The same where the log is written directly: no sync fails, but a write.
#[test]
fn a_write_that_finds_no_room_ends_the_server_and_loses_nothing() {
    break_promise("direct", "the transaction log");
}

fn break_promise(back_end: &str, complaint: &str) {
    let folder = Folder::new(&format!("failed-sync-{back_end}"));
    let test = "a sync that fails";
    let Some(thin) = Volume::new(TMPFS, folder.path(), 64, test) else { return };
    let Some(mut volume) = Volume::new(EXT4, &thin.path, 256, test) else { return };
    if !volume.write_page_by_page() {
        return not_run(test, "the size of requests to a loop device cannot be set");
    }
    let setup =
        Setup::new(&["preAllocSize=16384", &format!("ringkeeper.txnLog.backEnd={back_end}")])
            .data(&volume.path.join("data"));
    let server = setup.start(&folder);
    let mut client = connect(&server);
    let before = create_until_broken(&mut client, 0, 20);
    assert_eq!(before, 20);
    thin.fill(200 << 10);
    let acknowledged = create_until_broken(&mut client, before, 1_000_000);
    let (status, output) = server.wait(PATIENCE);
    assert_eq!(status.code(), Some(10), "{output}");
    assert!(output.contains(complaint), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    thin.free();
    // The journal is to be read again, as after a crash of the machine.
    if let Some((setting, before)) = volume.changed.clone() {
        volume.restore_setting();
        assert_eq!(fs::read_to_string(&setting).unwrap(), before, "{}", setting.display());
    }
    volume.unmount();
    volume.is_mounted = volume.mount_image(&thin.path);
    assert!(volume.is_mounted, "the volume cannot be mounted again");
    let server = setup.start(&folder);
    check_all(&mut connect(&server), acknowledged);
    drop(server);
    volume.unmount();
}
