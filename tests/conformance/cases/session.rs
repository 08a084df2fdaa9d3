//! The ends of sessions, reconfig, quotas, containers and TTLs: cases 116 to 128.

use std::time::{Duration, Instant};

use crate::client::{Client, Connect, DELETED, PATIENCE};
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    auth, check, close_session, create, create_container, create_data, create_ttl, delete, err,
    exists, flags, get_data, multi, reconfig, set_data,
};

/// Waits for the deletion of a node, whose watch must be set.
fn deletion(t: &mut Trial<'_>, c: &mut Client, path: &str) -> Outcome {
    let event = c.event(PATIENCE)?;
    t.same("the event", (DELETED, path), (event.kind, &event.path));
    Ok(())
}

pub(crate) fn idle_session_expires(t: &mut Trial<'_>) -> Outcome {
    const TIMEOUT_MS: i32 = 1000;
    let (path, mut watcher) = (t.at("/e"), t.client()?);
    let mut idle = t.client_with(&Connect::timeout(TIMEOUT_MS))?;
    t.same("timeOut", TIMEOUT_MS, idle.timeout_ms);
    t.answer(&mut watcher, &exists(&path, true), err::NO_NODE)?;
    let last_frame = Instant::now();
    t.ok(&mut idle, &create(&path, flags::EPHEMERAL))?;
    let created = watcher.event(PATIENCE)?;
    t.same("the event", crate::client::CREATED, created.kind);
    t.ok(&mut watcher, &exists(&path, true))?;
    deletion(t, &mut watcher, &path)?;
    let silent_ms = last_frame.elapsed().as_millis();
    t.next_is_close("the expired session's connection", &mut idle)?;
    let refused = idle.reconnect().err().is_some();
    t.that("the session is refused afterwards", refused);
    t.that(
        &format!("it lives for its timeout and not much longer: {silent_ms} ms"),
        (1000..6000).contains(&silent_ms),
    );
    Ok(())
}

pub(crate) fn dropped_connection(t: &mut Trial<'_>) -> Outcome {
    let (short, long) = (t.at("/short"), t.at("/long"));
    let mut watcher = t.client()?;
    let mut one = t.client_with(&Connect::timeout(1500))?;
    let mut other = t.client_with(&Connect::timeout(4000))?;
    t.ok(&mut other, &create(&long, flags::EPHEMERAL))?;
    let last_frame = Instant::now();
    t.ok(&mut one, &create(&short, flags::EPHEMERAL))?;
    one.wire.drop_connection()?;
    other.wire.drop_connection()?;
    t.settle(&mut watcher)?;
    t.ok(&mut watcher, &exists(&short, true))?;
    deletion(t, &mut watcher, &short)?;
    let lived_ms = last_frame.elapsed().as_millis();
    t.that(&format!("it lives for its timeout: {lived_ms} ms"), 1500 <= lived_ms);
    t.ok(&mut watcher, &exists(&long, false))?;
    // A session whose connection was dropped can be taken up again.
    let mut again = other.reconnect()?;
    t.same("session id", other.session, again.session);
    t.ok(&mut again, &delete(&long, -1))?;
    Ok(())
}

/// Pings keep a session for longer than its timeout.
pub(crate) fn pings_keep(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/e"), t.client_with(&Connect::timeout(1500))?);
    let (clock, mut silent) = (t.at("/clock"), t.client_with(&Connect::timeout(2500))?);
    t.ok(&mut c, &create(&path, flags::EPHEMERAL))?;
    t.ok(&mut silent, &create(&clock, flags::EPHEMERAL))?;
    t.settle(&mut c)?;
    t.ok(&mut c, &exists(&clock, true))?;
    // The other session's end tells that this one's timeout is over.
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        match c.event(Duration::from_millis(150)) {
            Ok(event) => {
                t.same("the event", (DELETED, &*clock), (event.kind, &*event.path));
                t.ok(&mut c, &exists(&path, false))?;
                return Ok(());
            }
            Err(_) => drop(t.ok(&mut c, &crate::wire::ping())?),
        }
    }
    Err(Stop::new("the silent session did not end"))
}

pub(crate) fn reconfig_switched_off(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let request = reconfig("", "", "server.1=127.0.0.1:1:2;3", -1);
    t.answer(&mut c, &request, err::RECONFIG_DISABLED)?;
    t.ok(&mut c, &auth("digest", b"super:test"))?;
    t.answer(&mut c, &request, err::RECONFIG_DISABLED)?;
    Ok(())
}

pub(crate) fn reconfig_of_standalone(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for (members, config) in [("server.1=127.0.0.1:1:2;3", -1), ("garbage", -1), ("", 77)] {
        t.answer(&mut c, &reconfig("", "", members, config), err::UNIMPLEMENTED)?;
    }
    t.ok(&mut c, &exists("/", false))?;
    Ok(())
}

/// The quota nodes of a case's root.
struct Quota {
    node: String,
    limits: String,
    stats: String,
}

/// Registers a quota on the case's root, as the command-line client does.
fn limit(t: &mut Trial<'_>, c: &mut Client, limits: &str) -> Result<Quota, Stop> {
    let node = format!("/zookeeper/quota{}", t.at(""));
    let quota = Quota {
        limits: format!("{node}/zookeeper_limits"),
        stats: format!("{node}/zookeeper_stats"),
        node,
    };
    t.ok(c, &create(&quota.node, 0))?;
    t.ok(c, &create_data(&quota.limits, limits.as_bytes()))?;
    t.ok(c, &create_data(&quota.stats, b"count=0,bytes=0"))?;
    Ok(quota)
}

fn counted(t: &mut Trial<'_>, c: &mut Client, quota: &Quota, expected: &str) -> Outcome {
    let data = t.ok(c, &get_data(&quota.stats, false))?.input().buffer()?;
    let text = String::from_utf8_lossy(&data.unwrap_or_default()).into_owned();
    t.same("the stats of the quota", expected, &text);
    Ok(())
}

pub(crate) fn quota_limits(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let at = |name: &str| format!("{root}/{name}");
    let quota = limit(t, &mut c, "count=-1,bytes=-1=;byteHardLimit=-1;countHardLimit=3")?;
    counted(t, &mut c, &quota, "count=1,bytes=0")?;
    t.ok(&mut c, &create(&at("a"), 0))?;
    t.ok(&mut c, &create(&at("b"), 0))?;
    t.answer(&mut c, &create(&at("c"), 0), err::QUOTA_EXCEEDED)?;
    t.answer(&mut c, &create(&at("a/c"), 0), err::QUOTA_EXCEEDED)?;
    t.ok(&mut c, &set_data(&at("a"), b"0123456789", -1))?;
    counted(t, &mut c, &quota, "count=3,bytes=10")?;

    let bytes = b"count=-1,bytes=-1=;byteHardLimit=20;countHardLimit=-1";
    t.ok(&mut c, &set_data(&quota.limits, bytes, -1))?;
    t.ok(&mut c, &set_data(&at("b"), b"0123456789", -1))?;
    t.answer(&mut c, &set_data(&at("b"), b"0123456789x", -1), err::QUOTA_EXCEEDED)?;
    t.answer(&mut c, &create_data(&at("c"), b"x"), err::QUOTA_EXCEEDED)?;
    t.ok(&mut c, &create(&at("c"), 0))?;
    t.ok(&mut c, &set_data(&at("b"), b"012345678", -1))?;
    counted(t, &mut c, &quota, "count=4,bytes=19")?;

    t.ok(&mut c, &set_data(&quota.limits, b"count=1,bytes=1", -1))?;
    t.ok(&mut c, &create_data(&at("d"), b"0123456789"))?;
    t.ok(&mut c, &delete(&at("d"), -1))?;
    let one = b"count=-1,bytes=-1=;byteHardLimit=1;countHardLimit=1";
    t.ok(&mut c, &set_data(&quota.limits, one, -1))?;
    t.ok(&mut c, &delete(&at("c"), -1))?;
    counted(t, &mut c, &quota, "count=3,bytes=19")?;
    Ok(())
}

pub(crate) fn quota_not_enforced(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let quota = limit(t, &mut c, "count=-1,bytes=-1=;byteHardLimit=1;countHardLimit=1")?;
    t.ok(&mut c, &create_data(&format!("{root}/a"), b"0123456789"))?;
    counted(t, &mut c, &quota, "count=2,bytes=10")?;
    Ok(())
}

pub(crate) fn quota_stats(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    t.ok(&mut c, &create_data(&format!("{root}/a"), b"12345"))?;
    let quota = limit(t, &mut c, "count=1000,bytes=1000")?;
    counted(t, &mut c, &quota, "count=2,bytes=5")?;
    let before = t.ok(&mut c, &get_data(&quota.stats, true))?;
    let mut input = before.input();
    let (_, before) = (input.buffer()?, input.stat()?);
    t.ok(&mut c, &create_data(&format!("{root}/b"), b"123"))?;
    counted(t, &mut c, &quota, "count=3,bytes=8")?;
    let after = t.stat(&mut c, &quota.stats)?;
    let expected = crate::wire::Stat { data_length: after.data_length, ..before };
    t.same("the stat of zookeeper_stats", expected, after);
    t.events("a change of the stats", &mut c, &[])?;
    Ok(())
}

pub(crate) fn quota_in_multi(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let path = format!("{root}/n");
    let quota = limit(t, &mut c, "count=-1,bytes=-1=;byteHardLimit=12;countHardLimit=-1")?;
    let null = crate::wire::Out::new().string(&path).null().acl(crate::wire::OPEN_ACL).int(0);
    let made = crate::wire::Request::new(crate::wire::op::CREATE, null);
    let request = multi(&[made, set_data(&path, b"0123456789abc", 0)]);
    let entries = t.ok(&mut c, &request)?.input().multi()?;
    let errs: Vec<i32> = entries.iter().map(|e| e.err).collect();
    t.same("with a limit of 12", vec![err::OK, err::QUOTA_EXCEEDED], errs);
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    let limits = b"count=-1,bytes=-1=;byteHardLimit=13;countHardLimit=-1";
    t.ok(&mut c, &set_data(&quota.limits, limits, -1))?;
    let entries = t.ok(&mut c, &request)?.input().multi()?;
    let errs: Vec<i32> = entries.iter().map(|e| e.err).collect();
    t.same("with a limit of 13", vec![err::OK, err::OK], errs);
    counted(t, &mut c, &quota, "count=2,bytes=13")?;

    let neighbour = format!("{root}2");
    t.ok(&mut c, &create_data(&neighbour, b"0123456789abcdef"))?;
    counted(t, &mut c, &quota, "count=2,bytes=13")?;
    t.ok(&mut c, &delete(&quota.limits, -1))?;
    t.ok(&mut c, &create(&format!("{root}/uncounted"), 0))?;
    counted(t, &mut c, &quota, "count=2,bytes=13")?;
    Ok(())
}

pub(crate) fn quota_unparsable(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let quota = limit(t, &mut c, "count=many,bytes=")?;
    t.ok(&mut c, &set_data(&quota.stats, b"nothing that counts", -1))?;
    let path = format!("{root}/n");
    t.ok(&mut c, &create_data(&path, b"x"))?;
    t.ok(&mut c, &set_data(&path, b"xy", -1))?;
    t.ok(&mut c, &delete(&path, -1))?;
    Ok(())
}

pub(crate) fn quota_names_elsewhere(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for path in ["/zookeeper/quota/zookeeper_limits", "/zookeeper/zookeeper_limits"] {
        t.ok(&mut c, &create_data(path, b"count=1,bytes=1"))?;
        t.ok(&mut c, &create("/any", 0))?;
        t.ok(&mut c, &delete("/any", -1))?;
        t.ok(&mut c, &delete(path, -1))?;
    }
    t.ok(&mut c, &create("/any", 0))?;
    Ok(())
}

pub(crate) fn containers(t: &mut Trial<'_>) -> Outcome {
    let (unused, used, mut c) = (t.at("/unused"), t.at("/used"), t.client()?);
    let child = format!("{used}/x");
    t.ok(&mut c, &create_container(&unused, flags::CONTAINER))?;
    t.ok(&mut c, &create_container(&used, flags::CONTAINER))?;
    t.ok(&mut c, &create(&child, 0))?;
    t.ok(&mut c, &exists(&used, true))?;
    t.ok(&mut c, &delete(&child, -1))?;
    deletion(t, &mut c, &used)?;
    t.ok(&mut c, &exists(&unused, false))?;
    Ok(())
}

pub(crate) fn container_never_used(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/unused"), t.client()?);
    let created = Instant::now();
    t.ok(&mut c, &create_container(&path, flags::CONTAINER))?;
    t.ok(&mut c, &exists(&path, true))?;
    deletion(t, &mut c, &path)?;
    t.that("not before maxNeverUsedIntervalMs", 500 <= created.elapsed().as_millis());
    Ok(())
}

pub(crate) fn ttl_nodes(t: &mut Trial<'_>) -> Outcome {
    let (parent, childless, mut c) = (t.at("/parent"), t.at("/childless"), t.client()?);
    let child = format!("{parent}/x");
    t.ok(&mut c, &create_ttl(&parent, flags::TTL, 300))?;
    t.ok(&mut c, &create(&child, 0))?;
    let created = Instant::now();
    t.ok(&mut c, &create_ttl(&childless, flags::TTL, 300))?;
    t.ok(&mut c, &exists(&childless, true))?;
    deletion(t, &mut c, &childless)?;
    // The wall clock that counts a TTL and the one here need not agree to the millisecond.
    t.that("not before its TTL", 290 <= created.elapsed().as_millis());
    t.ok(&mut c, &exists(&parent, true))?;
    t.ok(&mut c, &delete(&child, -1))?;
    deletion(t, &mut c, &parent)
}

pub(crate) fn pending_ephemeral(t: &mut Trial<'_>) -> Outcome {
    let (path, mut watcher, mut c) = (t.at("/e"), t.client()?, t.client()?);
    t.answer(&mut watcher, &exists(&path, true), err::NO_NODE)?;
    let segment = [create(&path, flags::EPHEMERAL).frame(1), close_session().frame(2)];
    c.wire.send(&segment.concat())?;
    let replies = c.replies_until_close()?;
    let actual: Vec<_> = replies.iter().map(|r| (r.xid, r.err)).collect();
    t.same("(xid, err)", vec![(1, err::OK), (2, err::OK)], actual);
    t.settle(&mut watcher)?;
    t.answer(&mut watcher, &exists(&path, false), err::NO_NODE)?;
    let root = t.at("");
    let stat = t.stat(&mut watcher, &root)?;
    t.same("pzxid of the parent", replies.last().map(|r| r.zxid), Some(stat.pzxid));
    t.same("cversion of the parent", 2, stat.cversion);
    Ok(())
}

/// Each kind of write on a znode that another session has just removed.
pub(crate) fn writes_in_zxid_order(t: &mut Trial<'_>) -> Outcome {
    let (path, mut a, mut b) = (t.at("/n"), t.client()?, t.client()?);
    let made = t.ok(&mut a, &create(&path, 0))?;
    let changed = t.ok(&mut b, &set_data(&path, b"x", 0))?;
    let gone = t.ok(&mut a, &delete(&path, 1))?;
    let late = t.answer(&mut b, &set_data(&path, b"y", -1), err::NO_NODE)?;
    let zxids = [made.zxid, changed.zxid, gone.zxid, late.zxid];
    t.that(&format!("zxids follow the order of the writes: {zxids:x?}"), zxids.is_sorted());
    let entries = t.ok(&mut b, &multi(&[check(&path, -1)]))?.input().multi()?;
    let errs: Vec<i32> = entries.iter().map(|e| e.err).collect();
    t.same("check of what is gone", vec![err::NO_NODE], errs);
    Ok(())
}
