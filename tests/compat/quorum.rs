//! Packets between servers.
//!
//! Every file of `fixtures/quorum` and `fixtures/quorum-3.9.3` is read and reproduced. What is read
//! is held against what another parser read in the same bytes: the tables in the README of 3.9.3,
//! and the `order-*.txt` there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{FIELD_BYTES_MAX, Reader};
use ringkeeper::record::data::AclBytes;
use ringkeeper::record::quorum::{
    AuthStatus, ElectionPiece, ElectionStream, FromLeader, FromLearner, HelloForm, LearnerInfo,
    Notification, PacketPiece, PacketSender, PacketStream, QuorumPacket, Request,
    SNAPSHOT_SIGNATURE, Sasl, TxnPayload,
};
use ringkeeper::record::txn::{Txn, TxnDigest, TxnHeader};
use ringkeeper::storage::snapshot::{Item, SnapshotReader, SnapshotWriter, Trailer};
use ringkeeper::types::{ServerId, Zxid};

/// A file of captured bytes: what one side of a connection has sent.
struct Capture {
    folder: &'static str,
    name: String,
    side: Side,
    bytes: Vec<u8>,
}

/// Which side, and of which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    /// The election port; the sender opened the connection.
    Opener,
    /// The sender accepted the connection.
    Acceptor,
    /// The election port, behind the hello.
    ElectionSasl,
    Leader,
    Learner,
    /// Behind a SNAP.
    SnapshotBody,
}

const FOLDERS: [&str; 2] = ["quorum", "quorum-3.9.3"];

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compat/fixtures").join(name)
}

fn names(name: &str) -> Vec<String> {
    let entries = fs::read_dir(folder(name)).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| !c.is_ascii_whitespace())
        .map(|digit| digit.to_digit(16).unwrap())
        .collect();
    digits.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect()
}

/// By the name of a file, which says who has sent what is in it.
fn side_of(name: &str, bytes: &[u8]) -> Side {
    let from = |words: &[&str]| words.iter().any(|word| name.starts_with(word));
    let is_hello = bytes.first() == Some(&0xff);
    if from(&["election-sasl"]) {
        return Side::ElectionSasl;
    }
    if from(&["election-", "notification-"]) {
        return if is_hello { Side::Opener } else { Side::Acceptor };
    }
    if name == "snap-body" {
        return Side::SnapshotBody;
    }
    if let Some(stream) = name.strip_prefix("stream-") {
        if stream.starts_with("election-") {
            return if is_hello { Side::Opener } else { Side::Acceptor };
        }
        let (sender, _) = stream.split_once("-to-").unwrap();
        return if sender.contains("leader") || sender.contains("observermaster") {
            Side::Leader
        } else {
            assert!(sender.contains("follower") || sender.contains("observer"), "{name}");
            Side::Learner
        };
    }
    let learner = [
        "followerinfo",
        "observerinfo",
        "ackepoch",
        "ack-",
        "request-",
        "ping-reply",
        "revalidate-request",
    ];
    if from(&learner) { Side::Learner } else { Side::Leader }
}

fn captures() -> Vec<Capture> {
    let mut captures = Vec::new();
    for folder_name in FOLDERS {
        for file in names(folder_name) {
            let path = folder(folder_name).join(&file);
            let (name, bytes) = match file.rsplit_once('.').unwrap() {
                (name, "hex") => (name, unhex(&fs::read_to_string(path).unwrap())),
                (name, "bin") => (name, fs::read(path).unwrap()),
                (name, "txt") if name.starts_with("order-") => continue,
                ("README", "md") => continue,
                _ => panic!("{folder_name}/{file} is read by nobody"),
            };
            let side = side_of(name, &bytes);
            captures.push(Capture { folder: folder_name, name: name.to_owned(), side, bytes });
        }
    }
    captures
}

/// A piece of a stream: where it began, what it says, and the bytes that saying it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    offset: u64,
    line: String,
    bytes: Vec<u8>,
}

/// Reads all of a capture that comes in pieces of `piece_bytes`.
fn read(side: Side, bytes: &[u8], piece_bytes: usize) -> Vec<Said> {
    match side {
        Side::Opener => read_election(ElectionStream::accepted(), false, bytes, piece_bytes),
        Side::Acceptor => read_election(ElectionStream::opened(), false, bytes, piece_bytes),
        Side::ElectionSasl => read_election(ElectionStream::opened(), true, bytes, piece_bytes),
        Side::Leader => read_packets(PacketSender::Leader, bytes, piece_bytes),
        Side::Learner => read_packets(PacketSender::Learner, bytes, piece_bytes),
        Side::SnapshotBody => {
            // As it comes: behind the packet that announces it.
            let stream = [&*snap(), bytes].concat();
            let mut said = read_packets(PacketSender::Leader, &stream, piece_bytes);
            assert_eq!(said.remove(0).bytes, snap());
            said
        }
    }
}

fn read_election(
    mut stream: ElectionStream,
    sasl: bool,
    bytes: &[u8],
    piece_bytes: usize,
) -> Vec<Said> {
    let mut said = Vec::new();
    for piece in bytes.chunks(piece_bytes) {
        stream.push(piece);
        if sasl {
            let offset = stream.offset();
            if let Sasl::Packet(packet) = stream.sasl().unwrap() {
                let line = format!("SASL {:?}", packet.status);
                let mut bytes = Vec::new();
                packet.write(&mut bytes);
                said.push(Said { offset, line, bytes });
            }
            continue;
        }
        loop {
            let offset = stream.offset();
            let mut bytes = Vec::new();
            let line = match stream.next().unwrap() {
                None => break,
                Some(ElectionPiece::Hello(hello)) => {
                    hello.write(&mut bytes).unwrap();
                    let version = match hello.form {
                        HelloForm::ServerOnly => 0,
                        HelloForm::OneAddress => -65536,
                        HelloForm::SeveralAddresses => -65535,
                    };
                    let addresses: Vec<String> =
                        hello.addresses.iter().map(ToString::to_string).collect();
                    let addresses = addresses.join("|");
                    format!("INIT v={version} sid={} addr={addresses}", hello.server)
                }
                Some(ElectionPiece::Frame(frame)) => {
                    let notification = Notification::read(&mut Reader::new(frame)).unwrap();
                    notification.write_frame(&mut bytes).unwrap();
                    describe_notification(&notification)
                }
            };
            said.push(Said { offset, line, bytes });
        }
    }
    assert_eq!(stream.held_bytes(), 0, "nothing is left");
    said
}

fn describe_notification(notification: &Notification<'_>) -> String {
    let number = |number: i64| match number {
        i64::MIN => "MIN".to_owned(),
        number => format!("{number:#x}"),
    };
    let config = std::str::from_utf8(notification.config.unwrap()).unwrap();
    let (_, version) = config.rsplit_once("version=").unwrap();
    format!(
        "NOTIF {} leader={} zxid={} round={:#x} peerEpoch={} cfgver={version} cfglen={}",
        notification.state,
        number(notification.leader.0),
        number(notification.zxid.0),
        notification.election_epoch,
        number(notification.peer_epoch),
        config.len(),
    )
}

fn read_packets(sender: PacketSender, bytes: &[u8], piece_bytes: usize) -> Vec<Said> {
    let mut stream = PacketStream::new(sender, FIELD_BYTES_MAX);
    let mut said: Vec<Said> = Vec::new();
    let mut is_sasl = true;
    let mut body: Option<Said> = None;
    for piece in bytes.chunks(piece_bytes) {
        stream.push(piece);
        loop {
            let offset = stream.offset();
            let mut bytes = Vec::new();
            if is_sasl {
                match stream.sasl().unwrap() {
                    Sasl::Incomplete => break,
                    Sasl::Other => is_sasl = false,
                    Sasl::Packet(packet) => {
                        let line = format!("SASL {:?}", packet.status);
                        packet.write(&mut bytes);
                        said.push(Said { offset, line, bytes });
                    }
                }
                continue;
            }
            let line = match stream.next().unwrap() {
                None => break,
                Some(PacketPiece::Packet(packet)) => {
                    let mut raw = Vec::new();
                    packet.write(&mut raw);
                    let line = match sender {
                        PacketSender::Leader => {
                            let message = FromLeader::read(&packet).unwrap();
                            message.write(&mut bytes);
                            describe_leader(&packet, &message)
                        }
                        PacketSender::Learner => {
                            let message = FromLearner::read(&packet).unwrap();
                            message.write(&mut bytes);
                            describe_learner(&packet, &message)
                        }
                    };
                    assert_eq!(raw, bytes, "{line}");
                    line
                }
                Some(PacketPiece::Snapshot(piece)) => {
                    let line = "snapshot body + BenWasHere".to_owned();
                    let new = Said { offset, line, bytes: Vec::new() };
                    body.get_or_insert(new).bytes.extend_from_slice(piece);
                    continue;
                }
                Some(PacketPiece::SnapshotEnd) => {
                    let mut body = body.take().unwrap();
                    body.bytes = rewritten_body(&body.bytes);
                    body.bytes.extend_from_slice(SNAPSHOT_SIGNATURE);
                    said.push(body);
                    continue;
                }
            };
            said.push(Said { offset, line, bytes });
        }
    }
    assert_eq!(stream.held_bytes(), 0, "nothing is left");
    assert_eq!(body, None);
    said
}

/// Makes a snapshot file of a body, reads it, writes it, and takes the body out of it.
fn rewritten_body(body: &[u8]) -> Vec<u8> {
    const HEADER: &[u8] = b"ZKSN\0\0\0\x02\xff\xff\xff\xff\xff\xff\xff\xff";
    let mut file = [HEADER, body].concat();
    let (mut low, mut high) = (1_u64, 0);
    for byte in &file {
        low = (low + u64::from(*byte)) % 65521;
        high = (high + low) % 65521;
    }
    file.extend_from_slice(&(high << 16 | low).to_be_bytes());
    file.extend_from_slice(b"\0\0\0\x01/");

    let (mut sessions, mut acls, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
    let mut reader = SnapshotReader::new(Path::new("a body"), &*file);
    while let Some(item) = reader.next().unwrap() {
        match item {
            Item::Session { id, timeout_ms } => sessions.push((id, timeout_ms)),
            Item::Acl { id, acl } => acls.push((id, acl.as_bytes().to_vec())),
            Item::Node { path, data, acl_id, stat } => {
                nodes.push((path.into_owned(), data.map(<[u8]>::to_vec), acl_id, stat));
            }
        }
    }
    let mut writer = SnapshotWriter::new(Vec::new());
    writer.sessions(sessions.into_iter()).unwrap();
    let lists = acls.iter().map(|(id, acl)| (*id, AclBytes::from_bytes(acl).unwrap()));
    writer.acls(lists.collect::<Vec<_>>().into_iter()).unwrap();
    for (path, data, acl_id, stat) in &nodes {
        writer.node(path, data.as_deref(), *acl_id, stat).unwrap();
    }
    let written = writer.finish(Trailer::default()).unwrap();
    assert!(written == file);
    written[HEADER.len()..written.len() - 13].to_vec()
}

/// Reads a transaction to its end and writes it, and says whose it is.
fn describe_txn(txn: TxnPayload<'_>) -> String {
    let bytes = txn.as_bytes();
    let mut reader = Reader::new(bytes);
    let header = TxnHeader::read(&mut reader).unwrap();
    assert_eq!(header, txn.header());
    let body = Txn::read(header.kind, &mut reader).unwrap();
    let digest = (!reader.is_empty()).then(|| TxnDigest::read(&mut reader).unwrap());
    assert!(reader.is_empty());
    let mut written = Vec::new();
    header.write(&mut written);
    body.write(&mut written);
    if let Some(digest) = digest {
        digest.write(&mut written);
    }
    assert_eq!(written, bytes);
    format!("sess={:#x} cxid={} type={}", header.client_id, header.cxid, header.kind)
}

fn describe_zxid(zxid: Zxid) -> String {
    if zxid == Zxid(-1) { "-1".to_owned() } else { zxid.to_string() }
}

fn describe_leader(packet: &QuorumPacket<'_>, message: &FromLeader<'_>) -> String {
    let name = packet.to_string();
    let name = name.split(' ').next().unwrap();
    let zxid = describe_zxid(packet.zxid);
    match message {
        FromLeader::Proposal { txn, .. } | FromLeader::Inform { txn, .. } => {
            format!("{name} {zxid} {}", describe_txn(*txn))
        }
        FromLeader::CommitAndActivate { designated, .. } => {
            format!("{name} {zxid} designated={designated}")
        }
        FromLeader::InformAndActivate { designated, txn, .. } => {
            describe_txn(*txn);
            format!("{name} {zxid} designated={designated}")
        }
        FromLeader::Revalidate { session, valid, .. } => {
            format!("{name} {zxid} {session} valid={}", u8::from(*valid))
        }
        FromLeader::LeaderInfo { .. }
        | FromLeader::Diff { .. }
        | FromLeader::Trunc { .. }
        | FromLeader::Snap { .. }
        | FromLeader::NewLeader { .. }
        | FromLeader::UpToDate
        | FromLeader::Commit { .. }
        | FromLeader::Ping { .. }
        | FromLeader::Sync => format!("{name} {zxid}"),
    }
}

fn describe_learner(packet: &QuorumPacket<'_>, message: &FromLearner<'_>) -> String {
    let name = packet.to_string();
    let name = name.split(' ').next().unwrap();
    let zxid = describe_zxid(packet.zxid);
    match message {
        FromLearner::FollowerInfo { info, .. } | FromLearner::ObserverInfo { info, .. } => {
            let LearnerInfo { server, protocol_version, config_version } = *info;
            let (server, protocol) = (server.unwrap(), protocol_version.unwrap());
            let config = config_version.unwrap();
            format!("{name} {zxid} sid={server} proto={protocol:#x} cfgver={config:#x} len=20")
        }
        FromLearner::AckEpoch { current, .. } => {
            let current = current.map_or(-1, |epoch| i64::from(epoch.0));
            format!("{name} {zxid} cur={current}")
        }
        FromLearner::Ack { .. } => format!("{name} {zxid}"),
        FromLearner::Ping { touched, .. } => {
            let touched: Vec<String> = touched
                .sessions()
                .map(|(session, timeout_ms)| format!("('{session}', {timeout_ms})"))
                .collect();
            format!("{name} {zxid} touch=[{}]", touched.join(", "))
        }
        FromLearner::Revalidate { session, timeout_ms, .. } => {
            format!("{name} {zxid} {session} to={timeout_ms}")
        }
        FromLearner::Request(Request { session, cxid, op, identities, .. }) => {
            // To create a session is nobody's request yet.
            assert_eq!(identities.decode().is_none(), *op == -10);
            format!("{name} {zxid} sess={session} cxid={cxid} op={op}")
        }
    }
}

/// Whether the other parser, which says more and may be cut off, says what `ours` does.
fn agrees(theirs: &str, ours: &str) -> bool {
    match theirs.strip_prefix(ours) {
        Some(more) => more.is_empty() || more.starts_with(' '),
        None => ours.starts_with(theirs),
    }
}

#[test]
fn every_file_is_read_and_reproduced_in_pieces_of_any_size() {
    let captures = captures();
    for Capture { folder, name, side, bytes } in &captures {
        let whole = read(*side, bytes, bytes.len().max(1));
        assert!(!whole.is_empty() || bytes.is_empty(), "{folder}/{name}");
        let written: Vec<u8> = whole.iter().flat_map(|said| said.bytes.iter().copied()).collect();
        assert!(written == *bytes, "{folder}/{name} is reproduced");
        for piece_bytes in [1, 2, 3, 7, 19, 20, 21, 64, 1000] {
            assert_eq!(read(*side, bytes, piece_bytes), whole, "{folder}/{name} by {piece_bytes}");
        }
        let is_single = !name.starts_with("stream-") && name != "sync-diff-stream";
        assert!(!is_single || whole.len() == 1, "{folder}/{name} is one packet");
    }
    let streams = captures.iter().filter(|capture| capture.name.starts_with("stream-")).count();
    assert_eq!((captures.len(), streams), (167, 64));
}

/// What the packets of 3.8.0 and 3.10 say; those of 3.9.3 are in the table of their README.
const SINGLES: &[(&str, &str)] = &[
    ("ack-after-uptodate", "ACK 0x100000000"),
    ("ack-create", "ACK 0x100000002"),
    ("ack-newleader", "ACK 0x100000000"),
    ("ackepoch-ahead", "ACKEPOCH 0x200000006 cur=2"),
    ("ackepoch-current0", "ACKEPOCH 0x0 cur=0"),
    ("ackepoch-minus1", "ACKEPOCH 0x100000008 cur=-1"),
    ("commit-create", "COMMIT 0x100000002"),
    ("commitandactivate", "COMMITANDACTIVATE 0x100000005 designated=1"),
    ("diff-empty", "DIFF 0x0"),
    ("election-init-v1-sid2", "INIT v=-65536 sid=2 addr=127.0.0.1:27222"),
    ("election-init-v2-sid3", "INIT v=-65535 sid=3 addr=127.0.0.1:27223"),
    (
        "election-notification-following",
        "NOTIF FOLLOWING leader=0x3 zxid=0x0 round=0x1 peerEpoch=0x1 cfgver=0 cfglen=138",
    ),
    (
        "election-notification-leading",
        "NOTIF LEADING leader=0x3 zxid=0x0 round=0x1 peerEpoch=0x1 cfgver=0 cfglen=138",
    ),
    (
        "election-notification-leading-with-config",
        "NOTIF LEADING leader=0x3 zxid=0x0 round=0x1 peerEpoch=0x1 cfgver=100000000 cfglen=250",
    ),
    (
        "election-notification-looking-sid2-votes2",
        "NOTIF LOOKING leader=0x2 zxid=0x0 round=0x1 peerEpoch=0x0 cfgver=0 cfglen=138",
    ),
    (
        "election-notification-looking-sid2-votes3",
        "NOTIF LOOKING leader=0x3 zxid=0x0 round=0x1 peerEpoch=0x0 cfgver=0 cfglen=138",
    ),
    ("election-sasl-learner-1", "SASL InProgress"),
    ("election-sasl-learner-2", "SASL InProgress"),
    ("election-sasl-server-1", "SASL InProgress"),
    ("election-sasl-server-2", "SASL Success"),
    ("followerinfo-sid1", "FOLLOWERINFO 0x0 sid=1 proto=0x10000 cfgver=0x0 len=20"),
    ("inform-create", "INFORM 0x100000002 sess=0x400001382880000 cxid=1 type=1"),
    ("informandactivate", "INFORMANDACTIVATE 0x100000005 designated=1"),
    ("leaderinfo-epoch1", "LEADERINFO 0x100000000"),
    ("newleader-epoch1", "NEWLEADER 0x100000000"),
    ("newleader-with-config", "NEWLEADER 0x100000000"),
    ("observerinfo-sid4", "OBSERVERINFO 0x0 sid=4 proto=0x10000 cfgver=0x100000000 len=20"),
    ("ping-from-leader", "PING 0x100000000"),
    ("ping-reply-empty", "PING 0x100000000 touch=[]"),
    ("ping-reply-touch", "PING 0x100000004 touch=[('0x1000010f6b70000', 10000)]"),
    ("proposal-closesession", "PROPOSAL 0x100000005 sess=0x1000010f6b70000 cxid=103 type=-11"),
    ("proposal-create", "PROPOSAL 0x100000002 sess=0x1000010f6b70000 cxid=1 type=1"),
    ("proposal-create-ephemeral", "PROPOSAL 0x100000004 sess=0x1000010f6b70000 cxid=101 type=1"),
    ("proposal-createsession", "PROPOSAL 0x100000001 sess=0x1000010f6b70000 cxid=0 type=-10"),
    ("proposal-error", "PROPOSAL 0x100000003 sess=0x1000010f6b70000 cxid=3 type=-1"),
    ("proposal-reconfig", "PROPOSAL 0x100000005 sess=0x100001377b50000 cxid=1 type=16"),
    ("proposal-setdata", "PROPOSAL 0x100000007 sess=0x3000010f7170000 cxid=1 type=5"),
    ("request-closesession", "REQUEST -1 sess=0x1000010f6b70000 cxid=103 op=-11"),
    ("request-create", "REQUEST -1 sess=0x1000010f6b70000 cxid=1 op=1"),
    ("request-createsession", "REQUEST -1 sess=0x1000010f6b70000 cxid=0 op=-10"),
    ("request-delete", "REQUEST -1 sess=0x1000010f6b70000 cxid=3 op=2"),
    ("request-reconfig", "REQUEST -1 sess=0x100001377b50000 cxid=1 op=16"),
    ("request-sync", "REQUEST -1 sess=0x1000010f6b70000 cxid=2 op=9"),
    ("revalidate-reply", "REVALIDATE -1 0x1000010f6b70000 valid=1"),
    ("revalidate-request", "REVALIDATE -1 0x1000010f6b70000 to=10000"),
    ("snap-body", "snapshot body + BenWasHere"),
    ("snap-header", "SNAP 0x200000003"),
    ("sync-reply", "SYNC 0x0"),
    ("trunc", "TRUNC 0x200000005"),
    ("uptodate", "UPTODATE -1"),
];

/// The third column of a README's rows, by the first, of packets alone.
fn table(folder_name: &str) -> BTreeMap<String, String> {
    let text = fs::read_to_string(folder(folder_name).join("README.md")).unwrap();
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("| `")?.split_once("` | ")?;
            let (_, content) = rest.strip_suffix(" |")?.split_once(" | ")?;
            Some((name.to_owned(), content.to_owned()))
        })
        .collect()
}

#[test]
fn single_packets_say_what_others_read_in_them() {
    let table = table("quorum-3.9.3");
    let mut singles = BTreeMap::from_iter(SINGLES.iter().copied());
    for Capture { folder, name, side, bytes } in &captures() {
        if name.starts_with("stream-") || name == "sync-diff-stream" {
            continue;
        }
        let ours = &read(*side, bytes, bytes.len())[0].line;
        if *folder == "quorum" {
            assert_eq!(singles.remove(&**name), Some(&**ours), "{name}");
        } else {
            let theirs = &table[name];
            assert!(agrees(theirs, ours), "{name}: {theirs} or {ours}?");
        }
    }
    assert!(singles.is_empty(), "{singles:?}");
}

/// Of a stream's name, the name of the other direction.
fn counterpart(name: &str) -> String {
    if let Some(rest) = name.strip_prefix("election-") {
        let (pair, more) = rest.split_once('-').map_or((rest, ""), |(pair, more)| (pair, more));
        let (one, other) = pair.split_once("to").unwrap();
        let more = if more.is_empty() { String::new() } else { format!("-{more}") };
        return format!("election-{other}to{one}{more}");
    }
    let (prefix, rest) = match name.strip_prefix("reconfig-") {
        Some(rest) => ("reconfig-", rest),
        None => ("", name),
    };
    let (one, rest) = rest.split_once("-to-").unwrap();
    let (other, more) = rest.split_once('-').map_or((rest, ""), |(other, more)| (other, more));
    let more = if more.is_empty() { String::new() } else { format!("-{more}") };
    format!("{prefix}{other}-to-{one}{more}")
}

#[test]
fn streams_say_what_others_read_in_them() {
    let captures = captures();
    let stream = |name: &str| {
        let name = format!("stream-{name}");
        let found = captures
            .iter()
            .find(|capture| capture.folder == "quorum-3.9.3" && capture.name == name);
        let Capture { side, bytes, .. } = found.unwrap_or_else(|| panic!("{name} is there"));
        read(*side, bytes, bytes.len())
    };
    let orders = names("quorum-3.9.3")
        .into_iter()
        .filter(|file| file.starts_with("order-"))
        .inspect(|file| {
            let name = file.strip_prefix("order-").unwrap().strip_suffix(".txt").unwrap();
            let text = fs::read_to_string(folder("quorum-3.9.3").join(file)).unwrap();
            let mut ours = [stream(name), stream(&counterpart(name))].map(Vec::into_iter);
            for line in text.lines() {
                let mut words = line.split_whitespace().skip(1);
                let side = match words.next().unwrap() {
                    ">" => 0,
                    "<" => 1,
                    other => panic!("{file}: {other}"),
                };
                let (_, rest) = line.split_once(['>', '<']).unwrap();
                let rest = rest.trim_start();
                if rest == "FIN" {
                    assert_eq!(ours[side].next(), None, "{file}");
                    continue;
                }
                let said = ours[side].next().unwrap_or_else(|| panic!("{file}: {line}"));
                let theirs = match rest.split_once(' ') {
                    Some((offset, theirs)) if !name.starts_with("election-") => {
                        assert_eq!(offset.parse(), Ok(said.offset), "{file}: {line}");
                        theirs.trim()
                    }
                    _ => rest.trim_end(),
                };
                assert!(agrees(theirs, &said.line), "{file}: {line}: {}", said.line);
            }
            for side in ours {
                assert_eq!(side.as_slice(), [], "{file}");
            }
        });
    assert_eq!(orders.count(), 23);
}

#[test]
fn a_request_tells_who_asks_and_for_what() {
    let bytes = |name: &str| {
        let path = folder("quorum-3.9.3").join(format!("{name}.hex"));
        unhex(&fs::read_to_string(path).unwrap())
    };
    let bytes = bytes("request-create-two-identities");
    let packet = QuorumPacket::read(&mut Reader::new(&bytes)).unwrap();
    let Ok(FromLearner::Request(request)) = FromLearner::read(&packet) else {
        panic!("{packet} is a request")
    };
    let ids = request.identities.decode().unwrap();
    let ids: Vec<_> =
        ids.iter().map(|id| (id.scheme.as_deref().unwrap(), id.id.as_deref().unwrap())).collect();
    assert_eq!(ids, [("ip", "127.0.0.1"), ("digest", "u:Jq7wMyA/w2Vd5WIDAKdu4OIIFEQ=")]);
    assert!(request.body.starts_with(b"\0\0\0\x08/t1/auth"));
}

#[test]
fn a_sasl_exchange_comes_before_the_first_packet() {
    for (name, packets) in [("follower-to-leader", 2), ("leader-to-follower", 2)] {
        let bytes = fs::read(folder("quorum").join(format!("stream-sasl-{name}.bin"))).unwrap();
        let said = read(side_of(&format!("stream-{name}"), &bytes), &bytes, bytes.len());
        let is_sasl = |said: &&Said| said.line.starts_with("SASL ");
        assert_eq!(said.iter().take_while(is_sasl).count(), packets, "{name}");
        assert_eq!(said.iter().filter(is_sasl).count(), packets, "{name}");
        assert!(packets < said.len(), "{name}");
    }
    assert_eq!(AuthStatus::from_number(2), None);
}

#[test]
fn servers_introduce_themselves_with_the_protocol_of_today() {
    let bytes = unhex(&fs::read_to_string(folder("quorum").join("followerinfo-sid1.hex")).unwrap());
    let packet = QuorumPacket::read(&mut Reader::new(&bytes)).unwrap();
    let Ok(FromLearner::FollowerInfo { info, .. }) = FromLearner::read(&packet) else {
        panic!("{packet} is from a follower")
    };
    assert_eq!(info, LearnerInfo::new(ServerId(1), 0));
}

/// Numbers that a seed leads to (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Damages bytes as bugs, versions and strangers do.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(7) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            2 => bytes.truncate(at),
            3 => {
                bytes.splice(at..bytes.len().min(at + random.below(9)), []);
            }
            4 => {
                let from = random.below(other.len());
                let part = &other[from..other.len().min(from + random.below(40))];
                bytes.splice(at..at, part.iter().copied());
            }
            5 => {
                let int =
                    [0, 1, -1, -2, i32::MIN, i32::MAX, 2_097_150, 2_097_151, 524_288, 524_289];
                let int = int[random.below(int.len())].to_be_bytes();
                let end = bytes.len().min(at + 4);
                bytes.splice(at..end, int);
            }
            _ => bytes.extend_from_slice(other),
        }
    }
}

/// All that a stream gives and the error that it ends with, if any, as text. The pieces of a
/// snapshot are one, once it has ended: how much of a damaged one comes before the error depends on
/// how the stream was cut.
fn outcome(side: Side, bytes: &[u8], mut piece_bytes: impl FnMut() -> usize) -> Vec<String> {
    let mut said: Vec<String> = Vec::new();
    let mut rest = bytes;
    let mut body = Vec::new();
    let mut packets = PacketStream::new(
        if side == Side::Learner { PacketSender::Learner } else { PacketSender::Leader },
        FIELD_BYTES_MAX,
    );
    let mut election = match side {
        Side::Opener => ElectionStream::accepted(),
        _ => ElectionStream::opened(),
    };
    let is_election = matches!(side, Side::Opener | Side::Acceptor | Side::ElectionSasl);
    'stream: while !rest.is_empty() {
        let (piece, more) = rest.split_at(rest.len().min(piece_bytes()));
        rest = more;
        packets.push(piece);
        election.push(piece);
        loop {
            let next = if is_election {
                election.next().map(|piece| piece.map(|piece| format!("{piece:?}")))
            } else {
                packets.next().map(|piece| match piece {
                    Some(PacketPiece::Snapshot(piece)) => {
                        assert!(!piece.is_empty());
                        body.extend_from_slice(piece);
                        Some(String::new())
                    }
                    Some(PacketPiece::SnapshotEnd) => {
                        Some(format!("body {:?}", std::mem::take(&mut body)))
                    }
                    Some(PacketPiece::Packet(packet)) => {
                        check_meaning(&packet);
                        Some(format!("{packet:?}"))
                    }
                    None => None,
                })
            };
            match next {
                Ok(None) => break,
                Ok(Some(line)) => said.extend((!line.is_empty()).then_some(line)),
                Err(error) => {
                    let text = error.to_string();
                    assert!(text.contains(" at byte "), "{text}");
                    if is_election {
                        assert_eq!(election.next(), Err(error));
                    } else {
                        assert_eq!(packets.next(), Err(error));
                    }
                    said.push(text);
                    break 'stream;
                }
            }
        }
        let held = if is_election { election.held_bytes() } else { packets.held_bytes() };
        assert!(held <= bytes.len());
    }
    if rest.is_empty() && !said.last().is_some_and(|line| line.contains(" at byte ")) {
        said.push(format!("{} bytes of a body", body.len()));
    }
    said
}

/// What a packet says, if anything, survives being written and read again.
fn check_meaning(packet: &QuorumPacket<'_>) {
    let mut out = Vec::new();
    match FromLeader::read(packet) {
        Ok(message) => {
            message.write(&mut out);
            let again = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
            assert_eq!(FromLeader::read(&again), Ok(message));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    out.clear();
    match FromLearner::read(packet) {
        Ok(message) => {
            message.write(&mut out);
            let again = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
            assert_eq!(FromLearner::read(&again), Ok(message));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Some(ids) = packet.authinfo.decode() {
        assert!(8 * ids.len() <= packet.authinfo.as_bytes().len());
    }
}

/// A packet behind which a body comes.
fn snap() -> Vec<u8> {
    let mut out = Vec::new();
    FromLeader::Snap { zxid: Zxid(1) }.write(&mut out);
    out
}

#[test]
fn damaged_streams_end_in_the_same_way_in_any_pieces() {
    let captures = captures();
    let (mut errors, mut whole) = (0, 0);
    let rounds = std::env::var("SEEDS").map_or(20, |seeds| seeds.parse().unwrap());
    for round in 0..rounds {
        for (place, capture) in captures.iter().enumerate() {
            let seed = (round << 32 | place) as u64;
            let mut random = Random(seed);
            let mut bytes = capture.bytes.clone();
            if capture.side == Side::SnapshotBody {
                bytes.splice(..0, snap());
            }
            let other = &captures[random.below(captures.len())].bytes;
            mutate(&mut bytes, other, &mut random);
            let at_once = outcome(capture.side, &bytes, || usize::MAX);
            let in_pieces = outcome(capture.side, &bytes, || 1 + random.below(40));
            let name = &capture.name;
            assert_eq!(at_once, in_pieces, "{name}, seed {seed:#x}");
            match at_once.iter().any(|line| line.contains(" at byte ")) {
                true => errors += 1,
                false => whole += 1,
            }
        }
    }
    assert!(500 < errors && 500 < whole, "{errors} errors, {whole} read to their ends");
}
