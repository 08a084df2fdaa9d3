//! Everything that is done to a copy of an image, one thing at a time.
//!
//! Logs are taken apart here by a reader of its own: what judges the server must not share its
//! mistakes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::image::{Image, copy_folder};
use crate::random::Random;

/// One record of a log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Record {
    pub(crate) offset: usize,
    pub(crate) end: usize,
    pub(crate) zxid: i64,
}

/// One log: its name below the image, its bytes, its whole records.
pub(crate) struct Log {
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) records: Vec<Record>,
}

const HEADER_BYTES: usize = 16;

fn number(bytes: &[u8], offset: usize, count: usize) -> Option<i64> {
    let bytes = bytes.get(offset..offset + count)?;
    Some(bytes.iter().fold(0, |value, &byte| value << 8 | i64::from(byte)))
}

/// Adler-32 of a payload.
fn checksum(payload: &[u8]) -> i64 {
    let sums = payload.iter().fold((1_u32, 0_u32), |(a, b), &byte| {
        let a = (a + u32::from(byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    i64::from(sums.1) << 16 | i64::from(sums.0)
}

/// A whole record that creates a znode.
pub(crate) fn create_record(zxid: i64, path: &[u8]) -> Vec<u8> {
    let int = |number: usize| (number as u32).to_be_bytes();
    let text = |text: &[u8]| [&int(text.len()), text].concat();
    let header = [&[0; 8][..], &int(1), &zxid.to_be_bytes(), &[0; 8], &int(1)].concat();
    // All rights to anyone, not ephemeral, the first child.
    let acl = [&int(1)[..], &int(31), &text(b"world"), &text(b"anyone")].concat();
    let payload = [&header, &text(path), &text(b"data"), &acl, &[0][..], &int(1)].concat();
    let framing = [&checksum(&payload).to_be_bytes()[..], &int(payload.len())].concat();
    [framing, payload, b"B".to_vec()].concat()
}

/// The whole records of a log, to the first that is none: checksum, length, payload, end mark.
pub(crate) fn records(bytes: &[u8]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut offset = HEADER_BYTES;
    while let Some(length) = number(bytes, offset + 8, 4).filter(|length| 0 < *length) {
        let end = offset + 12 + length as usize + 1;
        if bytes.get(end - 1) != Some(&b'B') {
            break;
        }
        let payload = &bytes[offset + 12..end - 1];
        let checksum = checksum(payload);
        if number(bytes, offset, 8) != Some(checksum) {
            break;
        }
        let zxid = number(payload, 12, 8).expect("a payload begins with its header");
        records.push(Record { offset, end, zxid });
        offset = end;
    }
    records
}

/// The zxid that a file's name says.
pub(crate) fn named_zxid(name: &str) -> i64 {
    let name = name.rsplit('/').next().expect("a name");
    i64::from_str_radix(name.split('.').nth(1).expect("a zxid"), 16).expect("in hex")
}

/// The logs of a directory, oldest first.
pub(crate) fn logs(path: &Path, part: &str) -> Vec<Log> {
    let mut logs: Vec<Log> = names(path, &format!("{part}/version-2"), "log.")
        .into_iter()
        .map(|name| {
            let bytes = fs::read(path.join(&name)).expect("an image can be read");
            Log { records: records(&bytes), name, bytes }
        })
        .collect();
    logs.sort_by_key(|log| named_zxid(&log.name));
    logs
}

/// The names in one folder of an image, from the image's own folder on.
fn names(path: &Path, folder: &str, start: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path.join(folder)) else { return Vec::new() };
    let names = entries.map(|entry| entry.expect("it can be listed").file_name());
    let names = names.map(|name| name.into_string().expect("names are text"));
    let mut names: Vec<_> = names
        .filter(|name| name.starts_with(start) && !name.ends_with(".tmp"))
        .map(|name| format!("{folder}/{name}"))
        .collect();
    names.sort();
    names
}

/// One change to a copy.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Flip {
        file: String,
        offset: usize,
        bit: u8,
    },
    Truncate {
        file: String,
        len: usize,
    },
    /// The bytes from `offset` on become these.
    Overwrite {
        file: String,
        offset: usize,
        with: Vec<u8>,
    },
    Remove(String),
    Empty(String),
    Rename(String, String),
    Copy(String, String),
    /// From the copy at half of the load; a folder is replaced with all that it has.
    Restore(String),
    /// From another image, which is of another history.
    Foreign(PathBuf, String),
    RemoveFolder(String),
    /// The folder is there and has nothing.
    EmptyFolder(String),
    /// Nobody may read it.
    Forbid(String),
}

/// One case: an image's name is added where it is run.
#[derive(Clone, Debug)]
pub(crate) struct Damage {
    /// For the table.
    pub(crate) kind: &'static str,
    pub(crate) label: String,
    pub(crate) ops: Vec<Op>,
    /// Flags of the start.
    pub(crate) flags: Vec<String>,
    /// What the start takes for `dataLogDir`, below the copy; empty: the key is left out.
    pub(crate) logs: Option<String>,
    /// Nothing is lost by it, so a refusal is one too many.
    pub(crate) must_serve: bool,
    /// The start is by someone who owns the files and is not root.
    pub(crate) by_other_user: bool,
}

impl Damage {
    fn new(kind: &'static str, label: String, ops: Vec<Op>) -> Damage {
        let (flags, logs) = (Vec::new(), None);
        Damage { kind, label, ops, flags, logs, must_serve: false, by_other_user: false }
    }

    /// Does it to the copy of `image` in `path`.
    pub(crate) fn apply(&self, image: &Path, path: &Path) {
        for op in &self.ops {
            op.apply(image, path).unwrap_or_else(|error| panic!("{op:?}: {error}"));
        }
    }
}

impl Op {
    pub(crate) fn apply(&self, image: &Path, path: &Path) -> std::io::Result<()> {
        let at = |name: &String| -> PathBuf { path.join(name) };
        match self {
            Op::Flip { file, offset, bit } => {
                let mut bytes = fs::read(at(file))?;
                bytes[*offset] ^= 1 << bit;
                fs::write(at(file), bytes)
            }
            Op::Truncate { file, len } => {
                fs::OpenOptions::new().write(true).open(at(file))?.set_len(*len as u64)
            }
            Op::Overwrite { file, offset, with } => {
                let mut bytes = fs::read(at(file))?;
                let end = bytes.len().min(offset + with.len());
                bytes[*offset..end].copy_from_slice(&with[..end - offset]);
                fs::write(at(file), bytes)
            }
            Op::Remove(file) => fs::remove_file(at(file)),
            Op::Empty(file) => fs::write(at(file), b""),
            Op::Rename(from, to) => fs::rename(at(from), at(to)),
            Op::Copy(from, to) => fs::copy(at(from), at(to)).map(|_| ()),
            Op::Restore(name) => {
                let earlier = image.join("earlier").join(name);
                if earlier.is_dir() {
                    fs::remove_dir_all(at(name))?;
                    copy_folder(&earlier, &at(name))
                } else {
                    fs::copy(earlier, at(name)).map(|_| ())
                }
            }
            Op::Foreign(from, name) if from.is_dir() => {
                fs::remove_dir_all(at(name))?;
                copy_folder(from, &at(name))
            }
            Op::Foreign(from, name) => fs::copy(from, at(name)).map(|_| ()),
            Op::RemoveFolder(name) => fs::remove_dir_all(at(name)),
            Op::EmptyFolder(name) => {
                if at(name).exists() {
                    fs::remove_dir_all(at(name))?;
                }
                fs::create_dir_all(at(name))
            }
            Op::Forbid(name) => fs::set_permissions(at(name), fs::Permissions::from_mode(0o000)),
        }
    }
}

/// All cases of an image: those of its structure, and as many random ones as there is use for.
pub(crate) fn damages(
    image: &Image,
    others: &[Image],
    random: &mut Random,
    random_count: usize,
) -> Vec<Damage> {
    let logs = logs(&image.path, image.logs());
    let mut cases = Vec::new();
    let newest = logs.iter().rev().find(|log| !log.records.is_empty());
    let newest = newest.expect("an image has records");
    let acknowledged = image.history.acknowledged();
    structure(newest, acknowledged, "newest log", random, &mut cases);
    let before = logs.iter().rev().skip_while(|log| log.name != newest.name).nth(1);
    if let Some(before) = before.filter(|log| !log.records.is_empty()) {
        structure(before, acknowledged, "log before", random, &mut cases);
    }
    snapshots(image, random, &mut cases);
    files(image, &logs, &mut cases);
    marks(image, random, &mut cases);
    folders(image, &mut cases);
    foreign(image, others, &mut cases);
    settings(&mut cases);
    at_random(image, &logs, random, random_count, &mut cases);
    cases
}

/// Bits, truncations and blocks at all places of a log that mean something.
fn structure(
    log: &Log,
    acknowledged: i64,
    which: &str,
    random: &mut Random,
    cases: &mut Vec<Damage>,
) {
    let last = log.records.len() - 1;
    let last_acknowledged = log.records.iter().rposition(|record| record.zxid <= acknowledged);
    let mut places = vec![
        ("first", 0),
        ("middle", last / 2),
        ("last acknowledged", last_acknowledged.unwrap_or(0)),
        ("last whole", last),
    ];
    places.dedup_by_key(|(_, index)| *index);
    let file = &log.name;
    let flip = |offset: usize, random: &mut Random| Op::Flip {
        file: file.clone(),
        offset,
        bit: random.below(8) as u8,
    };
    for (name, offset) in [("magic", 0), ("magic", 3), ("version", 7), ("dbid", 8), ("dbid", 15)] {
        let label = format!("a bit of {which}'s header ({name})");
        cases.push(Damage::new("bit of a log", label, vec![flip(offset, random)]));
    }
    for &(place, index) in &places {
        let Record { offset, end, .. } = log.records[index];
        let payload = offset + 12;
        let fields = [
            ("checksum, high", offset + random.below(4) as usize),
            ("checksum, low", offset + 4 + random.below(4) as usize),
            ("length, first byte", offset + 8),
            ("length, second byte", offset + 9),
            ("length, third byte", offset + 10),
            ("length, last byte", offset + 11),
            ("session", payload + random.below(8) as usize),
            ("cxid", payload + 8 + random.below(4) as usize),
            ("zxid, high", payload + 12 + random.below(4) as usize),
            ("zxid, low", payload + 16 + random.below(4) as usize),
            ("time", payload + 20 + random.below(8) as usize),
            ("type", payload + 28 + random.below(4) as usize),
            ("body", payload + 32 + random.below((end - 1 - payload - 32).max(1) as u64) as usize),
            ("last byte of the payload", end - 2),
            ("end mark", end - 1),
        ];
        for (field, at) in fields {
            let label = format!("a bit of {which}'s {place} record ({field}, byte {at})");
            cases.push(Damage::new("bit of a log", label, vec![flip(at, random)]));
        }
        let lengths = [
            ("before it", offset),
            ("in its checksum", offset + 3),
            ("behind its checksum", offset + 8),
            ("in its length", offset + 10),
            ("behind its length", offset + 12),
            ("in its payload", offset + 12 + (end - offset - 13) / 2),
            ("before its end mark", end - 1),
            ("behind it", end),
            ("at a sector behind it", end.next_multiple_of(512)),
            ("at a sector before it", offset / 512 * 512),
            ("at a block before it", offset / 4096 * 4096),
        ];
        for (at, len) in lengths {
            if log.bytes.len() < len {
                continue;
            }
            let label = format!("{which} cut to {len} bytes ({place} record: {at})");
            let cut = Op::Truncate { file: file.clone(), len };
            cases.push(Damage::new("log cut", label, vec![cut]));
        }
        for size in [512, 4096] {
            blocks(
                log,
                offset / size * size,
                size,
                &format!("{which}'s {place} record"),
                random,
                cases,
            );
        }
    }
    for (name, len) in
        [("to zero", 0), ("in its magic", 3), ("in its header", 9), ("to its header", 16)]
    {
        let cut = Op::Truncate { file: file.clone(), len };
        cases.push(Damage::new("log cut", format!("{which} cut {name}"), vec![cut]));
    }
}

/// One block of a log zeroed, exchanged with the next, or overwritten with noise or another.
fn blocks(
    log: &Log,
    start: usize,
    size: usize,
    which: &str,
    random: &mut Random,
    cases: &mut Vec<Damage>,
) {
    let used = log.records.last().map_or(HEADER_BYTES, |record| record.end);
    let file = || log.name.clone();
    let block = |start: usize| -> Option<Vec<u8>> {
        let end = log.bytes.len().min(start + size);
        (start < end).then(|| log.bytes[start..end].to_vec())
    };
    let Some(own) = block(start) else { return };
    let mut put = |what: &str, ops: Vec<Op>| {
        let label = format!("{size} bytes at {start}, of {which}, {what}");
        cases.push(Damage::new("block of a log", label, ops));
    };
    put("zeroed", vec![Op::Overwrite { file: file(), offset: start, with: vec![0; own.len()] }]);
    let noise = crate::load::value(random.next(), own.len());
    put("noise", vec![Op::Overwrite { file: file(), offset: start, with: noise }]);
    if let Some(next) = block(start + size).filter(|next| start + size < used && *next != own) {
        let exchange = vec![
            Op::Overwrite { file: file(), offset: start, with: next.clone() },
            Op::Overwrite { file: file(), offset: start + size, with: own.clone() },
        ];
        put("exchanged with the next", exchange);
        put("doubled", vec![Op::Overwrite { file: file(), offset: start + size, with: own }]);
    }
}

fn snapshot_names(image: &Image) -> Vec<String> {
    let mut names = names(&image.path, "data/version-2", "snapshot.");
    names.sort_by_key(|name| named_zxid(name));
    names
}

fn snapshots(image: &Image, random: &mut Random, cases: &mut Vec<Damage>) {
    let names = snapshot_names(image);
    let Some(newest) = names.last() else { return };
    let bytes = fs::read(image.path.join(newest)).expect("an image can be read");
    let len = bytes.len();
    let file = || newest.clone();
    let ends = (0..16).step_by(3).chain((len.saturating_sub(60)..len).step_by(5));
    let inner = (0..20).map(|_| random.below(len as u64) as usize);
    for offset in ends.chain(inner.collect::<Vec<_>>()) {
        let flip = Op::Flip { file: file(), offset, bit: random.below(8) as u8 };
        let label = format!("a bit of the newest snapshot (byte {offset} of {len})");
        cases.push(Damage::new("snapshot", label, vec![flip]));
    }
    for left in [0, 1, 8, 16, 40, len / 2, len - 21, len - 13, len - 5, len - 1] {
        let cut = Op::Truncate { file: file(), len: left };
        let label = format!("the newest snapshot cut to {left} of {len} bytes");
        cases.push(Damage::new("snapshot", label, vec![cut]));
    }
    let all = |op: &dyn Fn(&String) -> Op| names.iter().map(op).collect::<Vec<Op>>();
    let size = |name: &String| {
        fs::metadata(image.path.join(name)).expect("an image can be read").len() as usize
    };
    let half = |name: &String| Op::Truncate { file: name.clone(), len: size(name) / 2 };
    let flip = |name: &String| Op::Flip { file: name.clone(), offset: size(name) / 2, bit: 3 };
    for (what, ops) in [
        ("cut in half", all(&half)),
        ("damaged", all(&flip)),
        ("emptied", all(&|name| Op::Empty(name.clone()))),
        ("removed", all(&|name| Op::Remove(name.clone()))),
    ] {
        cases.push(Damage::new("snapshot", format!("all snapshots {what}"), ops));
        // The logs of an image reach back to the first transaction.
        cases.last_mut().expect("one was put").must_serve = what != "removed";
        let label = format!("all snapshots {what}, logs alone are trusted");
        let ops = cases.last().expect("one was put").ops.clone();
        let mut damage = Damage::new("snapshot", label, ops);
        damage.must_serve = true;
        damage.flags.push("-Dzookeeper.snapshot.trust.empty=true".to_owned());
        cases.push(damage);
    }
    let zxid = named_zxid(newest);
    let (acknowledged, sent) = (image.history.acknowledged(), image.history.sent());
    let oldest = &names[0];
    let between = zxid + (acknowledged - zxid) / 2;
    for (source, copy) in [(newest, "newest"), (oldest, "oldest")] {
        for to in [zxid + 1, between, acknowledged, sent, sent + 1, 0xf_ffff, 0x1_0000_0001] {
            let name = format!("data/version-2/snapshot.{to:x}");
            if image.path.join(&name).exists() {
                continue;
            }
            let label = format!("the {copy} snapshot copied as snapshot.{to:x}");
            let copied = Op::Copy(source.clone(), name.clone());
            cases.push(Damage::new("snapshot name", label, vec![copied]));
            let label = format!("the {copy} snapshot renamed to snapshot.{to:x}");
            let renamed = Op::Rename(source.clone(), name);
            cases.push(Damage::new("snapshot name", label, vec![renamed]));
        }
    }
    if 1 < zxid {
        let name = format!("data/version-2/snapshot.{:x}", zxid / 2);
        if !image.path.join(&name).exists() {
            let label = format!("the newest snapshot renamed to snapshot.{:x}", zxid / 2);
            let renamed = Op::Rename(newest.clone(), name.clone());
            cases.push(Damage::new("snapshot name", label, vec![renamed]));
            let label = format!("the newest snapshot copied as snapshot.{:x}", zxid / 2);
            cases.push(Damage::new("snapshot name", label, vec![Op::Copy(newest.clone(), name)]));
        }
    }
}

/// Files missing, emptied, doubled, renamed, restored, unreadable.
fn files(image: &Image, logs: &[Log], cases: &mut Vec<Damage>) {
    let mut names: Vec<String> = logs.iter().map(|log| log.name.clone()).collect();
    names.extend(snapshot_names(image));
    let marks = ["data", "logs"].map(|part| format!("{part}/ringkeeper.watermark"));
    names.extend(marks.into_iter().filter(|mark| image.path.join(mark).exists()));
    for name in &names {
        let mut put = |kind, what: &str, op: Op| {
            cases.push(Damage::new(kind, format!("{name} {what}"), vec![op]));
        };
        let file = || name.clone();
        put("file missing or empty", "removed", Op::Remove(file()));
        put("file missing or empty", "emptied", Op::Empty(file()));
        put("file missing or empty", "renamed to .bak", Op::Rename(file(), format!("{name}.bak")));
        put("file doubled", "copied as .copy", Op::Copy(file(), format!("{name}.copy")));
        put("file doubled", "copied as .tmp", Op::Copy(file(), format!("{name}.tmp")));
        let copies = cases.iter_mut().rev().take(2);
        copies.for_each(|damage| damage.must_serve = true);
        let mut put = |kind, what: &str, op: Op| {
            cases.push(Damage::new(kind, format!("{name} {what}"), vec![op]));
        };
        let (folder, last) = name.rsplit_once('/').expect("it lies in a folder");
        let moved = Op::Rename(file(), format!("{folder}/old-{last}"));
        put("file missing or empty", "moved away", moved);
        let earlier = image.path.join("earlier").join(name);
        let is_other = fs::read(&earlier).is_ok_and(|bytes| {
            bytes != fs::read(image.path.join(name)).expect("an image can be read")
        });
        if is_other {
            put("restored from earlier", "as it was at half of the load", Op::Restore(file()));
        }
        let mut forbidden =
            Damage::new("unreadable", format!("{name} unreadable"), vec![Op::Forbid(file())]);
        forbidden.by_other_user = true;
        cases.push(forbidden);
    }
    for (index, log) in logs.iter().enumerate() {
        let zxid = named_zxid(&log.name);
        let folder = format!("{}/version-2", image.logs());
        for to in [zxid - 1, zxid + 1, image.history.sent() + 1, 0xf_ffff] {
            let name = format!("{folder}/log.{to:x}");
            if to < 0 || image.path.join(&name).exists() {
                continue;
            }
            let label = format!("{} renamed to log.{to:x}", log.name);
            let renamed = Op::Rename(log.name.clone(), name.clone());
            cases.push(Damage::new("file renamed", label, vec![renamed]));
            let label = format!("{} copied as log.{to:x}", log.name);
            let copied = Op::Copy(log.name.clone(), name);
            cases.push(Damage::new("file doubled", label, vec![copied]));
        }
        let rest: Vec<Op> = logs[index..].iter().map(|log| Op::Remove(log.name.clone())).collect();
        let label = format!("{} and all later logs removed", log.name);
        cases.push(Damage::new("file missing or empty", label, rest));
    }
    let all: Vec<Op> = logs.iter().map(|log| Op::Empty(log.name.clone())).collect();
    cases.push(Damage::new("file missing or empty", "all logs emptied".to_owned(), all));
    for folder in ["data", "data/version-2", "logs", "logs/version-2"] {
        if image.path.join(folder).exists() {
            let label = format!("{folder} unreadable");
            let mut forbidden =
                Damage::new("unreadable", label, vec![Op::Forbid(folder.to_owned())]);
            forbidden.by_other_user = true;
            cases.push(forbidden);
        }
    }
}

/// The watermark: each byte may be wrong, it may be gone, cut, zero or older.
fn marks(image: &Image, random: &mut Random, cases: &mut Vec<Damage>) {
    let all = ["data", "logs"].map(|part| format!("{part}/ringkeeper.watermark"));
    let all: Vec<Op> =
        all.into_iter().filter(|mark| image.path.join(mark).exists()).map(Op::Remove).collect();
    // What ZooKeeper leaves has none.
    let mut gone = Damage::new("watermark", "no watermark at all".to_owned(), all);
    gone.must_serve = true;
    cases.push(gone);
    for part in ["data", "logs"] {
        let file = format!("{part}/ringkeeper.watermark");
        let Ok(bytes) = fs::read(image.path.join(&file)) else { continue };
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        let put = |cases: &mut Vec<Damage>, what: String, ops: Vec<Op>| {
            cases.push(Damage::new("watermark", format!("{file} {what}"), ops));
        };
        // A slot is lost, and there are others.
        let must_serve = |cases: &mut Vec<Damage>| {
            cases.last_mut().expect("one was put").must_serve = true;
        };
        for _ in 0..12 {
            if used.is_empty() {
                break;
            }
            let offset = *random.pick(&used);
            let bit = random.below(8) as u8;
            let flip = Op::Flip { file: file.clone(), offset, bit };
            put(cases, format!("with a bit of byte {offset} flipped"), vec![flip]);
            must_serve(cases);
        }
        for start in [0, 4096] {
            let with = vec![0; 200];
            let zero = Op::Overwrite { file: file.clone(), offset: start, with: with.clone() };
            put(cases, format!("with the slot at {start} zeroed"), vec![zero]);
            must_serve(cases);
            let noise = crate::load::value(random.next(), 200);
            let noise = Op::Overwrite { file: file.clone(), offset: start, with: noise };
            put(cases, format!("with the slot at {start} overwritten"), vec![noise]);
            must_serve(cases);
        }
        let zeros = Op::Overwrite { file: file.clone(), offset: 0, with: vec![0; bytes.len()] };
        put(cases, "all zero".to_owned(), vec![zeros]);
        let noise = crate::load::value(random.next(), bytes.len());
        let noise = Op::Overwrite { file: file.clone(), offset: 0, with: noise };
        put(cases, "noise".to_owned(), vec![noise]);
        for len in [1, 60, 4096, 4100] {
            put(
                cases,
                format!("cut to {len} bytes"),
                vec![Op::Truncate { file: file.clone(), len }],
            );
        }
    }
}

/// Folders gone, emptied, exchanged, restored, or others named at the start.
fn folders(image: &Image, cases: &mut Vec<Damage>) {
    let mut put = |label: &str, ops: Vec<Op>, logs: Option<&str>| {
        let mut damage = Damage::new("folder", label.to_owned(), ops);
        damage.logs = logs.map(str::to_owned);
        cases.push(damage);
    };
    let folder = |name: &str| name.to_owned();
    put("data/version-2 removed", vec![Op::RemoveFolder(folder("data/version-2"))], None);
    put("data/version-2 emptied", vec![Op::EmptyFolder(folder("data/version-2"))], None);
    let other = vec![Op::EmptyFolder(folder("other"))];
    put("dataLogDir names another folder", other, Some("other"));
    put("dataLogDir names a folder that is not there", Vec::new(), Some("nowhere/at/all"));
    let away = Op::Rename(folder("data/version-2"), folder("data/version-2.away"));
    put("data/version-2 moved away", vec![away], None);
    if !image.spec.is_apart {
        return;
    }
    put("dataLogDir left out", Vec::new(), Some(""));
    put("logs removed", vec![Op::RemoveFolder(folder("logs"))], None);
    put("logs emptied", vec![Op::EmptyFolder(folder("logs"))], None);
    put("logs/version-2 removed", vec![Op::RemoveFolder(folder("logs/version-2"))], None);
    put("logs/version-2 emptied", vec![Op::EmptyFolder(folder("logs/version-2"))], None);
    put("logs restored from earlier", vec![Op::Restore(folder("logs"))], None);
    put("data emptied", vec![Op::EmptyFolder(folder("data"))], None);
    put("data removed", vec![Op::RemoveFolder(folder("data"))], None);
    let exchange = vec![
        Op::Rename(folder("data"), folder("third")),
        Op::Rename(folder("logs"), folder("data")),
        Op::Rename(folder("third"), folder("logs")),
    ];
    put("data and logs exchanged", exchange, None);
}

/// Files and folders of the same name that are of another server.
fn foreign(image: &Image, others: &[Image], cases: &mut Vec<Damage>) {
    let others = others.iter().filter(|other| other.name != image.name);
    for other in others.filter(|other| other.spec.is_apart == image.spec.is_apart) {
        let mut put = |name: &str| {
            let from = other.path.join(name);
            if from.exists() && image.path.join(name).exists() {
                let op = Op::Foreign(from, name.to_owned());
                let label = format!("{name} of {}", other.name);
                cases.push(Damage::new("of another server", label, vec![op]));
            }
        };
        if image.spec.is_apart {
            put("logs");
            put("logs/version-2");
            put("logs/ringkeeper.watermark");
            put("data");
        }
        put("data/version-2");
        put("data/ringkeeper.watermark");
        let logs = logs(&image.path, image.logs());
        let names = logs.into_iter().map(|log| log.name);
        names.chain(snapshot_names(image)).for_each(|name| put(&name));
    }
}

/// Another setting than the one that the log was written under.
fn settings(cases: &mut Vec<Damage>) {
    for flag in [
        "-Djute.maxbuffer=1024",
        "-Djute.maxbuffer=2000",
        "-Djute.maxbuffer=100000000",
        "-Dzookeeper.jute.maxbuffer.extrasize=0",
        "-Dzookeeper.snapshot.trust.empty=true",
        "-Dzookeeper.digest.enabled=false",
        "-Dzookeeper.extendedTypesEnabled=true",
        "-Dzookeeper.preAllocSize=0",
        "-Dzookeeper.preAllocSize=4096",
        "-Dzookeeper.snapCount=2",
        "-Dzookeeper.forceSync=no",
        "-Dzookeeper.snapshot.compression.method=gz",
        "-Dringkeeper.txnLog.backEnd=mapped",
        "-Dringkeeper.txnLog.backEnd=direct",
        "-Dringkeeper.shards=2",
    ] {
        let mut damage = Damage::new("other setting", format!("started with {flag}"), Vec::new());
        damage.flags.push(flag.to_owned());
        damage.must_serve = true;
        if flag == "-Djute.maxbuffer=1024" {
            damage.flags.push("-Dzookeeper.jute.maxbuffer.extrasize=0".to_owned());
        }
        cases.push(damage);
    }
    let mut nothing = Damage::new("other setting", "nothing at all".to_owned(), Vec::new());
    nothing.must_serve = true;
    cases.push(nothing);
}

fn at_random(
    image: &Image,
    logs: &[Log],
    random: &mut Random,
    count: usize,
    cases: &mut Vec<Damage>,
) {
    let logs: Vec<&Log> = logs.iter().filter(|log| !log.records.is_empty()).collect();
    let others: Vec<String> = snapshot_names(image);
    for _ in 0..count {
        let log = *random.pick(&logs);
        let used = log.records.last().map_or(HEADER_BYTES, |record| record.end);
        let offset = random.below(used as u64) as usize;
        let bit = random.below(8) as u8;
        match random.below(8) {
            0..4 => {
                let flip = Op::Flip { file: log.name.clone(), offset, bit };
                let label = format!("bit {bit} of byte {offset} of {}", log.name);
                cases.push(Damage::new("random bit", label, vec![flip]));
            }
            4 | 5 => {
                // Also behind the last record, in what was only allocated.
                let len = random.below(log.bytes.len() as u64 + 1) as usize;
                let len = if random.below(2) == 0 { offset } else { len };
                let cut = Op::Truncate { file: log.name.clone(), len };
                let label = format!("{} cut to {len} bytes", log.name);
                cases.push(Damage::new("random cut", label, vec![cut]));
            }
            6 => {
                let size = *random.pick(&[512, 4096]);
                let mut found = Vec::new();
                blocks(log, offset / size * size, size, &log.name, random, &mut found);
                let mut one = random.pick(&found).clone();
                one.kind = "random block";
                cases.push(one);
            }
            _ => {
                let file = random.pick(&others).clone();
                let len = fs::metadata(image.path.join(&file)).expect("it is there").len();
                let offset = random.below(len) as usize;
                let label = format!("bit {bit} of byte {offset} of {file}");
                let flip = Op::Flip { file, offset, bit };
                cases.push(Damage::new("random bit", label, vec![flip]));
            }
        }
    }
}
