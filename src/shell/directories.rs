//! The data directories: checked, locked, made.
//!
//! A start that is refused changes nothing. So missing directories are created, and the lock file is
//! written, only once it is certain that the server will serve. Until then, a missing directory
//! counts as an empty one.
//!
//! A lock on the directory itself (`flock`) keeps a second server away. A lock file can be deleted
//! while the directory is in use; the directory cannot. The lock file tells people which process
//! holds the lock. It is locked as well, because older versions of this server lock only that file.
//!
//! ```text
//! <dataDir>                               locked for as long as the server runs
//! <dataDir>/ringkeeper.lock               its process; locked, too
//! <dataDir>/version-2/snapshot.*
//! <dataDir>/ringkeeper.watermark          a copy, where dataLogDir is another directory
//! <dataLogDir>/ringkeeper.lock            where it is another directory
//! <dataLogDir>/ringkeeper.watermark       outside of version-2, whose names ZooKeeper reads
//! <dataLogDir>/ringkeeper.torn/log.*      copies of what recovery has cut off logs
//! <dataLogDir>/version-2/log.*
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::storage;
use crate::storage::recovery::{TORN_NAME, VERSION_NAME};
use crate::storage::watermark::WATERMARK_NAME;

const LOCK_NAME: &str = "ringkeeper.lock";

/// A data directory that cannot be used. The process ends with code 3.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error(
        "Missing data directory {}, automatic data directory creation is disabled \
         (zookeeper.datadir.autocreate is false). Please create this directory manually.",
        path.display()
    )]
    Missing { path: PathBuf },
    #[error(
        "{} was made by somebody else while this server was starting: start it again",
        path.display()
    )]
    Appeared { path: PathBuf },
    #[error("Unable to create data directory {}: {source}", path.display())]
    Create { path: PathBuf, source: io::Error },
    #[error("Cannot write to data directory {}: {source}", path.display())]
    Unwritable { path: PathBuf, source: io::Error },
    #[error(
        "another server is running on {} (its lock is held{}): stop it first, or give this one \
         a directory of its own", path.display(), Holder(holder)
    )]
    Locked { path: PathBuf, holder: Option<u32> },
    /// Something else has the name of the lock file, and is left as it is.
    #[error(
        "{} {what}: move it away, once no server runs on this directory", path.display()
    )]
    LockFile { path: PathBuf, what: String },
    #[error(
        "{} has {name}, which belongs to the other one of dataDir and dataLogDir: move it there",
        path.display()
    )]
    Misplaced { path: PathBuf, name: String },
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// How the message of a held lock says who holds it.
struct Holder<'a>(&'a Option<u32>);

impl std::fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.map_or(Ok(()), |pid| write!(f, " by process {pid}"))
    }
}

/// The two directories, ours for as long as this lives.
#[derive(Debug)]
pub(crate) struct Directories {
    snapshots: PathBuf,
    logs: PathBuf,
    watermark: PathBuf,
    are_apart: bool,
    /// Of the directories that exist. The kernel releases the locks when the process ends.
    locks: Vec<Lock>,
}

impl Directories {
    /// Locks those of the two directories that exist. With `create`, a missing one is created later.
    pub(crate) fn open(
        data_dir: &Path,
        data_log_dir: &Path,
        create: bool,
    ) -> Result<Directories, DirectoryError> {
        let (snapshots, logs) = (data_dir.join(VERSION_NAME), data_log_dir.join(VERSION_NAME));
        let mut locks = Vec::new();
        for (directory, version) in [(data_dir, &snapshots), (data_log_dir, &logs)] {
            let missing = [directory, version].into_iter().find(|path| is_missing(path));
            if let Some(path) = missing.filter(|_| !create) {
                return Err(DirectoryError::Missing { path: path.to_path_buf() });
            }
            lock_if_there(directory, &mut locks)?;
        }
        // A missing directory cannot be another name of one that exists.
        let is_one_missing = is_missing(data_dir) || is_missing(data_log_dir);
        let are_apart = locks.len() == 2 || (is_one_missing && data_dir != data_log_dir);
        if are_apart {
            refuse_misplaced(&snapshots, false)?;
            refuse_misplaced(&logs, true)?;
        }
        let watermark = data_log_dir.join(WATERMARK_NAME);
        Ok(Directories { snapshots, logs, watermark, are_apart, locks })
    }

    /// Creates the missing directories, and writes the number of this process into the lock files.
    pub(crate) fn made(mut self) -> Result<Directories, DirectoryError> {
        let directory = |version: &PathBuf| {
            version.parent().expect("it was joined to its directory").to_path_buf()
        };
        // Creating one directory may create the other: one may lie inside the other.
        let versions = [&self.snapshots, &self.logs];
        let were_missing = versions.map(|version| is_missing(&directory(version)));
        for (version, was_missing) in versions.into_iter().zip(were_missing) {
            let directory = &directory(version);
            if was_missing && is_missing(directory) {
                make_new(directory, version)?;
            }
            let identity = identity(directory)?;
            let is_ours = |locks: &[Lock]| locks.iter().any(|lock| lock.identity == identity);
            if was_missing && !is_ours(&self.locks) {
                lock_if_there(directory, &mut self.locks)?;
                // Another server may have locked it first, created its files and ended again.
                if !is_missing(version) {
                    return Err(DirectoryError::Appeared { path: directory.to_path_buf() });
                }
            }
            if !is_ours(&self.locks) {
                return Err(DirectoryError::Appeared { path: directory.to_path_buf() });
            }
            if is_missing(version) {
                make_new(version, version)?;
            }
        }
        self.are_apart = self.locks.len() == 2;
        self.locks.iter_mut().try_for_each(Lock::sign)?;
        Ok(self)
    }

    /// Whether logs have a directory of their own.
    pub(crate) fn are_apart(&self) -> bool {
        self.are_apart
    }

    /// Where snapshots lie.
    pub(crate) fn snapshots(&self) -> &Path {
        &self.snapshots
    }

    /// Where logs lie.
    pub(crate) fn logs(&self) -> &Path {
        &self.logs
    }

    pub(crate) fn data_dir(&self) -> &Path {
        parent_of(&self.snapshots)
    }

    /// Where logs have a directory of their own.
    pub(crate) fn data_log_dir(&self) -> Option<&Path> {
        self.are_apart.then(|| parent_of(&self.logs))
    }

    pub(crate) fn watermark(&self) -> &Path {
        &self.watermark
    }

    /// The watermark's file, and its copy where snapshots have a directory of their own: so that
    /// it is known there that there were logs.
    pub(crate) fn watermarks(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.watermark.clone()];
        if let Some(data) = self.snapshots.parent().filter(|_| self.are_apart()) {
            paths.push(data.join(WATERMARK_NAME));
        }
        paths
    }
}

/// Deletes all that a server keeps in these directories, and creates them again. Fails while a server
/// runs on them.
pub(super) fn begin_anew(data_dir: &Path, data_log_dir: &Path) -> Result<(), DirectoryError> {
    let mut locks = Vec::new();
    for directory in [data_dir, data_log_dir] {
        if is_missing(directory) {
            make_new(directory, directory)?;
        }
        lock_if_there(directory, &mut locks)?;
    }
    locks.iter_mut().try_for_each(Lock::sign)?;
    for directory in [data_dir, data_log_dir] {
        let [version, watermark, torn] =
            [VERSION_NAME, WATERMARK_NAME, TORN_NAME].map(|name| directory.join(name));
        // The watermark is deleted last: while it exists, a start notices that logs are missing.
        fs::remove_dir_all(&torn)
            .or_else(unless_missing)
            .and_then(|()| fs::remove_dir_all(&version).or_else(unless_missing))
            .and_then(|()| fs::remove_file(&watermark).or_else(unless_missing))
            .map_err(|source| DirectoryError::Unwritable {
                path: directory.to_path_buf(),
                source,
            })?;
        if is_missing(&version) {
            make_new(&version, &version)?;
        }
    }
    drop(locks);
    Ok(())
}

fn parent_of(version: &Path) -> &Path {
    version.parent().expect("it was joined to its directory")
}

fn unless_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Identifies a directory, whichever path leads to it.
fn identity(path: &Path) -> Result<(u64, u64), DirectoryError> {
    let found = fs::metadata(path)
        .map_err(|source| DirectoryError::Read { path: path.to_path_buf(), source })?;
    Ok((found.dev(), found.ino()))
}

/// Whether nothing has this name. Something that cannot be examined counts as existing.
fn is_missing(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// Creates a directory with mode 0700; fails if somebody else has created it in the meantime. Errors
/// name `wanted`: the directory itself, or one inside it that is to be created next.
fn make_new(path: &Path, wanted: &Path) -> Result<(), DirectoryError> {
    let failed = |source| DirectoryError::Create { path: wanted.to_path_buf(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed)?;
    DirBuilder::new().mode(0o700).create(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists if !is_missing(path) => {
            DirectoryError::Appeared { path: path.to_path_buf() }
        }
        _ => failed(error),
    })?;
    // The directory's own entry must survive a power loss, as the files in it will.
    sync_directory(parent).map_err(failed)
}

/// Keeps other servers away from a directory until it is dropped.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    identity: (u64, u64),
    /// `None` where the file system cannot lock a directory.
    _directory: Option<File>,
    /// The lock file; `None` while it does not exist.
    file: Option<File>,
}

/// Locks a directory, unless it is missing or one of `locks` has locked it already.
fn lock_if_there(path: &Path, locks: &mut Vec<Lock>) -> Result<(), DirectoryError> {
    if !is_missing(path) {
        let identity = identity(path)?;
        if !locks.iter().any(|lock| lock.identity == identity) {
            locks.push(lock(path, identity)?);
        }
    }
    Ok(())
}

fn lock(path: &Path, identity: (u64, u64)) -> Result<Lock, DirectoryError> {
    let unreadable = |source| DirectoryError::Read { path: path.to_path_buf(), source };
    let file_path = path.join(LOCK_NAME);
    let directory = File::open(path).map_err(unreadable)?;
    let directory = match directory.try_lock() {
        Ok(()) => Some(directory),
        Err(TryLockError::WouldBlock) => {
            let holder = flock_holder(&directory).or_else(|| written_holder(&file_path));
            return Err(DirectoryError::Locked { path: path.to_path_buf(), holder });
        }
        // NFS, for one, locks only what is open for writing.
        Err(TryLockError::Error(error)) => {
            warn!(
                %error, path = %path.display(),
                "this file system cannot lock a directory: only {LOCK_NAME} keeps a second server \
                 away, and nothing once that is deleted"
            );
            None
        }
    };
    let has_file = file_path.symlink_metadata().is_ok();
    let file = if has_file || directory.is_none() { Some(lock_file(path)?) } else { None };
    Ok(Lock { path: path.to_path_buf(), identity, _directory: directory, file })
}

/// Locks the lock file, and creates it if it is missing.
fn lock_file(path: &Path) -> Result<File, DirectoryError> {
    let file_path = path.join(LOCK_NAME);
    let file = open_lock_file(&file_path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            let holder = flock_holder(&file).or_else(|| written_holder(&file_path));
            Err(DirectoryError::Locked { path: path.to_path_buf(), holder })
        }
        Err(TryLockError::Error(source)) => {
            Err(DirectoryError::Unwritable { path: path.to_path_buf(), source })
        }
    }
}

impl Lock {
    /// Writes the number of this process into the lock file, for people to read. Servers go by the
    /// locks alone.
    fn sign(&mut self) -> Result<(), DirectoryError> {
        let failed = |source| DirectoryError::Unwritable { path: self.path.clone(), source };
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(lock_file(&self.path)?),
        };
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(failed)
    }
}

/// Opens the lock file, and creates it if it is missing. Opens no links and waits for no pipes: the
/// target of a link is not ours to write to, and opening a pipe would block.
fn open_lock_file(path: &Path) -> Result<File, DirectoryError> {
    let refused = |what: String| DirectoryError::LockFile { path: path.to_path_buf(), what };
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let options = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path).map_err(|error| {
        refused(match error.raw_os_error() {
            Some(libc::ELOOP) => "is a symbolic link, and not our lock file".to_owned(),
            Some(libc::EISDIR) => "is a directory, and not our lock file".to_owned(),
            _ => format!("cannot be opened ({error})"),
        })
    })?;
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(refused("is no regular file, and so not our lock file".to_owned())),
        Err(error) => Err(refused(format!("cannot be looked at ({error})"))),
    }
}

/// The process that has locked this file or directory, if the kernel shows it. It does not show
/// processes of other containers.
fn flock_holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    holder_in(&fs::read_to_string("/proc/locks").ok()?, found.dev(), found.ino())
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fd:01:131090 0 EOF`
fn holder_in(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let place = format!("{:02x}:{:02x}:{inode}", libc::major(device), libc::minor(device));
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // In the line of a process that waits for a lock, an arrow comes before the word.
            [_, "FLOCK", _, _, pid, at, ..] if at == place => {
                pid.parse().ok().filter(|&pid| 0 < pid)
            }
            _ => None,
        }
    })
}

/// The process whose number is in the lock file.
fn written_holder(path: &Path) -> Option<u32> {
    let mut options = OpenOptions::new();
    let options = options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let mut text = String::new();
    options.open(path).ok()?.take(PID_BYTES_MAX).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

/// Longer than any process's number.
const PID_BYTES_MAX: u64 = 32;

fn refuse_misplaced(path: &Path, in_log_directory: bool) -> Result<(), DirectoryError> {
    let misplaced = |(name, _): &(String, u64)| storage::is_misplaced(name, in_log_directory);
    if is_missing(path) {
        return Ok(());
    }
    match names(path)?.into_iter().find(misplaced) {
        Some((name, _)) => Err(DirectoryError::Misplaced { path: path.to_path_buf(), name }),
        None => Ok(()),
    }
}

/// The names of the files in a directory, and their lengths. Names that are not UTF-8 are left out:
/// this server makes none.
pub(crate) fn names(path: &Path) -> Result<Vec<(String, u64)>, DirectoryError> {
    let failed = |source| DirectoryError::Read { path: path.to_path_buf(), source };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(metadata) => names.push((name, metadata.len())),
            // A purge has deleted it since the directory was listed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(source)),
        }
    }
    Ok(names)
}

/// Makes durable which names a directory has. `fdatasync` would not do: it may leave out an entry
/// that did not change the directory's size.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::shell::scratch::Scratch;

    /// As a server that serves has them.
    fn served(data_dir: &Path, data_log_dir: &Path) -> Result<Directories, DirectoryError> {
        Directories::open(data_dir, data_log_dir, true)?.made()
    }

    #[test]
    fn directories_are_made_for_the_owner_alone() {
        let scratch = Scratch::new("dirs");
        let (data, logs) = (scratch.path().join("a/data"), scratch.path().join("logs"));
        let directories = served(&data, &logs).unwrap();
        for path in [directories.snapshots(), directories.logs()] {
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o700);
        }
        assert_eq!(directories.watermark(), logs.join("ringkeeper.watermark"));
    }

    #[test]
    fn a_second_server_is_refused_and_told_who_is_first() {
        let scratch = Scratch::new("lock");
        let path = scratch.path();
        let first = served(path, path).unwrap();
        let refused = served(path, path).unwrap_err().to_string();
        assert!(refused.contains(&format!("by process {}", std::process::id())), "{refused}");
        drop(first);
        served(path, path).unwrap();
    }

    #[test]
    fn a_second_server_is_refused_whatever_became_of_the_lock_file() {
        let scratch = Scratch::new("lock-removed");
        let path = scratch.path();
        let first = served(path, path).unwrap();
        fs::remove_file(path.join(LOCK_NAME)).unwrap();
        let refused = served(path, path).unwrap_err().to_string();
        assert!(refused.contains("another server is running"), "{refused}");
        assert!(refused.contains(&format!("by process {}", std::process::id())), "{refused}");
        fs::write(path.join(LOCK_NAME), "1\n").unwrap();
        let refused = served(path, path).unwrap_err();
        assert!(matches!(refused, DirectoryError::Locked { .. }), "{refused}");
        assert!(begin_anew(path, path).is_err(), "nor is anything deleted under it");
        drop(first);
        served(path, path).unwrap();
    }

    #[test]
    fn a_server_that_locks_the_file_alone_is_noticed() {
        let scratch = Scratch::new("lock-old");
        let path = scratch.path();
        let held = File::create(path.join(LOCK_NAME)).unwrap();
        held.try_lock().unwrap();
        let refused = served(path, path).unwrap_err().to_string();
        assert!(refused.contains(&format!("by process {}", std::process::id())), "{refused}");
        drop(held);
        served(path, path).unwrap();
    }

    #[test]
    fn what_is_no_lock_file_of_ours_is_left_alone_and_named() {
        let scratch = Scratch::new("lock-odd");
        let path = scratch.path();
        let (lock, other) = (path.join(LOCK_NAME), path.join("other"));
        fs::write(&other, "precious").unwrap();
        let refused = |why: &str| {
            let refused = served(path, path).unwrap_err().to_string();
            assert!(refused.contains(LOCK_NAME) && refused.contains(why), "{refused}");
        };
        std::os::unix::fs::symlink(&other, &lock).unwrap();
        refused("symbolic link");
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
        fs::remove_file(&lock).unwrap();
        std::os::unix::fs::symlink(path.join("missing"), &lock).unwrap();
        refused("symbolic link");
        assert!(!path.join("missing").exists());
        fs::remove_file(&lock).unwrap();
        fs::create_dir(&lock).unwrap();
        refused("is a directory");
        fs::remove_dir(&lock).unwrap();
        drop(std::os::unix::net::UnixListener::bind(&lock).unwrap());
        refused("cannot be opened");
        fs::remove_file(&lock).unwrap();
        fs::write(&lock, "").unwrap();
        fs::set_permissions(&lock, fs::Permissions::from_mode(0o000)).unwrap();
        // Root may open it all the same.
        if File::open(&lock).is_err() {
            refused("cannot be opened");
        }
    }

    #[test]
    fn the_kernel_says_who_holds_a_lock() {
        let locks = "1: FLOCK  ADVISORY  WRITE 4711 fd:01:131090 0 EOF\n\
                     1: -> FLOCK  ADVISORY  WRITE 99 fd:01:131090 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 98 fd:01:131091 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 0 fd:01:131092 0 EOF\n";
        let device = libc::makedev(0xfd, 1);
        let holder = |inode| holder_in(locks, device, inode);
        assert_eq!([131_090, 131_091, 131_092, 1].map(holder), [Some(4711), None, None, None]);
        assert_eq!(holder_in(locks, libc::makedev(0xfd, 2), 131_090), None);
    }

    #[test]
    fn a_shared_log_directory_is_refused_too() {
        let scratch = Scratch::new("lock-log");
        let (a, b, logs) = ("a", "b", "logs");
        let [a, b, logs] = [a, b, logs].map(|name| scratch.path().join(name));
        let _first = served(&a, &logs).unwrap();
        let refused = served(&b, &logs).unwrap_err();
        assert!(matches!(refused, DirectoryError::Locked { path, .. } if path == logs));
    }

    #[test]
    fn a_missing_directory_is_refused_where_none_may_be_made() {
        let scratch = Scratch::new("missing");
        let path = scratch.path().join("no");
        let refused = Directories::open(&path, &path, false).unwrap_err().to_string();
        assert!(refused.starts_with("Missing data directory"), "{refused}");
        assert!(!path.exists());
    }

    #[test]
    fn nothing_is_made_before_all_is_known_to_be_well() {
        let scratch = Scratch::new("unmade");
        let names = |path: &Path| {
            let entries = fs::read_dir(path).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        let (data, logs) = (scratch.path().join("data"), scratch.path().join("a/logs"));
        let opened = Directories::open(&data, &logs, true).unwrap();
        assert!(opened.are_apart() && names(scratch.path()).is_empty());
        drop(opened);
        fs::create_dir(&data).unwrap();
        let opened = Directories::open(&data, &logs, true).unwrap();
        assert!(opened.are_apart() && names(&data).is_empty());
        assert_eq!(names(scratch.path()), ["data"]);
        // It is locked all the same.
        let refused = Directories::open(&data, &data, true).unwrap_err();
        assert!(matches!(refused, DirectoryError::Locked { .. }), "{refused}");
        let made = opened.made().unwrap();
        assert_eq!(names(&data), [LOCK_NAME, VERSION_NAME]);
        assert_eq!(names(&logs), [LOCK_NAME, VERSION_NAME]);
        drop(made);
        // One in the other.
        let outer = scratch.path().join("outer");
        assert!(served(&outer.join("data"), &outer).unwrap().are_apart());
        // Two names of one directory that is missing.
        let (one, other) = (scratch.path().join("one"), scratch.path().join("./a/../one"));
        assert!(!served(&one, &other).unwrap().are_apart());
    }

    #[test]
    fn what_another_server_makes_meanwhile_is_its_own() {
        let scratch = Scratch::new("appeared");
        let (data, logs) = (scratch.path().join("data"), scratch.path().join("logs"));
        // Both have found nothing; one is quicker, and is even over when the other goes on.
        let [first, second] = [(); 2].map(|()| Directories::open(&data, &data, true).unwrap());
        drop(first.made().unwrap());
        let refused = second.made().unwrap_err();
        assert!(
            matches!(&refused, DirectoryError::Appeared { path } if *path == data),
            "{refused}"
        );
        let opened = Directories::open(&data, &logs, true).unwrap();
        fs::create_dir(&logs).unwrap();
        let refused = opened.made().unwrap_err();
        assert!(
            matches!(&refused, DirectoryError::Appeared { path } if *path == logs),
            "{refused}"
        );
    }

    #[test]
    fn logs_among_the_snapshots_are_refused_when_they_have_a_directory_of_their_own() {
        let scratch = Scratch::new("misplaced");
        let (data, logs) = (scratch.path().join("data"), scratch.path().join("logs"));
        drop(served(&data, &data).unwrap());
        fs::write(data.join("version-2/log.1"), b"").unwrap();
        drop(served(&data, &data).unwrap());
        let refused = served(&data, &logs).unwrap_err();
        assert!(matches!(refused, DirectoryError::Misplaced { name, .. } if name == "log.1"));
    }
}
