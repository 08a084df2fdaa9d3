//! Watches: cases 87 to 105.

use crate::client::{CHANGED, CHILDREN, CREATED, Client, DELETED};
use crate::trial::{Outcome, Trial};
use crate::wire::{
    Acl, OPEN_ACL, Out, Request, add_watch, check_watches, create, create_acl, delete, err, exists,
    flags, get_children, get_data, multi, op, perms, remove_watches, set_acl, set_data,
    set_watches,
};

const PERSISTENT: i32 = 0;
const RECURSIVE: i32 = 1;

/// What a watch type of removeWatches and checkWatches means.
const CHILDREN_WATCH: i32 = 1;
const DATA_WATCH: i32 = 2;
const ANY_WATCH: i32 = 3;
const PERSISTENT_WATCH: i32 = 4;
const RECURSIVE_WATCH: i32 = 5;

/// Whether a connection can hold several modes on one path, and ask for each.
fn has_modes(t: &Trial<'_>) -> bool {
    t.since(&[(3, 9, 0)])
}

fn watch(t: &mut Trial<'_>, c: &mut Client, path: &str, mode: i32) -> Outcome {
    let reply = t.ok(c, &add_watch(path, mode))?;
    t.same_bytes("the answer to addWatch", &[0; 4], &reply.body);
    Ok(())
}

pub(crate) fn of_missing_nodes(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let unwatched = t.at("/m");
    t.answer(&mut c, &exists(&path, true), err::NO_NODE)?;
    t.answer(&mut c, &get_data(&unwatched, true), err::NO_NODE)?;
    t.answer(&mut c, &get_children(&unwatched, true), err::NO_NODE)?;
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &create(&unwatched, 0))?;
    t.ok(&mut c, &create(&format!("{unwatched}/x"), 0))?;
    t.ok(&mut c, &set_data(&path, b"", -1))?;
    t.events("what came to be", &mut c, &[(CREATED, &path)])?;
    Ok(())
}

pub(crate) fn once_per_table(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &get_data(&path, true))?;
    t.ok(&mut c, &exists(&path, true))?;
    t.ok(&mut c, &get_children(&path, true))?;
    t.ok(&mut c, &set_data(&path, b"1", -1))?;
    t.events("the first setData", &mut c, &[(CHANGED, &path)])?;
    t.ok(&mut c, &set_data(&path, b"2", -1))?;
    t.events("the second setData", &mut c, &[])?;
    t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    t.events("a child", &mut c, &[(CHILDREN, &path)])?;
    t.ok(&mut c, &create(&format!("{path}/y"), 0))?;
    t.events("another child", &mut c, &[])?;
    Ok(())
}

pub(crate) fn deleted_once(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let root = t.at("");
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &get_data(&path, true))?;
    t.ok(&mut c, &get_children(&path, true))?;
    t.ok(&mut c, &get_children(&root, true))?;
    t.ok(&mut c, &delete(&path, -1))?;
    t.events("data, children and parent", &mut c, &[(DELETED, &path), (CHILDREN, &root)])?;
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &get_children(&path, true))?;
    t.ok(&mut c, &delete(&path, -1))?;
    t.events("children only", &mut c, &[(DELETED, &path)])?;
    Ok(())
}

pub(crate) fn event_before_reply(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    for _ in 0..20 {
        t.ok(&mut c, &get_data(&path, true))?;
        t.ok(&mut c, &set_data(&path, b"x", -1))?;
        // No settling: whatever came before the reply is here, and nothing else.
        let kinds: Vec<i32> = c.take_events().iter().map(|e| e.kind).collect();
        t.same("events before the reply", vec![CHANGED], kinds);
    }
    Ok(())
}

/// A client that has read what another wrote has had the event for it.
pub(crate) fn event_before_newer_data(t: &mut Trial<'_>) -> Outcome {
    let (path, mut reader, mut writer) = (t.at("/n"), t.client()?, t.client()?);
    t.ok(&mut writer, &create(&path, 0))?;
    t.settle(&mut reader)?;
    for round in 0..20 {
        let reply = t.ok(&mut reader, &get_data(&path, true))?;
        let mut input = reply.input();
        let seen = (input.buffer()?, input.stat()?.version).1;
        t.same("the version read", round, seen);
        writer.send(&set_data(&path, b"x", -1))?;
        loop {
            let reply = t.ok(&mut reader, &get_data(&path, false))?;
            let mut input = reply.input();
            let version = (input.buffer()?, input.stat()?.version).1;
            let events = reader.take_events();
            if version != seen {
                let kinds: Vec<i32> = events.iter().map(|e| e.kind).collect();
                t.same("events before the new version", vec![CHANGED], kinds);
                break;
            }
            if !events.is_empty() {
                // The event may come first; the next read must then show the change.
                t.settle(&mut reader)?;
                let reply = t.ok(&mut reader, &get_data(&path, false))?;
                let mut input = reply.input();
                let version = (input.buffer()?, input.stat()?.version).1;
                t.same("the version after the event", seen + 1, version);
                break;
            }
        }
        let reply = writer.reply()?;
        t.same("the write", err::OK, reply.err);
        t.settle(&mut reader)?;
    }
    Ok(())
}

pub(crate) fn silent_changes(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let quota = format!("/zookeeper/quota{}", t.at(""));
    let (limits, stats) = (format!("{quota}/zookeeper_limits"), format!("{quota}/zookeeper_stats"));
    t.ok(&mut c, &create(&quota, 0))?;
    t.ok(&mut c, &crate::wire::create_data(&limits, b"count=1000,bytes=1000"))?;
    t.ok(&mut c, &crate::wire::create_data(&stats, b"count=0,bytes=0"))?;
    t.ok(&mut c, &get_data(&stats, true))?;
    watch(t, &mut c, &path, PERSISTENT)?;
    t.ok(&mut c, &create(&path, 0))?;
    t.events("the create", &mut c, &[(CREATED, &path)])?;
    t.ok(&mut c, &set_acl(&path, OPEN_ACL, -1))?;
    t.events("setACL and quota stats", &mut c, &[])?;
    t.ok(&mut c, &multi(&[crate::wire::check(&path, -1)]))?;
    t.events("check", &mut c, &[])?;
    Ok(())
}

pub(crate) fn modes_and_paths(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let missing = t.at("/missing");
    for mode in [2, -1, i32::MAX] {
        t.answer(&mut c, &add_watch(&missing, mode), err::MARSHALLING)?;
    }
    for path in [missing.as_str(), "", "//", "no/slash", "/a\u{1}b"] {
        for mode in [PERSISTENT, RECURSIVE] {
            // The table of a recursive watch takes no empty path in some releases.
            watch(t, &mut c, path, mode)?;
        }
    }
    Ok(())
}

pub(crate) fn persistent(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let child = format!("{path}/x");
    t.ok(&mut c, &create(&path, 0))?;
    watch(t, &mut c, &path, PERSISTENT)?;
    let p = path.as_str();
    t.ok(&mut c, &set_data(p, b"1", -1))?;
    t.events("setData", &mut c, &[(CHANGED, p)])?;
    t.ok(&mut c, &create(&child, 0))?;
    t.events("child create", &mut c, &[(CHILDREN, p)])?;
    t.ok(&mut c, &set_data(&child, b"1", -1))?;
    t.events("child setData", &mut c, &[])?;
    t.ok(&mut c, &delete(&child, -1))?;
    t.events("child delete", &mut c, &[(CHILDREN, p)])?;
    t.ok(&mut c, &delete(p, -1))?;
    t.events("delete", &mut c, &[(DELETED, p)])?;
    t.ok(&mut c, &create(p, 0))?;
    t.events("create", &mut c, &[(CREATED, p)])?;
    t.ok(&mut c, &set_data(p, b"1", -1))?;
    t.ok(&mut c, &set_data(p, b"2", -1))?;
    t.events("two changes", &mut c, &[(CHANGED, p), (CHANGED, p)])?;
    Ok(())
}

pub(crate) fn recursive(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let p = path.as_str();
    let (child, grandchild) = (format!("{p}/x"), format!("{p}/x/y"));
    watch(t, &mut c, p, RECURSIVE)?;
    for path in [p, &child, &grandchild] {
        t.ok(&mut c, &create(path, 0))?;
        t.ok(&mut c, &set_data(path, b"x", -1))?;
    }
    t.ok(&mut c, &delete(&grandchild, -1))?;
    t.ok(&mut c, &create(&format!("{p}2"), 0))?;
    let expected = [
        (CREATED, p),
        (CHANGED, p),
        (CREATED, &child),
        (CHANGED, &child),
        (CREATED, &grandchild),
        (CHANGED, &grandchild),
        (DELETED, &grandchild),
    ];
    t.events("all below", &mut c, &expected)?;
    if has_modes(t) {
        t.ok(&mut c, &get_children(p, true))?;
        let other = format!("{p}/z");
        t.ok(&mut c, &create(&other, 0))?;
        t.events("with a child watch", &mut c, &[(CREATED, &other), (CHILDREN, p)])?;
        t.ok(&mut c, &delete(&other, -1))?;
        t.events("the child watch is gone", &mut c, &[(DELETED, &other)])?;
    }
    t.ok(&mut c, &delete(&child, -1))?;
    t.ok(&mut c, &delete(p, -1))?;
    t.events("the rest", &mut c, &[(DELETED, &child), (DELETED, p)])?;
    Ok(())
}

pub(crate) fn one_event_for_two_modes(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    watch(t, &mut c, &path, PERSISTENT)?;
    watch(t, &mut c, &path, RECURSIVE)?;
    let root = t.at("");
    watch(t, &mut c, &root, RECURSIVE)?;
    t.ok(&mut c, &set_data(&path, b"1", -1))?;
    t.events("setData", &mut c, &[(CHANGED, &path)])?;
    Ok(())
}

pub(crate) fn recursive_on_root(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    watch(t, &mut c, "/", RECURSIVE)?;
    let below_zookeeper = "/zookeeper/c96";
    t.ok(&mut c, &set_data("/", b"x", -1))?;
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &create(below_zookeeper, 0))?;
    t.ok(&mut c, &delete(below_zookeeper, -1))?;
    t.ok(&mut c, &set_data("/", b"", -1))?;
    let expected = [
        (CHANGED, "/"),
        (CREATED, &path),
        (CREATED, below_zookeeper),
        (DELETED, below_zookeeper),
        (CHANGED, "/"),
    ];
    t.events("everything", &mut c, &expected)?;
    Ok(())
}

pub(crate) fn removal_by_type(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let p = path.as_str();
    t.ok(&mut c, &create(p, 0))?;
    for kind in [0, 6, 9, -1] {
        t.answer(&mut c, &remove_watches(p, kind), err::MARSHALLING)?;
        t.answer(&mut c, &check_watches(p, kind), err::MARSHALLING)?;
    }
    for kind in [CHILDREN_WATCH, DATA_WATCH, ANY_WATCH] {
        t.answer(&mut c, &remove_watches(p, kind), err::NO_WATCHER)?;
        t.answer(&mut c, &check_watches(p, kind), err::NO_WATCHER)?;
    }
    if !has_modes(t) {
        for kind in [PERSISTENT_WATCH, RECURSIVE_WATCH] {
            t.answer(&mut c, &remove_watches(p, kind), err::MARSHALLING)?;
        }
        watch(t, &mut c, p, PERSISTENT)?;
        t.ok(&mut c, &remove_watches(p, ANY_WATCH))?;
        t.answer(&mut c, &remove_watches(p, ANY_WATCH), err::NO_WATCHER)?;
        return Ok(());
    }
    watch(t, &mut c, p, PERSISTENT)?;
    watch(t, &mut c, p, RECURSIVE)?;
    t.answer(&mut c, &remove_watches(p, DATA_WATCH), err::NO_WATCHER)?;
    t.answer(&mut c, &remove_watches(p, CHILDREN_WATCH), err::NO_WATCHER)?;
    for kind in [PERSISTENT_WATCH, RECURSIVE_WATCH, ANY_WATCH] {
        let reply = t.ok(&mut c, &check_watches(p, kind))?;
        t.same_bytes("the answer to checkWatches", b"", &reply.body);
    }
    t.ok(&mut c, &remove_watches(p, PERSISTENT_WATCH))?;
    t.answer(&mut c, &check_watches(p, PERSISTENT_WATCH), err::NO_WATCHER)?;
    t.ok(&mut c, &create(&format!("{p}/x"), 0))?;
    let child = format!("{p}/x");
    t.events("the recursive mode stays", &mut c, &[(CREATED, &child)])?;
    watch(t, &mut c, p, PERSISTENT)?;
    t.ok(&mut c, &get_children(p, true))?;
    t.ok(&mut c, &remove_watches(p, ANY_WATCH))?;
    t.answer(&mut c, &remove_watches(p, ANY_WATCH), err::NO_WATCHER)?;
    t.ok(&mut c, &delete(&child, -1))?;
    t.ok(&mut c, &set_data(p, b"x", -1))?;
    t.events("all are removed", &mut c, &[])?;
    Ok(())
}

pub(crate) fn removal_of_standard(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let p = path.as_str();
    t.ok(&mut c, &create(p, 0))?;
    t.ok(&mut c, &get_data(p, true))?;
    t.ok(&mut c, &get_children(p, true))?;
    t.ok(&mut c, &check_watches(p, DATA_WATCH))?;
    t.ok(&mut c, &remove_watches(p, DATA_WATCH))?;
    t.answer(&mut c, &check_watches(p, DATA_WATCH), err::NO_WATCHER)?;
    t.ok(&mut c, &check_watches(p, CHILDREN_WATCH))?;
    t.ok(&mut c, &set_data(p, b"x", -1))?;
    t.ok(&mut c, &create(&format!("{p}/x"), 0))?;
    t.events("the child watch stays", &mut c, &[(CHILDREN, p)])?;
    let mut other = t.client()?;
    t.ok(&mut c, &get_data(p, true))?;
    t.answer(&mut other, &remove_watches(p, ANY_WATCH), err::NO_WATCHER)?;
    Ok(())
}

pub(crate) fn zxids_of_events(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c, mut writer) = (t.at("/n"), t.client()?, t.client()?);
    t.ok(&mut writer, &create(&path, 0))?;
    t.settle(&mut c)?;
    t.ok(&mut c, &get_data(&path, true))?;
    let wrote = t.ok(&mut writer, &set_data(&path, b"x", -1))?;
    t.ok(&mut writer, &set_data(&path, b"y", -1))?;
    let events = t.events("setData", &mut c, &[(CHANGED, &path)])?;
    let expected = if t.since(&[(3, 9, 0)]) { wrote.zxid } else { -1 };
    t.same("zxid", vec![expected], events.iter().map(|e| e.zxid).collect());
    t.ok(&mut c, &set_watches(0, &[&path], &[], &[]))?;
    let events = t.events("setWatches", &mut c, &[(CHANGED, &path)])?;
    t.same("zxid", vec![-1], events.iter().map(|e| e.zxid).collect());
    Ok(())
}

pub(crate) fn catch_up(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let p = path.as_str();
    let (gone, nothere) = (t.at("/gone"), t.at("/nothere"));
    t.ok(&mut c, &create(p, 0))?;
    let seen = t.ok(&mut c, &set_data(p, b"x", -1))?.zxid;
    t.ok(&mut c, &create(&format!("{p}/x"), 0))?;
    let request = set_watches(seen, &[p, &gone], &[p, &nothere], &[p, &gone]);
    c.send_as(-8, &request)?;
    let reply = c.reply()?;
    t.same("(xid, err, body)", (-8, err::OK, 0), (reply.xid, reply.err, reply.body.len()));
    let before_reply = c.take_events();
    let actual: Vec<_> = before_reply.iter().map(|e| (e.kind, e.path.as_str())).collect();
    let expected = vec![(DELETED, &*gone), (CREATED, p), (CHILDREN, p), (DELETED, &gone)];
    t.same("events before the reply", expected, actual);
    t.ok(&mut c, &create(&nothere, 0))?;
    t.ok(&mut c, &set_data(p, b"y", -1))?;
    t.ok(&mut c, &create(&format!("{p}/y"), 0))?;
    t.events("what was registered", &mut c, &[(CREATED, &nothere), (CHANGED, p)])?;
    let now = t.ok(&mut c, &exists("/", false))?.zxid;
    t.ok(&mut c, &set_watches(now, &[p], &[], &[p]))?;
    t.events("nothing newer", &mut c, &[])?;
    t.ok(&mut c, &create(&format!("{p}/z"), 0))?;
    t.ok(&mut c, &delete(&format!("{p}/z"), -1))?;
    t.ok(&mut c, &set_data(p, b"z", -1))?;
    t.events("both watches", &mut c, &[(CHILDREN, p), (CHANGED, p)])?;
    Ok(())
}

pub(crate) fn null_lists(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let null_first = Out::new().long(0).null().int(0).int(0);
    let null_second = Out::new().long(0).int(0).null().int(0);
    let null_third = Out::new().long(0).int(0).int(0).null();
    for body in [null_first, null_second, null_third] {
        t.answer(&mut c, &Request::new(op::SET_WATCHES, body), err::MARSHALLING)?;
    }
    c.take_events();
    t.ok(&mut c, &set_watches(0, &["bogus \u{1}"], &[], &[]))?;
    t.events("a path that is none", &mut c, &[(DELETED, "bogus \u{1}")])?;
    Ok(())
}

pub(crate) fn persistent_lists(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let (p, r) = (path.as_str(), t.at("/r"));
    t.ok(&mut c, &create(p, 0))?;
    t.ok(&mut c, &set_data(p, b"x", -1))?;
    let body = Out::new().long(0).int(0).int(0).int(0).strings(&[p]).strings(&[&r]);
    c.send_as(-8, &Request::new(op::SET_WATCHES2, body))?;
    let reply = c.reply()?;
    t.same("(xid, err)", (-8, err::OK), (reply.xid, reply.err));
    t.events("no catching up", &mut c, &[])?;
    let child = format!("{r}/x");
    t.ok(&mut c, &set_data(p, b"y", -1))?;
    t.ok(&mut c, &set_data(p, b"z", -1))?;
    t.ok(&mut c, &create(&r, 0))?;
    t.ok(&mut c, &create(&child, 0))?;
    let expected = [(CHANGED, p), (CHANGED, p), (CREATED, &*r), (CREATED, &child)];
    t.events("what follows", &mut c, &expected)?;
    Ok(())
}

pub(crate) fn gone_with_connection(t: &mut Trial<'_>) -> Outcome {
    let (path, mut old) = (t.at("/w"), t.client()?);
    t.ok(&mut old, &create(&path, 0))?;
    t.ok(&mut old, &get_data(&path, true))?;
    watch(t, &mut old, &path, RECURSIVE)?;
    let mut c = old.reconnect()?;
    t.ok(&mut c, &set_data(&path, b"x", -1))?;
    t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    t.events("after a reconnect", &mut c, &[])?;
    t.answer(&mut c, &remove_watches(&path, ANY_WATCH), err::NO_WATCHER)?;
    Ok(())
}

const WRITE_ONLY: &[Acl<'static>] = &[(perms::ALL & !perms::READ, "world", "anyone")];

/// Wants the events that a server sends which looks at ACLs. Releases before that was published
/// send them all, unless whoever packaged them has mended it, as Debian has in its 3.8.0.
fn events_filtered(
    t: &mut Trial<'_>,
    what: &str,
    c: &mut Client,
    filtered: &[(i32, &str)],
    unfiltered: &[(i32, &str)],
) -> Outcome {
    t.settle(c)?;
    let events = c.take_events();
    let actual: Vec<_> = events.iter().map(|e| (e.kind, e.path.as_str())).collect();
    if t.since(&[(3, 8, 4), (3, 9, 2)]) || actual != unfiltered {
        t.same(what, filtered, &actual);
    }
    Ok(())
}

pub(crate) fn filtered_by_acl(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/w"), t.client()?);
    let p = path.as_str();
    t.ok(&mut c, &create(p, 0))?;
    t.ok(&mut c, &get_data(p, true))?;
    t.ok(&mut c, &get_children(p, true))?;
    t.ok(&mut c, &set_acl(p, WRITE_ONLY, -1))?;
    t.ok(&mut c, &set_data(p, b"x", -1))?;
    t.ok(&mut c, &create(&format!("{p}/x"), 0))?;
    let unfiltered = [(CHANGED, p), (CHILDREN, p)];
    events_filtered(t, "a node that became unreadable", &mut c, &[], &unfiltered)?;
    t.ok(&mut c, &set_acl(p, OPEN_ACL, -1))?;
    t.ok(&mut c, &set_data(p, b"y", -1))?;
    t.ok(&mut c, &create(&format!("{p}/y"), 0))?;
    t.events("the one-shot watches are gone", &mut c, &[])?;
    let hidden = t.at("/hidden");
    t.answer(&mut c, &exists(&hidden, true), err::NO_NODE)?;
    t.ok(&mut c, &create_acl(&hidden, WRITE_ONLY))?;
    let unfiltered = [(CREATED, &*hidden)];
    events_filtered(t, "a node that was never readable", &mut c, &[], &unfiltered)
}

pub(crate) fn filtered_one_by_one(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/a"), t.client()?);
    let (p, child) = (path.as_str(), t.at("/a/b"));
    t.ok(&mut c, &create_acl(p, WRITE_ONLY))?;
    watch(t, &mut c, p, RECURSIVE)?;
    t.ok(&mut c, &set_data(p, b"x", -1))?;
    t.ok(&mut c, &create(&child, 0))?;
    t.ok(&mut c, &set_data(&child, b"x", -1))?;
    t.ok(&mut c, &delete(&child, -1))?;
    t.ok(&mut c, &set_data(p, b"y", -1))?;
    let all =
        [(CHANGED, p), (CREATED, &*child), (CHANGED, &child), (DELETED, &child), (CHANGED, p)];
    events_filtered(t, "below", &mut c, &all[1..4], &all)
}

pub(crate) fn end_of_session(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c, mut owner) = (t.at("/w"), t.client()?, t.client()?);
    let p = path.as_str();
    let mut paths = Vec::new();
    t.ok(&mut owner, &create(p, 0))?;
    for name in ["e1", "e2"] {
        paths.push(t.created(&mut owner, &create(&format!("{p}/{name}"), flags::EPHEMERAL))?);
    }
    t.settle(&mut c)?;
    for path in &paths {
        t.ok(&mut c, &exists(path, true))?;
    }
    t.ok(&mut c, &get_children(p, true))?;
    let closed = t.ok(&mut owner, &crate::wire::close_session())?;
    t.settle(&mut c)?;
    let events = c.take_events();
    let mut actual: Vec<_> = events.iter().map(|e| (e.kind, e.path.as_str())).collect();
    actual.sort_unstable();
    let expected = vec![(DELETED, &*paths[0]), (DELETED, &paths[1]), (CHILDREN, p)];
    t.same("events", expected, actual);
    let zxid = if t.since(&[(3, 9, 0)]) { closed.zxid } else { -1 };
    t.that("all have the zxid of the end", events.iter().all(|e| e.zxid == zxid));
    let stat = t.stat(&mut c, p)?;
    t.same("pzxid of the parent", closed.zxid, stat.pzxid);
    Ok(())
}
