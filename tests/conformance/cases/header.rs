//! Headers, op codes and bodies that do not decode: cases 23 to 33.

use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    OPEN_ACL, Out, Request, create, create_data, delete, err, exists, flags, get_data, op, ping,
    set_data,
};

pub(crate) fn any_xid(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for xid in [0, -7, 5, 5, i32::MIN, i32::MAX] {
        c.send_as(xid, &exists("/", false))?;
        let reply = c.reply()?;
        t.same("(xid, err)", (xid, err::OK), (reply.xid, reply.err));
    }
    Ok(())
}

pub(crate) fn ping_xid(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for xid in [9, -2] {
        c.send_as(xid, &ping())?;
        let reply = c.reply()?;
        let expected = (-2, err::OK, 0);
        t.same("(xid, err, body)", expected, (reply.xid, reply.err, reply.body.len()));
    }
    Ok(())
}

fn unimplemented(t: &mut Trial<'_>, request: &Request) -> Outcome {
    let mut c = t.client()?;
    let xid = c.send(request)?;
    let replies = c.replies_until_close()?;
    let actual: Vec<_> = replies.iter().map(|r| (r.xid, r.zxid, r.err, r.body.len())).collect();
    let what = format!("(xid, zxid, err, body) for op {}", request.op);
    t.same(&what, vec![(xid, -1, err::UNIMPLEMENTED, 0)], actual);
    Ok(())
}

pub(crate) fn invalid_ops(t: &mut Trial<'_>) -> Outcome {
    for op in [99, 0, -1, 108, i32::MAX] {
        unimplemented(t, &Request::new(op, Out::new()))?;
    }
    // What earlier releases do with a check outside a multi is not worth having.
    if t.since(&[(3, 8, 5), (3, 9, 3)]) {
        let root = t.at("");
        unimplemented(t, &crate::wire::check(&root, -1))?;
    }
    Ok(())
}

pub(crate) fn body_too_short(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for op in [
        op::CREATE,
        op::CREATE2,
        op::DELETE,
        op::EXISTS,
        op::GET_DATA,
        op::SET_DATA,
        op::GET_ACL,
        op::SET_ACL,
        op::GET_CHILDREN,
        op::GET_CHILDREN2,
        op::SYNC,
        op::MULTI,
        op::CHECK_WATCHES,
        op::REMOVE_WATCHES,
        op::CREATE_CONTAINER,
        op::CREATE_TTL,
        op::MULTI_READ,
        op::SET_WATCHES,
        op::GET_EPHEMERALS,
        op::GET_ALL_CHILDREN_NUMBER,
        op::SET_WATCHES2,
        op::ADD_WATCH,
    ] {
        t.answer(&mut c, &Request::new(op, Out::new().bytes(&[0, 0])), err::MARSHALLING)?;
    }
    let path = t.at("/after");
    t.ok(&mut c, &create(&path, 0))?;
    Ok(())
}

pub(crate) fn bytes_behind_body(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let plain = t.ok(&mut c, &exists(&root, false))?;
    let body = Out::new().string(&root).byte(0).bytes(&[1, 2, 3, 4]);
    let longer = t.ok(&mut c, &Request::new(op::EXISTS, body))?;
    t.same_bytes("the stat", &plain.body, &longer.body);
    Ok(())
}

pub(crate) fn any_byte_is_true(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    t.ok(&mut c, &Request::new(op::EXISTS, Out::new().string(&root).byte(7)))?;
    t.ok(&mut c, &set_data(&root, b"x", -1))?;
    t.events("a watch of 7", &mut c, &[(crate::client::CHANGED, &root)])?;
    Ok(())
}

pub(crate) fn negative_string(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for length in [-2, i32::MIN] {
        let exists = Request::new(op::EXISTS, Out::new().int(length).byte(0));
        t.answer(&mut c, &exists, err::MARSHALLING)?;
        let body = Out::new().int(length).buffer(b"").acl(OPEN_ACL).int(0);
        t.answer(&mut c, &Request::new(op::CREATE, body), err::MARSHALLING)?;
    }
    t.ok(&mut c, &exists("/", false))?;
    Ok(())
}

pub(crate) fn acl_counts(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/x"), t.client()?);
    for (count, err) in [(i32::MAX, err::MARSHALLING), (-2, err::INVALID_ACL)] {
        let body = Out::new().string(&path).buffer(b"").int(count);
        let body = if count < 0 { body.int(0) } else { body };
        t.answer(&mut c, &Request::new(op::CREATE, body), err)?;
    }
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}

pub(crate) fn data_length_beyond(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let body = Out::new().string(&root).int(i32::MAX).int(-1);
    t.answer(&mut c, &Request::new(op::SET_DATA, body), err::MARSHALLING)?;
    t.ok(&mut c, &set_data(&root, b"after", 0))?;
    Ok(())
}

pub(crate) fn replies_in_order(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let mut segment = Vec::new();
    for xid in 1..=19 {
        segment.extend(set_data(&root, b"0", xid - 1).frame(xid));
    }
    segment.extend(ping().frame(-2));
    segment.extend(exists(&root, false).frame(50));
    c.wire.send(&segment)?;
    let mut actual = Vec::new();
    let mut zxids = Vec::new();
    for _ in 0..21 {
        let reply = c.reply()?;
        actual.push((reply.xid, reply.err));
        zxids.push(reply.zxid);
    }
    let expected: Vec<_> = (1..=19).chain([-2, 50]).map(|xid| (xid, err::OK)).collect();
    t.same("(xid, err) in order", expected, actual);
    t.that("zxids do not go down", zxids.is_sorted());
    t.that("each write has a zxid of its own", zxids[..19].is_sorted_by(|a, b| a < b));
    Ok(())
}

/// Sends writes and reads in turns without waiting, and wants each read to see the write before.
pub(crate) fn reads_own_writes(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let values: Vec<String> = (0..50).map(|i| format!("value {i}")).collect();
    let mut segment = Vec::new();
    for (i, value) in (0..).zip(&values) {
        segment.extend(set_data(&root, value.as_bytes(), -1).frame(2 * i + 1));
        segment.extend(get_data(&root, false).frame(2 * i + 2));
    }
    c.wire.send(&segment)?;
    for (i, value) in (0..).zip(&values) {
        let wrote = c.reply()?;
        let read = c.reply()?;
        t.same("xids", (2 * i + 1, 2 * i + 2), (wrote.xid, read.xid));
        t.same("errs", (err::OK, err::OK), (wrote.err, read.err));
        let data = read.input().buffer()?;
        t.same("the data read", Some(value.as_bytes().to_vec()), data);
        t.that("a read's zxid is not before the write's", wrote.zxid <= read.zxid);
        let stat = wrote.input().stat()?;
        t.same("a write's zxid is its mzxid", stat.mzxid, wrote.zxid);
    }
    Ok(())
}

pub(crate) fn malformed_writes(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for op in [
        op::CREATE,
        op::DELETE,
        op::SET_DATA,
        op::SET_ACL,
        op::CREATE2,
        op::CREATE_CONTAINER,
        op::CREATE_TTL,
    ] {
        t.answer(&mut c, &Request::new(op, Out::new().bytes(&[0, 0])), err::MARSHALLING)?;
        let path = t.at(&format!("/after-{op}"));
        t.ok(&mut c, &create(&path, 0))?;
    }
    Ok(())
}

pub(crate) fn delete_container_from_client(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    let request = Request::new(op::DELETE_CONTAINER, Out::new().string(&path));
    if t.is_ours() {
        unimplemented(t, &request)?;
        t.ok(&mut c, &exists(&path, false))?;
    } else if t.since(&[(3, 9, 0)]) {
        t.ok(&mut c, &request)?;
        t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    } else {
        // Earlier releases look for the path elsewhere in the frame.
        t.answer(&mut c, &request, err::BAD_ARGUMENTS)?;
    }
    Ok(())
}

pub(crate) fn create_session_from_client(t: &mut Trial<'_>) -> Outcome {
    let request = Request::new(op::CREATE_SESSION, Out::new().int(10_000));
    if t.is_ours() {
        return unimplemented(t, &request);
    }
    let mut c = t.client()?;
    c.send(&request)?;
    match c.wire.receive(std::time::Instant::now() + crate::client::PATIENCE)? {
        crate::client::Incoming::Frame(frame) => {
            let connected = crate::client::Connected::read(&frame)?;
            t.same("a second ConnectResponse", c.session, connected.session);
            Ok(())
        }
        crate::client::Incoming::Closed => Err(Stop::new("the server closed")),
    }
}

pub(crate) fn ttl_out_of_place(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    for flags in [
        flags::PERSISTENT,
        flags::EPHEMERAL,
        flags::SEQUENTIAL,
        flags::EPHEMERAL_SEQUENTIAL,
        flags::CONTAINER,
    ] {
        let request = crate::wire::create_ttl(&path, flags, -1);
        t.answer(&mut c, &request, err::BAD_ARGUMENTS)?;
    }
    t.ok(&mut c, &create_data(&path, b"still here"))?;
    t.ok(&mut c, &delete(&path, -1))?;
    Ok(())
}
