//! Answers that list: connections, sessions, ephemerals or watches, of which there may be millions.
//!
//! The shell gathers a list in parts and hands them in one after the other. Each part becomes text at
//! once, so the length of the answer is known while it grows, and the shell can stop gathering.
//!
//! The server goes on while the parts are gathered, so a session or a watched path may move and be in
//! two parts. `dump` shows each session once, and `wchp` each path once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::{self, Write as _};
use std::hash::BuildHasher as _;

use super::four_letter::{Word, write_connection, write_connection_in_full};
use super::{Connection, DateText, Mode, RemoteText, Session, Zone};
use crate::types::SessionId;

/// How long a piece of an answer is at most.
const PIECE_BYTES: usize = 1 << 20;
/// What a line of `dump` with a session takes at least: a tab, `0x1` and the line's end.
const SESSION_LINE_BYTES: usize = 5;

/// Text in pieces: it grows without being moved, and leaves piece by piece.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text {
    pieces: Vec<Vec<u8>>,
    bytes: usize,
}

impl Text {
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    #[must_use]
    pub fn into_pieces(self) -> Vec<Vec<u8>> {
        self.pieces
    }

    /// Puts `more` behind this; what is long is not copied.
    pub(super) fn append(&mut self, mut more: Text) {
        let copied = more.pieces.iter().take_while(|piece| piece.len() < PIECE_BYTES / 16).count();
        for piece in more.pieces.drain(..copied) {
            self.put(&piece);
        }
        self.bytes += more.pieces.iter().map(Vec::len).sum::<usize>();
        self.pieces.append(&mut more.pieces);
    }

    fn put(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let has_room = self.pieces.last().is_some_and(|last| last.len() < PIECE_BYTES);
            if !has_room {
                self.pieces.push(Vec::new());
            }
            let last = self.pieces.last_mut().expect("one was pushed if there was none");
            let (now, later) = bytes.split_at(bytes.len().min(PIECE_BYTES - last.len()));
            last.extend_from_slice(now);
            bytes = later;
        }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.put(text.as_bytes());
        Ok(())
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.pieces.concat()))
    }
}

/// What an answer lists, as far as it has come.
pub struct Lists {
    word: Word,
    /// Of the text, without what is around the lists.
    bytes: usize,
    lines: Text,
    /// Of `dump`: when sessions expire, and connections, as lines.
    sessions: BTreeMap<SessionId, Expiry>,
    connections: BTreeMap<i64, (usize, Text)>,
    owner_count: usize,
    last_owner: Option<SessionId>,
    by_session: Vec<(SessionId, Text)>,
    /// Where each session is in `by_session`.
    places: HashMap<SessionId, usize>,
    by_path: Vec<Watched>,
    watching: Watching,
}

/// What `dump` says of a session.
struct Expiry {
    timeout_ms: i64,
    at_ms: i64,
    is_local: bool,
}

/// A path of `wchp`, and the lines of those who watch it.
struct Watched {
    path_bytes: usize,
    text: String,
}

impl Watched {
    fn path(&self) -> &str {
        &self.text[..self.path_bytes]
    }

    fn sessions(&self) -> &str {
        &self.text[self.path_bytes + 1..]
    }
}

/// What `wchs` counts.
#[derive(Default)]
struct Watching {
    sessions: BTreeSet<SessionId>,
    /// Paths by their hashes. Of 20 million, two have the same once in a hundred thousand times.
    paths: Vec<u64>,
    watches: usize,
}

impl Lists {
    #[must_use]
    pub fn new(word: Word) -> Lists {
        Lists {
            word,
            bytes: 0,
            lines: Text::default(),
            sessions: BTreeMap::new(),
            connections: BTreeMap::new(),
            owner_count: 0,
            last_owner: None,
            by_session: Vec::new(),
            places: HashMap::new(),
            by_path: Vec::new(),
            watching: Watching::default(),
        }
    }

    /// How long the answer will be at least.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn connection(&mut self, connection: &Connection) {
        let lines = match self.word {
            Word::Cons | Word::Stat => &mut self.lines,
            Word::Dump => {
                let bucket = self.connections.entry(connection.expires_at_ms).or_default();
                bucket.0 += 1;
                &mut bucket.1
            }
            _ => return,
        };
        let before = lines.bytes();
        let written = match self.word {
            Word::Cons => write_connection_in_full(lines, connection),
            Word::Stat => write_connection(lines, connection).and_then(|()| writeln!(lines, ")")),
            _ => {
                let session = connection.session.as_ref().map_or(0, |session| session.id.0);
                let remote = RemoteText(connection.remote);
                writeln!(lines, "\tip: {remote} sessionId: {session:#x}")
            }
        };
        written.expect("writing to memory succeeds");
        self.bytes += lines.bytes() - before;
    }

    pub fn session(&mut self, session: &Session) {
        let &Session { id, timeout_ms, expires_at_ms: at_ms, is_local } = session;
        if self.word == Word::Dump
            && self.sessions.insert(id, Expiry { timeout_ms, at_ms, is_local }).is_none()
        {
            self.bytes += SESSION_LINE_BYTES;
        }
    }

    /// Those of one session come one after the other.
    pub fn ephemeral(&mut self, session: SessionId, path: &str) {
        if self.word != Word::Dump {
            return;
        }
        let before = self.lines.bytes();
        if self.last_owner.replace(session) != Some(session) {
            self.owner_count += 1;
            put_line(&mut self.lines, format_args!("{session}:"));
        }
        put_line(&mut self.lines, format_args!("\t{path}"));
        self.bytes += self.lines.bytes() - before;
    }

    /// Sessions that watch a path.
    pub fn watched(&mut self, path: &str, sessions: &[SessionId]) {
        match self.word {
            Word::Wchs => {
                self.watching.watches += sessions.len();
                self.watching.sessions.extend(sessions);
                self.watching.paths.push(foldhash::quality::FixedState::default().hash_one(path));
            }
            Word::Wchc => {
                for &session in sessions {
                    let place = *self.places.entry(session).or_insert_with(|| {
                        self.by_session.push((session, Text::default()));
                        self.by_session.len() - 1
                    });
                    put_line(&mut self.by_session[place].1, format_args!("\t{path}"));
                }
                self.bytes += sessions.len() * (path.len() + 2);
            }
            Word::Wchp => {
                let is_last = self.by_path.last().is_some_and(|last| last.path() == path);
                if !is_last {
                    let text = format!("{path}\n");
                    self.bytes += text.len();
                    self.by_path.push(Watched { path_bytes: path.len(), text });
                }
                let last = self.by_path.last_mut().expect("one was pushed if it was another");
                let before = last.text.len();
                for session in sessions {
                    writeln!(last.text, "\t{session}").expect("writing to memory succeeds");
                }
                self.bytes += last.text.len() - before;
            }
            _ => {}
        }
    }

    /// The lines of `cons` and `stat`.
    pub(super) fn into_lines(self) -> Text {
        self.lines
    }

    /// `wchc`.
    pub(super) fn write_by_session(self, out: &mut Text) -> fmt::Result {
        for (session, paths) in self.by_session {
            writeln!(out, "{session}")?;
            out.append(paths);
        }
        writeln!(out)
    }

    /// `wchp`.
    pub(super) fn write_by_path(mut self, out: &mut Text) -> fmt::Result {
        self.by_path.sort_by(|one, other| one.path().cmp(other.path()));
        let mut before: Option<&Watched> = None;
        for watched in &self.by_path {
            if before.is_none_or(|before| before.path() != watched.path()) {
                writeln!(out, "{}", watched.path())?;
            }
            out.write_str(watched.sessions())?;
            before = Some(watched);
        }
        writeln!(out)
    }

    /// `wchs`.
    pub(super) fn write_summary(self, out: &mut Text) -> fmt::Result {
        let Watching { sessions, mut paths, watches } = self.watching;
        paths.sort_unstable();
        paths.dedup();
        writeln!(out, "{} connections watching {} paths", sessions.len(), paths.len())?;
        writeln!(out, "Total watches:{watches}")
    }

    /// A leader, or a server that is alone, knows when sessions expire. Others know their timeouts, and
    /// when those expire that are theirs alone (`LearnerSessionTracker.dumpSessions`).
    pub(super) fn write_dump(
        self,
        out: &mut Text,
        zone: &Zone,
        mode: Mode,
        has_local: bool,
    ) -> fmt::Result {
        writeln!(out, "SessionTracker dump:")?;
        let (local, global): (BTreeMap<_, _>, BTreeMap<_, _>) =
            self.sessions.into_iter().partition(|(_, expiry)| expiry.is_local);
        if has_local {
            write_buckets(out, "Local Session", zone, by_expiry(local)?)?;
        }
        match mode {
            Mode::Standalone | Mode::Leader => {
                let what = if has_local { "Global Session" } else { "Session" };
                write_buckets(out, what, zone, by_expiry(global)?)?;
            }
            Mode::Follower | Mode::Observer | Mode::ReadOnly => {
                writeln!(out, "Global Sessions({}):", global.len())?;
                for (session, Expiry { timeout_ms, .. }) in global {
                    writeln!(out, "{session}\t{timeout_ms}ms")?;
                }
            }
        }
        writeln!(out, "ephemeral nodes dump:")?;
        writeln!(out, "Sessions with Ephemerals ({}):", self.owner_count)?;
        out.append(self.lines);
        writeln!(out, "Connections dump:")?;
        write_buckets(out, "Connections", zone, self.connections)
    }
}

fn put_line(out: &mut Text, line: fmt::Arguments<'_>) {
    writeln!(out, "{line}").expect("writing to memory succeeds");
}

/// Sessions as lines, by when they expire.
fn by_expiry(
    sessions: BTreeMap<SessionId, Expiry>,
) -> Result<BTreeMap<i64, (usize, Text)>, fmt::Error> {
    let mut buckets: BTreeMap<i64, (usize, Text)> = BTreeMap::new();
    for (session, Expiry { at_ms, .. }) in sessions {
        let (count, lines) = buckets.entry(at_ms).or_default();
        *count += 1;
        writeln!(lines, "\t{session}")?;
    }
    Ok(buckets)
}

/// What expires when, earliest first.
fn write_buckets(
    out: &mut Text,
    what: &str,
    zone: &Zone,
    buckets: BTreeMap<i64, (usize, Text)>,
) -> fmt::Result {
    let count: usize = buckets.values().map(|(count, _)| count).sum();
    writeln!(out, "{what} Sets ({})/({count}):", buckets.len())?;
    for (at_ms, (count, lines)) in buckets {
        writeln!(out, "{count} expire at {}:", DateText { at_ms, zone })?;
        out.append(lines);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SessionId = SessionId(0x1000);
    const B: SessionId = SessionId(0x2000);

    fn shown(lists: Lists) -> String {
        let mut out = Text::default();
        match lists.word {
            Word::Wchc => lists.write_by_session(&mut out),
            Word::Wchp => lists.write_by_path(&mut out),
            Word::Wchs => lists.write_summary(&mut out),
            _ => lists.write_dump(&mut out, &Zone::utc(), Mode::Standalone, false),
        }
        .unwrap();
        out.to_string()
    }

    #[test]
    fn text_is_what_was_written_whatever_its_pieces() {
        let (mut text, mut expected) = (Text::default(), String::new());
        for round in 0..40usize {
            let more = "abcdefg".repeat(1 + round * 2_000);
            let mut other = Text::default();
            other.write_str(&more).unwrap();
            text.append(other);
            text.write_str(&more).unwrap();
            expected.push_str(&more);
            expected.push_str(&more);
        }
        assert_eq!(text.bytes(), expected.len());
        assert!(text.to_string() == expected);
        assert!(text.into_pieces().iter().all(|piece| piece.len() <= PIECE_BYTES));
    }

    #[test]
    fn parts_of_one_path_are_shown_as_one() {
        let mut wchp = Lists::new(Word::Wchp);
        wchp.watched("/b", &[A]);
        wchp.watched("/b", &[B]);
        wchp.watched("/a", &[A]);
        // Another shard knows it, too.
        wchp.watched("/b", &[SessionId(0x3000)]);
        let text = shown(wchp);
        assert_eq!(text, "/a\n\t0x1000\n/b\n\t0x1000\n\t0x2000\n\t0x3000\n\n");

        let mut wchs = Lists::new(Word::Wchs);
        wchs.watched("/b", &[A]);
        wchs.watched("/b", &[B]);
        wchs.watched("/a", &[A]);
        assert_eq!(shown(wchs), "2 connections watching 2 paths\nTotal watches:3\n");

        let mut wchc = Lists::new(Word::Wchc);
        wchc.watched("/b", &[A, B]);
        wchc.watched("/a", &[A]);
        assert_eq!(shown(wchc), "0x1000\n\t/b\n\t/a\n0x2000\n\t/b\n\n");
    }

    /// As ZooKeeper 3.8.0 and 3.9.3 show them.
    #[test]
    fn local_sessions_are_dumped_with_their_time_whoever_leads() {
        let lists = || {
            let mut lists = Lists::new(Word::Dump);
            for (id, is_local) in [(A, true), (B, false)] {
                let (timeout_ms, expires_at_ms) = (20_000, 1_795_181_029_000);
                lists.session(&Session { id, timeout_ms, expires_at_ms, is_local });
            }
            lists
        };
        let dumped = |mode| {
            let mut out = Text::default();
            lists().write_dump(&mut out, &Zone::utc(), mode, true).unwrap();
            let text = out.to_string();
            text.split_once("ephemeral nodes").unwrap().0.to_owned()
        };
        let time = "1 expire at Fri Nov 20 13:23:49 UTC 2026:\n";
        let head = format!("SessionTracker dump:\nLocal Session Sets (1)/(1):\n{time}\t0x1000\n");
        let led = format!("{head}Global Sessions(1):\n0x2000\t20000ms\n");
        assert_eq!(dumped(Mode::Observer), led);
        let leads = format!("{head}Global Session Sets (1)/(1):\n{time}\t0x2000\n");
        assert_eq!(dumped(Mode::Leader), leads);
    }

    #[test]
    fn a_session_that_was_heard_from_meanwhile_is_dumped_once() {
        let mut dump = Lists::new(Word::Dump);
        dump.session(&Session { id: A, timeout_ms: 4_000, expires_at_ms: 1_000, is_local: false });
        dump.session(&Session { id: B, timeout_ms: 4_000, expires_at_ms: 2_000, is_local: false });
        dump.session(&Session { id: A, timeout_ms: 4_000, expires_at_ms: 2_000, is_local: false });
        let text = shown(dump);
        assert!(text.contains("Session Sets (1)/(2):\n2 expire at "), "{text}");
    }

    #[test]
    fn the_length_is_known_while_the_text_grows() {
        for word in [Word::Wchp, Word::Wchc, Word::Dump] {
            let mut lists = Lists::new(word);
            let mut before = 0;
            for number in 0..100 {
                let path = format!("/a-path-{number:03}");
                lists.watched(&path, &[A, B]);
                lists.ephemeral(A, &path);
                assert!(before + path.len() < lists.bytes(), "{word}");
                before = lists.bytes();
            }
            let text = shown(lists);
            assert!(before <= text.len() && text.len() <= before + 200, "{word}: {before}");
        }
    }
}
