//! A file mapped into memory: a log, or the watermark.
//!
//! A store beyond what the file system has set aside raises SIGBUS, so a file is given real
//! blocks (`fallocate`) before it is mapped, and the map is never longer than the file. A full disk
//! is then an error of `create` or `grow`, where it can be told. The blocks read as zero until they
//! are written, which is what ends a log; they are not zeroed through the page cache, as that
//! would have every later sync write whole large folios.

#![expect(unsafe_code, reason = "a mapped file can be changed behind our back")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use memmap2::{MmapMut, RemapOptions};

use super::sys;

/// A file that is ours alone, mapped from its beginning to its end.
#[derive(Debug)]
pub(crate) struct Map {
    file: Arc<File>,
    map: MmapMut,
}

impl Map {
    /// Makes a file of `len` zero bytes, all of them allocated, and maps it. There must be none of
    /// this name: it might be mapped, and cutting it would be a SIGBUS.
    pub(crate) fn create(path: &Path, len: u64) -> io::Result<Map> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
        sys::allocate(&file, len)?;
        // SAFETY: the file is `len` bytes long and allocated. Nobody else writes or cuts it while
        // it is mapped: the directory is locked against a second server (`directories.rs`), and
        // this one cuts a log only after its map is gone (`Book::into_file`).
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Map { file: Arc::new(file), map })
    }

    /// Opens a file that is there, made `len` bytes long and allocated, and maps it.
    pub(crate) fn open(path: &Path, len: u64) -> io::Result<Map> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        sys::allocate(&file, len)?;
        // SAFETY: as in `create`. Nobody cuts this file.
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Map { file: Arc::new(file), map })
    }

    /// Makes file and map longer.
    pub(crate) fn grow(&mut self, len: u64) -> io::Result<()> {
        let new_len = usize::try_from(len).map_err(io::Error::other)?;
        assert!(self.map.len() <= new_len, "a map never shrinks");
        sys::allocate(&self.file, len)?;
        // SAFETY: the file is at least `len` bytes long, as it has just been allocated; the rest
        // is as in `create`. No reference into the old map is alive: we hold it mutably.
        unsafe { self.map.remap(new_len, RemapOptions::new().may_move(true)) }
    }

    pub(crate) fn len(&self) -> u64 {
        self.map.len() as u64
    }

    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.map
    }
}

impl AsMut<[u8]> for Map {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::shell::scratch::Scratch;

    #[test]
    fn what_is_stored_is_in_the_file_and_the_rest_is_zero() {
        let scratch = Scratch::new("map");
        let path = scratch.path().join("log");
        let mut map = Map::create(&path, 8192).unwrap();
        map.as_mut()[..3].copy_from_slice(b"abc");
        map.grow(1 << 20).unwrap();
        map.as_mut()[(1 << 20) - 1] = b'z';
        assert_eq!(map.len(), 1 << 20);
        drop(map);
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!((bytes.len(), &bytes[..4]), (1 << 20, b"abc\0".as_slice()));
        assert_eq!(bytes.iter().filter(|&&byte| byte != 0).count(), 4);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn more_than_the_disk_holds_is_an_error() {
        let scratch = Scratch::new("map-full");
        assert!(Map::create(&scratch.path().join("log"), 1 << 50).is_err());
        let mut map = Map::create(&scratch.path().join("log2"), 4096).unwrap();
        assert!(map.grow(1 << 50).is_err());
        map.as_mut()[4095] = 1;
    }
}
