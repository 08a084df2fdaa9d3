//! A disk that remembers: every write and every flush in order, so that it can be had again as a
//! power cut at any instant would have left it.
//!
//! ```text
//! server -> ext4 -> loop device -> a file served by this process over /dev/fuse
//!                                  writes and flushes, numbered
//! ```
//!
//! What a cut at event `k` leaves: all writes before the last flush before `k`, and of the writes
//! between that flush and `k` any part, because a disk keeps those in a cache of its own and may
//! store them in any order. That is the promise that file systems and databases build on, and no
//! more than that.
//!
//! A copy of a backing file would not do: what the kernel writes meanwhile makes it a mixture of
//! several instants, and it holds what no flush has covered yet. The kernels that this runs on have
//! neither dm-log-writes nor nbd as a rule; fuse and loop they have.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::PATIENCE;
use crate::random::Random;
use crate::server::{is_root, not_run, succeeds, until};

/// What has reached the disk.
enum Event {
    Write { offset: usize, bytes: Vec<u8> },
    Flush,
}

#[derive(Default)]
struct Shared {
    content: Mutex<Content>,
    /// How many events there were.
    count: AtomicUsize,
}

#[derive(Default)]
struct Content {
    /// As it is read.
    bytes: Vec<u8>,
    events: Vec<Event>,
    /// Requests that carry these bytes fail.
    broken: Option<Broken>,
}

/// What a disk cannot do any more: with all that it is asked to write, or to read, of these bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Writes(&'static [u8]),
    Reads(&'static [u8]),
}

impl Content {
    fn fails(&self, broken: impl Fn(&'static [u8]) -> Broken, bytes: &[u8]) -> bool {
        let Some(Broken::Writes(pattern) | Broken::Reads(pattern)) = self.broken else {
            return false;
        };
        self.broken == Some(broken(pattern))
            && bytes.windows(pattern.len()).any(|window| window == pattern)
    }
}

/// A file system on a disk of our own; gone with this.
pub(crate) struct Disk {
    folder: PathBuf,
    shared: Arc<Shared>,
    /// As it was before the first event.
    base: Vec<u8>,
    server: Option<JoinHandle<()>>,
    /// What is mounted, in the order of mounting.
    mounted: Vec<PathBuf>,
}

/// Of the writes that no flush has covered.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keep {
    Nothing,
    All,
    /// Each with an even chance, page by page.
    Some,
}

const SECTOR_BYTES: usize = 512;

impl Disk {
    /// `None`, said why, where there can be none.
    pub(crate) fn new(folder: &Path, mib: usize, what: &str) -> Option<Disk> {
        if !is_root() {
            not_run(what, "only root can mount file systems");
            return None;
        }
        let Some(base) = make_file_system(&folder.join("base"), mib) else {
            not_run(what, "there is no mkfs.ext4");
            return None;
        };
        Disk::with(folder, base, what)
    }

    /// One that has this to begin with.
    pub(crate) fn with(folder: &Path, base: Vec<u8>, what: &str) -> Option<Disk> {
        let content = Content { bytes: base.clone(), ..Content::default() };
        let content = Mutex::new(content);
        let shared = Arc::new(Shared { content, count: AtomicUsize::new(0) });
        let mut disk =
            Disk { folder: folder.to_path_buf(), shared, base, server: None, mounted: Vec::new() };
        if let Err(why) = disk.mount() {
            not_run(what, &why);
            return None;
        }
        Some(disk)
    }

    fn mount(&mut self) -> Result<(), String> {
        let mut options = OpenOptions::new();
        let fuse = options.read(true).write(true).open("/dev/fuse");
        let fuse = fuse.map_err(|error| format!("/dev/fuse: {error}"))?;
        let file = self.folder.join("disk");
        fs::write(&file, b"").expect("the folder can be written");
        let handle = fuse.try_clone().expect("a descriptor can be cloned");
        let shown = file.display().to_string();
        // The root of this file system is a file: the disk.
        let options = "fd=0,rootmode=100600,user_id=0,group_id=0";
        let mounted = Command::new("mount")
            .args(["-i", "-t", "fuse", "-o", options, "ringkeeper-disk", &shown])
            .stdin(Stdio::from(handle))
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            return Err("a file system over /dev/fuse cannot be mounted".to_owned());
        }
        self.mounted.push(file.clone());
        let shared = Arc::clone(&self.shared);
        self.server = Some(std::thread::spawn(move || serve(fuse, &shared)));
        let path = self.path();
        fs::create_dir_all(&path).expect("the folder is ours");
        if !mount_loop(&file, &path) {
            return Err("there is no loop device for it".to_owned());
        }
        self.mounted.push(path);
        Ok(())
    }

    /// Where its files are.
    pub(crate) fn path(&self) -> PathBuf {
        self.folder.join("mounted")
    }

    /// How many events there were so far.
    pub(crate) fn count(&self) -> usize {
        self.shared.count.load(Ordering::Acquire)
    }

    /// Has requests fail from here on, or no longer.
    pub(crate) fn break_with(&self, broken: Option<Broken>) {
        self.shared.content.lock().broken = broken;
    }

    /// Mounted again, so that nothing of it is left in the page cache.
    pub(crate) fn mount_again(&self) {
        unmount(&self.path());
        assert!(mount_loop(&self.folder.join("disk"), &self.path()), "it was mounted before");
    }

    /// Ends it; its events stay.
    pub(crate) fn unmount(&mut self) {
        while let Some(path) = self.mounted.pop() {
            unmount(&path);
        }
        if let Some(server) = self.server.take() {
            // Where a server is left over it has the disk open: then this thread ends with us.
            if !std::thread::panicking() {
                server.join().expect("it ends when nothing is mounted");
            }
        }
    }

    /// What a power cut after the first `count` events may have left.
    pub(crate) fn cut(&self, count: usize, keep: Keep, random: &mut Random) -> Vec<u8> {
        let content = self.shared.content.lock();
        let events = &content.events[..count];
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let mut bytes = self.base.clone();
        for (number, event) in events.iter().enumerate() {
            let Event::Write { offset, bytes: written } = event else { continue };
            if number < flushed {
                bytes[*offset..offset + written.len()].copy_from_slice(written);
                continue;
            }
            // A write may be torn, at the border of a sector.
            for (index, sector) in written.chunks(SECTOR_BYTES).enumerate() {
                let is_kept = match keep {
                    Keep::Nothing => false,
                    Keep::All => true,
                    Keep::Some => index % 8 != 0 && random.below(8) != 0 || random.below(2) == 0,
                };
                if is_kept {
                    let at = offset + index * SECTOR_BYTES;
                    bytes[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        bytes
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// An image of a disk, mounted; unmounted with this.
pub(crate) struct Mounted(PathBuf);

impl Mounted {
    /// Below `folder`.
    pub(crate) fn new(bytes: &[u8], folder: &Path) -> Mounted {
        let (image, path) = (folder.join("cut"), folder.join("after"));
        write_sparse(&image, bytes);
        fs::create_dir_all(&path).expect("the folder is ours");
        assert!(mount_loop(&image, &path), "{} cannot be mounted", image.display());
        Mounted(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0);
    }
}

fn mount_loop(image: &Path, path: &Path) -> bool {
    let (image, path) = (image.display().to_string(), path.display().to_string());
    succeeds(&["mount", "-t", "ext4", "-o", "loop,noinit_itable", &image, &path]) && {
        write_at_once(&path);
        true
    }
}

/// A loop device keeps what whoever had it before has set: here a request may be as long as it can.
fn write_at_once(path: &str) {
    let mut find = Command::new("findmnt");
    let Ok(output) = find.args(["--noheadings", "--output", "SOURCE", path]).output() else {
        return;
    };
    let device = String::from_utf8_lossy(&output.stdout).trim().replace("/dev/", "");
    let queue = PathBuf::from(format!("/sys/block/{device}/queue"));
    if let Ok(most) = fs::read(queue.join("max_hw_sectors_kb")) {
        let _ = fs::write(queue.join("max_sectors_kb"), most);
    }
}

fn unmount(path: &Path) {
    let path = path.display().to_string();
    if std::thread::panicking() {
        // Someone may still have files open there.
        let _ = succeeds(&["umount", "--lazy", &path]);
        return;
    }
    until(PATIENCE, || format!("{path} cannot be unmounted"), || succeeds(&["umount", &path]));
}

fn make_file_system(image: &Path, mib: usize) -> Option<Vec<u8>> {
    let made = File::create(image).and_then(|file| file.set_len((mib as u64) << 20));
    made.expect("a sparse file takes no room");
    let shown = image.display().to_string();
    let words = ["mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", &shown];
    succeeds(&words).then(|| fs::read(image).expect("it is ours"))
}

fn write_sparse(path: &Path, bytes: &[u8]) {
    const PAGE_BYTES: usize = 4096;
    let file = File::create(path).expect("the folder can be written");
    file.set_len(bytes.len() as u64).expect("a sparse file takes no room");
    for (number, page) in bytes.chunks(PAGE_BYTES).enumerate() {
        if page.iter().fold(0, |any, &byte| any | byte) != 0 {
            file.write_all_at(page, (number * PAGE_BYTES) as u64).expect("there is room");
        }
    }
}

/// What of the kernel's `fuse.h` is needed for one file.
mod code {
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const STATFS: u32 = 17;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const FORGET: u32 = 2;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const EIO: i32 = -5;
    pub(super) const ENOSYS: i32 = -38;
}

const REQUEST_BYTES_MAX: usize = (1 << 20) + 4096;
const WRITE_BYTES_MAX: u32 = 1 << 20;

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_ne_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_ne_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

/// Answers the kernel, one request at a time, until the file system is unmounted. So the order of
/// events is one that the kernel has seen, too: what was answered before a flush came is covered.
fn serve(mut fuse: File, shared: &Shared) {
    let mut request = vec![0; REQUEST_BYTES_MAX];
    while let Ok(count) = fuse.read(&mut request) {
        let (header, body) = request[..count].split_at(40);
        let (operation, unique) = (u32_at(header, 4), header[8..16].to_vec());
        let answer = match operation {
            code::FORGET | code::BATCH_FORGET | code::INTERRUPT => continue,
            code::INIT => Ok(init()),
            code::GETATTR | code::SETATTR => Ok(attributes(shared)),
            // FOPEN_DIRECT_IO: nothing of it is kept in the page cache.
            code::OPEN => Ok(numbers(&[0, 0, 1, 0])),
            code::READ => read(shared, body),
            code::WRITE => write(shared, body),
            code::FSYNC => {
                push(shared, Event::Flush);
                Ok(Vec::new())
            }
            code::RELEASE | code::FLUSH | code::DESTROY => Ok(Vec::new()),
            code::STATFS => Ok(vec![0; 80]),
            _ => Err(code::ENOSYS),
        };
        let (error, bytes) = answer.map_or_else(|error| (error, Vec::new()), |bytes| (0, bytes));
        let mut out = Vec::with_capacity(16 + bytes.len());
        out.extend_from_slice(&(16 + bytes.len() as u32).to_ne_bytes());
        out.extend_from_slice(&i32::to_ne_bytes(error));
        out.extend_from_slice(&unique);
        out.extend_from_slice(&bytes);
        // One that was interrupted is not waited for any more.
        let _ = fuse.write(&out);
    }
}

fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn init() -> Vec<u8> {
    const BIG_WRITES: u32 = 1 << 5;
    const MAX_PAGES: u32 = 1 << 22;
    // Version 7.31; 256 pages a request.
    let (background, pages) = (16 | 12 << 16, 256);
    let mut out =
        numbers(&[7, 31, 0, BIG_WRITES | MAX_PAGES, background, WRITE_BYTES_MAX, 1, pages]);
    out.resize(64, 0);
    out
}

fn attributes(shared: &Shared) -> Vec<u8> {
    const REGULAR: u32 = 0o100_600;
    let bytes = shared.content.lock().bytes.len() as u64;
    let mut out = Vec::new();
    // Valid for a long time; then inode, size, blocks, three times, their nanoseconds.
    for number in [1 << 30, 0, 1, bytes, bytes / 512, 0, 0, 0] {
        out.extend_from_slice(&u64::to_ne_bytes(number));
    }
    out.extend_from_slice(&numbers(&[0, 0, 0, REGULAR, 1, 0, 0, 0, 4096, 0]));
    out
}

fn read(shared: &Shared, body: &[u8]) -> Result<Vec<u8>, i32> {
    let (offset, size) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
    let content = shared.content.lock();
    let end = content.bytes.len().min(offset + size);
    let bytes = content.bytes.get(offset..end).unwrap_or_default();
    if content.fails(Broken::Reads, bytes) { Err(code::EIO) } else { Ok(bytes.to_vec()) }
}

fn write(shared: &Shared, body: &[u8]) -> Result<Vec<u8>, i32> {
    let (offset, size) = (u64_at(body, 8) as usize, u32_at(body, 16));
    let bytes = body[40..40 + size as usize].to_vec();
    let end = offset + bytes.len();
    let mut content = shared.content.lock();
    if content.fails(Broken::Writes, &bytes) {
        return Err(code::EIO);
    }
    content.bytes[offset..end].copy_from_slice(&bytes);
    drop(content);
    push(shared, Event::Write { offset, bytes });
    Ok(numbers(&[size, 0]))
}

fn push(shared: &Shared, event: Event) {
    let mut content = shared.content.lock();
    content.events.push(event);
    shared.count.store(content.events.len(), Ordering::Release);
}
