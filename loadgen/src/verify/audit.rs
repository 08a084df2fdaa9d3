//! What all clients were told, put together and held against what is there afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use super::{
    Checked, Checking, ENDED, FOREIGN, Fate, Floor, HALF, LISTED, LOST, Mark, NOT_NEW, ONCE,
    ReadAs, STEPS, Survey, TWO_FACES, Told, UNEQUAL, Violations, Written, name,
};
use crate::client::Lost;
use crate::report::code_name;
use crate::workload::{Created, Shape, created_parent};
use crate::{Fault, connect};

/// All that was told, put together.
pub(super) struct Audit {
    base: Arc<Vec<Floor>>,
    znodes: u64,
    /// By znode and version.
    written: BTreeMap<(u64, i32), Written>,
    /// How many sets of a znode were acknowledged.
    acknowledged: HashMap<u64, i64>,
    read: BTreeMap<(u64, i32), ReadAs>,
    /// The sets of a znode that may or may not have happened, by writer and serial.
    unknown: HashMap<u64, BTreeSet<(u32, u32)>>,
    told: Vec<Told>,
    pub(super) violations: Violations,
    pub(super) checked: Checked,
}

/// All that is known of a znode beyond what it had before, by version.
type Life = Vec<(i32, ReadAs)>;

/// Who wrote what, over all znodes.
#[derive(Default)]
struct Writers {
    by_zxid: BTreeMap<i64, (u32, u32)>,
    /// Whose write had an unknown outcome, and was done.
    done: BTreeSet<(u32, u32)>,
}

/// The children of a client's parent, or an error's number.
pub(super) type ListedChildren = Result<HashSet<String>, i32>;

/// Lists what each client has created, by its number.
pub(super) fn list_created(
    server: SocketAddr,
    shape: &Shape,
    connections: usize,
) -> Result<Vec<ListedChildren>, Fault> {
    let mut session = connect(server)?;
    let mut list = |number: usize| {
        let path = created_parent(&shape.created_below, number);
        session.children(&path).map(|found| found.map(|names| names.into_iter().collect()))
    };
    let listings: Result<Vec<_>, Lost> = (0..connections).map(&mut list).collect();
    let listings = listings.map_err(|source| Fault::Connect { server, source })?;
    session.close();
    Ok(listings)
}

impl Audit {
    pub(super) fn of(shape: &Shape, base: &Arc<Vec<Floor>>, sources: Vec<Checking>) -> Audit {
        let mut audit = Audit {
            base: Arc::clone(base),
            znodes: shape.znodes,
            written: BTreeMap::new(),
            acknowledged: HashMap::new(),
            read: BTreeMap::new(),
            unknown: HashMap::new(),
            told: Vec::new(),
            violations: Violations::default(),
            checked: Checked::default(),
        };
        let mut reads = Vec::new();
        for source in sources {
            audit.violations.merge(source.violations);
            audit.checked.replies += source.checked.replies;
            audit.checked.events += source.checked.events;
            audit.checked.syncs += source.checked.syncs;
            audit.checked.watches_again += source.checked.watches_again;
            audit.checked.versions_written += source.checked.versions_written;
            for told in source.told {
                audit.take_told(told);
            }
            for written in source.written {
                audit.take_written(written);
            }
            reads.push(source.read);
        }
        // Once all writes are known, of whatever thread.
        for read in reads {
            let mut read: Vec<_> = read.into_iter().collect();
            read.sort_unstable_by_key(|&(key, _)| key);
            for (key, seen) in read {
                audit.take_read(key, seen);
            }
        }
        audit.checked.versions_read = audit.read.len() as u64;
        audit
    }

    fn take_told(&mut self, mut told: Told) {
        told.give_up_asked();
        self.checked.unknown += told.unknown_writes;
        // What is doomed is done at no time.
        for mark in told.unknown.iter().filter(|mark| !mark.is_doomed) {
            for znode in Checking::group(*mark, self.znodes) {
                self.unknown.entry(znode).or_default().insert((mark.writer, mark.serial));
            }
        }
        self.told.push(told);
    }

    fn take_written(&mut self, written: Written) {
        let Written { znode, version, .. } = written;
        *self.acknowledged.entry(znode).or_default() += 1;
        if let Some(other) = self.written.insert((znode, version), written) {
            self.violations.note(STEPS, || {
                format!("two sets of znode {znode} have version {version}: {other:?}, {written:?}")
            });
        }
    }

    fn take_read(&mut self, (znode, version): (u64, i32), seen: ReadAs) {
        let known = self.read.entry((znode, version)).or_insert(seen);
        if let Some(difference) = known.differs(seen) {
            self.violations.note(TWO_FACES, || format!("znode {znode}: {difference}"));
        }
        known.mark = known.mark.or(seen.mark);
        let Some(written) = self.written.get(&(znode, version)) else { return };
        if let Some(difference) = written.seen().differs(seen) {
            self.violations.note(TWO_FACES, || format!("znode {znode}, as written: {difference}"));
        }
    }

    /// Looks for what each client has created, ephemeral or not, while its session lives.
    pub(super) fn look_for_living(&mut self, server: SocketAddr, listings: &[ListedChildren]) {
        for told in &mut self.told {
            let number = told.number;
            // What cannot be listed now cannot be listed once the session has ended, either.
            let Some(Ok(found)) = listings.get(number) else { continue };
            let (first, next) = (told.first, told.next);
            if let Some(wrong) = told.look(first, next, found) {
                self.violations.note(LISTED, || {
                    format!("connection {number}, on {server} while its session lives: {wrong}")
                });
            }
        }
    }

    /// All servers have the same of each znode.
    pub(super) fn hold_equal(&mut self, servers: &[SocketAddr], surveys: &[Survey]) {
        for (server, survey) in servers.iter().zip(surveys).skip(1) {
            let both = surveys[0].seen.iter().zip(&survey.seen);
            for (znode, (one, other)) in both.enumerate().filter(|(_, (one, other))| one != other) {
                self.violations.note(UNEQUAL, || {
                    format!("znode {znode} is {one:?} on {}, and {other:?} on {server}", servers[0])
                });
            }
        }
    }

    /// Looks for what each client has created, once its session has ended.
    pub(super) fn look_for_created(&mut self, server: SocketAddr, listings: &[ListedChildren]) {
        self.checked.created = 0;
        for told in &mut self.told {
            let number = told.number;
            let found = match listings.get(number) {
                Some(Ok(found)) => found,
                Some(Err(err)) => {
                    let err = *err;
                    self.violations.note(LOST, || {
                        format!("the parent of connection {number} on {server}: {}", code_name(err))
                    });
                    continue;
                }
                None => continue,
            };
            // Ephemeral znodes go with their session, of whose end we may not have heard.
            for &ephemeral in &told.ephemerals {
                if told.is_closed && found.contains(&name(ephemeral)) {
                    self.violations.note(ENDED, || {
                        format!(
                            "{ephemeral} of connection {number} is on {server}, and the end of its \
                             session was confirmed"
                        )
                    });
                }
                let fate = told.fates.get(&ephemeral).map_or(Fate::MayGo, |fate| fate.on_doubt());
                told.fates.insert(ephemeral, fate);
            }
            let (first, next) = (told.first, told.next);
            self.checked.created += told.certain(first, next).count() as u64;
            for lost in told.certain(first, next).filter(|&it| !found.contains(&name(it))) {
                self.violations.note(LOST, || {
                    format!("{lost} of connection {number} was created, and is not on {server}")
                });
            }
            if let Some(wrong) = told.look(first, next, found) {
                self.violations.note(LISTED, || {
                    format!("connection {number}, in the end on {server}: {wrong}")
                });
            }
        }
    }

    /// Each znode's versions, from what it had before to what it has.
    pub(super) fn hold_versions_against(&mut self, survey: &Survey) {
        let mut writers = Writers::default();
        let mut lives: Vec<Life> = Vec::new();
        for (znode, &(last, mark)) in (0..).zip(&survey.seen) {
            let mut versions = self.versions_of(znode);
            self.hold_end(znode, &versions, last, mark);
            if self.base[znode as usize].version < last.version {
                versions.entry(last.version).or_insert(ReadAs { mzxid: last.mzxid, mark });
            }
            let life = versions.into_iter().collect();
            self.hold_steps(znode, &life, &mut writers);
            lives.push(life);
        }
        self.hold_multis(&lives);
        self.checked.unknown_done = writers.done.len() as u64;
    }

    /// What a znode is at the end.
    fn hold_end(
        &mut self,
        znode: u64,
        versions: &BTreeMap<i32, ReadAs>,
        last: Floor,
        mark: Option<Mark>,
    ) {
        let base = self.base[znode as usize];
        let unknown = self.unknown.get(&znode).map_or(0, BTreeSet::len);
        let known = self.acknowledged.get(&znode).copied().unwrap_or(0);
        let steps = i64::from(last.version) - i64::from(base.version);
        if steps < known || known + (unknown as i64) < steps {
            self.violations.note(if steps < known { LOST } else { STEPS }, || {
                format!(
                    "znode {znode} went from version {} to {} by {known} acknowledged sets and \
                     up to {unknown} others",
                    base.version, last.version
                )
            });
        }
        let is_written = mark.is_some_and(|mark| mark.znode == znode);
        if base.version < last.version && !is_written {
            self.violations
                .note(FOREIGN, || format!("znode {znode} is {last:?} at the end, of {mark:?}"));
        }
        let Some((&version, newest)) = versions.last_key_value() else { return };
        let is_newest =
            newest.mzxid == last.mzxid && newest.mark.is_none_or(|newest| mark == Some(newest));
        if last.version < version || (last.version == version && !is_newest) {
            self.violations.note(LOST, || {
                format!("znode {znode} was last {newest:?} and is {last:?}, {mark:?}")
            });
        }
    }

    /// The way there.
    fn hold_steps(&mut self, znode: u64, life: &Life, writers: &mut Writers) {
        let none = BTreeSet::new();
        let unknown = self.unknown.get(&znode).unwrap_or(&none);
        let mut before = self.base[znode as usize];
        let mut own = BTreeMap::new();
        for &(version, seen) in life {
            let is_step = !unknown.is_empty() || version == before.version + 1;
            if seen.mzxid <= before.mzxid || !is_step {
                self.violations.note(STEPS, || {
                    format!("znode {znode}: after {before:?} comes {version} as {seen:?}")
                });
            }
            before = Floor { version, mzxid: seen.mzxid };
            let writer = seen.mark.map(|mark| (mark.writer, mark.serial));
            let may_be_unknown =
                !unknown.is_empty() && writer.is_none_or(|writer| unknown.contains(&writer));
            if !self.written.contains_key(&(znode, version)) && !may_be_unknown {
                self.violations.note(FOREIGN, || {
                    format!("znode {znode} is at version {version} {seen:?}: nobody wrote that")
                });
            }
            let Some(writer) = writer else { continue };
            if let Some(other) = own.insert(writer, version) {
                self.violations.note(ONCE, || {
                    format!("versions {other} and {version} of znode {znode} are {seen:?}")
                });
            }
            let first = *writers.by_zxid.entry(seen.mzxid).or_insert(writer);
            if first != writer {
                self.violations.note(NOT_NEW, || {
                    format!("zxid {:#x} is that of {first:?} and {writer:?}", seen.mzxid)
                });
            }
            if unknown.contains(&writer) {
                writers.done.insert(writer);
            }
        }
    }

    /// Where one znode of a multi was set, the others have room for a version of the same zxid.
    fn hold_multis(&mut self, lives: &[Life]) {
        let versions = lives.iter().flatten();
        let multis = versions.filter_map(|(_, seen)| Some((seen, seen.mark?)));
        for (seen, mark) in multis.filter(|(_, mark)| 1 < mark.count && !mark.is_doomed) {
            for other in Checking::group(mark, self.znodes) {
                let life = &lives[other as usize];
                let place = life.partition_point(|(_, other)| other.mzxid < seen.mzxid);
                let before = place.checked_sub(1).map(|before| life[before].0);
                let before = before.unwrap_or(self.base[other as usize].version);
                let is_half = match life.get(place) {
                    Some((_, other)) if other.mzxid == seen.mzxid => false,
                    Some(&(after, _)) => after == before + 1,
                    None => true,
                };
                if is_half {
                    self.violations.note(HALF, || {
                        format!("{seen:?} is not what znode {other} was after version {before}")
                    });
                }
            }
        }
    }

    /// All versions of a znode that a reply has told of, beyond what it had before.
    fn versions_of(&self, znode: u64) -> BTreeMap<i32, ReadAs> {
        let base = self.base[znode as usize].version;
        let range = (znode, base + 1)..=(znode, i32::MAX);
        let read = self.read.range(range.clone()).map(|(&(_, version), &seen)| (version, seen));
        let written = self.written.range(range);
        // What was acknowledged says more than what was read.
        read.chain(written.map(|(&(_, version), written)| (version, written.seen()))).collect()
    }

    pub(super) fn created(&self) -> Vec<Created> {
        let created = |told: &Told| {
            let unknown = told.fates.keys().next().copied();
            Created {
                connection: told.number,
                first: unknown.unwrap_or(told.first).min(told.first),
                next: told.next,
            }
        };
        self.told.iter().map(created).collect()
    }
}

impl Written {
    /// How it is to be read.
    fn seen(&self) -> ReadAs {
        ReadAs { mzxid: self.mzxid, mark: Some(self.mark) }
    }
}
