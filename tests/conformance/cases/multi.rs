//! multi and multiRead: cases 73 to 86.

use crate::client::{CHILDREN, CREATED, Client, DELETED};
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    Entry, OPEN_ACL, Out, Request, check, create, create_as, create_container, create_data,
    create_ttl, create2, delete, err, exists, flags, get_acl, get_children, get_data, multi,
    multi_header, multi_read, op, perms, set_acl, set_data,
};

/// The results of a multi, which has no error in its header even if it failed.
fn results(t: &mut Trial<'_>, c: &mut Client, request: &Request) -> Result<Vec<Entry>, Stop> {
    Ok(t.ok(c, request)?.input().multi()?)
}

/// Wants a failed multi: nothing before the failing operation, its error, and -2 behind it.
fn fails(t: &mut Trial<'_>, c: &mut Client, subs: &[Request], errs: &[i32]) -> Outcome {
    let entries = results(t, c, &multi(subs))?;
    let expected: Vec<Entry> =
        errs.iter().map(|&err| Entry { kind: -1, err, ..Entry::default() }).collect();
    t.same("a multi that fails", expected, entries);
    Ok(())
}

pub(crate) fn empty(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let before = t.ok(&mut c, &exists("/", false))?;
    let reply = t.ok(&mut c, &multi(&[]))?;
    t.same_bytes("body", &[0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff], &reply.body);
    t.that("it has a zxid of its own", before.zxid < reply.zxid);
    Ok(())
}

pub(crate) fn failed(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c, mut watcher) = (t.at(""), t.client()?, t.client()?);
    let path = format!("{root}/new");
    t.settle(&mut watcher)?;
    t.answer(&mut watcher, &exists(&path, true), err::NO_NODE)?;
    t.ok(&mut watcher, &get_children(&root, true))?;
    let subs = [
        create(&path, 0),
        check(&root, 55),
        delete(&root, -1),
        set_data(&format!("{root}/missing"), b"", -1),
    ];
    let two = err::RUNTIME_INCONSISTENCY;
    fails(t, &mut c, &subs, &[err::OK, err::BAD_VERSION, two, two])?;
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    t.events("a failed multi", &mut watcher, &[])?;
    Ok(())
}

pub(crate) fn sees_itself(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/p"), t.client()?);
    let child = format!("{path}/c");
    let subs = [
        create(&path, 0),
        create(&child, 0),
        set_data(&child, b"one", 0),
        set_data(&child, b"three", 1),
    ];
    let reply = t.ok(&mut c, &multi(&subs))?;
    let entries = reply.input().multi()?;
    let kinds: Vec<i32> = entries.iter().map(|e| e.kind).collect();
    t.same("types", vec![op::CREATE, op::CREATE, op::SET_DATA, op::SET_DATA], kinds);
    let stats: Vec<_> = entries
        .iter()
        .filter_map(|e| e.stat)
        .map(|s| (s.version, s.data_length, s.czxid, s.mzxid))
        .collect();
    let z = reply.zxid;
    t.same("stats", vec![(1, 3, z, z), (2, 5, z, z)], stats);
    let stat = t.stat(&mut c, &path)?;
    t.same("the parent", (1, 1, z), (stat.cversion, stat.num_children, stat.pzxid));
    Ok(())
}

pub(crate) fn same_path_again(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let subs = [create_data(&path, b"1"), delete(&path, 0), create_data(&path, b"2")];
    let entries = results(t, &mut c, &multi(&subs))?;
    let kinds: Vec<i32> = entries.iter().map(|e| e.kind).collect();
    t.same("types", vec![op::CREATE, op::DELETE, op::CREATE], kinds);
    let data = t.ok(&mut c, &get_data(&path, false))?.input().buffer()?;
    t.same("data", Some(b"2".to_vec()), data);
    let root = t.at("");
    let stat = t.stat(&mut c, &root)?;
    t.same("(cversion, children) of the parent", (3, 1), (stat.cversion, stat.num_children));
    Ok(())
}

pub(crate) fn child_then_parent(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/p"), t.client()?);
    let (first, second) = (format!("{path}/1"), format!("{path}/2"));
    for path in [&path, &first, &second] {
        t.ok(&mut c, &create(path, 0))?;
    }
    let subs = [delete(&first, -1), delete(&path, -1)];
    fails(t, &mut c, &subs, &[err::OK, err::NOT_EMPTY])?;
    t.ok(&mut c, &delete(&second, -1))?;
    let entries = results(t, &mut c, &multi(&subs))?;
    t.same("results", 2, entries.len());
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}

fn numbers_in(t: &mut Trial<'_>, c: &mut Client, prefix: &str) -> Outcome {
    let sequential = || create(prefix, flags::SEQUENTIAL);
    let number = |path: &str| path[prefix.len()..].parse::<u32>().unwrap_or(u32::MAX);
    let entries = results(t, c, &multi(&[sequential(), sequential()]))?;
    let paths: Vec<u32> = entries.iter().filter_map(|e| e.path.as_deref()).map(number).collect();
    t.same("how many", 2, paths.len());
    let last = paths.last().copied().unwrap_or_default();
    t.same("consecutive numbers", vec![last - 1, last], paths);
    let missing = format!("{prefix}missing/n");
    fails(t, c, &[sequential(), create(&missing, 0)], &[err::OK, err::NO_NODE])?;
    let made = t.created(c, &sequential())?;
    t.same("the number that the failed one would have had", last + 1, number(&made));
    Ok(())
}

pub(crate) fn numbers_given_back(t: &mut Trial<'_>) -> Outcome {
    let (prefix, mut c) = (t.at("/n-"), t.client()?);
    numbers_in(t, &mut c, &prefix)
}

/// The root has two names inside the reference; here it is one node.
pub(crate) fn numbers_below_root(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    numbers_in(t, &mut c, "/m14-")?;
    let children = t.ok(&mut c, &get_children("/", false))?.input().strings()?;
    let mine: Vec<_> = children.iter().filter(|name| name.starts_with("m14-")).collect();
    t.same("how many", 3, mine.len());
    for name in mine {
        t.ok(&mut c, &delete(&format!("/{name}"), -1))?;
    }
    Ok(())
}

pub(crate) fn child_of_ephemeral(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/e"), t.client()?);
    let subs = [create(&path, flags::EPHEMERAL), create(&format!("{path}/x"), 0)];
    fails(t, &mut c, &subs, &[err::OK, err::NO_CHILDREN_FOR_EPHEMERALS])?;
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}

pub(crate) fn undecodable(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let made = || create(&format!("{root}/n"), 0);
    let bad: [&[Request]; 8] = [
        &[set_acl(&root, OPEN_ACL, -1)],
        &[exists(&root, false)],
        &[Request::new(op::DELETE_CONTAINER, Out::new().string(&root))],
        &[get_acl(&root)],
        &[get_data(&root, false), made()],
        &[made(), get_data(&root, false)],
        &[get_data(&root, false)],
        &[multi(&[])],
    ];
    for subs in bad {
        t.answer(&mut c, &multi(subs), err::MARSHALLING)?;
    }
    let no_end = multi_header(Out::new(), op::CREATE).bytes(&made().body);
    t.answer(&mut c, &Request::new(op::MULTI, no_end), err::MARSHALLING)?;
    t.answer(&mut c, &exists(&format!("{root}/n"), false), err::NO_NODE)?;
    t.ok(&mut c, &multi(&[made()]))?;
    Ok(())
}

pub(crate) fn check_needs_read(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let without_read = perms::ALL & !perms::READ;
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &set_acl(&path, &[(without_read, "world", "anyone")], -1))?;
    fails(t, &mut c, &[check(&path, 0)], &[err::NO_AUTH])?;
    fails(t, &mut c, &[check(&path, 5)], &[err::NO_AUTH])?;
    fails(t, &mut c, &[check(&format!("{path}/x"), 0)], &[err::NO_NODE])?;
    fails(t, &mut c, &[check("n", 0)], &[err::BAD_ARGUMENTS])
}

pub(crate) fn result_types(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let at = |name: &str| format!("{root}/{name}");
    let subs = [
        create(&at("plain"), 0),
        create2(&at("with-stat"), 0),
        create_container(&at("container"), flags::CONTAINER),
        create_ttl(&at("ttl"), flags::TTL, 1_000_000),
    ];
    let entries = results(t, &mut c, &multi(&subs))?;
    let typed = t.since(&[(3, 7, 2), (3, 8, 2), (3, 9, 0)]);
    let create2_type = if typed { op::CREATE2 } else { op::CREATE };
    let kinds: Vec<i32> = entries.iter().map(|e| e.kind).collect();
    let expected = vec![op::CREATE, create2_type, op::CREATE2, op::CREATE2];
    t.same("types", expected, kinds);
    let stats: Vec<bool> = entries.iter().map(|e| e.stat.is_some()).collect();
    t.same("which have a stat", vec![false, typed, true, true], stats);
    Ok(())
}

/// How sub-operations of a multi combine types and flags, which is not how single ones do.
pub(crate) fn flags_of_subs(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let path = format!("{root}/n");
    let strict = t.since(&[(3, 7, 2), (3, 8, 2), (3, 9, 0)]);
    for op in [op::CREATE, op::CREATE2, op::CREATE_CONTAINER] {
        let sub = create_as(op, &path, b"", OPEN_ACL, 7);
        if strict {
            t.answer(&mut c, &multi(&[sub]), err::MARSHALLING)?;
        } else {
            fails(t, &mut c, &[sub], &[err::BAD_ARGUMENTS])?;
        }
    }
    if strict {
        for op in [op::CREATE, op::CREATE2, op::CREATE_CONTAINER] {
            let sub = create_as(op, &path, b"", OPEN_ACL, flags::TTL);
            t.answer(&mut c, &multi(&[sub]), err::MARSHALLING)?;
        }
    }
    fails(t, &mut c, &[create_ttl(&path, 9, 1000)], &[err::BAD_ARGUMENTS])?;
    let entries = results(
        t,
        &mut c,
        &multi(&[create_as(op::CREATE, &path, b"", OPEN_ACL, flags::CONTAINER)]),
    )?;
    let kinds: Vec<i32> = entries.iter().map(|e| e.kind).collect();
    t.same("a create with a container's flags", vec![op::CREATE2], kinds);
    let entries = results(t, &mut c, &multi(&[create_ttl(&format!("{path}0"), 0, 1000)]))?;
    let kinds: Vec<i32> = entries.iter().map(|e| e.kind).collect();
    t.same("a createTTL with flags 0", vec![op::CREATE], kinds);
    Ok(())
}

pub(crate) fn paths_of_delete(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    fails(t, &mut c, &[delete("", -1)], &[err::BAD_ARGUMENTS])?;
    let null = Request::new(op::DELETE, Out::new().null().int(-1));
    let reply = c.call(&multi(&[null]))?;
    t.same("err", err::MARSHALLING, reply.err);
    if t.since(&[(3, 9, 0)]) {
        t.same_bytes("body", b"", &reply.body);
    }
    Ok(())
}

pub(crate) fn reads(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let child = format!("{root}/c");
    t.ok(&mut c, &create_data(&child, b"data"))?;
    let missing = get_data(&format!("{root}/missing"), false);
    let stat = t.stat(&mut c, &child)?;
    let error = Entry { kind: -1, err: err::NO_NODE, ..Entry::default() };
    let data = Entry {
        kind: op::GET_DATA,
        data: Some(b"data".to_vec()),
        stat: Some(stat),
        ..Entry::default()
    };
    let children =
        Entry { kind: op::GET_CHILDREN, children: Some(vec!["c".to_owned()]), ..Entry::default() };
    let subs = [get_data(&child, false), get_children(&root, false), missing.clone()];
    let entries = results(t, &mut c, &multi_read(&subs))?;
    t.same("the error last", vec![data.clone(), children, error.clone()], entries);
    let entries = results(t, &mut c, &multi_read(&[missing, get_data(&child, false)]))?;
    t.same("the error first", vec![error, data], entries);
    let entries = results(t, &mut c, &multi_read(&[]))?;
    t.same("no read", Vec::new(), entries);
    Ok(())
}

pub(crate) fn reads_set_no_watch(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let subs = [get_data(&root, true), get_children(&root, true)];
    results(t, &mut c, &multi_read(&subs))?;
    t.ok(&mut c, &set_data(&root, b"x", -1))?;
    t.ok(&mut c, &create(&format!("{root}/x"), 0))?;
    t.events("watch flags in a multiRead", &mut c, &[])?;
    Ok(())
}

pub(crate) fn watches_of_parent(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/t"), t.client()?);
    let root = t.at("");
    t.ok(&mut c, &get_children(&root, true))?;
    t.answer(&mut c, &exists(&path, true), err::NO_NODE)?;
    let bad = [create(&path, 0), delete(&format!("{path}/missing"), -1)];
    fails(t, &mut c, &bad, &[err::OK, err::NO_NODE])?;
    t.events("a failed multi", &mut c, &[])?;
    let reply = t.ok(&mut c, &multi(&[create(&path, 0), delete(&path, -1)]))?;
    let expected = [(CREATED, path.as_str()), (CHILDREN, &root)];
    let events = t.events("create and delete", &mut c, &expected)?;
    let expected = if t.since(&[(3, 9, 0)]) { reply.zxid } else { -1 };
    t.that("the events have the multi's zxid", events.iter().all(|e| e.zxid == expected));

    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &get_data(&path, true))?;
    t.ok(&mut c, &get_children(&root, true))?;
    t.ok(&mut c, &multi(&[delete(&path, -1), create(&path, 0)]))?;
    t.events("delete and create", &mut c, &[(DELETED, &path), (CHILDREN, &root)])?;
    Ok(())
}

/// A write among reads.
pub(crate) fn write_among_reads(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let path = format!("{root}/n");
    for subs in [vec![create(&path, 0)], vec![get_data(&root, false), create(&path, 0)]] {
        let reply = c.call(&multi_read(&subs))?;
        t.same("err", err::MARSHALLING, reply.err);
        if t.is_ours() {
            t.same_bytes("body", b"", &reply.body);
        }
    }
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}
