//! Starts a server on a directory and says what came of it.
//!
//! | verdict | what it means |
//! |---|---|
//! | served whole | all that was acknowledged is there, as it was written, and nothing else |
//! | served a prefix | the same, less some of what was sent and never answered |
//! | refused | an exit code, a message that names what is wrong, and nothing changed |
//!
//! Everything else is a finding.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::load::{History, Znode, served_zxid, value};
use crate::server::{Folder, Setup, until};

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    Prefix,
    Refused,
    Finding(Finding),
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// For the table.
    pub(crate) kind: &'static str,
    pub(crate) what: String,
}

pub(crate) const LOST: &str = "acknowledged writes lost";
const WRONG: &str = "a tree that was never written";
const CRASHED: &str = "ended by a signal or a panic";
const NAMELESS: &str = "a refusal that does not say what and where";
const TOUCHED: &str = "a refusal that changed something";
const NO_COPY: &str = "cut without a copy";
const SILENT: &str = "cut without a warning";
const HUNG: &str = "neither served nor refused";
const TIMID: &str = "refused though nothing is lost";
const NOT_AGAIN: &str = "another outcome at the second start";

/// A file or a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    /// When it was changed last.
    changed: (i64, i64),
    /// `None`: a folder.
    bytes: Option<Vec<u8>>,
}

type Files = BTreeMap<String, Entry>;

/// All that lies below `path`, but for the server's own output and its configuration.
fn files(path: &Path) -> Files {
    let mut files = Files::new();
    let mut pending = vec![String::new()];
    while let Some(folder) = pending.pop() {
        for entry in fs::read_dir(path.join(&folder)).expect("a copy can be listed") {
            let entry = entry.expect("a copy can be listed");
            let name = entry.file_name().into_string().expect("names are text");
            if folder.is_empty() && (name.starts_with("log-") || name.starts_with("zoo-")) {
                continue;
            }
            let name = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let metadata = entry.metadata().expect("a copy can be looked at");
            let mode = metadata.permissions().mode() & 0o777;
            let changed = (metadata.mtime(), metadata.mtime_nsec());
            if metadata.is_dir() {
                pending.push(name.clone());
                files.insert(name, Entry { mode, changed, bytes: None });
            } else {
                let bytes = fs::read(entry.path()).expect("a copy can be read");
                files.insert(name, Entry { mode, changed, bytes: Some(bytes) });
            }
        }
    }
    files
}

/// What a refused start has left other than it was: that must be nothing.
fn changed(before: &Files, after: &Files) -> Option<String> {
    for (name, entry) in before {
        match after.get(name) {
            None => return Some(format!("{name} is gone")),
            Some(now) if now == entry => {}
            Some(now) => {
                let len = |entry: &Entry| entry.bytes.as_ref().map_or(0, Vec::len);
                let (old, new) = (len(entry), len(now));
                return Some(format!("{name} is not what it was ({old} bytes, now {new})"));
            }
        }
    }
    let made = after.keys().find(|name| !before.contains_key(*name));
    made.map(|name| format!("{name} was made"))
}

/// What a start that served has taken away: a name and the bytes, without the zeros behind them.
fn taken_away(before: &Files, after: &Files) -> Vec<(String, Vec<u8>)> {
    let mut taken = Vec::new();
    for (name, entry) in before {
        let is_kept = ["log.", "snapshot."].iter().any(|start| {
            name.rsplit('/').next().expect("a name").starts_with(start) && !name.ends_with(".tmp")
        });
        let Some(old) = entry.bytes.as_ref().filter(|_| is_kept) else { continue };
        let new = after.get(name).and_then(|entry| entry.bytes.as_ref());
        // A snapshot of the tree that is served may take the place of one that was damaged, or that
        // held another tree than its name says.
        if new.is_some() && name.contains("/snapshot.") {
            continue;
        }
        let new = new.map_or(&[][..], Vec::as_slice);
        let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
        let used = old.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        // The header alone is no history.
        if same.max(16) < used {
            taken.push((name.clone(), old[same..used].to_vec()));
        }
    }
    taken
}

fn holds(files: &Files, bytes: &[u8], except: &str) -> bool {
    files.iter().any(|(name, entry)| {
        let kept = entry.bytes.as_ref().filter(|_| name != except);
        kept.is_some_and(|kept| {
            bytes.len() <= kept.len()
                && kept.windows(bytes.len().max(1)).any(|window| window == bytes)
        })
    })
}

/// A start that served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Served {
    pub(crate) zxid: i64,
    /// It took something away.
    has_cut: bool,
}

/// What came of a start, with all that the server said.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    pub(crate) said: String,
    pub(crate) served: Option<Served>,
}

impl Outcome {
    fn finding(kind: &'static str, what: String, said: String) -> Outcome {
        Outcome { verdict: Verdict::Finding(Finding { kind, what }), said, served: None }
    }

    /// The last lines that the server said.
    pub(crate) fn last_lines(&self) -> String {
        let lines: Vec<&str> = self.said.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }
}

/// How a case is judged.
pub(crate) struct Judge<'a> {
    pub(crate) history: &'a History,
    /// The last zxid that must be there.
    pub(crate) acknowledged: i64,
    /// The last that there may be.
    pub(crate) sent: i64,
    /// Whether the outcome has to be the same at a second start.
    pub(crate) twice: bool,
    /// Whether nothing was lost, so that a refusal is one too many.
    pub(crate) must_serve: bool,
}

impl<'a> Judge<'a> {
    /// All that was acknowledged has to be there.
    pub(crate) fn of(history: &'a History) -> Judge<'a> {
        let (acknowledged, sent) = (history.acknowledged(), history.sent());
        Judge { history, acknowledged, sent, twice: false, must_serve: false }
    }

    /// The verdict on the directories below the folder that `setup` starts a server on.
    pub(crate) fn judge(&self, setup: &Setup, folder: &Folder) -> Outcome {
        self.judge_at(setup, folder, folder.path())
    }

    /// The same where the directories lie below `path` and the server's output elsewhere.
    pub(crate) fn judge_at(&self, setup: &Setup, folder: &Folder, path: &Path) -> Outcome {
        let first = self.start(setup, folder, path, i64::MAX);
        let Some(served) = first.served.filter(|served| self.twice || served.has_cut) else {
            return first;
        };
        let second = self.start(setup, folder, path, served.zxid);
        match second.verdict {
            Verdict::Whole | Verdict::Prefix => first,
            Verdict::Refused => {
                Outcome::finding(NOT_AGAIN, "refused what it had served".to_owned(), second.said)
            }
            Verdict::Finding(_) => second,
        }
    }

    /// One start. Of what was sent, nothing after `settled` can be there.
    fn start(&self, setup: &Setup, folder: &Folder, path: &Path, settled: i64) -> Outcome {
        let before = files(path);
        let mut server = setup.start(folder);
        let mut zxid = None;
        let deadline = now() + PATIENCE;
        while zxid.is_none() && server.is_running() && now() < deadline {
            zxid = served_zxid(server.address);
            // Between two looks the CPU is the server's.
            std::thread::park_timeout(std::time::Duration::from_millis(1));
        }
        let Some(zxid) = zxid else {
            if server.is_running() {
                return Outcome::finding(HUNG, format!("after {PATIENCE:?}"), server.said());
            }
            let (status, said) = server.wait(PATIENCE);
            if status.code().is_none_or(|code| code == 0) || said.contains("panicked") {
                return Outcome::finding(CRASHED, status.to_string(), said);
            }
            if let Some(what) = unnamed(&said, path) {
                return Outcome::finding(NAMELESS, what, said);
            }
            return match changed(&before, &files(path)) {
                Some(what) => Outcome::finding(TOUCHED, what, said),
                None if self.must_serve => {
                    Outcome::finding(TIMID, "nothing is lost here".to_owned(), said)
                }
                None => Outcome { verdict: Verdict::Refused, said, served: None },
            };
        };
        let outcome = Client::connect(server.address, now() + PATIENCE)
            .map_err(|error| format!("no session: {error}"))
            .and_then(|mut client| self.compare(&mut client, zxid, settled));
        // What it says leaves in order, and not at once.
        until(
            PATIENCE,
            || "it does not say that it serves".to_owned(),
            || !server.is_running() || server.said().contains("binding to port"),
        );
        let said = server.said();
        if !server.is_running() {
            return Outcome::finding(CRASHED, "after it had begun to serve".to_owned(), said);
        }
        server.kill();
        let outcome = match settled {
            i64::MAX if self.sent < zxid => {
                Err(format!("served 0x{zxid:x}, sent 0x{:x}", self.sent))
            }
            _ => outcome,
        };
        if let Err(what) = outcome {
            let kind = if zxid < self.acknowledged { LOST } else { WRONG };
            return Outcome::finding(kind, what, said);
        }
        let after = files(path);
        let taken = taken_away(&before, &after);
        for (name, bytes) in &taken {
            let count = bytes.len();
            if !holds(&after, bytes, name) {
                let what = format!("{count} bytes of {name} are nowhere any more");
                return Outcome::finding(NO_COPY, what, said);
            }
            if !said.lines().any(|line| line.contains("WARN") && says_where(line)) {
                let what = format!("{count} bytes of {name} were set aside");
                return Outcome::finding(SILENT, what, said);
            }
        }
        let verdict = if zxid < self.sent { Verdict::Prefix } else { Verdict::Whole };
        Outcome { verdict, said, served: Some(Served { zxid, has_cut: !taken.is_empty() }) }
    }

    /// Whether a server at `zxid` has the tree that belongs to it. Sessions of earlier starts have
    /// taken the zxids after `settled`.
    fn compare(&self, client: &mut Client, zxid: i64, settled: i64) -> Result<(), String> {
        let (acknowledged, sent) = (self.acknowledged, self.sent);
        let at = format!("served 0x{zxid:x}, acknowledged 0x{acknowledged:x}, sent 0x{sent:x}");
        let expected = self.history.tree_at(zxid.min(settled).max(acknowledged));
        let found = read_tree(client, &expected).map_err(|error| format!("{at}: {error}"))?;
        let mut differences = Vec::new();
        for (path, znode) in &expected {
            match found.get(*path) {
                None => differences.push(format!("{path} is missing")),
                Some(Err(what)) => differences.push(format!("{path}: {what}")),
                Some(Ok(other)) if other == znode => {}
                Some(Ok(other)) => {
                    differences.push(format!("{path} should be {znode:?}, is {other:?}"));
                }
            }
        }
        let others = found.keys().filter(|path| !expected.contains_key(path.as_str()));
        differences.extend(others.map(|path| format!("{path} was never written, or deleted")));
        match differences.first() {
            Some(first) => {
                let (count, all) = (differences.len(), expected.len());
                Err(format!("{at}: {count} differences among {all} znodes, the first: {first}"))
            }
            None if zxid < acknowledged => Err(format!("{at}: the zxid went back")),
            // Sessions come behind the last write.
            None => Ok(()),
        }
    }
}

/// What a server has: each znode, or what is wrong with it. The data of a znode is compared with
/// what its place in the record says, and stands for its seed.
fn read_tree(
    client: &mut Client,
    expected: &BTreeMap<&str, Znode>,
) -> Result<BTreeMap<String, Result<Znode, String>>, String> {
    let mut paths = Vec::new();
    let folders = [("", "/"), ("/c", "/c"), ("/e", "/e")];
    for (start, folder) in folders {
        client.children(folder);
        let reply = client.replies(1).map_err(|error| format!("{folder}: {error}"))?.remove(0);
        if reply.header.err == 0 {
            paths.extend(reply.names().iter().map(|name| format!("{start}/{name}")));
        }
    }
    paths.retain(|path| path != "/zookeeper");
    let mut found = BTreeMap::new();
    for chunk in paths.chunks(200) {
        for path in chunk {
            client.get(path);
        }
        let replies = client.replies(chunk.len()).map_err(|error| error.to_string())?;
        for (path, reply) in chunk.iter().zip(replies) {
            if reply.header.err != 0 {
                found.insert(path.clone(), Err(format!("error {}", reply.header.err)));
                continue;
            }
            let (data, stat) = reply.data();
            let seed = expected.get(path.as_str()).map_or(u64::MAX, |znode| znode.seed);
            let is_leaf = ["/c", "/e"].contains(&path.as_str()) || stat.num_children == 0;
            let znode = if data != value(seed, data.len()) {
                Err(format!("other data ({} bytes, modified at 0x{:x})", data.len(), stat.mzxid))
            } else if !is_leaf {
                Err(format!("{} children", stat.num_children))
            } else {
                Ok(Znode {
                    seed,
                    bytes: data.len(),
                    created: stat.czxid,
                    modified: stat.mzxid,
                    version: stat.version,
                    owner: stat.ephemeral_owner,
                })
            };
            found.insert(path.clone(), znode);
        }
    }
    Ok(found)
}

/// A zxid or an offset.
fn says_where(line: &str) -> bool {
    line.contains("0x") || line.contains("byte ") || line.contains("offset")
}

/// What a refusal's message lacks: it has to name something in the directory, and of a log an
/// offset or a zxid.
fn unnamed(said: &str, folder: &Path) -> Option<String> {
    let folder = folder.display().to_string();
    let errors: Vec<&str> = said.lines().filter(|line| line.contains("ERROR")).collect();
    let names = |line: &&str| {
        line.contains(&folder)
            || line.contains("/log.")
            || line.contains("/snapshot.")
            || line.contains("ringkeeper.watermark")
    };
    let Some(line) = errors.iter().find(|line| names(line)) else {
        return Some(format!("no line at ERROR names a file or a folder ({} lines)", errors.len()));
    };
    let is_about_a_log = line.contains("/log.") && !line.contains("ermission denied");
    let has_place = errors.iter().any(|line| says_where(line));
    (is_about_a_log && !has_place).then(|| format!("no offset and no zxid: {line}"))
}

/// Waits until a server answers, and says its zxid.
pub(crate) fn wait_until_served(server: &crate::server::Server) -> i64 {
    let mut zxid = None;
    until(
        PATIENCE,
        || server.said(),
        || {
            zxid = served_zxid(server.address);
            zxid.is_some()
        },
    );
    zxid.expect("it serves")
}
