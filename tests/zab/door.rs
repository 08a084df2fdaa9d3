//! One server at its door: what other servers, the disk and the time do to it, and what it asks for.
//!
//! ```text
//! server 1 of 3 [observers 1] [observer] [damaged] [accepted 2] [current 2] [log 0x100000001 ...] [cache 2] [keeps 2]
//!     [counters 0xfffffffc]             the first transaction of an epoch comes after this number
//! vote 3 LOOKING 3 0x100000002 1 1      from, state, leader, zxid, epoch, round
//! leads                                 votes of all others for it
//! follows 3                             reports of all others, and the link to the leader as L
//! reached [LEADER] / refused [LEADER] / silent [LEADER] / closed LINK / pass MS / progress LINK
//! connected LINK                        somebody connects, and says nothing
//! connected-more COUNT                  so many more do
//! learner LINK SERVER ACCEPTED          connects, and sends FOLLOWERINFO (observer: OBSERVERINFO)
//! LINK ACKEPOCH LAST CURRENT|- / LINK ACK ZXID / LINK PING ZXID
//! L LEADERINFO EPOCH / L DIFF ZXID / L PROPOSAL ZXID / ...
//! L-PROPOSALS ZXID COUNT                so many, from this one on
//! stored accepted 1 / stored current 1 / stored snapshot ZXID / stored truncated ZXID
//! truncate-refused ZXID / snapshot-lost [ZXID ...]    the second with what the log has
//! synced ZXID / propose / learners
//! looked LINK all|not                   whether the log has what was looked for
//! streamed LINK                         a snapshot, or what the log has, is sent
//! ```
//!
//! `full`: until `room again`, it takes nothing that is to be logged.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use ringkeeper::ensemble::Ensemble;
use ringkeeper::jute::record::Record as _;
use ringkeeper::record::quorum::{AuthInfo, FromLeader, FromLearner, LearnerInfo};
use ringkeeper::record::quorum::{PROTOCOL_VERSION, Request, TouchTable, TxnPayload};
use ringkeeper::record::txn::TxnHeader;
use ringkeeper::types::{Epoch, Now, ServerId, SessionId, Zxid};
use ringkeeper::zab::election::{self, Notification};
use ringkeeper::zab::history::{Cache, History};
use ringkeeper::zab::leader::{Span, ToLearner};
use ringkeeper::zab::learner::ToLeader;
use ringkeeper::zab::peer::{Output, Peer, Start};
use ringkeeper::zab::proposals::Proposal;
use ringkeeper::zab::vote::{NOBODY, PeerState, Round, Vote};
use ringkeeper::zab::voters::Voters;
use ringkeeper::zab::{Durable, LinkId, Settings};

use crate::script::{self, Stage};

const SETTINGS: Settings = Settings {
    tick_ms: 1000,
    init_limit: 10,
    sync_limit: 4,
    received_bytes_max: 200,
    unsynced_bytes_max: 300,
    counters_from: 0,
    #[cfg(feature = "mutants")]
    mutant: None,
};
const CACHE: Cache = Cache { count_max: 500, bytes_max: 1 << 20 };
/// The link to the leader.
const TO_LEADER: LinkId = LinkId(0);

#[derive(Default)]
struct Door {
    peer: Option<Peer>,
    me: i64,
    count: i64,
    ms: i64,
    links: BTreeMap<String, LinkId>,
    is_full: bool,
    outcome: String,
}

#[test]
fn scripts_come_out_as_written() {
    script::check("tests/zab", Door::default);
}

/// A transaction that is its zxid and no more.
fn proposal(zxid: Zxid) -> Proposal {
    let header = TxnHeader { client_id: 1, cxid: 0, zxid: zxid.0, time: 0, kind: -11 };
    let mut payload = Vec::new();
    header.write(&mut payload);
    Proposal { zxid, payload: payload.into() }
}

fn number(word: &str) -> Result<i64, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|_| format!("{word} is no number"))
}

fn zxid(word: &str) -> Result<Zxid, String> {
    number(word).map(Zxid)
}

fn epoch(word: &str) -> Result<Epoch, String> {
    number(word).map(|epoch| Epoch(epoch as u32))
}

impl Stage for Door {
    fn play(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let now = Now { monotonic_ms: self.ms, wall_ms: 0 };
        let mut out = Output::default();
        if let ["server", rest @ ..] = &words[..] {
            self.begin(now, rest, &mut out)?;
            self.write(out);
            return Ok(());
        }
        let Some(peer) = &mut self.peer else { return Err("no server yet".to_owned()) };
        match words[..] {
            ["vote", from, state, leader, last, epoch, round] => {
                let state = match state {
                    "LOOKING" => PeerState::Looking,
                    "FOLLOWING" => PeerState::Following,
                    "LEADING" => PeerState::Leading,
                    "OBSERVING" => PeerState::Observing,
                    _ => return Err(format!("{state} is no state")),
                };
                let vote = Vote {
                    leader: ServerId(number(leader)?),
                    zxid: zxid(last)?,
                    peer_epoch: number(epoch)?,
                    round: Round(number(round)?),
                };
                let from = ServerId(number(from)?);
                peer.on_notification(now, from, Notification { state, vote }, &mut out);
            }
            ["leads"] => {
                let vote = peer.notification().vote;
                for from in (1..=self.count).filter(|from| *from != self.me) {
                    let said = Notification { state: PeerState::Looking, vote };
                    peer.on_notification(now, ServerId(from), said, &mut out);
                }
            }
            ["follows", leader] => {
                let leader = ServerId(number(leader)?);
                let vote = Vote { leader, zxid: Zxid(0), peer_epoch: 1, round: Round(9) };
                for from in (1..=self.count).filter(|from| *from != self.me).map(ServerId) {
                    let leads = from == leader;
                    let state = if leads { PeerState::Leading } else { PeerState::Following };
                    peer.on_notification(now, from, Notification { state, vote }, &mut out);
                }
                peer.on_leader_reached(now, leader, TO_LEADER, &mut out);
            }
            [answer @ ("reached" | "refused" | "silent"), ref leader @ ..] => {
                let leader = match leader {
                    [leader] => ServerId(number(leader)?),
                    _ => peer.notification().vote.leader,
                };
                match answer {
                    "reached" => peer.on_leader_reached(now, leader, TO_LEADER, &mut out),
                    "refused" => peer.on_leader_refused(now, leader, &mut out),
                    _ => peer.on_leader_silent(now, leader, &mut out),
                }
            }
            ["looked", name, found] => {
                let link = *self.links.get(name).ok_or("no link")?;
                peer.on_looked(now, link, found == "all", &mut out);
            }
            ["streamed", name] => {
                let link = *self.links.get(name).ok_or("no link")?;
                peer.on_streamed(now, link, &mut out);
            }
            ["progress", "L"] => peer.on_progress(now, TO_LEADER),
            ["progress", name] => peer.on_progress(now, *self.links.get(name).ok_or("no link")?),
            ["connected", name] => {
                let link = LinkId(self.links.len() as u64 + 1);
                self.links.insert(name.to_owned(), link);
                peer.on_learner_connected(now, link, &mut out);
            }
            ["connected-more", count] => {
                for _ in 0..number(count)? {
                    let link = LinkId(self.links.len() as u64 + 1);
                    self.links.insert(format!("more{}", link.0), link);
                    peer.on_learner_connected(now, link, &mut out);
                }
            }
            ["learners"] => {
                for learner in peer.learners() {
                    let role = if learner.is_observer { "observer" } else { "follower" };
                    let (server, acked) = (learner.server, learner.acked);
                    writeln!(self.outcome, "{role} {server} acked {acked}").unwrap();
                }
            }
            ["closed", "L"] => peer.on_link_closed(now, TO_LEADER, &mut out),
            ["closed", name] => {
                let link = *self.links.get(name).ok_or("no such link")?;
                peer.on_link_closed(now, link, &mut out);
            }
            ["pass", ms] => {
                self.ms += number(ms)?;
                let now = Now { monotonic_ms: self.ms, wall_ms: 0 };
                peer.on_time(now, &mut out);
            }
            ["learner", name, server, accepted, ref rest @ ..] => {
                let link = LinkId(self.links.len() as u64 + 1);
                self.links.insert(name.to_owned(), link);
                peer.on_learner_connected(now, link, &mut out);
                let mut info = LearnerInfo::new(ServerId(number(server)?), 0);
                let accepted = epoch(accepted)?;
                let mut is_observer = false;
                for word in rest {
                    match word.split_once('=') {
                        None if *word == "observer" => is_observer = true,
                        Some(("config", version)) => info.config_version = Some(number(version)?),
                        Some(("protocol", version)) => {
                            info.protocol_version = Some(number(version)? as i32);
                        }
                        _ => return Err(format!("{word} is not known")),
                    }
                }
                let packet = match is_observer {
                    true => FromLearner::ObserverInfo { accepted, info },
                    false => FromLearner::FollowerInfo { accepted, info },
                };
                peer.on_packet_of_learner(now, link, packet, &mut out);
            }
            ["truncate-refused", to] => peer.on_truncate_refused(now, zxid(to)?, &mut out),
            ["snapshot-lost", ref log @ ..] => {
                let mut history = History::new(CACHE, Zxid::ZERO);
                for at in log {
                    history.push(proposal(zxid(at)?));
                }
                peer.on_snapshot_lost(now, history, &mut out);
            }
            ["stored", what, value] => {
                let stored = match what {
                    "accepted" => Durable::AcceptedEpoch(epoch(value)?),
                    "current" => Durable::CurrentEpoch(epoch(value)?),
                    "snapshot" => Durable::Snapshot(zxid(value)?),
                    "truncated" => Durable::Truncated(zxid(value)?),
                    _ => return Err(format!("{what} is not stored")),
                };
                peer.on_stored(now, stored, &mut out);
            }
            ["synced", upto] => peer.on_synced(now, zxid(upto)?, &mut out),
            ["propose"] => match peer.next_zxid(now, &mut out) {
                Some(next) => peer.propose(now, proposal(next), &mut out),
                None => self.outcome.push_str("no zxid\n"),
            },
            ["L-PROPOSALS", first, count] => {
                let first = zxid(first)?;
                for zxid in (0..number(count)?).map(|more| Zxid(first.0 + more)) {
                    let payload = proposal(zxid).payload;
                    let txn = TxnPayload::from_bytes(&payload).unwrap();
                    let packet = FromLeader::Proposal { zxid, txn };
                    peer.on_packet_of_leader(now, TO_LEADER, packet, &mut out);
                }
            }
            ["L", ref packet @ ..] => {
                let bytes = match packet {
                    ["PROPOSAL" | "INFORM", zxid, ..] => proposal(self::zxid(zxid)?).payload,
                    _ => Arc::from([]),
                };
                let packet = from_leader(packet, &bytes)?;
                peer.on_packet_of_leader(now, TO_LEADER, packet, &mut out);
            }
            [name, ref packet @ ..] => {
                let link = *self.links.get(name).ok_or(format!("{name} is no command"))?;
                let packet = from_learner(packet)?;
                peer.on_packet_of_learner(now, link, packet, &mut out);
            }
            [] => return Err("a line is empty".to_owned()),
        }
        self.write(out);
        Ok(())
    }

    fn take_outcome(&mut self) -> String {
        std::mem::take(&mut self.outcome)
    }
}

fn from_leader<'a>(packet: &[&str], payload: &'a [u8]) -> Result<FromLeader<'a>, String> {
    let txn = || TxnPayload::from_bytes(payload).unwrap();
    Ok(match packet {
        ["LEADERINFO", epoch] => FromLeader::LeaderInfo {
            epoch: self::epoch(epoch)?,
            protocol_version: PROTOCOL_VERSION,
        },
        ["DIFF", at] => FromLeader::Diff { zxid: zxid(at)? },
        ["TRUNC", at] => FromLeader::Trunc { zxid: zxid(at)? },
        ["SNAP", at] => FromLeader::Snap { zxid: zxid(at)? },
        ["NEWLEADER", epoch] => {
            FromLeader::NewLeader { zxid: Zxid::new(self::epoch(epoch)?, 0), config: None }
        }
        ["UPTODATE"] => FromLeader::UpToDate,
        ["PROPOSAL", at] => FromLeader::Proposal { zxid: zxid(at)?, txn: txn() },
        ["INFORM", at] => FromLeader::Inform { zxid: zxid(at)?, txn: txn() },
        ["COMMIT", at] => FromLeader::Commit { zxid: zxid(at)? },
        ["PING", at] => FromLeader::Ping { zxid: zxid(at)? },
        ["SYNC"] => FromLeader::Sync,
        ["REVALIDATE"] => {
            FromLeader::Revalidate { zxid: Zxid(-1), session: SessionId(7), valid: true }
        }
        _ => return Err(format!("{packet:?} is no packet of a leader")),
    })
}

fn from_learner(packet: &[&str]) -> Result<FromLearner<'static>, String> {
    Ok(match packet {
        ["ACKEPOCH", last, "-"] => FromLearner::AckEpoch { last: zxid(last)?, current: None },
        ["ACKEPOCH", last, current] => {
            FromLearner::AckEpoch { last: zxid(last)?, current: Some(epoch(current)?) }
        }
        ["REVALIDATE"] => {
            FromLearner::Revalidate { zxid: Zxid(-1), session: SessionId(7), timeout_ms: 1000 }
        }
        ["REQUEST"] => FromLearner::Request(Request {
            session: SessionId(7),
            cxid: 1,
            op: 9,
            body: &[],
            identities: AuthInfo::NULL,
        }),
        ["ACK", at] => FromLearner::Ack { zxid: zxid(at)? },
        ["PING", at] => FromLearner::Ping { zxid: zxid(at)?, touched: TouchTable::EMPTY },
        _ => return Err(format!("{packet:?} is no packet of a learner")),
    })
}

impl Door {
    fn begin(&mut self, now: Now, words: &[&str], out: &mut Output) -> Result<(), String> {
        let [me, "of", count, rest @ ..] = words else {
            return Err("server ID of COUNT".to_owned());
        };
        (self.me, self.count) = (number(me)?, number(count)?);
        self.links.clear();
        self.is_full = false;
        let (mut is_observer, mut is_vouched_for) = (false, true);
        let (mut accepted, mut current) = (Epoch(0), Epoch(0));
        let (mut log, mut cached, mut observers) = (Vec::new(), usize::MAX, 0);
        let mut cache = CACHE;
        let mut settings = SETTINGS;
        let mut rest = rest.iter().peekable();
        while let Some(word) = rest.next() {
            let mut value = || rest.next().copied().ok_or(format!("{word} of what?"));
            match *word {
                "observer" => is_observer = true,
                "damaged" => is_vouched_for = false,
                "observers" => observers = number(value()?)?,
                "accepted" => accepted = epoch(value()?)?,
                "current" => current = epoch(value()?)?,
                "counters" => settings.counters_from = number(value()?)? as u32,
                "cache" => cached = number(value()?)? as usize,
                "keeps" => cache.count_max = number(value()?)? as usize,
                "log" => {
                    while let Some(at) = rest.next_if(|word| word.starts_with("0x")) {
                        log.push(zxid(at)?);
                    }
                }
                _ => return Err(format!("{word} is not known")),
            }
        }
        let member = |id| {
            let value = if id <= self.count { "h:1:2" } else { "h:1:2:observer" };
            (format!("server.{id}"), value)
        };
        let lines: Vec<_> = (1..=self.count + observers).map(member).collect();
        let lines = lines.iter().map(|(key, value)| (key.as_str(), *value));
        let ensemble = Ensemble::parse(lines, false).unwrap();
        let (before, tail) = log.split_at(log.len().saturating_sub(cached));
        let mut history = History::new(cache, before.last().copied().unwrap_or_default());
        tail.iter().for_each(|zxid| history.push(proposal(*zxid)));
        let start = Start {
            me: ServerId(self.me),
            settings,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(Arc::new(ensemble), None)),
            is_observer,
            accepted,
            current,
            history,
            is_vouched_for,
        };
        self.peer = Some(Peer::new(now, start, out));
        Ok(())
    }

    fn name(&self, link: LinkId) -> &str {
        let named = self.links.iter().find(|(_, known)| **known == link);
        named.map_or("L", |(name, _)| name.as_str())
    }

    fn write(&mut self, out: Output) {
        let mut text = String::new();
        if let Some(ended) = out.ended {
            writeln!(text, "{ended}").unwrap();
        }
        if let Some(state) = out.state {
            let leader = self.peer.as_ref().unwrap().notification().vote.leader;
            match state {
                PeerState::Looking => writeln!(text, "{state:?}").unwrap(),
                _ => writeln!(text, "{state:?}, leader {leader}").unwrap(),
            }
        }
        let Notification { state, vote } = self.peer.as_ref().unwrap().notification();
        if state == PeerState::Looking && !out.tell.is_empty() {
            let Vote { leader, zxid, peer_epoch, round: Round(round) } = vote;
            let leader = if leader == NOBODY { "nobody".to_owned() } else { leader.to_string() };
            writeln!(text, "vote for {leader}, {zxid}, epoch {peer_epoch}, round {round}").unwrap();
        }
        for (link, packet) in &out.to_leader {
            let packet = match packet {
                ToLeader::Info { accepted } => format!("INFO accepted {accepted}"),
                ToLeader::AckEpoch { last, current: None } => format!("ACKEPOCH {last} -"),
                ToLeader::AckEpoch { last, current: Some(current) } => {
                    format!("ACKEPOCH {last} {current}")
                }
                ToLeader::Ack { zxid } => format!("ACK {zxid}"),
                ToLeader::Ping { zxid } => format!("PING {zxid}"),
            };
            writeln!(text, "-> {} {packet}", self.name(*link)).unwrap();
        }
        for (link, packet) in &out.to_learners {
            let packet = match packet {
                ToLearner::LeaderInfo { epoch } => format!("LEADERINFO {epoch}"),
                ToLearner::Diff { zxid } => format!("DIFF {zxid}"),
                ToLearner::Trunc { zxid } => format!("TRUNC {zxid}"),
                ToLearner::Snap { zxid } => format!("SNAP {zxid}"),
                ToLearner::Logged(Span { after, through }) => {
                    format!("what is logged after {after} through {through}")
                }
                ToLearner::NewLeader { epoch } => format!("NEWLEADER {epoch}"),
                ToLearner::UpToDate => "UPTODATE".to_owned(),
                ToLearner::Proposal(proposal) => format!("PROPOSAL {}", proposal.zxid),
                ToLearner::Commit { zxid } => format!("COMMIT {zxid}"),
                ToLearner::Inform(proposal) => format!("INFORM {}", proposal.zxid),
                ToLearner::Ping { zxid } => format!("PING {zxid}"),
            };
            writeln!(text, "-> {} {packet}", self.name(*link)).unwrap();
        }
        for (link, Span { after, through }) in &out.looks {
            let name = self.name(*link);
            writeln!(text, "look for {name}, after {after} through {through}").unwrap();
        }
        for link in &out.closes {
            writeln!(text, "close {}", self.name(*link)).unwrap();
        }
        for proposal in &out.appends {
            writeln!(text, "log {}", proposal.zxid).unwrap();
        }
        for store in &out.stores {
            match store {
                Durable::AcceptedEpoch(epoch) => writeln!(text, "store accepted {epoch}"),
                Durable::CurrentEpoch(epoch) => writeln!(text, "store current {epoch}"),
                Durable::Truncated(zxid) => writeln!(text, "truncate to {zxid}"),
                Durable::Snapshot(zxid) => writeln!(text, "store snapshot {zxid}"),
            }
            .unwrap();
        }
        if let Some(fault) = out.retried {
            writeln!(text, "{fault}: calling again").unwrap();
        }
        if out.drop_snapshot {
            writeln!(text, "drop the snapshot").unwrap();
        }
        if let Some(zxid) = out.load {
            writeln!(text, "load snapshot {zxid}").unwrap();
        }
        if let Some(epoch) = out.established {
            writeln!(text, "established in epoch {epoch}").unwrap();
        }
        if let Some(zxid) = out.committed {
            writeln!(text, "committed {zxid}").unwrap();
        }
        if let Some(leader) = out.call {
            writeln!(text, "call {leader}").unwrap();
        }
        let is_full = self.peer.as_ref().unwrap().is_full();
        if std::mem::replace(&mut self.is_full, is_full) != is_full {
            writeln!(text, "{}", if is_full { "full" } else { "room again" }).unwrap();
        }
        self.outcome.push_str(&text);
    }
}
