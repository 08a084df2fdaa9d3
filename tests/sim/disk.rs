//! A disk that forgets what was not synced, and tears.
//!
//! A file is pages of 4 KiB. A store reaches the page cache, where it survives the process; a page
//! that differs from the disk is dirty, and may be written back at any moment, whole or by
//! sectors. Only a sync says that it was. A name is durable once its directory is synced. After a
//! power loss any subset of what was not durable is gone.
//!
//! ```text
//! cached   what the process and the next one see     -- write back, sync -->  stored
//! names    what a lookup finds                       -- directory sync  -->  stored names
//! ```
//!
//! A write past the page cache is on its way from its begin to its end. A power loss leaves any of
//! its sectors; a process that is killed leaves it on its way, and it lands while the next process
//! is starting, at the latest before its file is cut.
//!
//! A sync that fails is like Linux's: the pages it could not write are clean from then on, and the
//! disk does not have them. They may be read from the cache for as long as it holds them.
//!
//! Every store, call and sync is one step. A fuse counts steps down, and the one at which it ends
//! is not done any more: so a crash comes between any two.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::rng::Rng;

pub(crate) const PAGE_BYTES: usize = 4096;
const SECTOR_BYTES: usize = 512;

pub(crate) type FileId = usize;

/// Why something was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskError {
    /// The crash comes here.
    Crashed,
    Full,
    /// A sync that failed.
    Io,
}

impl std::fmt::Display for DiskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for DiskError {}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// Its length is the file's.
    cached: Vec<u8>,
    /// Blocks on the disk.
    stored: Vec<u8>,
    stored_len: usize,
    /// Pages that a sync has to write.
    dirty: BTreeSet<usize>,
    /// Pages that a sync is writing: nobody else does meanwhile.
    in_flight: BTreeSet<usize>,
}

/// A change of names that is not durable.
#[derive(Clone, Debug)]
enum NameChange {
    Link { name: String, file: FileId },
    Unlink { name: String, file: FileId },
    Rename { from: String, to: String, file: FileId },
}

/// A sync under way: what it found to write.
#[derive(Clone, Debug)]
pub(crate) struct Syncing {
    file: FileId,
    pages: Vec<(usize, [u8; PAGE_BYTES])>,
    len: usize,
}

/// A write past the page cache that is on its way.
#[derive(Clone, Debug)]
struct Write {
    file: FileId,
    offset: usize,
    bytes: Vec<u8>,
    /// Steps until it lands, once nobody waits for it.
    lands_in: Option<u64>,
}

/// How much of what was not durable a power loss takes.
#[derive(Clone, Copy, Debug)]
enum Loss {
    Nothing,
    Everything,
    Some { kept_per_mille: u64, torn_per_mille: u64 },
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    files: Vec<Inode>,
    names: BTreeMap<String, FileId>,
    stored_names: BTreeMap<String, FileId>,
    pending: Vec<NameChange>,
    /// Past the page cache, in the order in which they began.
    writes: Vec<Write>,
    /// How many steps are left to a crash.
    fuse: Option<u64>,
    crashed: bool,
    /// Nothing more can be allocated.
    pub(crate) is_full: bool,
    /// The next sync fails.
    pub(crate) fail_next_sync: bool,
    pub(crate) torn_pages: u64,
    pub(crate) lost_names: u64,
}

impl Disk {
    fn step(&mut self) -> Result<(), DiskError> {
        if self.fuse == Some(0) {
            self.crashed = true;
        }
        if self.crashed {
            return Err(DiskError::Crashed);
        }
        self.fuse = self.fuse.map(|left| left - 1);
        for write in &mut self.writes {
            write.lands_in = write.lands_in.map(|left| left.saturating_sub(1));
        }
        self.land_those(|write| write.lands_in == Some(0));
        Ok(())
    }

    /// Lands the writes that nobody waits for and that `lands` says.
    fn land_those(&mut self, lands: impl Fn(&Write) -> bool) {
        let (landing, writes) = std::mem::take(&mut self.writes)
            .into_iter()
            .partition(|write| write.lands_in.is_some() && lands(write));
        self.writes = writes;
        let landing: Vec<Write> = landing;
        for Write { file, offset, bytes, .. } in landing {
            self.files[file].land(offset, &bytes);
        }
    }

    /// The crash comes after so many more steps.
    pub(crate) fn light_fuse(&mut self, steps: u64) {
        self.fuse = Some(steps);
    }

    pub(crate) fn put_out_fuse(&mut self) {
        self.fuse = None;
    }

    // ---- files ------------------------------------------------------------------------------

    pub(crate) fn find(&self, name: &str) -> Option<FileId> {
        self.names.get(name).copied()
    }

    /// The file of this name, empty.
    pub(crate) fn create(&mut self, name: &str) -> Result<FileId, DiskError> {
        self.step()?;
        if self.is_full {
            return Err(DiskError::Full);
        }
        if let Some(file) = self.find(name) {
            self.cut(file, 0);
            return Ok(file);
        }
        let file = self.files.len();
        self.files.push(Inode::default());
        self.names.insert(name.to_owned(), file);
        self.pending.push(NameChange::Link { name: name.to_owned(), file });
        Ok(file)
    }

    /// Gives the file room up to `len`; what is new reads as zero.
    pub(crate) fn allocate(&mut self, file: FileId, len: usize) -> Result<(), DiskError> {
        self.step()?;
        if self.is_full {
            return Err(DiskError::Full);
        }
        let cached = &mut self.files[file].cached;
        assert!(cached.len() <= len, "allocating does not shorten");
        cached.resize(len, 0);
        Ok(())
    }

    pub(crate) fn set_len(&mut self, file: FileId, len: usize) -> Result<(), DiskError> {
        self.step()?;
        // The kernel waits for direct writes before it cuts a file.
        self.land_those(|write| write.file == file);
        self.cut(file, len);
        Ok(())
    }

    fn cut(&mut self, file: FileId, len: usize) {
        let inode = &mut self.files[file];
        inode.cached.resize(len, 0);
        inode.dirty.retain(|page| page * PAGE_BYTES < len);
    }

    /// Stores into the file, which grows as needed. A crash leaves a part of it, page by page.
    pub(crate) fn write(
        &mut self,
        file: FileId,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), DiskError> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            self.step()?;
            let inode = &mut self.files[file];
            let page = at / PAGE_BYTES;
            let (piece, after) = rest.split_at(rest.len().min((page + 1) * PAGE_BYTES - at));
            if inode.cached.len() < at + piece.len() {
                inode.cached.resize(at + piece.len(), 0);
            }
            inode.cached[at..at + piece.len()].copy_from_slice(piece);
            inode.dirty.insert(page);
            at += piece.len();
            rest = after;
        }
        Ok(())
    }

    /// The same for what takes new blocks.
    pub(crate) fn write_new(
        &mut self,
        file: FileId,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), DiskError> {
        if self.is_full {
            return Err(DiskError::Full);
        }
        self.write(file, offset, bytes)
    }

    pub(crate) fn read(&self, file: FileId) -> &[u8] {
        &self.files[file].cached
    }

    pub(crate) fn read_name(&self, name: &str) -> Option<&[u8]> {
        self.find(name).map(|file| self.read(file))
    }

    /// The names in a directory, with their lengths.
    pub(crate) fn list(&self, directory: &str) -> Vec<(String, u64)> {
        let in_directory = |name: &str| {
            name.rsplit_once('/')
                .filter(|(of, _)| *of == directory)
                .map(|(_, name)| name.to_owned())
        };
        self.names
            .iter()
            .filter_map(|(name, &file)| Some((in_directory(name)?, self.read(file).len() as u64)))
            .collect()
    }

    pub(crate) fn rename(&mut self, from: &str, to: &str) -> Result<(), DiskError> {
        self.step()?;
        let file = self.names.remove(from).expect("what is renamed is there");
        self.names.insert(to.to_owned(), file);
        self.pending.push(NameChange::Rename { from: from.to_owned(), to: to.to_owned(), file });
        Ok(())
    }

    pub(crate) fn unlink(&mut self, name: &str) -> Result<(), DiskError> {
        self.step()?;
        let file = self.names.remove(name).expect("what is removed is there");
        self.pending.push(NameChange::Unlink { name: name.to_owned(), file });
        Ok(())
    }

    // ---- durability -------------------------------------------------------------------------

    /// Begins to make durable what the file holds at this moment.
    pub(crate) fn begin_sync(&mut self, file: FileId) -> Result<Syncing, DiskError> {
        self.step()?;
        let inode = &mut self.files[file];
        inode.in_flight.clone_from(&inode.dirty);
        let pages = inode.dirty.iter().map(|&page| (page, page_of(&inode.cached, page))).collect();
        Ok(Syncing { file, pages, len: inode.cached.len() })
    }

    pub(crate) fn end_sync(&mut self, syncing: Syncing) -> Result<(), DiskError> {
        self.step()?;
        let Syncing { file, pages, len } = syncing;
        let inode = &mut self.files[file];
        inode.in_flight.clear();
        if std::mem::take(&mut self.fail_next_sync) {
            for (page, _) in pages {
                inode.dirty.remove(&page);
            }
            return Err(DiskError::Io);
        }
        for (page, bytes) in pages {
            store(&mut inode.stored, page, &bytes);
            if page_of(&inode.cached, page) == bytes {
                inode.dirty.remove(&page);
            }
        }
        // A later change of length is not covered; blocks that came with it stay.
        inode.stored_len = len;
        let kept = len.max(inode.cached.len()).min(inode.stored.len());
        inode.stored.resize(kept.max(len), 0);
        Ok(())
    }

    pub(crate) fn sync(&mut self, file: FileId) -> Result<(), DiskError> {
        let syncing = self.begin_sync(file)?;
        self.end_sync(syncing)
    }

    /// Begins a write past the page cache, into room that the file has. One is on its way to a file
    /// at a time.
    pub(crate) fn begin_write(
        &mut self,
        file: FileId,
        offset: usize,
        bytes: &[u8],
    ) -> Result<(), DiskError> {
        self.step()?;
        let mut others = self.writes.iter().filter(|write| write.lands_in.is_none());
        assert!(others.all(|write| write.file != file), "one at a time");
        assert!(offset + bytes.len() <= self.files[file].cached.len(), "into room that is there");
        self.writes.push(Write { file, offset, bytes: bytes.to_vec(), lands_in: None });
        Ok(())
    }

    /// It is on the disk, and durable; or it has failed, and any of it may be there.
    pub(crate) fn end_write(&mut self, file: FileId) -> Result<(), DiskError> {
        self.step()?;
        let is_it = |write: &Write| write.file == file && write.lands_in.is_none();
        let at = self.writes.iter().position(is_it);
        let Write { file, offset, bytes, .. } = self.writes.remove(at.expect("it was begun"));
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(DiskError::Io);
        }
        self.files[file].land(offset, &bytes);
        Ok(())
    }

    pub(crate) fn sync_directory(&mut self, directory: &str) -> Result<(), DiskError> {
        self.step()?;
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(DiskError::Io);
        }
        let is_in = |name: &str| name.rsplit_once('/').map_or("", |(of, _)| of) == directory;
        let pending = std::mem::take(&mut self.pending);
        for change in pending {
            if is_in(change.name()) {
                change.apply(&mut self.stored_names);
            } else {
                self.pending.push(change);
            }
        }
        Ok(())
    }

    /// Forgets what the cache holds and no sync will write: what is read next is on the disk.
    pub(crate) fn drop_clean_pages(&mut self, file: FileId) {
        let inode = &mut self.files[file];
        for page in 0..inode.cached.len().div_ceil(PAGE_BYTES) {
            if !inode.dirty.contains(&page) {
                let bytes = page_of(&inode.stored, page);
                let start = page * PAGE_BYTES;
                let end = inode.cached.len().min(start + PAGE_BYTES);
                inode.cached[start..end].copy_from_slice(&bytes[..end - start]);
            }
        }
    }

    /// The kernel writes back a page of its own accord.
    pub(crate) fn write_back_some(&mut self, rng: &mut Rng) {
        let dirty: Vec<(FileId, usize)> = (self.files.iter().enumerate())
            .flat_map(|(file, inode)| {
                inode.dirty.difference(&inode.in_flight).map(move |&page| (file, page))
            })
            .collect();
        if dirty.is_empty() {
            return;
        }
        let (file, page) = *rng.pick(&dirty);
        let inode = &mut self.files[file];
        let bytes = page_of(&inode.cached, page);
        if rng.coin() {
            store(&mut inode.stored, page, &bytes);
            inode.dirty.remove(&page);
        } else {
            let torn = torn(&page_of(&inode.stored, page), &bytes, rng);
            store(&mut inode.stored, page, &torn);
        }
    }

    /// Whether these bytes of the file would survive a power loss now.
    pub(crate) fn is_durable(&self, file: FileId, range: Range<usize>) -> bool {
        let inode = &self.files[file];
        range.end <= inode.stored_len && inode.stored.get(range.clone()) == inode.cached.get(range)
    }

    /// Whether the file would be found under this name after a power loss now.
    pub(crate) fn is_name_durable(&self, name: &str, file: FileId) -> bool {
        let is_changed = |change: &NameChange| match change {
            NameChange::Link { name: of, .. } | NameChange::Unlink { name: of, .. } => of == name,
            NameChange::Rename { from, to, .. } => from == name || to == name,
        };
        self.stored_names.get(name) == Some(&file) && !self.pending.iter().any(is_changed)
    }

    // ---- crashes ----------------------------------------------------------------------------

    /// The process ends; the kernel lives on, and with it all that was stored.
    pub(crate) fn kill(&mut self, rng: &mut Rng) {
        self.fuse = None;
        self.crashed = false;
        for write in self.writes.iter_mut().filter(|write| write.lands_in.is_none()) {
            write.lands_in = Some(rng.mostly_small(0, 60) as u64);
        }
        self.land_those(|write| write.lands_in == Some(0));
        self.files.iter_mut().for_each(|inode| inode.in_flight.clear());
    }

    /// The machine ends. What was not durable may be there or not, in any combination.
    pub(crate) fn lose_power(&mut self, rng: &mut Rng) {
        self.kill(rng);
        self.fail_next_sync = false;
        let loss = match rng.below(8) {
            0 => Loss::Everything,
            1 => Loss::Nothing,
            _ => Loss::Some {
                kept_per_mille: rng.below(1001),
                torn_per_mille: if rng.coin() { 0 } else { rng.below(1001) },
            },
        };
        for Write { file, offset, bytes, .. } in std::mem::take(&mut self.writes) {
            for (index, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                if loss.keeps(rng) {
                    self.files[file].land(offset + index * SECTOR_BYTES, sector);
                }
            }
        }
        for inode in &mut self.files {
            for page in std::mem::take(&mut inode.dirty) {
                let bytes = page_of(&inode.cached, page);
                if loss.tears(rng) {
                    let torn = torn(&page_of(&inode.stored, page), &bytes, rng);
                    store(&mut inode.stored, page, &torn);
                    self.torn_pages += 1;
                } else if loss.keeps(rng) {
                    store(&mut inode.stored, page, &bytes);
                }
            }
            if inode.cached.len() != inode.stored_len && loss.keeps(rng) {
                inode.stored_len = inode.cached.len();
            }
            inode.stored.resize(inode.stored_len, 0);
            inode.cached.clone_from(&inode.stored);
        }
        for change in std::mem::take(&mut self.pending) {
            if loss.keeps(rng) {
                change.apply(&mut self.stored_names);
            } else {
                self.lost_names += 1;
            }
        }
        self.names.clone_from(&self.stored_names);
    }

    /// A bit of the file goes bad on the disk.
    pub(crate) fn flip_a_bit(&mut self, file: FileId, rng: &mut Rng) {
        let at = rng.index(self.files[file].cached.len());
        self.flip(file, at, 1 << rng.below(8));
    }

    /// These bits of a byte go bad, on the disk and in the cache.
    pub(crate) fn flip(&mut self, file: FileId, at: usize, bits: u8) {
        let inode = &mut self.files[file];
        inode.cached[at] ^= bits;
        if let Some(stored) = inode.stored.get_mut(at) {
            *stored = inode.cached[at];
        }
    }
}

impl Inode {
    /// Bytes that were written past the page cache reach the disk, durably, and are what is read.
    fn land(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        for of in [&mut self.cached, &mut self.stored] {
            of.resize(of.len().max(end), 0);
            of[offset..end].copy_from_slice(bytes);
        }
        self.stored_len = self.stored_len.max(end);
    }
}

impl Loss {
    fn keeps(self, rng: &mut Rng) -> bool {
        match self {
            Loss::Nothing => true,
            Loss::Everything => false,
            Loss::Some { kept_per_mille, .. } => rng.chance(kept_per_mille),
        }
    }

    fn tears(self, rng: &mut Rng) -> bool {
        match self {
            Loss::Nothing | Loss::Everything => false,
            Loss::Some { torn_per_mille, .. } => rng.chance(torn_per_mille),
        }
    }
}

impl NameChange {
    /// Where it happens; a rename stays in its directory.
    fn name(&self) -> &str {
        match self {
            NameChange::Link { name, .. } | NameChange::Unlink { name, .. } => name,
            NameChange::Rename { to, .. } => to,
        }
    }

    /// Does it to the names on the disk, whatever else has reached them.
    fn apply(self, names: &mut BTreeMap<String, FileId>) {
        match self {
            NameChange::Link { name, file } => {
                names.insert(name, file);
            }
            NameChange::Unlink { name, file } => {
                if names.get(&name) == Some(&file) {
                    names.remove(&name);
                }
            }
            NameChange::Rename { from, to, file } => {
                if names.get(&from) == Some(&file) {
                    names.remove(&from);
                }
                names.insert(to, file);
            }
        }
    }
}

/// One page, with zeros where the file does not reach.
fn page_of(bytes: &[u8], page: usize) -> [u8; PAGE_BYTES] {
    let mut copy = [0; PAGE_BYTES];
    let start = bytes.len().min(page * PAGE_BYTES);
    let end = bytes.len().min(start + PAGE_BYTES);
    copy[..end - start].copy_from_slice(&bytes[start..end]);
    copy
}

fn store(stored: &mut Vec<u8>, page: usize, bytes: &[u8; PAGE_BYTES]) {
    let start = page * PAGE_BYTES;
    if stored.len() < start + PAGE_BYTES {
        stored.resize(start + PAGE_BYTES, 0);
    }
    stored[start..start + PAGE_BYTES].copy_from_slice(bytes);
}

/// Some sectors of the one, some of the other.
fn torn(old: &[u8; PAGE_BYTES], new: &[u8; PAGE_BYTES], rng: &mut Rng) -> [u8; PAGE_BYTES] {
    let mut mixed = *old;
    for sector in (0..PAGE_BYTES).step_by(SECTOR_BYTES) {
        if rng.coin() {
            mixed[sector..sector + SECTOR_BYTES]
                .copy_from_slice(&new[sector..sector + SECTOR_BYTES]);
        }
    }
    mixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_loss_takes_only_what_was_not_synced() {
        for seed in 0..200 {
            let (mut disk, mut rng) = (Disk::default(), Rng::new(seed));
            let file = disk.create("d/synced").unwrap();
            disk.write(file, 0, &[1; 10_000]).unwrap();
            disk.sync(file).unwrap();
            disk.sync_directory("d").unwrap();
            assert!(disk.is_durable(file, 0..10_000) && disk.is_name_durable("d/synced", file));
            disk.write(file, 5_000, &[2; 10]).unwrap();
            disk.create("d/unsynced").unwrap();
            assert!(!disk.is_durable(file, 0..10_000));
            disk.write_back_some(&mut rng);
            disk.lose_power(&mut rng);
            let found = disk.read_name("d/synced").unwrap();
            assert_eq!(found.len(), 10_000);
            assert_eq!(found[..5_000], [1; 5_000]);
            assert!(found[5_000..5_010] == [1; 10] || found[5_000..5_010] == [2; 10]);
        }
    }

    #[test]
    fn what_a_failed_sync_lost_is_in_the_cache_only() {
        let mut disk = Disk::default();
        let file = disk.create("d/f").unwrap();
        disk.write(file, 0, b"lost").unwrap();
        disk.fail_next_sync = true;
        assert_eq!(disk.sync(file), Err(DiskError::Io));
        assert_eq!(disk.sync(file), Ok(()));
        assert_eq!(disk.read(file), b"lost");
        assert!(!disk.is_durable(file, 0..4));
        disk.drop_clean_pages(file);
        assert_eq!(disk.read(file), [0; 4]);
    }

    #[test]
    fn a_fuse_ends_between_two_steps() {
        for steps in 0..4 {
            let mut disk = Disk::default();
            let file = disk.create("d/f").unwrap();
            disk.light_fuse(steps);
            let written = disk.write(file, 0, &[1; 3 * PAGE_BYTES]);
            assert_eq!(written.is_ok(), steps == 3);
            disk.kill(&mut Rng::new(1));
            assert_eq!(disk.read(file).len() as u64, steps * PAGE_BYTES as u64);
        }
    }

    #[test]
    fn a_direct_write_is_torn_by_a_power_loss_and_lands_after_a_kill() {
        let (mut torn, mut late) = (0, 0);
        for seed in 0..200 {
            let (mut disk, mut rng) = (Disk::default(), Rng::new(seed));
            let file = disk.create("d/f").unwrap();
            disk.allocate(file, 3 * PAGE_BYTES).unwrap();
            disk.sync(file).unwrap();
            disk.sync_directory("d").unwrap();
            disk.begin_write(file, 0, &[1; PAGE_BYTES]).unwrap();
            disk.end_write(file).unwrap();
            assert!(disk.is_durable(file, 0..PAGE_BYTES));
            disk.begin_write(file, PAGE_BYTES, &[2; PAGE_BYTES]).unwrap();
            let mut cut = disk.clone();
            cut.lose_power(&mut rng);
            let found = &cut.read_name("d/f").unwrap()[..2 * PAGE_BYTES];
            assert_eq!(found[..PAGE_BYTES], [1; PAGE_BYTES]);
            let landed = found.chunks(SECTOR_BYTES).filter(|sector| sector[0] == 2).count();
            torn += u32::from(0 < landed && landed < PAGE_BYTES / SECTOR_BYTES);
            disk.kill(&mut rng);
            late += u32::from(disk.read(file)[PAGE_BYTES] == 0);
            disk.set_len(file, PAGE_BYTES + 1).unwrap();
            assert_eq!(disk.read(file)[PAGE_BYTES], 2, "it lands before the cut");
        }
        assert!(0 < torn && 0 < late, "{torn} {late}");
    }
}
