//! A server without sockets or disks: a pipeline, two shards, and the clients of a script.
//!
//! ```text
//! connect NAME [shard N] [timeout MS] [as NAME] [seen ZXID] [password wrong] [readonly BOOL]
//!                           a ConnectRequest; `as` brings another client's session back
//! NAME: REQUEST; REQUEST    requests in one piece; the words are in `wire.rs`
//! raw NAME HEX              bytes as they are, on a connection of their own if NAME has none
//! synced                    the log is on the disk, up to here
//! quiet                     and again, until nobody waits any more
//! hold N, release N         shard N is slow in taking what was committed
//! tick MS                   time passes
//! stall NAME, drain NAME    the client does not read; reads again
//! end NAME                  the client says that it will send no more
//! leave NAME                the connection breaks
//! report                    what the shards say of connections and watches
//! server [after ZXID] [ttl off] [quota on] [reconfig on] [skipacl on] [lists off] [reaper MS]
//!        [unused MS]        another server, with nothing on its disk; or with a snapshot of nothing,
//!                           after which it goes on
//! snapshot                  one is taken, of what is committed
//! restart [ttl on] ...       the server ends in good order, and begins again, perhaps with others
//! crash [torn BYTES]        it ends at once: what was not synced is lost, or all but so much
//! crash forget              and nobody knows the sessions any more
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ringkeeper::auth::{self, Providers};
use ringkeeper::exchange::{Applied, ConnectionId, ShardId};
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, frame};
use ringkeeper::pipeline::{
    self, Append, Input, Pipeline, ReaperSettings, Restore, Restored, RollSettings,
};
use ringkeeper::record::proto::{ConnectRequest, ConnectResponse, ReplyHeader};
use ringkeeper::shard::{self, Allowance, Close, Shard, TurnBudget, WatchPlace};
use ringkeeper::storage::replay::{Options, Replay, ReplayError};
use ringkeeper::storage::snapshot::{SnapshotReader, SnapshotWriter};
use ringkeeper::storage::{self, txnlog};
use ringkeeper::tree;
use ringkeeper::types::{Now, ServerId, Zxid};

use super::wire::{self, Sent, Words};

const SHARDS: u16 = 2;

pub(crate) struct World {
    now: Now,
    settings: pipeline::Settings,
    pipeline: Pipeline,
    shards: Vec<Core>,
    clients: BTreeMap<String, Client>,
    appended: Zxid,
    disk: Disk,
    outcome: String,
    #[cfg(feature = "mutants")]
    mutant: Option<shard::Mutant>,
}

/// What a server finds when it starts.
#[derive(Default)]
struct Disk {
    logs: Vec<Log>,
    snapshot: Option<(Zxid, Vec<u8>)>,
}

struct Log {
    start: Zxid,
    bytes: Vec<u8>,
    synced_bytes: usize,
}

struct Core {
    shard: Shard,
    out: shard::Output,
    /// What was committed and not taken yet.
    applied: VecDeque<Arc<Applied>>,
    is_held: bool,
}

#[derive(Default)]
struct Client {
    at: Option<(usize, ConnectionId)>,
    received: Vec<u8>,
    is_connected: bool,
    is_stalled: bool,
    session: i64,
    password: [u8; 16],
    xid: i32,
    sent: VecDeque<Sent>,
}

impl crate::script::Stage for World {
    fn play(&mut self, line: &str) -> Result<(), String> {
        World::play(self, line)
    }

    fn take_outcome(&mut self) -> String {
        std::mem::take(&mut self.outcome)
    }
}

impl World {
    #[cfg(feature = "mutants")]
    pub(crate) fn with_mutant(mutant: shard::Mutant) -> World {
        let mut world = World::new();
        world.mutant = Some(mutant);
        world.begin(Restore::empty(world.settings.tree).finish());
        world
    }

    pub(crate) fn new() -> World {
        World::with(settings())
    }

    /// A server with nothing on its disk.
    fn with(settings: pipeline::Settings) -> World {
        let now = Now { monotonic_ms: 1_000_000, wall_ms: 1_700_000_000_000 };
        let restored = || Restore::empty(settings.tree).finish();
        let mut world = World {
            now,
            pipeline: Pipeline::new(now, settings.clone(), restored()),
            settings: settings.clone(),
            shards: Vec::new(),
            clients: BTreeMap::new(),
            appended: Zxid::ZERO,
            disk: Disk::default(),
            outcome: String::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        };
        world.begin(restored());
        world
    }

    /// Goes on from what was on the disk.
    fn begin(&mut self, restored: Restored) {
        self.appended = restored.last;
        self.pipeline = Pipeline::new(self.now, self.settings.clone(), restored);
        self.shards.clear();
        for number in 0..SHARDS {
            let id = ShardId(number);
            let settings = shard_settings(&self.settings);
            #[cfg_attr(not(feature = "mutants"), expect(unused_mut, reason = "for mutants"))]
            let mut shard = Shard::new(id, settings, self.pipeline.reader());
            #[cfg(feature = "mutants")]
            shard.set_mutant(self.mutant);
            let out = shard::Output::new(id);
            self.shards.push(Core { shard, out, applied: VecDeque::new(), is_held: false });
        }
        let mut out = pipeline::Output::default();
        self.pipeline.start(self.now, &mut out);
        self.take(out);
    }

    fn play(&mut self, line: &str) -> Result<(), String> {
        if let Some((name, requests)) = line.split_once(':') {
            return self.send(name, requests);
        }
        let mut words = Words::new(line);
        match words.require("a command")? {
            "connect" => self.connect(&mut words)?,
            "raw" => {
                let name = words.require("a name")?.to_owned();
                let bytes = hex(words.require("bytes")?)?;
                if !self.clients.contains_key(&name) {
                    self.accept(&name, 0);
                }
                self.hand_in(&name, &bytes);
            }
            "synced" => self.sync(),
            "quiet" => loop {
                let before = self.appended;
                self.sync();
                self.settle();
                if self.appended == before && self.pipeline.report().outstanding == 0 {
                    break;
                }
            },
            "hold" => self.shards[shard_number(&mut words)?].is_held = true,
            "release" => self.shards[shard_number(&mut words)?].is_held = false,
            "tick" => {
                let ms: i64 = words.require("ms")?.parse().map_err(|_| "ms is a number")?;
                self.tick(ms);
            }
            "stall" => self.client(words.require("a name")?)?.is_stalled = true,
            "drain" => self.client(words.require("a name")?)?.is_stalled = false,
            "end" => {
                let (number, id) = self.at(words.require("a name")?)?;
                let core = &mut self.shards[number];
                core.shard.on_end_of_input(self.now, id, &mut core.out);
            }
            "leave" => {
                let name = words.require("a name")?;
                let (number, id) = self.at(name)?;
                self.shards[number].shard.on_closed(self.now, id);
                self.client(name)?.at = None;
            }
            "report" => self.report(),
            "server" => *self = self.another(&mut words)?,
            "snapshot" => self.take_snapshot()?,
            "restart" => {
                self.step(Input::Synced(self.appended));
                self.disk.sync();
                configure(&mut self.settings, &mut words)?;
                self.restart(false)?;
            }
            "crash" => {
                let torn = words.value_of("torn").map_or(Ok(0), str::parse);
                self.disk.crash(torn.map_err(|_| "torn is a number")?);
                self.restart(words.has("forget"))?;
            }
            command => return Err(format!("{command} is no command")),
        }
        self.settle();
        Ok(())
    }

    fn connect(&mut self, words: &mut Words<'_>) -> Result<(), String> {
        let name = words.require("a name")?.to_owned();
        let number = match words.value_of("shard") {
            Some(number) => number.parse::<usize>().map_err(|_| "shard is a number")? - 1,
            None => 0,
        };
        let (mut session, mut password) = (0, [0; 16]);
        if let Some(other) = words.value_of("as") {
            (session, password) = {
                let other = self.client(other)?;
                (other.session, other.password)
            };
        }
        if words.value_of("password") == Some("wrong") {
            password[0] ^= 1;
        }
        let parse = |word: &str| word.parse::<i64>().map_err(|_| format!("{word}: no number"));
        let request = ConnectRequest {
            protocol_version: 0,
            last_zxid_seen: words.value_of("seen").map_or(Ok(0), parse)?,
            timeout_ms: words.value_of("timeout").map_or(Ok(10_000), parse)? as i32,
            session,
            password: Some(&password),
            read_only: match words.value_of("readonly") {
                Some("absent") => None,
                Some("true") => Some(true),
                _ => Some(false),
            },
        };
        let mut bytes = Vec::new();
        frame::write(&mut bytes, |out| request.write(out));
        self.accept(&name, number);
        self.hand_in(&name, &bytes);
        Ok(())
    }

    fn accept(&mut self, name: &str, number: usize) {
        let remote = SocketAddr::from((Ipv4Addr::LOCALHOST, 40_000));
        let id = self.shards[number].shard.on_accept(self.now, remote);
        let client = Client { at: Some((number, id)), ..Client::default() };
        self.clients.insert(name.to_owned(), client);
    }

    fn send(&mut self, name: &str, requests: &str) -> Result<(), String> {
        let client = self.client(name)?;
        let mut bytes = Vec::new();
        for request in requests.split(';') {
            client.xid += 1;
            let sent = wire::request(request.trim(), client.xid, &mut bytes)?;
            client.sent.push_back(sent);
        }
        self.hand_in(name, &bytes);
        self.settle();
        Ok(())
    }

    /// Bytes come in pieces of odd sizes, as they do.
    fn hand_in(&mut self, name: &str, bytes: &[u8]) {
        let Some((number, id)) = self.clients[name].at else { return };
        let core = &mut self.shards[number];
        for piece in bytes.chunks(61) {
            core.shard.on_bytes(self.now, id, piece, &mut core.out);
        }
    }

    fn tick(&mut self, ms: i64) {
        let mut left = ms;
        while left > 0 {
            let step = left.min(500);
            left -= step;
            self.now.monotonic_ms += step;
            self.now.wall_ms += step;
            for core in &mut self.shards {
                core.shard.on_tick(self.now, self.now.monotonic_ms, &mut core.out);
            }
            self.settle();
            self.step(Input::Tick);
            // The disk keeps up while time passes.
            self.sync();
            self.settle();
        }
    }

    fn another(&self, words: &mut Words<'_>) -> Result<World, String> {
        let mut settings = settings();
        let after = words.value_of("after").map(|zxid| {
            i64::from_str_radix(zxid.trim_start_matches("0x"), 16).map_err(|_| "zxids are hex")
        });
        configure(&mut settings, words)?;
        let mut world = World::with(settings);
        if let Some(zxid) = after.transpose()? {
            let mut restored = Restore::empty(world.settings.tree).finish();
            restored.last = Zxid(zxid);
            world.begin(restored);
            world.take_snapshot()?;
        }
        world.outcome.clone_from(&self.outcome);
        #[cfg(feature = "mutants")]
        {
            world.mutant = self.mutant;
            world.begin(Restore::empty(world.settings.tree).finish());
        }
        Ok(world)
    }

    fn take_snapshot(&mut self) -> Result<(), String> {
        let job = self.pipeline.snapshot_job();
        let bytes = job.write(SnapshotWriter::new(Vec::new()), true);
        self.disk.snapshot = Some((job.zxid, bytes.map_err(|error| error.to_string())?));
        Ok(())
    }

    /// A server begins on what the one before left on the disk, which makes the same of it.
    fn restart(&mut self, forget: bool) -> Result<(), String> {
        let (digest, last) = (self.pipeline.tree().digest(), self.appended);
        let mut restored = self.disk.restore(&self.settings)?;
        if restored.last == last {
            assert_eq!(restored.tree.digest(), digest, "the log leads to the same state");
        }
        if forget {
            restored.sessions.clear();
        }
        writeln!(
            self.outcome,
            "restarted at zxid {}: replayed {} sessions {} znodes {}",
            restored.last,
            restored.replayed,
            restored.sessions.len(),
            restored.tree.znode_count()
        )
        .unwrap();
        self.clients.values_mut().for_each(|client| client.at = None);
        // It takes its time.
        self.now.monotonic_ms += 100;
        self.now.wall_ms += 100;
        self.begin(restored);
        Ok(())
    }

    fn sync(&mut self) {
        self.disk.sync();
        self.step(Input::Synced(self.appended));
    }

    fn step(&mut self, input: Input<'_>) {
        let mut out = pipeline::Output::default();
        self.pipeline.step(self.now, input, &mut out);
        self.take(out);
    }

    fn take(&mut self, out: pipeline::Output) {
        for append in &out.appends {
            self.appended = append.last;
            self.disk.append(append);
        }
        for core in &mut self.shards {
            core.applied.extend(out.applied.iter().cloned());
        }
    }

    /// Lets everything happen that can happen without disk and time.
    fn settle(&mut self) {
        loop {
            let mut is_quiet = true;
            for number in 0..self.shards.len() {
                let core = &mut self.shards[number];
                while !core.is_held
                    && let Some(applied) = core.applied.pop_front()
                {
                    core.shard.on_applied(self.now, &applied, &mut core.out);
                    is_quiet = false;
                }
                core.shard.on_turn(self.now, &mut core.out);
                if let Some(touched) = core.out.touched.take() {
                    self.step(Input::Touched(&touched));
                }
                let id = ShardId(number as u16);
                let core = &mut self.shards[number];
                let empty = ringkeeper::exchange::Requests::new(id);
                let requests = std::mem::replace(&mut core.out.requests, empty);
                if !requests.is_empty() {
                    self.step(Input::Requests(&requests));
                    is_quiet = false;
                }
                self.write_out(number);
                is_quiet &= !self.shards[number].shard.has_work();
            }
            if is_quiet {
                return;
            }
        }
    }

    /// What the shell does with the connections that a step named.
    fn write_out(&mut self, number: usize) {
        let core = &mut self.shards[number];
        for word in std::mem::take(&mut core.out.words) {
            let text = format!("answer to {}", String::from_utf8_lossy(&word.word));
            let text = vec![text.into_bytes()];
            core.shard.answer_word(self.now, word.connection, text, &mut core.out);
        }
        let mut ready = std::mem::take(&mut core.out.ready);
        ready.append(&mut core.out.later);
        let named: Vec<String> = self
            .clients
            .iter()
            .filter(|(_, client)| client.at.is_some_and(|(at, _)| at == number))
            .map(|(name, _)| name.clone())
            .collect();
        for name in named {
            let client = self.clients.get_mut(&name).unwrap();
            let (_, id) = client.at.unwrap();
            let core = &mut self.shards[number];
            if !ready.contains(&id) && client.is_stalled {
                continue;
            }
            let mut ended = None;
            while let Some(outgoing) = core.shard.outgoing(id) {
                ended = outgoing.close;
                if client.is_stalled || outgoing.bytes.is_empty() {
                    break;
                }
                // A socket takes what it takes.
                let count = outgoing.bytes.len().min(1000);
                client.received.extend_from_slice(&outgoing.bytes[..count]);
                core.shard.on_written(self.now, id, count, &mut core.out);
            }
            client.tell(&name, &mut self.outcome);
            let is_flushed = core.shard.outgoing(id).is_none_or(|left| left.bytes.is_empty());
            if ended == Some(Close::AtOnce) || (ended.is_some() && is_flushed) {
                core.shard.on_closed(self.now, id);
                client.at = None;
                writeln!(self.outcome, "{name}: closed").unwrap();
            }
        }
    }

    fn report(&mut self) {
        for core in &self.shards {
            assert_eq!(core.shard.broken_invariant(), None);
            for info in core.shard.connections(0..core.shard.slot_count()) {
                let session = info.session.is_some();
                writeln!(
                    self.outcome,
                    "connection session {session} queued {} received {} sent {} op {:?}",
                    info.queued, info.stats.received, info.stats.sent, info.stats.last_op
                )
                .unwrap();
            }
            let outcome = &mut self.outcome;
            core.shard.watches(WatchPlace::FIRST, usize::MAX, |path, sessions| {
                writeln!(outcome, "watch {path} by {}", sessions.count()).unwrap();
            });
        }
    }

    fn client(&mut self, name: &str) -> Result<&mut Client, String> {
        self.clients.get_mut(name).ok_or_else(|| format!("{name} has not connected"))
    }

    fn at(&mut self, name: &str) -> Result<(usize, ConnectionId), String> {
        self.client(name)?.at.ok_or_else(|| format!("{name} is not connected"))
    }
}

impl Disk {
    fn append(&mut self, append: &Append) {
        assert_eq!(append.first.epoch(), append.last.epoch(), "an append is of one epoch");
        if append.new_file {
            let mut bytes = Vec::new();
            txnlog::append_header(&mut bytes);
            self.logs.push(Log { start: append.first, bytes, synced_bytes: 0 });
        }
        let log = self.logs.last_mut().expect("the first record opens a file");
        log.bytes.extend_from_slice(&append.records);
    }

    fn sync(&mut self) {
        self.logs.iter_mut().for_each(|log| log.synced_bytes = log.bytes.len());
    }

    /// Loses what is not synced, all but `left` bytes of it.
    fn crash(&mut self, left: usize) {
        self.logs.retain_mut(|log| {
            log.bytes.truncate(log.synced_bytes + left);
            !log.bytes.is_empty()
        });
    }

    /// What the shell does at a start: the snapshot, the logs after it, and a torn tail cut.
    fn restore(&mut self, settings: &pipeline::Settings) -> Result<Restored, String> {
        let mut restore = match &self.snapshot {
            Some((zxid, bytes)) => {
                let mut reader = SnapshotReader::new(Path::new("snapshot"), &bytes[..]);
                Restore::from_snapshot(settings.tree, *zxid, &mut reader)
                    .map_err(|error| error.to_string())?
            }
            None => Restore::empty(settings.tree),
        };
        let options = Options { from: restore.last(), watermark: None };
        let mut replay = Replay::new(options);
        let names: Vec<_> = self.logs.iter().map(|log| storage::log_name(log.start)).collect();
        for (log, name) in self.logs.iter().zip(&names) {
            let replayed = replay.log(Path::new(name), log.start, &log.bytes, |record| {
                restore
                    .replay(&record.header, &record.txn, record.digest.as_ref())
                    .map_err(|error| Failed(error.to_string()))
            });
            replayed.map_err(|Failed(error)| error)?;
        }
        let replayed = replay.finish().map_err(|error| error.to_string())?;
        for cut in replayed.cuts {
            let at = names.iter().position(|name| cut.path == Path::new(name)).unwrap();
            self.logs[at].bytes.truncate(cut.offset as usize);
        }
        self.logs.retain(|log| !log.bytes.is_empty());
        self.sync();
        Ok(restore.finish())
    }
}

struct Failed(String);

impl From<ReplayError> for Failed {
    fn from(error: ReplayError) -> Failed {
        Failed(error.to_string())
    }
}

impl Client {
    /// Puts what has been received into words.
    fn tell(&mut self, name: &str, outcome: &mut String) {
        if self.sent.is_empty() && !self.is_connected && self.received.starts_with(b"answer") {
            let text = String::from_utf8(std::mem::take(&mut self.received)).unwrap();
            writeln!(outcome, "{name}: {text}").unwrap();
        }
        while let frame::Front::Frame { body } = frame::cut(&self.received, 1 << 24) {
            let taken = body.len() + frame::PREFIX_BYTES;
            let mut body = Reader::new(body);
            let text = if self.is_connected {
                let header = ReplyHeader::read(&mut body).unwrap();
                if header.xid == -1 {
                    wire::event(header, &mut body)
                } else {
                    let at = match header.xid {
                        // Not in the order of the others.
                        -4 => self.sent.iter().position(|sent| sent.word == "auth"),
                        _ => Some(0),
                    };
                    let sent = at.and_then(|at| self.sent.remove(at));
                    wire::reply(header, &sent.expect("replies are asked for"), &mut body)
                }
            } else {
                let short = body.rest().len() == 36;
                let response = ConnectResponse::read(&mut body).unwrap();
                let short = if short { ", short" } else { "" };
                if response.timeout_ms == 0 {
                    format!("refused{short}")
                } else {
                    self.is_connected = true;
                    self.session = response.session;
                    self.password = response.password;
                    format!("connected, {} ms{short}", response.timeout_ms)
                }
            };
            writeln!(outcome, "{name}: {text}").unwrap();
            self.received.drain(..taken);
        }
    }
}

/// Takes the words that follow as settings.
fn configure(settings: &mut pipeline::Settings, words: &mut Words<'_>) -> Result<(), String> {
    while let Some(word) = words.next() {
        let value = words.require("a value")?;
        let is_on = value == "on";
        match word {
            "ttl" => settings.tree.types.extended = is_on,
            "quota" => settings.enforce_quota = is_on,
            "reconfig" => settings.reconfig_enabled = is_on,
            "skipacl" => settings.skip_acl = is_on,
            "lists" => settings.close_session_lists_paths = is_on,
            "reaper" => settings.reaper.check_interval_ms = wire::number(value)?,
            "unused" => settings.reaper.never_used_ms_max = wire::number(value)?,
            // Where history begins is no setting.
            "after" => {}
            _ => return Err(format!("{word} is no setting")),
        }
    }
    Ok(())
}

fn settings() -> pipeline::Settings {
    let digest = auth::DigestSettings {
        super_digest: Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".to_owned()),
        ..auth::DigestSettings::default()
    };
    let auth = auth::Settings { digest: Some(digest), ..auth::Settings::default() };
    let mut tree = tree::Settings::default();
    tree.types.extended = true;
    pipeline::Settings {
        server: ServerId(1),
        shards: usize::from(SHARDS),
        tick_ms: 1000,
        providers: Arc::new(Providers::new(auth).unwrap()),
        skip_acl: false,
        enforce_quota: false,
        reconfig_enabled: false,
        close_session_lists_paths: true,
        record_bytes_max: ringkeeper::jute::FIELD_BYTES_MAX,
        answer_bytes_max: 1 << 20,
        listed_per_step: 100,
        tree,
        roll: RollSettings::default(),
        reaper: ReaperSettings::default(),
        audit: None,
        seed: 1,
        #[cfg(feature = "mutants")]
        mutant: None,
    }
}

fn shard_settings(settings: &pipeline::Settings) -> shard::Settings {
    shard::Settings {
        frame_bytes_max: 0xf_ffff,
        session_timeout_min_ms: 2_000,
        session_timeout_max_ms: 20_000,
        providers: Arc::clone(&settings.providers),
        skip_acl: settings.skip_acl,
        sessionless_timeout_ms: 10_000,
        silence_slack_ms: 10_000,
        outstanding_max: 1000,
        large_request_bytes: None,
        large_requests_bytes_max: 100 << 20,
        throttled_op_wait_ms: None,
        connect_throttle: None,
        input_bytes_max: 4096,
        output_bytes_max: 1024,
        output_bytes_ceiling: 4096,
        answer_bytes_max: 1 << 20,
        answer_bytes: Allowance::new(1 << 24, 1, 1 << 20),
        watches_per_connection_max: 1000,
        watches: Allowance::new(10_000, 1, 100),
        connection_turn: TurnBudget { bytes: 2048, steps: 64 },
        turn: TurnBudget { bytes: 4096, steps: 128 },
        auth_bytes_max: 1 << 16,
        hash_seed: 1,
        serves_at_birth: true,
    }
}

fn shard_number(words: &mut Words<'_>) -> Result<usize, String> {
    match words.require("a shard")? {
        "1" => Ok(0),
        "2" => Ok(1),
        other => Err(format!("there is no shard {other}")),
    }
}

fn hex(word: &str) -> Result<Vec<u8>, String> {
    let digits: Vec<u8> = word
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8).ok_or("not hex"))
        .collect::<Result<_, _>>()?;
    Ok(digits.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0)).collect())
}
