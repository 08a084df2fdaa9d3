//! delete, setData, setACL, reads and stats: cases 51 to 72.

use crate::client::{Client, Connect};
use crate::snapshot::{Stored, snapshot};
use crate::target::{OPEN, Seed};
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    Acl, OPEN_ACL, Out, Request, Stat, auth, create, create_acl, create_data, delete, err, exists,
    flags, get_acl, get_all_children_number, get_children, get_children2, get_data, get_ephemerals,
    op, perms, set_acl, set_data, sync, who_am_i,
};

const NOTHING: &[Acl<'static>] = &[(0, "world", "anyone")];
const READ_ONLY: &[Acl<'static>] = &[(perms::READ, "world", "anyone")];

fn become_super(t: &mut Trial<'_>, c: &mut Client) -> Outcome {
    t.ok(c, &auth("digest", b"super:test"))?;
    Ok(())
}

pub(crate) fn reserved_stay(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let try_all = |t: &mut Trial<'_>, c: &mut Client| -> Outcome {
        for path in ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"] {
            for version in [-1, 0, 77] {
                t.answer(c, &delete(path, version), err::BAD_ARGUMENTS)?;
            }
        }
        t.answer(c, &delete("//zookeeper", -1), err::NO_NODE)?;
        Ok(())
    };
    try_all(t, &mut c)?;
    become_super(t, &mut c)?;
    try_all(t, &mut c)
}

pub(crate) fn delete_of_nothing(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    t.answer(&mut c, &delete("", -1), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &Request::new(op::DELETE, Out::new().null().int(-1)), err::MARSHALLING)?;
    t.ok(&mut c, &create(&format!("{root}/c"), 0))?;
    for below in ["/nope", "/nope/b", "/c/", "/.", "/..", "//c"] {
        t.answer(&mut c, &delete(&format!("{root}{below}"), -1), err::NO_NODE)?;
    }
    t.answer(&mut c, &delete("nope", -1), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &delete("/no\0pe", -1), err::BAD_ARGUMENTS)?;
    Ok(())
}

pub(crate) fn version_before_children(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/p"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    t.answer(&mut c, &delete(&path, 5), err::BAD_VERSION)?;
    t.answer(&mut c, &delete(&path, -1), err::NOT_EMPTY)?;
    t.answer(&mut c, &delete(&path, 0), err::NOT_EMPTY)?;
    Ok(())
}

pub(crate) fn delete_needs_the_parent(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/p"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    let without_delete = perms::ALL & !perms::DELETE;
    t.ok(&mut c, &set_acl(&path, &[(without_delete, "world", "anyone")], -1))?;
    t.answer(&mut c, &delete(&format!("{path}/x"), -1), err::NO_AUTH)?;
    t.answer(&mut c, &delete(&format!("{path}/x"), 9), err::NO_AUTH)?;
    t.answer(&mut c, &delete(&format!("{path}/nope"), -1), err::NO_AUTH)?;
    Ok(())
}

pub(crate) fn delete_ignores_own_acl(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create_acl(&path, NOTHING))?;
    t.answer(&mut c, &get_data(&path, false), err::NO_AUTH)?;
    t.ok(&mut c, &delete(&path, -1))?;
    Ok(())
}

fn ephemerals(t: &mut Trial<'_>, c: &mut Client, prefix: &str) -> Result<Vec<String>, Stop> {
    let mut paths = t.ok(c, &get_ephemerals(prefix))?.input().strings()?;
    paths.sort();
    Ok(paths)
}

pub(crate) fn ephemeral_of_another(t: &mut Trial<'_>) -> Outcome {
    let (path, mut owner, mut other) = (t.at("/e"), t.client()?, t.client()?);
    t.ok(&mut owner, &create(&path, flags::EPHEMERAL))?;
    let listed = ephemerals(t, &mut owner, "/")?;
    t.same("before", vec![path.clone()], listed);
    t.ok(&mut other, &delete(&path, -1))?;
    t.settle(&mut owner)?;
    let listed = ephemerals(t, &mut owner, "/")?;
    t.same("after", Vec::<String>::new(), listed);
    Ok(())
}

pub(crate) fn any_version(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &set_data(&path, b"1", 0))?;
    for version in [-2, 0, 2, i32::MIN] {
        t.answer(&mut c, &set_data(&path, b"2", version), err::BAD_VERSION)?;
    }
    t.ok(&mut c, &set_data(&path, b"2", -1))?;
    let stat = t.ok(&mut c, &set_data(&path, b"3", 2))?.input().stat()?;
    t.same("version", 3, stat.version);
    Ok(())
}

/// A server on a tree whose counters are about to overflow.
fn at_the_brink(t: &Trial<'_>) -> Result<(crate::target::Server, Client), Stop> {
    let znodes = [
        Stored { version: i32::MAX, aversion: i32::MAX, ..Stored::plain("/max") },
        Stored { version: -2, aversion: -2, ..Stored::plain("/minus2") },
        Stored { cversion: i32::MAX - 1, ..Stored::plain("/children") },
    ];
    let server = t.start(&OPEN, Seed::Snapshot(&snapshot(&znodes)))?;
    let client = Client::connect(server.address, &Connect::default())?;
    Ok((server, client))
}

pub(crate) fn versions_wrap(t: &mut Trial<'_>) -> Outcome {
    let (_server, mut c) = at_the_brink(t)?;
    let stat = t.ok(&mut c, &set_data("/max", b"", i32::MAX))?.input().stat()?;
    t.same("version after the greatest", i32::MIN, stat.version);
    let stat = t.ok(&mut c, &set_acl("/max", OPEN_ACL, i32::MAX))?.input().stat()?;
    t.same("aversion after the greatest", i32::MIN, stat.aversion);
    let after = if t.since(&[(3, 10, 0)]) { 0 } else { -1 };
    let stat = t.ok(&mut c, &set_data("/minus2", b"", -2))?.input().stat()?;
    t.same("version after -2", after, stat.version);
    let stat = t.ok(&mut c, &set_acl("/minus2", OPEN_ACL, -2))?.input().stat()?;
    t.same("aversion after -2", after, stat.aversion);
    Ok(())
}

pub(crate) fn creations_overflow(t: &mut Trial<'_>) -> Outcome {
    let (_server, mut c) = at_the_brink(t)?;
    let path = t.created(&mut c, &create("/children/n-", flags::SEQUENTIAL))?;
    t.same("path", "/children/n-2147483646", &path);
    // What comes next is no use to anybody; the server must outlive it.
    for _ in 0..3 {
        c.call(&create("/children/n-", flags::SEQUENTIAL))?;
        t.ok(&mut c, &get_children2("/children", false))?;
    }
    t.ok(&mut c, &create("/after", 0))?;
    Ok(())
}

pub(crate) fn empty_and_null_paths(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    t.answer(&mut c, &set_data("", b"", -1), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &set_acl("", OPEN_ACL, -1), err::BAD_ARGUMENTS)?;
    let null = Out::new().null();
    let null_data = Request::new(op::SET_DATA, null.clone().buffer(b"").int(-1));
    t.answer(&mut c, &null_data, err::BAD_ARGUMENTS)?;
    let null_acl = Request::new(op::SET_ACL, null.clone().acl(OPEN_ACL).int(-1));
    t.answer(&mut c, &null_acl, err::BAD_ARGUMENTS)?;
    for op in [op::EXISTS, op::GET_DATA, op::GET_CHILDREN] {
        t.answer(&mut c, &Request::new(op, null.clone().byte(0)), err::MARSHALLING)?;
    }
    type Read = fn(&str) -> Request;
    let reads: [Read; 5] = [
        |p| exists(p, false),
        |p| get_data(p, false),
        |p| get_children(p, false),
        |p| get_children2(p, false),
        get_acl,
    ];
    for read in reads {
        let empty = t.ok(&mut c, &read(""))?;
        let root = t.ok(&mut c, &read("/"))?;
        t.same_bytes("the answer for the root", &root.body, &empty.body);
    }
    Ok(())
}

pub(crate) fn null_data(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create_data(&path, b"data"))?;
    let set = Request::new(op::SET_DATA, Out::new().string(&path).null().int(-1));
    let stat = t.ok(&mut c, &set)?.input().stat()?;
    t.same("dataLength", 0, stat.data_length);
    let data = t.ok(&mut c, &get_data(&path, false))?.input().buffer()?;
    t.same("data", None, data);
    t.ok(&mut c, &set_data(&path, b"", -1))?;
    let data = t.ok(&mut c, &get_data(&path, false))?.input().buffer()?;
    t.same("empty data", Some(Vec::new()), data);

    let path = t.at("/created");
    let body = Out::new().string(&path).null().acl(OPEN_ACL).int(0);
    t.ok(&mut c, &Request::new(op::CREATE, body))?;
    let data = t.ok(&mut c, &get_data(&path, false))?.input().buffer()?;
    t.same("data given to create", None, data);
    Ok(())
}

pub(crate) fn zxid_of_failed_write(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let made = t.ok(&mut c, &create(&path, 0))?;
    let failed = t.answer(&mut c, &create(&path, 0), err::NODE_EXISTS)?;
    let read = t.ok(&mut c, &exists(&path, false))?;
    if t.is_ours() {
        // A server need not give a zxid to what did not happen, as long as time does not go back.
        t.that("a failed write's zxid is not before the last", made.zxid <= failed.zxid);
    } else {
        t.that("a failed write has a zxid of its own", made.zxid < failed.zxid);
    }
    t.that("the read's zxid is not before it", failed.zxid <= read.zxid);
    Ok(())
}

pub(crate) fn parent_of_created_and_deleted(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/p"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    let before = t.stat(&mut c, &path)?;
    let made = t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    let between = t.stat(&mut c, &path)?;
    let expected = Stat { cversion: 1, num_children: 1, pzxid: made.zxid, ..before };
    t.same("after the create", expected, between);
    let gone = t.ok(&mut c, &delete(&format!("{path}/x"), -1))?;
    let after = t.stat(&mut c, &path)?;
    t.same("after the delete", Stat { cversion: 2, pzxid: gone.zxid, ..before }, after);
    Ok(())
}

pub(crate) fn set_acl_changes_aversion(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create(&path, 0))?;
    t.ok(&mut c, &get_data(&path, true))?;
    t.ok(&mut c, &get_children(&path, true))?;
    let before = t.stat(&mut c, &path)?;
    let stat = t.ok(&mut c, &set_acl(&path, OPEN_ACL, 0))?.input().stat()?;
    t.same("stat", Stat { aversion: 1, ..before }, stat);
    t.answer(&mut c, &set_acl(&path, OPEN_ACL, 0), err::BAD_VERSION)?;
    t.events("setACL", &mut c, &[])?;
    let after = t.stat(&mut c, &path)?;
    t.same("stat", Stat { aversion: 1, ..before }, after);
    Ok(())
}

pub(crate) fn set_acl_order(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let bad: &[Acl<'_>] = &[(31, "foo", "bar")];
    t.ok(&mut c, &create_acl(&path, &[(perms::ALL & !perms::ADMIN, "world", "anyone")]))?;
    t.answer(&mut c, &set_acl(&path, bad, -1), err::INVALID_ACL)?;
    t.answer(&mut c, &set_acl(&path, &[], -1), err::INVALID_ACL)?;
    t.answer(&mut c, &set_acl(&path, OPEN_ACL, 7), err::NO_AUTH)?;
    let missing = t.at("/missing");
    t.answer(&mut c, &set_acl(&missing, bad, -1), err::INVALID_ACL)?;
    t.answer(&mut c, &set_acl(&missing, OPEN_ACL, -1), err::NO_NODE)?;
    Ok(())
}

pub(crate) fn fresh_root(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let stat = t.stat(&mut c, "/")?;
    t.same("the root", Stat { cversion: -1, num_children: 1, ..Stat::default() }, stat);
    let stat = t.stat(&mut c, "/zookeeper")?;
    t.same("/zookeeper", Stat { cversion: -2, num_children: 2, ..Stat::default() }, stat);
    let stat = t.stat(&mut c, "/zookeeper/quota")?;
    t.same("/zookeeper/quota", Stat::default(), stat);
    let stat = t.stat(&mut c, "/zookeeper/config")?;
    t.same("/zookeeper/config", Stat { aversion: -1, ..Stat::default() }, stat);
    for path in ["/", "/zookeeper", "/zookeeper/quota", "/zookeeper/config"] {
        let data = t.ok(&mut c, &get_data(path, false))?.input().buffer()?;
        t.same(path, Some(Vec::new()), data);
    }
    Ok(())
}

pub(crate) fn config_is_guarded(t: &mut Trial<'_>) -> Outcome {
    const CONFIG: &str = "/zookeeper/config";
    let mut c = t.client()?;
    let reply = t.ok(&mut c, &get_acl(CONFIG))?;
    let mut input = reply.input();
    let entry = (perms::READ, "world".to_owned(), "anyone".to_owned());
    t.same("acl", vec![entry], input.acl()?);
    t.same("aversion", -1, input.stat()?.aversion);
    t.answer(&mut c, &set_data(CONFIG, b"x", -1), err::NO_AUTH)?;
    t.answer(&mut c, &set_acl(CONFIG, OPEN_ACL, -1), err::NO_AUTH)?;
    t.answer(&mut c, &create("/zookeeper/config/x", 0), err::NO_AUTH)?;
    become_super(t, &mut c)?;
    t.ok(&mut c, &set_data(CONFIG, b"x", -1))?;
    let stat = t.ok(&mut c, &set_acl(CONFIG, READ_ONLY, -1))?.input().stat()?;
    t.same("aversion after a setACL", 0, stat.aversion);
    t.ok(&mut c, &create("/zookeeper/config/x", 0))?;
    Ok(())
}

pub(crate) fn get_acl_masks(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let digest: Acl<'_> = (31, "digest", "user:hash");
    let owned = |(perms, scheme, id): Acl<'_>| (perms, scheme.to_owned(), id.to_owned());
    let path = format!("{root}/read");
    let read: Acl<'_> = (perms::READ, "world", "anyone");
    t.ok(&mut c, &create_acl(&path, &[digest, read]))?;
    let acl = t.ok(&mut c, &get_acl(&path))?.input().acl()?;
    t.same("with READ", vec![owned((31, "digest", "user:x")), owned(read)], acl);

    let path = format!("{root}/admin");
    let admin: Acl<'_> = (perms::ADMIN, "world", "anyone");
    t.ok(&mut c, &create_acl(&path, &[digest, admin]))?;
    let acl = t.ok(&mut c, &get_acl(&path))?.input().acl()?;
    t.same("with ADMIN", vec![owned(digest), owned(admin)], acl);
    t.answer(&mut c, &get_data(&path, false), err::NO_AUTH)?;

    let path = format!("{root}/write");
    t.ok(&mut c, &create_acl(&path, &[(perms::WRITE, "world", "anyone")]))?;
    t.answer(&mut c, &get_acl(&path), err::NO_AUTH)?;
    Ok(())
}

pub(crate) fn counts_of_descendants(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let mut count = |t: &mut Trial<'_>, path: &str, expected: i32| -> Outcome {
        let reply = t.ok(&mut c, &get_all_children_number(path))?;
        t.same(path, expected, reply.input().int()?);
        Ok(())
    };
    count(t, "/", 3)?;
    count(t, "/zookeeper", 2)?;
    count(t, "/zookeeper/quota", 0)?;
    let mut other = t.client()?;
    t.answer(&mut other, &get_all_children_number("/missing"), err::NO_NODE)?;
    t.ok(&mut other, &create("/a", 0))?;
    t.ok(&mut other, &create("/a/b", 0))?;
    t.ok(&mut other, &create("/ab", 0))?;
    let mut count = |path: &str| t.ok(&mut other, &get_all_children_number(path));
    let counts = [count("/")?.input().int()?, count("/a")?.input().int()?];
    t.same("(/, /a)", [6, 1], counts);
    Ok(())
}

pub(crate) fn ephemerals_by_prefix(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    t.ok(&mut c, &create(&format!("{root}/big"), 0))?;
    let mut paths = Vec::new();
    for below in ["/big/e-1", "/big/e-2", "/other"] {
        paths.push(t.created(&mut c, &create(&format!("{root}{below}"), flags::EPHEMERAL))?);
    }
    let listed = ephemerals(t, &mut c, &format!("{root}/bi"))?;
    t.same("a prefix that ends in a name", paths[..2].to_vec(), listed);
    for prefix in ["", "  ", "/"] {
        let listed = ephemerals(t, &mut c, prefix)?;
        t.same(&format!("prefix {prefix:?}"), paths.clone(), listed);
    }
    let null = Request::new(op::GET_EPHEMERALS, Out::new().null());
    let mut listed = t.ok(&mut c, &null)?.input().strings()?;
    listed.sort();
    t.same("no prefix", paths, listed);
    let listed = ephemerals(t, &mut c, "nowhere")?;
    t.same("a prefix of nothing", Vec::<String>::new(), listed);
    Ok(())
}

pub(crate) fn reads_look_at_one_node(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/a"), t.client()?);
    t.answer(&mut c, &exists("/a\0b", false), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &get_data("/a\0b", false), err::NO_NODE)?;
    for below in ["/", "//", "/nope"] {
        t.answer(&mut c, &get_children(&format!("{path}{below}"), false), err::NO_NODE)?;
    }
    t.ok(&mut c, &create_acl(&path, READ_ONLY))?;
    t.ok(&mut c, &set_acl("/", NOTHING, -1))?;
    let of_root = c.call(&exists("/", false))?;
    let of_child = c.call(&exists(&path, false))?;
    let data_of_child = c.call(&get_data(&path, false))?;
    let children_of_root = c.call(&get_children("/", false))?;
    // The other cases on this server want the root back, whatever came out.
    become_super(t, &mut c)?;
    t.ok(&mut c, &set_acl("/", OPEN_ACL, -1))?;
    let expected = if t.since(&[(3, 8, 4), (3, 9, 2)]) { err::NO_AUTH } else { err::OK };
    t.same("exists of the root", expected, of_root.err);
    t.same("getChildren of the root", err::NO_AUTH, children_of_root.err);
    t.same("exists of its child", err::OK, of_child.err);
    t.same("getData of its child", err::OK, data_of_child.err);
    Ok(())
}

pub(crate) fn sync_of_anything(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for path in ["foo", "", "/", "/missing", "//"] {
        let reply = t.ok(&mut c, &sync(path))?;
        t.same_bytes("path", &Out::new().string(path).done(), &reply.body);
    }
    let reply = t.ok(&mut c, &Request::new(op::SYNC, Out::new().null()))?;
    t.same_bytes("path", &Out::new().null().done(), &reply.body);
    Ok(())
}

pub(crate) fn who_am_i_lists_ids(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let ids = |t: &mut Trial<'_>, c: &mut Client| -> Result<Vec<(String, String)>, Stop> {
        let reply = t.ok(c, &who_am_i())?;
        let mut input = reply.input();
        let count = input.int()?;
        let mut ids = (0..count)
            .map(|_| Ok((input.string()?, input.string()?)))
            .collect::<Result<Vec<_>, Stop>>()?;
        ids.sort();
        Ok(ids)
    };
    let id = |scheme: &str, user: &str| (scheme.to_owned(), user.to_owned());
    let plain = ids(t, &mut c)?;
    t.same("at first", vec![id("ip", "127.0.0.1")], plain);
    t.ok(&mut c, &auth("digest", b"user:pw"))?;
    let digest = ids(t, &mut c)?;
    t.same("after a digest", vec![id("digest", "user"), id("ip", "127.0.0.1")], digest);
    become_super(t, &mut c)?;
    let all = ids(t, &mut c)?;
    let expected =
        vec![id("digest", "super"), id("digest", "user"), id("ip", "127.0.0.1"), id("super", "")];
    t.same("after super", expected, all);
    Ok(())
}
