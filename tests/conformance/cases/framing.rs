//! Connections, frames, four-letter words and the handshake: cases 1 to 22.

use std::time::Instant;

use crate::client::{Client, Connect, Connected, Incoming, PATIENCE, Wire};
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    Out, close_session, create, create_data, err, exists, flags, framed, session_password, set_data,
};

/// The largest frame a server takes by default.
const FRAME_BYTES_MAX: usize = 0xf_ffff;

fn first_bytes_close(t: &mut Trial<'_>, bytes: &[u8]) -> Outcome {
    let mut wire = t.wire()?;
    wire.send(bytes)?;
    t.ends("the first bytes of the connection", &mut wire)
}

pub(crate) fn frame_too_long(t: &mut Trial<'_>) -> Outcome {
    first_bytes_close(t, &[0x00, 0x10, 0x00, 0x00])
}

pub(crate) fn frame_of_the_longest(t: &mut Trial<'_>) -> Outcome {
    let path = t.at("");
    let mut c = t.client()?;
    let around = set_data(&path, b"", -1).frame(1).len() - 4;
    let data = vec![b'd'; FRAME_BYTES_MAX - around];
    let request = set_data(&path, &data, -1);
    t.same("the frame's length", FRAME_BYTES_MAX + 4, request.frame(1).len());
    t.ok(&mut c, &request)?;
    let stat = t.stat(&mut c, &path)?;
    t.same("dataLength", i32::try_from(data.len()).expect("short"), stat.data_length);
    c.wire.send(&Out::new().int(0x10_0000).done())?;
    t.closes("a byte more after the handshake", &mut c)
}

pub(crate) fn length_negative(t: &mut Trial<'_>) -> Outcome {
    first_bytes_close(t, &Out::new().int(-5).done())
}

pub(crate) fn length_zero(t: &mut Trial<'_>) -> Outcome {
    first_bytes_close(t, &Out::new().int(0).done())
}

pub(crate) fn unknown_word(t: &mut Trial<'_>) -> Outcome {
    first_bytes_close(t, b"zzzz")
}

pub(crate) fn ruok(t: &mut Trial<'_>) -> Outcome {
    let mut wire = t.wire()?;
    wire.send(b"ruok")?;
    let answer = wire.drain()?;
    t.same_bytes("ruok", b"imok", &answer);
    let mut c = t.client()?;
    c.wire.send(b"ruok")?;
    t.closes("ruok after the handshake", &mut c)
}

pub(crate) fn trace_mask(t: &mut Trial<'_>) -> Outcome {
    let ask = |bytes: &[u8]| -> Result<Vec<u8>, Stop> {
        let mut wire = t.wire()?;
        wire.send(bytes)?;
        wire.drain()
    };
    let set = ask(&Out::new().bytes(b"stmk").long(5).done())?;
    let got = ask(b"gtmk")?;
    t.same_bytes("stmk 5", b"5", &set);
    t.same_bytes("gtmk", b"5", &got);
    Ok(())
}

pub(crate) fn word_not_whitelisted(t: &mut Trial<'_>) -> Outcome {
    let mut wire = t.wire()?;
    wire.send(b"mntr")?;
    let answer = wire.drain()?;
    let expected = b"mntr is not executed because it is not in the whitelist.\n";
    t.same_bytes("mntr", expected, &answer);
    Ok(())
}

/// Sends a ConnectRequest and gives the answer's frame.
fn handshake(t: &Trial<'_>, connect: &Connect) -> Result<(Wire, Incoming), Stop> {
    let mut wire = t.wire()?;
    wire.send(&connect.frame())?;
    let incoming = wire.receive(Instant::now() + PATIENCE)?;
    Ok((wire, incoming))
}

/// A handshake that gets an answer.
fn connected(t: &Trial<'_>, connect: &Connect) -> Result<(Wire, Connected), Stop> {
    match handshake(t, connect)? {
        (wire, Incoming::Frame(frame)) => Ok((wire, Connected::read(&frame)?)),
        (_, Incoming::Closed) => Err(Stop::new("the server closed instead of connecting")),
    }
}

pub(crate) fn protocol_version(t: &mut Trial<'_>) -> Outcome {
    let (_wire, answer) = connected(t, &Connect { protocol: 77, ..Connect::default() })?;
    t.same("protocolVersion", 0, answer.protocol);
    t.same("timeOut", 10_000, answer.timeout_ms);
    t.that("a session id is given", answer.session != 0);
    Ok(())
}

pub(crate) fn read_only_flag(t: &mut Trial<'_>) -> Outcome {
    // 3.9.0 to 3.9.2 gave the long form to everybody, which broke the clients that cannot take it.
    let always = t.since(&[(3, 9, 0)]) && !t.since(&[(3, 9, 3)]);
    let without = if always { 37 } else { 36 };
    for (flag, length) in [(None, without), (Some(0), 37), (Some(1), 37)] {
        match handshake(t, &Connect { read_only: flag, ..Connect::default() })? {
            (_, Incoming::Frame(frame)) => {
                t.same(&format!("length for readOnly {flag:?}"), length, frame.len());
                let connected = Connected::read(&frame)?;
                t.same("readOnly", (length == 37).then_some(0), connected.read_only);
            }
            (_, Incoming::Closed) => t.that("the server answers", false),
        }
    }
    Ok(())
}

pub(crate) fn junk_behind_connect(t: &mut Trial<'_>) -> Outcome {
    let junk = Connect { trailing: vec![0xaa; 10], ..Connect::default() };
    let mut c = t.client_with(&junk)?;
    t.ok(&mut c, &exists("/", false))?;
    Ok(())
}

pub(crate) fn password_of_new_session(t: &mut Trial<'_>) -> Outcome {
    let lengths = [Some(0), Some(1), Some(5), Some(20), None];
    for password in lengths.map(|length| length.map(|length| vec![7; length])) {
        let (_wire, answer) = connected(t, &Connect { password, ..Connect::default() })?;
        t.same("length of the password", 16, answer.password.len());
        t.that("a session id is given", answer.session != 0);
    }
    Ok(())
}

pub(crate) fn timeout_clamped(t: &mut Trial<'_>) -> Outcome {
    let tick = t.tick_ms()?;
    let cases = [
        (0, 2 * tick),
        (1, 2 * tick),
        (-5, 2 * tick),
        (i32::MIN, 2 * tick),
        (2 * tick + 1, 2 * tick + 1),
        (i32::MAX, 20 * tick),
    ];
    for (asked, given) in cases {
        let (_wire, answer) = connected(t, &Connect::timeout(asked))?;
        t.same(&format!("timeOut for {asked}"), given, answer.timeout_ms);
    }
    Ok(())
}

pub(crate) fn client_from_the_future(t: &mut Trial<'_>) -> Outcome {
    let future = Connect { last_zxid: 1 << 40, ..Connect::default() };
    let (_, incoming) = handshake(t, &future)?;
    t.same("a new session that has seen the future", Incoming::Closed, incoming);
    let c = t.client()?;
    let again = Connect { last_zxid: 1 << 40, ..Connect::session(c.session, &c.password) };
    let (_, incoming) = handshake(t, &again)?;
    t.same("a session that has seen the future", Incoming::Closed, incoming);
    Ok(())
}

/// Wants a refusal and the end of the connection.
fn refused(t: &mut Trial<'_>, what: &str, connect: &Connect) -> Outcome {
    let (mut wire, answer) = connected(t, connect)?;
    t.same(what, Connected::refusal(), answer);
    t.ends(what, &mut wire)
}

pub(crate) fn wrong_password(t: &mut Trial<'_>) -> Outcome {
    refused(t, "an unknown session, wrong password", &Connect::session(0x1234, &[9; 16]))?;
    let c = t.client()?;
    refused(t, "a session, wrong password", &Connect::session(c.session, &[9; 16]))
}

pub(crate) fn unknown_session(t: &mut Trial<'_>) -> Outcome {
    let id = 0x0100_0000_0000_1234;
    refused(t, "an unknown session", &Connect::session(id, &session_password(id)))
}

pub(crate) fn closed_session(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let reply = c.call(&close_session())?;
    t.same("closeSession", (0, err::OK), (reply.body.len(), reply.err));
    t.closes("closeSession", &mut c)?;
    refused(t, "a closed session", &Connect::session(c.session, &c.password))
}

pub(crate) fn reconnect_replaces(t: &mut Trial<'_>) -> Outcome {
    let (path, mut old) = (t.at("/e"), t.client()?);
    t.ok(&mut old, &create(&path, flags::EPHEMERAL))?;
    let mut new = old.reconnect()?;
    t.same("session id", old.session, new.session);
    t.same("password", &old.password, &new.password);
    t.closes("the connection that was replaced", &mut old)?;
    let stat = t.stat(&mut new, &path)?;
    t.same("the ephemeral's owner", new.session, stat.ephemeral_owner);
    t.ok(&mut new, &set_data(&path, b"x", -1))?;
    Ok(())
}

pub(crate) fn reconnect_renegotiates(t: &mut Trial<'_>) -> Outcome {
    let tick = t.tick_ms()?;
    let mut c = t.client()?;
    for (asked, given) in [(3 * tick, 3 * tick), (i32::MAX, 20 * tick), (1, 2 * tick)] {
        let connect = Connect { timeout_ms: asked, ..Connect::session(c.session, &c.password) };
        c = t.client_with(&connect)?;
        t.same(&format!("timeOut for {asked}"), given, c.timeout_ms);
    }
    Ok(())
}

pub(crate) fn pipelined_behind_connect(t: &mut Trial<'_>) -> Outcome {
    let path = t.at("/never");
    let mut wire = t.wire()?;
    let segment = [
        Connect::default().frame(),
        close_session().frame(1),
        create(&path, flags::EPHEMERAL).frame(2),
    ];
    wire.send(&segment.concat())?;
    let deadline = Instant::now() + PATIENCE;
    match wire.receive(deadline)? {
        Incoming::Frame(frame) => {
            t.that("the session is established", Connected::read(&frame)?.timeout_ms == 10_000);
        }
        Incoming::Closed => return Err(Stop::new("closed before the ConnectResponse")),
    }
    match wire.receive(deadline)? {
        Incoming::Frame(frame) => {
            t.same_bytes("xid of the reply", &[0, 0, 0, 1], &frame[..4]);
            t.same_bytes("err of the reply", &[0; 4], &frame[12..]);
        }
        Incoming::Closed => t.that("closeSession is answered", false),
    }
    // Nothing, or, as ZooKeeper says it now and then, that the session is over.
    if let Incoming::Frame(frame) = wire.receive(deadline)? {
        t.same_bytes("xid behind closeSession", &[0, 0, 0, 2], &frame[..4]);
        let expired = err::SESSION_EXPIRED.to_be_bytes();
        t.same_bytes("err behind closeSession", &expired, &frame[12..]);
        t.ends("the reply behind closeSession", &mut wire)?;
    }
    let mut c = t.client()?;
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}

pub(crate) fn frame_without_header(t: &mut Trial<'_>) -> Outcome {
    for payload in [&[][..], &[0, 0, 0, 1]] {
        let mut c = t.client()?;
        c.wire.send(&framed(payload))?;
        t.closes(&format!("a frame of {} bytes", payload.len()), &mut c)?;
    }
    Ok(())
}

pub(crate) fn stranger_with_wrong_password(t: &mut Trial<'_>) -> Outcome {
    let mut victim = t.client()?;
    refused(t, "a stranger", &Connect::session(victim.session, &[9; 16]))?;
    if t.is_ours() {
        t.ok(&mut victim, &exists("/", false))?;
        Ok(())
    } else {
        t.closes("the victim", &mut victim)
    }
}

pub(crate) fn frame_limit_configured(t: &mut Trial<'_>) -> Outcome {
    const LIMIT: usize = 2000;
    let path = t.at("");
    let mut c = t.client()?;
    let around = set_data(&path, b"", -1).frame(1).len() - 4;
    t.ok(&mut c, &set_data(&path, &vec![b'd'; LIMIT - around], -1))?;
    c.send(&set_data(&path, &vec![b'd'; LIMIT + 1 - around], -1))?;
    t.closes("a frame longer than jute.maxbuffer", &mut c)
}

pub(crate) fn timeouts_configured(t: &mut Trial<'_>) -> Outcome {
    for (asked, given) in [(0, 700), (701, 701), (4999, 4999), (i32::MAX, 5000)] {
        let (_wire, answer) = connected(t, &Connect::timeout(asked))?;
        t.same(&format!("timeOut for {asked}"), given, answer.timeout_ms);
    }
    Ok(())
}

pub(crate) fn silent_connection(t: &mut Trial<'_>) -> Outcome {
    let opened = Instant::now();
    let mut silent = t.wire()?;
    let mut half = t.wire()?;
    half.send(&Connect::default().frame()[..20])?;
    t.ends("a connection that says nothing", &mut silent)?;
    t.ends("a connection that says half a ConnectRequest", &mut half)?;
    let lived_ms = opened.elapsed().as_millis();
    t.that(&format!("they are given their time: {lived_ms} ms"), 450 <= lived_ms);
    Ok(())
}

/// Three connections find room, a fourth does not until one of them goes.
pub(crate) fn three_connections(t: &mut Trial<'_>) -> Outcome {
    let mut clients = vec![t.client()?, t.client()?, t.client()?];
    let mut fourth = t.wire()?;
    fourth.send(&Connect::default().frame())?;
    t.ends("the fourth connection", &mut fourth)?;
    for c in &mut clients {
        t.ok(c, &exists("/", false))?;
    }
    let mut gone = clients.remove(0);
    t.ok(&mut gone, &close_session())?;
    t.closes("closeSession", &mut gone)?;
    // The server counts a connection until it has noticed its end.
    let deadline = Instant::now() + PATIENCE;
    while let Err(why) = t.client() {
        if deadline < Instant::now() {
            return Err(why);
        }
    }
    Ok(())
}

pub(crate) fn passwords(t: &mut Trial<'_>) -> Outcome {
    let vectors = [
        (0x0100_000f_b90a_0000, "649f16e2 21e79a0b e2da0875 d2866623"),
        (0x0100_001e_9516_0000, "e8f33cea 557b8b55 06ad8ecd 26585d00"),
    ];
    for (id, password) in vectors {
        t.same(&format!("{id:#x}"), password, &crate::wire::hex(&session_password(id)));
    }
    for _ in 0..3 {
        let c = t.client()?;
        t.same_bytes(&format!("{:#x}", c.session), &session_password(c.session), &c.password);
        t.same("the server's id in a session's", 1, c.session >> 56);
    }
    Ok(())
}

/// Session ids go up by one, and a restart does not give the same ones again.
pub(crate) fn session_ids(t: &mut Trial<'_>) -> Outcome {
    let first = t.client()?;
    let second = t.client()?;
    t.that("session ids ascend", first.session < second.session);
    Ok(())
}

/// What was acknowledged is there again after a kill and a restart, and so is the session.
pub(crate) fn killed_server(t: &mut Trial<'_>) -> Outcome {
    let server = t.start(&crate::target::OPEN, crate::target::Seed::Empty)?;
    let mut c = Client::connect(server.address, &Connect::default())?;
    t.ok(&mut c, &create_data("/kept", b"data"))?;
    t.ok(&mut c, &create("/kept/e", flags::EPHEMERAL))?;
    let before = t.stat(&mut c, "/kept")?;
    let (session, password) = (c.session, c.password.clone());
    let server = t.start(&crate::target::OPEN, crate::target::Seed::LeftBy(server))?;
    let mut c = Client::connect(server.address, &Connect::session(session, &password))?;
    t.same("the session's id", session, c.session);
    let after = t.stat(&mut c, "/kept")?;
    t.same("the stat", before, after);
    let stat = t.stat(&mut c, "/kept/e")?;
    t.same("the ephemeral's owner", session, stat.ephemeral_owner);
    let other = Client::connect(server.address, &Connect::default())?;
    t.that("a new session has a new id", other.session != session);
    Ok(())
}
