use proptest::prelude::*;

use super::*;
use crate::jute::record::{Buffer, Record};
use crate::jute::{FIELD_BYTES_MAX, Reader, Write as _};
use crate::record::data::{Id, OPEN_ACL_BYTES, StatPersisted};
use crate::record::txn::TxnHeader;
use crate::types::{Epoch, ServerId, SessionId, Zxid};

// Hellos.

fn hello_bytes(version: i64, text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_i64(version);
    bytes.put_i64(7);
    bytes.put_buffer(Some(text));
    bytes
}

fn read_hello(bytes: &[u8]) -> Result<Option<Hello>, StreamError> {
    let mut stream = ElectionStream::accepted();
    stream.push(bytes);
    match stream.next()? {
        Some(ElectionPiece::Hello(hello)) => Ok(Some(hello)),
        Some(piece) => panic!("{piece:?} before a hello"),
        None => Ok(None),
    }
}

fn addresses(version: i64, text: &str) -> Option<Vec<String>> {
    let hello = read_hello(&hello_bytes(version, text.as_bytes())).ok()?.expect("all is there");
    Some(hello.addresses.iter().map(ToString::to_string).collect())
}

#[test]
fn a_hello_of_any_release_is_read() {
    let old = read_hello(&5_i64.to_be_bytes()).unwrap().unwrap();
    let server_only =
        Hello { form: HelloForm::ServerOnly, server: ServerId(5), addresses: Vec::new() };
    assert_eq!(old, server_only);
    for (version, form) in [(-65536, HelloForm::OneAddress), (-65535, HelloForm::SeveralAddresses)]
    {
        let hello = read_hello(&hello_bytes(version, b"zoo1:3888|[::1]:3889")).unwrap().unwrap();
        let address = |host: &str, port| ElectionAddress { host: host.to_owned(), port };
        let addresses = vec![address("zoo1", 3888), address("::1", 3889)];
        assert_eq!(hello, Hello { form, server: ServerId(7), addresses });
        let mut written = Vec::new();
        hello.write(&mut written).unwrap();
        assert_eq!(written, hello_bytes(version, b"zoo1:3888|[::1]:3889"));
    }
}

#[test]
fn addresses_are_cut_as_java_cuts_them() {
    for (text, expected) in [
        ("a:1", &["a:1"][..]),
        ("a:1|b:2|", &["a:1", "b:2"]),
        ("|", &[]),
        ("[::1]:1", &["[::1]:1"]),
        ("[h]:1", &["h:1"]),
        ("a:+1", &["a:1"]),
    ] {
        assert_eq!(addresses(-65536, text).unwrap(), expected, "{text}");
    }
    for text in
        ["a", "a:", ":1", "a:x", "a:70000", "a:-1", "a:1||b:2", "|a:1", "::1:1", "[::1:1", "[::1]1"]
    {
        assert_eq!(addresses(-65535, text), None, "{text}");
    }
}

#[test]
fn a_hello_that_java_refuses_is_refused() {
    for (bytes, reason) in [
        (hello_bytes(-65534, b"a:1"), "malformed version of a hello at byte 0"),
        (hello_bytes(-1, b"a:1"), "malformed version of a hello at byte 0"),
        (
            hello_bytes(-65536, b""),
            "addresses of a hello at byte 16 announces 0; 1 to 2048 is allowed",
        ),
        (
            hello_bytes(-65536, &[b'a'; 2049]),
            "addresses of a hello at byte 16 announces 2049; 1 to 2048 is allowed",
        ),
        (hello_bytes(-65536, b"a:x"), "malformed address of a hello at byte 20"),
    ] {
        assert_eq!(read_hello(&bytes).unwrap_err().to_string(), reason);
    }
    let long = Hello {
        form: HelloForm::SeveralAddresses,
        server: ServerId(1),
        addresses: vec![ElectionAddress { host: "a".repeat(2046), port: 10 }],
    };
    let mut out = vec![1];
    assert!(long.write(&mut out).is_err());
    assert_eq!(out, [1]);
}

#[test]
fn wildcards_are_no_address_to_connect_to() {
    let text = b"0.0.0.0:1|[::]:2|[0:0:0:0:0:0:0:0]:3|zoo1:4|127.0.0.1:5";
    let hello = read_hello(&hello_bytes(-65535, text)).unwrap().unwrap();
    let reachable: Vec<u16> = hello.reachable().map(|address| address.port).collect();
    assert_eq!(reachable, [4, 5]);
}

// Notifications.

const VOTE: Notification<'static> = Notification {
    state: ServerState::Leading,
    leader: ServerId(3),
    zxid: Zxid(0x2_0000_0007),
    election_epoch: 9,
    peer_epoch: 4,
    version: NOTIFICATION_VERSION,
    config: Some(b"version=0"),
};

fn read_notification(bytes: &[u8]) -> Option<Notification<'_>> {
    Notification::read(&mut Reader::new(bytes)).ok()
}

#[test]
fn a_notification_is_read_by_its_length() {
    let mut whole = Vec::new();
    VOTE.write(&mut whole);
    let shorter = Notification { version: 0, config: None, ..VOTE };
    for bytes in 0..whole.len() {
        let expected = match bytes {
            28 => Some(Notification { peer_epoch: 2, ..shorter }),
            40 => Some(shorter),
            _ => None,
        };
        assert_eq!(read_notification(&whole[..bytes]), expected, "{bytes} bytes");
    }
    assert_eq!(read_notification(&whole), Some(VOTE));
    // What a later release may add is not looked at.
    whole.extend_from_slice(b"more");
    assert_eq!(read_notification(&whole), Some(VOTE));
}

#[test]
fn a_version_below_two_has_no_configuration() {
    let first = Notification { version: 1, ..VOTE };
    let mut bytes = Vec::new();
    first.write(&mut bytes);
    assert_eq!(bytes.len(), 40);
    bytes.extend_from_slice(&[0xff; 9]);
    assert_eq!(read_notification(&bytes), Some(Notification { config: None, ..first }));
}

#[test]
fn a_wrong_length_of_a_configuration_drops_the_notification() {
    let mut whole = Vec::new();
    VOTE.write(&mut whole);
    for length in [-1, -2, i32::MIN, 10, i32::MAX] {
        whole[40..44].copy_from_slice(&length.to_be_bytes());
        assert_eq!(read_notification(&whole), None, "length {length}");
    }
    whole[40..44].copy_from_slice(&0_i32.to_be_bytes());
    let empty = Notification { config: Some(b""), ..VOTE };
    assert_eq!(read_notification(&whole[..44]), Some(empty));
}

#[test]
fn an_unknown_state_is_still_a_notification() {
    let strange = Notification { state: ServerState::Unknown(9), ..VOTE };
    let mut bytes = Vec::new();
    strange.write(&mut bytes);
    assert_eq!(read_notification(&bytes), Some(strange));
}

#[test]
fn a_frame_has_a_length_that_java_accepts_or_ends_the_connection() {
    for length in [0, -1, 524_289, i32::MIN] {
        let mut stream = ElectionStream::opened();
        stream.push(&length.to_be_bytes());
        let error = stream.next().unwrap_err();
        let expected = format!("frame at byte 0 announces {length}; 1 to 524288 is allowed");
        assert_eq!(error.to_string(), expected);
        stream.push(&[0; 8]);
        assert_eq!(stream.next(), Err(error), "an error is final");
        assert_eq!(stream.sasl(), Err(error));
    }
    let mut bytes = 524_288_i32.to_be_bytes().to_vec();
    bytes.resize(4 + FRAME_BYTES_MAX, 1);
    let mut stream = ElectionStream::opened();
    stream.push(&bytes);
    assert_eq!(stream.next(), Ok(Some(ElectionPiece::Frame(&bytes[4..]))));
    let config = vec![b'c'; FRAME_BYTES_MAX];
    let too_long = Notification { config: Some(&config), ..VOTE };
    let mut out = vec![1];
    assert!(too_long.write_frame(&mut out).is_err());
    assert_eq!(out, [1]);
}

#[test]
fn the_bound_of_frames_can_be_lower_for_strangers() {
    let mut bytes = Vec::new();
    VOTE.write_frame(&mut bytes).unwrap();
    for (bound, is_read) in [(bytes.len() - 4, true), (bytes.len() - 5, false)] {
        let mut stream = ElectionStream::opened();
        stream.set_frame_bytes_max(bound);
        stream.push(&bytes);
        assert_eq!(stream.next().is_ok(), is_read);
    }
}

// What packets say.

fn packet(kind: i32, zxid: i64, data: Buffer<'_>) -> QuorumPacket<'_> {
    QuorumPacket { kind, zxid: Zxid(zxid), data, authinfo: AuthInfo::NULL }
}

#[test]
fn every_type_has_its_number_and_its_side() {
    for number in -1..25 {
        let data = [0; 100];
        let packet = packet(number, 0, Some(&data[..96]));
        let results =
            [FromLeader::read(&packet).map(|_| ()), FromLearner::read(&packet).map(|_| ())];
        let Some(kind) = PacketKind::from_number(number) else {
            assert!(!(1..=19).contains(&number));
            assert_eq!(results, [Err(PacketError::Unknown { kind: number }); 2]);
            continue;
        };
        assert_eq!(kind.number(), number);
        let other = Err(PacketError::OtherSide { kind });
        let expected = match kind {
            PacketKind::Ping | PacketKind::Revalidate => [Ok(()), Ok(())],
            PacketKind::Request
            | PacketKind::Ack
            | PacketKind::FollowerInfo
            | PacketKind::ObserverInfo
            | PacketKind::AckEpoch => [other, Ok(())],
            _ => [Ok(()), other],
        };
        assert_eq!(results, expected, "{kind}");
    }
}

#[test]
fn a_learner_may_say_less_of_itself() {
    let whole = LearnerInfo::new(ServerId(3), 0x1_0000_0005);
    let mut bytes = Vec::new();
    FromLearner::ObserverInfo { accepted: Epoch(2), info: whole }.write(&mut bytes);
    let read = QuorumPacket::read(&mut Reader::new(&bytes)).unwrap();
    assert_eq!((read.kind, read.zxid), (16, Zxid(0x2_0000_0000)));
    let data = read.data.unwrap();
    assert_eq!(data.len(), 20);
    for bytes in 0..=20 {
        let mut expected = whole;
        if bytes < 20 {
            expected.config_version = None;
        }
        if bytes < 12 {
            expected.protocol_version = None;
        }
        if bytes < 8 {
            expected.server = None;
        }
        assert_eq!(LearnerInfo::from_data(Some(&data[..bytes])), expected, "{bytes} bytes");
    }
    assert_eq!(LearnerInfo::from_data(None), LearnerInfo::from_data(Some(&[])));
    let longer = [data, &[1; 8]].concat();
    assert_eq!(LearnerInfo::from_data(Some(&longer)), whole);
}

#[test]
fn what_closes_a_connection_in_java_is_malformed() {
    let mut txn = Vec::new();
    let header = TxnHeader { client_id: 1, cxid: 2, zxid: 8, time: 3, kind: -1 };
    header.write(&mut txn);
    let short = [0; 100];
    for (number, zxid, data, reason) in [
        (17, 1 << 32, None, "LEADERINFO: malformed data (null) at byte 12 of the packet"),
        (17, 1 << 32, Some(&short[..3]), "LEADERINFO: malformed int at byte 16 of the packet"),
        (
            17,
            -1,
            Some(&short[..4]),
            "LEADERINFO: malformed zxid (negative epoch) at byte 4 of the packet",
        ),
        (2, 9, None, "PROPOSAL: malformed data (null) at byte 12 of the packet"),
        (2, 9, Some(&short[..10]), "PROPOSAL: malformed int at byte 24 of the packet"),
        (
            2,
            9,
            Some(&txn),
            "PROPOSAL: malformed zxid of the transaction (the packet has another) at byte 28 of the packet",
        ),
        (8, 9, Some(&short[..31]), "INFORM: malformed int at byte 44 of the packet"),
        (9, 9, Some(&short[..7]), "COMMITANDACTIVATE: malformed long at byte 16 of the packet"),
        (19, 9, Some(&short[..7]), "INFORMANDACTIVATE: malformed long at byte 16 of the packet"),
        (19, 9, Some(&short[..20]), "INFORMANDACTIVATE: malformed long at byte 36 of the packet"),
        (6, 9, Some(&short[..8]), "REVALIDATE: malformed bool at byte 24 of the packet"),
    ] {
        let packet = packet(number, zxid, data);
        assert_eq!(FromLeader::read(&packet).unwrap_err().to_string(), reason);
    }
    let negative = (-2_i32).to_be_bytes();
    for (number, zxid, data, reason) in [
        (11, -1, None, "FOLLOWERINFO: malformed zxid (negative epoch) at byte 4 of the packet"),
        (18, 9, None, "ACKEPOCH: malformed data (null) at byte 12 of the packet"),
        (
            18,
            9,
            Some(&negative[..]),
            "ACKEPOCH: malformed epoch (negative) at byte 16 of the packet",
        ),
        (5, 9, None, "PING: malformed data (null) at byte 12 of the packet"),
        (5, 9, Some(&short[..5]), "PING: malformed touched session at byte 16 of the packet"),
        (5, 9, Some(&short[..29]), "PING: malformed touched session at byte 40 of the packet"),
        (6, -1, Some(&short[..8]), "REVALIDATE: malformed int at byte 24 of the packet"),
        (1, -1, None, "REQUEST: malformed data (null) at byte 12 of the packet"),
        (1, -1, Some(&short[..8]), "REQUEST: malformed int at byte 24 of the packet"),
    ] {
        let packet = packet(number, zxid, data);
        assert_eq!(FromLearner::read(&packet).unwrap_err().to_string(), reason);
    }
}

#[test]
fn what_java_does_not_look_at_is_not_looked_at() {
    let data = Some(&b"whatever"[..]);
    for (number, expected) in [
        (4, FromLeader::Commit { zxid: Zxid(9) }),
        (5, FromLeader::Ping { zxid: Zxid(9) }),
        (7, FromLeader::Sync),
        (12, FromLeader::UpToDate),
        (13, FromLeader::Diff { zxid: Zxid(9) }),
        (14, FromLeader::Trunc { zxid: Zxid(9) }),
        (15, FromLeader::Snap { zxid: Zxid(9) }),
    ] {
        assert_eq!(FromLeader::read(&packet(number, 9, data)), Ok(expected));
    }
    let ack = FromLearner::read(&packet(3, 9, data));
    assert_eq!(ack, Ok(FromLearner::Ack { zxid: Zxid(9) }));
    for config in [None, Some(&b""[..])] {
        let expected = FromLeader::NewLeader { zxid: Zxid(9), config };
        assert_eq!(FromLeader::read(&packet(10, 9, config)), Ok(expected));
    }
}

#[test]
fn a_log_record_between_head_and_tail_is_a_proposal() {
    let mut txn = Vec::new();
    TxnHeader { client_id: 1, cxid: 2, zxid: 8, time: 3, kind: -11 }.write(&mut txn);
    let payload = TxnPayload::from_bytes(&txn).unwrap();
    for (kind, message) in [
        (PacketKind::Proposal, FromLeader::Proposal { zxid: Zxid(8), txn: payload }),
        (PacketKind::Inform, FromLeader::Inform { zxid: Zxid(8), txn: payload }),
    ] {
        let mut written = Vec::new();
        message.write(&mut written);
        let head = packet_head(kind, Zxid(8), txn.len()).unwrap();
        assert_eq!([&head[..], &txn, &PACKET_TAIL].concat(), written);
    }
    assert!(packet_head(PacketKind::Proposal, Zxid(8), 1 << 31).is_err());
}

#[test]
fn identities_are_kept_in_their_bytes() {
    let ids = [Id::new("ip", "127.0.0.1"), Id::new("digest", "a:b")];
    let mut bytes = Vec::new();
    AuthInfo::write_ids(ids.iter(), &mut bytes);
    let authinfo = AuthInfo::from_bytes(&bytes).unwrap();
    let text = |id: &crate::record::data::IdText<'_>| {
        Id::new(id.scheme.clone().unwrap(), id.id.clone().unwrap())
    };
    assert_eq!(authinfo.decode().unwrap().iter().map(text).collect::<Vec<_>>(), ids);
    assert!(!authinfo.is_null() && AuthInfo::NULL.is_null());
    assert_eq!(AuthInfo::NULL.decode(), None);
    bytes.push(0);
    assert!(AuthInfo::from_bytes(&bytes).is_err());
}

// Streams of packets.

/// The text of each piece and of the error that ends them; pieces of a body are one.
fn pieces(sender: PacketSender, field_bytes_max: usize, parts: &[&[u8]]) -> Vec<String> {
    let mut stream = PacketStream::new(sender, field_bytes_max);
    let (mut found, mut body) = (Vec::new(), Vec::new());
    'parts: for part in parts {
        stream.push(part);
        loop {
            match stream.next() {
                Ok(None) => break,
                Ok(Some(PacketPiece::Packet(packet))) => found.push(format!("{packet:?}")),
                Ok(Some(PacketPiece::Snapshot(piece))) => body.extend_from_slice(piece),
                Ok(Some(PacketPiece::SnapshotEnd)) => {
                    found.push(format!("body {:?}", std::mem::take(&mut body)));
                }
                Err(error) => {
                    found.push(error.to_string());
                    break 'parts;
                }
            }
        }
    }
    found
}

#[test]
fn a_packet_that_is_not_whole_needs_more() {
    let mut bytes = Vec::new();
    let mut ids = Vec::new();
    AuthInfo::write_ids([Id::new("ip", "127.0.0.1")].iter(), &mut ids);
    FromLearner::Request(Request {
        session: SessionId(1),
        cxid: 2,
        op: 3,
        body: b"body",
        identities: AuthInfo::from_bytes(&ids).unwrap(),
    })
    .write(&mut bytes);
    for end in 0..bytes.len() {
        let mut stream = PacketStream::new(PacketSender::Learner, 100);
        stream.push(&bytes[..end]);
        assert_eq!(stream.next(), Ok(None), "{end} bytes");
        assert_eq!(stream.held_bytes(), end);
        stream.push(&bytes[end..]);
        assert!(matches!(stream.next(), Ok(Some(PacketPiece::Packet(_)))), "{end} bytes");
        assert_eq!((stream.held_bytes(), stream.offset()), (0, bytes.len() as u64));
    }
}

#[test]
fn a_length_out_of_bounds_ends_the_stream_before_what_it_announces() {
    let head = |length: i32| {
        let mut bytes = vec![0; 12];
        bytes.put_i32(length);
        bytes
    };
    let next = |bytes: &[u8]| {
        let mut stream = PacketStream::new(PacketSender::Learner, 1000);
        stream.push(&[0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 9, 0xff, 0xff, 0xff, 0xff]);
        stream.push(&PACKET_TAIL);
        assert!(stream.next().unwrap().is_some());
        stream.push(bytes);
        let result = stream.next().map(|piece| piece.is_some()).map_err(|error| error.to_string());
        assert_eq!(result.clone().ok(), stream.next().ok().map(|piece| piece.is_some()));
        result
    };
    let error = |what, offset, length| {
        Err(format!("{what} at byte {offset} announces {length}; 0 to 1000 is allowed"))
    };
    for length in [-2, i32::MIN, 1001, 100_000_000] {
        assert_eq!(next(&head(length)), error("data of a packet", 32, length));
    }
    assert_eq!(next(&head(1000)), Ok(false));
    // All identities together are held against the bound, which begins with their count.
    let mut ids = head(-1);
    ids.put_i32(i32::MAX);
    ids.put_i32(900);
    ids.resize(ids.len() + 900, b'a');
    assert_eq!(next(&ids), Ok(false));
    ids.put_i32(97);
    let expected = "identity of a packet at byte 944 announces 97; 0 to 92 is allowed";
    assert_eq!(next(&ids), Err(expected.to_owned()));
}

#[test]
fn memory_follows_what_came_and_not_what_is_announced() {
    let mut bytes = vec![0; 12];
    bytes.put_i32(FIELD_BYTES_MAX as i32);
    bytes.extend_from_slice(&[0; 100]);
    let mut stream = PacketStream::new(PacketSender::Learner, FIELD_BYTES_MAX);
    for byte in &bytes {
        stream.push(&[*byte]);
        assert_eq!(stream.next(), Ok(None));
    }
    let mut election = ElectionStream::opened();
    election.push(&(FRAME_BYTES_MAX as i32).to_be_bytes());
    assert_eq!(election.next(), Ok(None));
    let mut arrivals = Arrivals::default();
    for byte in bytes.iter().cycle().take(1 << 20) {
        arrivals.push(&[*byte]);
        if arrivals.front().len() == 300 {
            arrivals.take(290);
        }
        assert!(arrivals.bytes.capacity() <= 2048);
    }
    arrivals.push(&vec![0; 4 << 20]);
    arrivals.take(arrivals.front().len());
    arrivals.push(&[]);
    assert!(arrivals.bytes.capacity() <= IDLE_BYTES_MAX);
}

#[test]
fn many_identities_in_small_pieces_are_measured_once() {
    // 100,000 empty texts, a byte at a time: looking at all of them again with each byte would
    // take minutes.
    let mut bytes = vec![0; 12];
    bytes.put_i32(-1);
    bytes.put_i32(50_000);
    for _ in 0..100_000 {
        bytes.put_i32(0);
    }
    let mut stream = PacketStream::new(PacketSender::Learner, FIELD_BYTES_MAX);
    for byte in &bytes[..bytes.len() - 1] {
        stream.push(&[*byte]);
        assert_eq!(stream.next(), Ok(None));
    }
    stream.push(&[0]);
    let Ok(Some(PacketPiece::Packet(packet))) = stream.next() else { panic!("it is whole") };
    assert_eq!(packet.authinfo.decode().unwrap().len(), 50_000);
}

#[test]
fn a_bound_of_the_handshake_holds_until_it_is_raised() {
    let mut bytes = Vec::new();
    let config = vec![b'c'; HANDSHAKE_FIELD_BYTES_MAX + 1];
    FromLeader::NewLeader { zxid: Zxid(1 << 32), config: Some(&config) }.write(&mut bytes);
    let mut stream = PacketStream::new(PacketSender::Leader, HANDSHAKE_FIELD_BYTES_MAX);
    stream.set_field_bytes_max(FIELD_BYTES_MAX);
    stream.push(&bytes);
    assert!(stream.next().unwrap().is_some());
    let mut stream = PacketStream::new(PacketSender::Leader, HANDSHAKE_FIELD_BYTES_MAX);
    stream.push(&bytes);
    assert!(stream.next().is_err());
}

// Snapshots.

fn body(nodes: &[(&str, Option<&[u8]>)]) -> Vec<u8> {
    let mut body = Vec::new();
    body.put_i32(2);
    body.extend_from_slice(&[9; 24]);
    body.put_i32(2);
    body.put_i64(1);
    body.extend_from_slice(OPEN_ACL_BYTES);
    body.put_i64(2);
    body.put_i32(0);
    for (path, data) in nodes {
        body.put_text(path);
        body.put_buffer(*data);
        body.put_i64(-1);
        StatPersisted::default().write(&mut body);
    }
    body.put_text("/");
    body
}

#[test]
fn a_body_ends_behind_its_last_path() {
    let mut stream = Vec::new();
    FromLeader::Snap { zxid: Zxid(3) }.write(&mut stream);
    // A path of one byte that is not the end, and data that looks like it.
    let body = body(&[("", None), ("x", Some(b"\0\0\0\x01/")), ("/a", Some(b"")), ("/b", None)]);
    stream.extend_from_slice(&body);
    stream.extend_from_slice(SNAPSHOT_SIGNATURE);
    FromLeader::UpToDate.write(&mut stream);
    let found = pieces(PacketSender::Leader, 100, &[&stream]);
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(found[1], format!("body {body:?}"));
    let each: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(pieces(PacketSender::Leader, 100, &each), found);
    // From a learner it is a packet like any other.
    let snap = &stream[..20];
    assert_eq!(pieces(PacketSender::Learner, 100, &[snap, snap]).len(), 2);
}

#[test]
fn a_body_that_cannot_be_or_is_not_signed_ends_the_stream() {
    let sound = body(&[("", None)]);
    let replaced = |at: usize, int: i32| {
        let mut body = sound.clone();
        body[at..at + 4].copy_from_slice(&int.to_be_bytes());
        body.extend_from_slice(SNAPSHOT_SIGNATURE);
        body
    };
    let mut unsigned = sound.clone();
    unsigned.put_text("BenWasThere");
    for (body, reason) in [
        (replaced(40, -1), "malformed ACL list of a snapshot at byte 60"),
        (replaced(48, -2), "malformed length of an identity in a snapshot at byte 68"),
        (replaced(57, -2), "malformed length of an identity in a snapshot at byte 77"),
        (replaced(79, -1), "malformed path of a snapshot's node at byte 99"),
        (replaced(79, -5), "malformed length of a path in a snapshot at byte 99"),
        (replaced(83, -2), "malformed length of data in a snapshot at byte 103"),
        (unsigned, "malformed signature of a snapshot at byte 180"),
    ] {
        let mut snap = Vec::new();
        FromLeader::Snap { zxid: Zxid(3) }.write(&mut snap);
        let each: Vec<&[u8]> = body.chunks(1).collect();
        let in_pieces = [&[&*snap], &*each].concat();
        for parts in [&[&*snap, &body][..], &in_pieces] {
            let found = pieces(PacketSender::Leader, 100, parts);
            assert_eq!(found.last().unwrap(), reason);
        }
        let mut stream = PacketStream::new(PacketSender::Leader, 100);
        stream.push(&snap);
        assert!(stream.next().unwrap().is_some());
        stream.push(&body);
        let error = loop {
            match stream.next() {
                Ok(piece) => assert!(piece.is_some()),
                Err(error) => break error,
            }
        };
        stream.push(SNAPSHOT_SIGNATURE);
        assert_eq!(stream.next(), Err(error), "an error is final");
        assert_eq!(stream.sasl(), Err(error));
    }
}

#[test]
fn a_negative_count_in_a_body_is_none() {
    let mut body = Vec::new();
    body.put_i32(-3);
    body.put_i32(-1);
    body.put_text("/");
    let mut scan = SnapshotScan::default();
    body.extend_from_slice(b"more");
    assert_eq!(scan.advance(&body), Ok(body.len() - 4));
    assert!(scan.is_done());
    assert_eq!(scan.advance(b"more"), Ok(0));
}

// SASL.

#[test]
fn a_sasl_packet_is_told_from_what_else_may_come() {
    let token = QuorumAuthPacket { status: AuthStatus::InProgress, token: Some(b"token") };
    let null = QuorumAuthPacket { status: AuthStatus::Success, token: None };
    let mut bytes = Vec::new();
    token.write(&mut bytes);
    let token_bytes = bytes.len();
    null.write(&mut bytes);
    FromLearner::Ack { zxid: Zxid(1) }.write(&mut bytes);
    let mut stream = PacketStream::new(PacketSender::Learner, 100);
    for end in 0..token_bytes {
        stream.push(if end == 0 { &[] } else { &bytes[end - 1..end] });
        assert_eq!(stream.sasl(), Ok(Sasl::Incomplete), "{end} bytes");
    }
    stream.push(&bytes[token_bytes - 1..]);
    assert_eq!(stream.sasl(), Ok(Sasl::Packet(token)));
    assert_eq!(stream.sasl(), Ok(Sasl::Packet(null)));
    assert_eq!(stream.sasl(), Ok(Sasl::Other));
    assert!(stream.next().unwrap().is_some());
}

#[test]
fn one_byte_tells_that_no_sasl_packet_comes() {
    let mut stream = PacketStream::new(PacketSender::Learner, 100);
    assert_eq!(stream.sasl(), Ok(Sasl::Incomplete));
    stream.push(&[0]);
    assert_eq!(stream.sasl(), Ok(Sasl::Other));
}

#[test]
fn a_sasl_packet_may_be_looked_at_as_a_packet_first() {
    let token = QuorumAuthPacket { status: AuthStatus::InProgress, token: Some(b"token") };
    let mut bytes = Vec::new();
    token.write(&mut bytes);
    let mut stream = PacketStream::new(PacketSender::Learner, 100);
    stream.push(&bytes);
    assert_eq!(stream.next(), Ok(None), "as a packet it would be longer");
    assert_eq!(stream.sasl(), Ok(Sasl::Packet(token)));
    FromLearner::Ack { zxid: Zxid(1) }.write(&mut bytes);
    stream.push(&bytes[bytes.len() - 20..]);
    assert!(stream.next().unwrap().is_some());
    assert_eq!(stream.held_bytes(), 0);
}

#[test]
fn a_sasl_packet_that_cannot_be_ends_the_stream() {
    let head = |status: i32, length: i32| {
        let mut bytes = Vec::new();
        bytes.put_i64(QUORUM_AUTH_MAGIC);
        bytes.put_i32(status);
        bytes.put_i32(length);
        bytes
    };
    for (bytes, reason) in [
        (head(2, 0), "malformed SASL status at byte 8"),
        (head(0, -2), "SASL token at byte 12 announces -2; 0 to 65536 is allowed"),
        (head(0, 65_537), "SASL token at byte 12 announces 65537; 0 to 65536 is allowed"),
    ] {
        let mut stream = ElectionStream::opened();
        stream.push(&bytes);
        assert_eq!(stream.sasl().unwrap_err().to_string(), reason);
        assert!(stream.next().is_err(), "an error is final");
    }
}

// Any values, any bytes.

fn zxid() -> impl Strategy<Value = Zxid> {
    prop_oneof![any::<i64>().prop_map(Zxid), (0..9_i64).prop_map(|n| Zxid(1 << 32 | n))]
}

fn epoch() -> impl Strategy<Value = Epoch> {
    (0..=i32::MAX as u32).prop_map(Epoch)
}

/// A packet of a leader from random parts.
fn leader_packet() -> impl Strategy<Value = Vec<u8>> {
    let data = prop::collection::vec(any::<u8>(), 0..40);
    let parts = (0..13, zxid(), epoch(), any::<i64>(), any::<bool>(), prop::option::of(data));
    parts.prop_map(|(kind, zxid, epoch, number, valid, data)| {
        let mut txn = Vec::new();
        let header = TxnHeader { client_id: number, cxid: 1, zxid: zxid.0, time: number, kind: -1 };
        header.write(&mut txn);
        txn.extend_from_slice(data.as_deref().unwrap_or_default());
        let txn = TxnPayload::from_bytes(&txn).unwrap();
        let designated = ServerId(number);
        let message = match kind {
            0 => FromLeader::LeaderInfo { epoch, protocol_version: number as i32 },
            1 => FromLeader::Diff { zxid },
            2 => FromLeader::Trunc { zxid },
            3 => FromLeader::NewLeader { zxid, config: data.as_deref() },
            4 => FromLeader::UpToDate,
            5 => FromLeader::Proposal { zxid, txn },
            6 => FromLeader::Commit { zxid },
            7 => FromLeader::CommitAndActivate { zxid, designated },
            8 => FromLeader::Inform { zxid, txn },
            9 => FromLeader::InformAndActivate { zxid, designated, txn },
            10 => FromLeader::Ping { zxid },
            11 => FromLeader::Revalidate { zxid, session: SessionId(number), valid },
            _ => FromLeader::Sync,
        };
        let mut out = Vec::new();
        message.write(&mut out);
        let packet = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
        assert_eq!(FromLeader::read(&packet), Ok(message));
        out
    })
}

fn learner_packet() -> impl Strategy<Value = Vec<u8>> {
    let data = prop::collection::vec(any::<u8>(), 0..40);
    let info = prop::option::of((
        any::<i64>().prop_map(ServerId),
        prop::option::of((any::<i32>(), prop::option::of(any::<i64>()))),
    ));
    let info = info.prop_map(|info| {
        let server = info.map(|info| info.0);
        let protocol = info.and_then(|info| info.1);
        LearnerInfo {
            server,
            protocol_version: protocol.map(|protocol| protocol.0),
            config_version: protocol.and_then(|protocol| protocol.1),
        }
    });
    let ids = prop::option::of(prop::collection::vec(("[a-z]{0,5}", "[a-zé]{0,9}"), 0..3));
    let parts = (0..7, zxid(), epoch(), any::<(i64, i32)>(), data, info, ids);
    parts.prop_map(|(kind, zxid, accepted, (number, int), data, info, ids)| {
        let session = SessionId(number);
        let mut identities = Vec::new();
        match ids {
            None => identities.put_count(None),
            Some(ids) => {
                let ids: Vec<Id> = ids.iter().map(|(scheme, id)| Id::new(scheme, id)).collect();
                AuthInfo::write_ids(ids.iter(), &mut identities);
            }
        }
        let mut touched = Vec::new();
        for _ in 0..data.len() % 4 {
            TouchTable::write_entry(session, int, &mut touched);
        }
        let message = match kind {
            0 => FromLearner::FollowerInfo { accepted, info },
            1 => FromLearner::ObserverInfo { accepted, info },
            2 => FromLearner::AckEpoch { last: zxid, current: (int % 2 == 0).then_some(accepted) },
            3 => FromLearner::Ack { zxid },
            4 => FromLearner::Ping { zxid, touched: TouchTable::from_bytes(&touched).unwrap() },
            5 => FromLearner::Revalidate { zxid, session, timeout_ms: int },
            _ => FromLearner::Request(Request {
                session,
                cxid: int,
                op: int,
                body: &data,
                identities: AuthInfo::from_bytes(&identities).unwrap(),
            }),
        };
        let mut out = Vec::new();
        message.write(&mut out);
        let packet = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
        assert_eq!(FromLearner::read(&packet), Ok(message));
        out
    })
}

/// Parts of `bytes` that are as long as `sizes` say, over and over.
fn parts<'a>(bytes: &'a [u8], sizes: &[usize]) -> Vec<&'a [u8]> {
    let (mut rest, mut parts) = (bytes, Vec::new());
    for size in sizes.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let (part, more) = rest.split_at(rest.len().min(*size));
        parts.push(part);
        rest = more;
    }
    parts
}

fn sizes() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..60, 1..6)
}

proptest! {
    #[test]
    fn packets_are_found_in_pieces_of_any_size(
        packets in prop::collection::vec(prop_oneof![leader_packet(), learner_packet()], 1..6),
        sizes in sizes(),
    ) {
        let mut stream = PacketStream::new(PacketSender::Learner, FIELD_BYTES_MAX);
        let (bytes, mut again) = (packets.concat(), Vec::new());
        for part in parts(&bytes, &sizes) {
            stream.push(part);
            while let Some(piece) = stream.next().unwrap() {
                let PacketPiece::Packet(packet) = piece else { panic!("{piece:?}") };
                packet.write(&mut again);
            }
        }
        prop_assert_eq!(again, bytes);
    }

    #[test]
    fn any_packet_is_read_or_refused(
        kind in -1..22,
        zxid in zxid(),
        data in prop::option::of(prop::collection::vec(any::<u8>(), 0..60)),
        has_its_zxid in any::<bool>(),
    ) {
        let mut data = data;
        if let Some(data) = &mut data
            && has_its_zxid
            && 20 <= data.len()
        {
            data[12..20].copy_from_slice(&zxid.0.to_be_bytes());
        }
        let packet = packet(kind, zxid.0, data.as_deref());
        let mut out = Vec::new();
        match FromLeader::read(&packet) {
            Ok(message) => {
                message.write(&mut out);
                let again = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
                prop_assert_eq!(FromLeader::read(&again), Ok(message));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
        out.clear();
        match FromLearner::read(&packet) {
            Ok(message) => {
                message.write(&mut out);
                let again = QuorumPacket::read(&mut Reader::new(&out)).unwrap();
                prop_assert_eq!(FromLearner::read(&again), Ok(message));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn notifications_round_trip(
        state in any::<i32>(),
        numbers in any::<[i64; 4]>(),
        version in -1..4,
        config in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let [leader, zxid, election_epoch, peer_epoch] = numbers;
        let notification = Notification {
            state: ServerState::from_number(state),
            leader: ServerId(leader),
            zxid: Zxid(zxid),
            election_epoch,
            peer_epoch,
            version,
            config: (1 < version).then_some(&*config),
        };
        let mut bytes = Vec::new();
        notification.write(&mut bytes);
        // In 40 bytes a version is not looked at.
        let expected = if 1 < version { notification } else { Notification { version: 0, ..notification } };
        prop_assert_eq!(read_notification(&bytes), Some(expected));
    }

    #[test]
    fn hellos_round_trip(
        several in any::<bool>(),
        server in any::<i64>(),
        hosts in prop::collection::vec(("[a-z0-9.-]{1,20}|[0-9a-f]{0,4}::[0-9]", any::<u16>()), 1..5),
        sizes in sizes(),
    ) {
        let form = if several { HelloForm::SeveralAddresses } else { HelloForm::OneAddress };
        let addresses =
            hosts.into_iter().map(|(host, port)| ElectionAddress { host, port }).collect();
        let hello = Hello { form, server: ServerId(server), addresses };
        let mut bytes = Vec::new();
        hello.write(&mut bytes).unwrap();
        let hello_bytes = bytes.len();
        VOTE.write_frame(&mut bytes).unwrap();
        let mut stream = ElectionStream::accepted();
        let (mut found, mut frames, mut pushed) = (None, 0, 0);
        for part in parts(&bytes, &sizes) {
            stream.push(part);
            pushed += part.len();
            while let Some(piece) = stream.next().unwrap() {
                match piece {
                    ElectionPiece::Hello(hello) => {
                        prop_assert!(hello_bytes <= pushed);
                        found = Some(hello);
                    }
                    ElectionPiece::Frame(frame) => {
                        prop_assert_eq!(read_notification(frame), Some(VOTE));
                        frames += 1;
                    }
                }
            }
        }
        prop_assert_eq!((found, frames), (Some(hello), 1));
    }

    #[test]
    fn any_bytes_end_in_the_same_way_in_any_pieces(
        bytes in prop::collection::vec(
            prop_oneof![4 => Just(0_u8), 1 => Just(0xff), 1 => 0_u8..20, 1 => any::<u8>()], 0..300),
        sizes in sizes(),
        is_leader in any::<bool>(),
    ) {
        let sender = if is_leader { PacketSender::Leader } else { PacketSender::Learner };
        let at_once = pieces(sender, 100, &[&bytes]);
        prop_assert_eq!(pieces(sender, 100, &parts(&bytes, &sizes)), at_once);
        let election = |parts: &[&[u8]]| {
            let mut stream = ElectionStream::accepted();
            let mut found = Vec::new();
            for part in parts {
                stream.push(part);
                loop {
                    match stream.next() {
                        Ok(Some(ElectionPiece::Frame(frame))) => {
                            found.push(format!("{:?}", read_notification(frame)));
                        }
                        Ok(Some(piece)) => found.push(format!("{piece:?}")),
                        Ok(None) => break,
                        Err(error) => {
                            found.push(error.to_string());
                            return found;
                        }
                    }
                }
            }
            found
        };
        prop_assert_eq!(election(&parts(&bytes, &sizes)), election(&[&bytes]));
    }

    #[test]
    fn a_body_ends_where_it_ends_in_any_pieces(
        nodes in prop::collection::vec(
            ("(/[a-z]{1,3}){1,3}|[a-z]?", prop::option::of(prop::collection::vec(any::<u8>(), 0..20))),
            0..5,
        ),
        sizes in sizes(),
    ) {
        let nodes: Vec<_> = nodes.iter().map(|(path, data)| (&**path, data.as_deref())).collect();
        let body = body(&nodes);
        let mut scan = SnapshotScan::default();
        for part in parts(&body, &sizes) {
            prop_assert!(!scan.is_done());
            prop_assert_eq!(scan.advance(part), Ok(part.len()));
        }
        prop_assert!(scan.is_done());
    }
}
