//! create in all its kinds: cases 34 to 50.

use crate::client::Client;
use crate::target::{PLAIN, Settings};
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    Acl, OPEN_ACL, Out, Request, Stat, auth, create, create_acl, create_as, create_container,
    create_ttl, create2, delete, err, exists, flags, get_acl, get_data, op, perms, set_acl,
};

/// CreateRequest with a path that is not text, or no path.
fn create_raw(path: Option<&[u8]>) -> Request {
    let out = match path {
        Some(path) => Out::new().buffer(path),
        None => Out::new().null(),
    };
    Request::new(op::CREATE, out.buffer(b"").acl(OPEN_ACL).int(0))
}

pub(crate) fn paths_out_of_shape(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    t.answer(&mut c, &create("/", 0), err::NODE_EXISTS)?;
    t.answer(&mut c, &create("", 0), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &create("a", 0), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &create("a/b", 0), err::NO_NODE)?;
    t.answer(&mut c, &create_raw(None), err::MARSHALLING)?;
    Ok(())
}

pub(crate) fn trailing_slash(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/a/"), t.client()?);
    t.answer(&mut c, &create(&path, 0), err::NO_NODE)?;
    let parent = t.at("/a");
    t.ok(&mut c, &create(&parent, 0))?;
    t.answer(&mut c, &create(&path, 0), err::BAD_ARGUMENTS)?;
    Ok(())
}

pub(crate) fn empty_component_and_nul(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    t.answer(&mut c, &create("//a", 0), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &create_raw(Some(b"/a\0b")), err::BAD_ARGUMENTS)?;
    Ok(())
}

pub(crate) fn sequential_without_prefix(t: &mut Trial<'_>) -> Outcome {
    let (dir, mut c) = (t.at("/dir"), t.client()?);
    t.ok(&mut c, &create(&dir, 0))?;
    let path = t.created(&mut c, &create(&format!("{dir}/"), flags::SEQUENTIAL))?;
    t.same("path", format!("{dir}/0000000000"), path);
    let path = t.created(&mut c, &create("/", flags::SEQUENTIAL))?;
    t.same("length of a number below the root", 11, path.len());
    t.that("it is a number", path[1..].bytes().all(|b| b.is_ascii_digit()));
    t.ok(&mut c, &delete(&path, -1))?;
    Ok(())
}

pub(crate) fn sequential_mends_names(t: &mut Trial<'_>) -> Outcome {
    let (dir, mut c) = (t.at("/dir"), t.client()?);
    t.ok(&mut c, &create(&dir, 0))?;
    let path = t.created(&mut c, &create(&format!("{dir}/.."), flags::SEQUENTIAL))?;
    t.same("path", format!("{dir}/..0000000000"), path);
    let path = t.created(&mut c, &create(&format!("{dir}/."), flags::SEQUENTIAL))?;
    t.same("path", format!("{dir}/.0000000001"), path);
    for below in ["/../", "//", "/./"] {
        let request = create(&format!("{dir}{below}"), flags::SEQUENTIAL);
        t.answer(&mut c, &request, err::NO_NODE)?;
    }
    Ok(())
}

pub(crate) fn characters(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let good = [
        "...", ".a", "a.", "..a", "a\\b", "a b", "\u{20}", "\u{7e}", "\u{a0}", "\u{e9}",
        "\u{d7ff}", "\u{f900}", "\u{ffef}",
    ];
    for name in good {
        let path = t.at(&format!("/{name}"));
        let made = t.created(&mut c, &create(&path, 0))?;
        t.same("path", &path, &made);
    }
    let bad: [&[u8]; 20] = [
        b".",
        b"..",
        "\u{1}".as_bytes(),
        "\u{1f}".as_bytes(),
        "\u{7f}".as_bytes(),
        "\u{80}".as_bytes(),
        "\u{9f}".as_bytes(),
        "\u{e000}".as_bytes(),
        "\u{f8ff}".as_bytes(),
        "\u{fff0}".as_bytes(),
        "\u{fffd}".as_bytes(),
        "\u{ffff}".as_bytes(),
        "\u{1f600}".as_bytes(),
        b"\xed\xa0\xbd\xed\xb8\x80",
        b"\xed\xa0\x80",
        b"\xff",
        b"a\x80b",
        b"\xc3",
        b"\xc0\x80",
        b"\xf4\x90\x80\x80",
    ];
    for name in bad {
        let path = [t.at("/").as_bytes(), name].concat();
        t.answer(&mut c, &create_raw(Some(&path)), err::BAD_ARGUMENTS)?;
    }
    Ok(())
}

pub(crate) fn first_number_of_root(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let path = t.created(&mut c, &create("/n-", flags::SEQUENTIAL))?;
    t.same("path", "/n-0000000000", &path);
    Ok(())
}

pub(crate) fn numbers_count_creations(t: &mut Trial<'_>) -> Outcome {
    let (dir, mut c) = (t.at("/dir"), t.client()?);
    t.ok(&mut c, &create(&dir, 0))?;
    let mut next = |t: &mut Trial<'_>, prefix: &str| -> Result<String, Stop> {
        let request = create(&format!("{dir}/{prefix}"), flags::SEQUENTIAL);
        Ok(t.created(&mut c, &request)?[dir.len() + 1..].to_owned())
    };
    let name = next(t, "n-")?;
    t.same("the first", "n-0000000000", &name);
    let path = t.at("/dir/n-0000000000");
    let mut other = t.client()?;
    t.ok(&mut other, &delete(&path, -1))?;
    let name = next(t, "n-")?;
    t.same("after a delete", "n-0000000001", &name);
    let path = t.at("/dir/plain");
    t.ok(&mut other, &create(&path, 0))?;
    let name = next(t, "other-")?;
    t.same("after a plain create, with another prefix", "other-0000000003", &name);
    Ok(())
}

pub(crate) fn child_of_ephemeral(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/e"), t.client()?);
    t.ok(&mut c, &create(&path, flags::EPHEMERAL))?;
    for flags in [flags::PERSISTENT, flags::EPHEMERAL, flags::SEQUENTIAL] {
        let request = create(&format!("{path}/x"), flags);
        t.answer(&mut c, &request, err::NO_CHILDREN_FOR_EPHEMERALS)?;
    }
    Ok(())
}

pub(crate) fn child_of_container_or_ttl(t: &mut Trial<'_>) -> Outcome {
    let (container, ttl, mut c) = (t.at("/c"), t.at("/t"), t.client()?);
    t.ok(&mut c, &create_container(&container, flags::CONTAINER))?;
    t.ok(&mut c, &create_ttl(&ttl, flags::TTL, 1_000_000))?;
    for parent in [&container, &ttl] {
        t.ok(&mut c, &create(&format!("{parent}/x"), 0))?;
        t.ok(&mut c, &create(&format!("{parent}/e"), flags::EPHEMERAL))?;
    }
    Ok(())
}

pub(crate) fn op_decides_kind(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let at = |name: &str| format!("{root}/{name}");
    for flags in [7, -1, i32::MAX] {
        t.answer(&mut c, &create(&at("bad"), flags), err::BAD_ARGUMENTS)?;
    }
    t.ok(&mut c, &create(&at("persistent"), flags::CONTAINER))?;
    let plain = t.created(&mut c, &create_container(&at("c0"), flags::PERSISTENT))?;
    t.same("path", at("c0"), plain);
    let ephemeral = t.created(&mut c, &create_container(&at("c1"), flags::EPHEMERAL))?;
    t.same("path", at("c1"), ephemeral.clone());
    let stat = t.stat(&mut c, &ephemeral)?;
    t.same("ephemeralOwner of a container", 0, stat.ephemeral_owner);
    let sequential = t.created(&mut c, &create_container(&at("c2-"), flags::SEQUENTIAL))?;
    t.same("path", at("c2-0000000003"), sequential);
    t.ok(&mut c, &crate::wire::close_session())?;
    let mut other = t.client()?;
    t.ok(&mut other, &exists(&at("c1"), false))?;
    Ok(())
}

pub(crate) fn ttl_bounds(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/t"), t.client()?);
    for ttl_ms in [0, -1, 1 << 40, i64::MAX, i64::MIN] {
        for flags in [flags::TTL, flags::SEQUENTIAL_TTL] {
            t.answer(&mut c, &create_ttl(&path, flags, ttl_ms), err::BAD_ARGUMENTS)?;
        }
    }
    for flags in [flags::PERSISTENT, flags::EPHEMERAL, flags::CONTAINER] {
        t.answer(&mut c, &create_ttl(&path, flags, 5), err::BAD_ARGUMENTS)?;
    }
    for op in [op::CREATE, op::CREATE2, op::CREATE_CONTAINER] {
        let request = create_as(op, &path, b"", OPEN_ACL, flags::TTL);
        t.answer(&mut c, &request, err::BAD_ARGUMENTS)?;
    }
    let made = t.created(&mut c, &create_ttl(&path, flags::TTL, (1 << 40) - 1))?;
    t.same("path", path.clone(), made);
    let made = t.created(&mut c, &create_ttl(&path, flags::SEQUENTIAL_TTL, 1_000_000))?;
    t.same("path", format!("{path}0000000001"), made);
    Ok(())
}

pub(crate) fn ttl_switched_off(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/t"), t.client()?);
    for flags in [flags::TTL, flags::SEQUENTIAL_TTL] {
        for ttl_ms in [0, 1000, 1 << 40] {
            t.answer(&mut c, &create_ttl(&path, flags, ttl_ms), err::UNIMPLEMENTED)?;
        }
        for op in [op::CREATE, op::CREATE2, op::CREATE_CONTAINER] {
            let request = create_as(op, &path, b"", OPEN_ACL, flags);
            t.answer(&mut c, &request, err::UNIMPLEMENTED)?;
        }
    }
    // It is an answer, not the end: the connection goes on.
    t.ok(&mut c, &create(&path, 0))?;
    Ok(())
}

pub(crate) fn acl_invalid(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    let bad: [&[Acl<'_>]; 6] = [
        &[],
        &[(31, "foo", "bar")],
        &[(31, "world", "x")],
        &[(31, "world", "")],
        &[(31, "auth", "")],
        &[(31, "world", "anyone"), (31, "foo", "bar")],
    ];
    for acl in bad {
        t.answer(&mut c, &create_acl(&path, acl), err::INVALID_ACL)?;
    }
    let create_with = |acl: Out| {
        let out = Out::new().string(&path).buffer(b"").bytes(&acl.done());
        Request::new(op::CREATE, out.int(0))
    };
    t.answer(&mut c, &create_with(Out::new().null()), err::INVALID_ACL)?;
    let null_scheme = Out::new().int(1).int(31).null().string("anyone");
    t.answer(&mut c, &create_with(null_scheme), err::INVALID_ACL)?;
    // An exception inside the reference; a server that looks says what is wrong.
    let null_id = Out::new().int(1).int(31).string("world").null();
    let allowed: &[i32] =
        if t.is_ours() { &[err::MARSHALLING, err::INVALID_ACL] } else { &[err::MARSHALLING] };
    t.answer_one_of(&mut c, &create_with(null_id), allowed)?;
    t.answer(&mut c, &exists(&path, false), err::NO_NODE)?;
    Ok(())
}

pub(crate) fn acl_stored(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let stored = |t: &mut Trial<'_>, c: &mut Client, path: &str| {
        let acl = t.ok(c, &get_acl(path))?.input().acl()?;
        Ok::<_, Stop>(acl)
    };
    let entry = |perms: i32| (perms, "world".to_owned(), "anyone".to_owned());
    let path = format!("{root}/twice");
    t.ok(&mut c, &create_acl(&path, &[(31, "world", "anyone"), (31, "world", "anyone")]))?;
    let acl = stored(t, &mut c, &path)?;
    t.same("an entry given twice", vec![entry(31)], acl);

    let path = format!("{root}/both");
    t.ok(&mut c, &create_acl(&path, &[(31, "world", "anyone"), (1, "world", "anyone")]))?;
    let acl = stored(t, &mut c, &path)?;
    t.same("entries that differ in perms", vec![entry(31), entry(1)], acl);

    let path = format!("{root}/perms");
    t.ok(&mut c, &create_acl(&path, &[(i32::MAX, "world", "anyone")]))?;
    let acl = stored(t, &mut c, &path)?;
    t.same("perms", vec![entry(i32::MAX)], acl);

    t.ok(&mut c, &auth("digest", b"user:pw"))?;
    let path = format!("{root}/auth");
    let acl = Out::new().int(1).int(31).string("auth").null();
    let request = Out::new().string(&path).buffer(b"").bytes(&acl.done()).int(0);
    t.ok(&mut c, &Request::new(op::CREATE, request))?;
    let acl = stored(t, &mut c, &path)?;
    let digest = (31, "digest".to_owned(), "user:2Om+GBbT2q/tS6pdvACZbbm7/1A=".to_owned());
    t.same("auth with a null id", vec![digest], acl);
    Ok(())
}

pub(crate) fn order_of_checks(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let bad_acl: &[Acl<'_>] = &[(31, "foo", "bar")];
    let at = |below: &str| format!("{root}{below}");
    t.answer(&mut c, &create_acl(&at("/missing/n"), bad_acl), err::INVALID_ACL)?;
    t.answer(&mut c, &create(&at("/missing/.."), 0), err::NO_NODE)?;
    t.ok(&mut c, &create(&at("/p"), 0))?;
    t.ok(&mut c, &create(&at("/p/n"), 0))?;
    t.answer(&mut c, &create_acl(&at("/p/n"), bad_acl), err::INVALID_ACL)?;
    let without_create = perms::ALL & !perms::CREATE;
    t.ok(&mut c, &set_acl(&at("/p"), &[(without_create, "world", "anyone")], -1))?;
    t.answer(&mut c, &create(&at("/p/n"), 0), err::NO_AUTH)?;
    t.answer(&mut c, &create_as(op::CREATE, "n", b"", bad_acl, 0), err::BAD_ARGUMENTS)?;
    t.answer(&mut c, &create_as(op::CREATE, "n", b"", bad_acl, 9), err::BAD_ARGUMENTS)?;
    Ok(())
}

pub(crate) fn permission_before_name(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/pc"), t.client()?);
    t.ok(&mut c, &create_acl(&path, &[(perms::READ, "world", "anyone")]))?;
    t.answer(&mut c, &create(&format!("{path}/.."), 0), err::NO_AUTH)?;
    t.answer(&mut c, &create(&format!("{path}/"), 0), err::NO_AUTH)?;
    Ok(())
}

pub(crate) fn stat_of_create2(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let session = c.session;
    let requests = [
        (create2(&format!("{root}/p"), 0), 0),
        (create2(&format!("{root}/e"), flags::EPHEMERAL), session),
        (create2(&format!("{root}/s"), flags::EPHEMERAL_SEQUENTIAL), session),
        (create_container(&format!("{root}/c"), flags::CONTAINER), 0),
        (create_ttl(&format!("{root}/t"), flags::TTL, 1_000_000), 0),
    ];
    for (request, owner) in requests {
        let reply = t.ok(&mut c, &request)?;
        let mut input = reply.input();
        let (path, stat) = (input.string()?, input.stat()?);
        t.same("bytes behind the stat", 0, input.left());
        let expected = Stat {
            czxid: reply.zxid,
            mzxid: reply.zxid,
            pzxid: reply.zxid,
            ctime: stat.ctime,
            mtime: stat.ctime,
            ephemeral_owner: owner,
            ..Stat::default()
        };
        t.same(&path, expected, stat);
        let again = t.stat(&mut c, &path)?;
        t.same("exists", expected, again);
    }
    Ok(())
}

/// A TTL node, seen by a server that knows no such thing: ZooKeeper deletes it. Ours refuses to start
/// instead, and says which setting is missing (README, differences).
pub(crate) fn ttl_unknown_after_restart(t: &mut Trial<'_>) -> Outcome {
    const ON: &Settings = &crate::target::OPEN;
    let server = t.start(ON, crate::target::Seed::Empty)?;
    let mut c = Client::connect(server.address, &crate::client::Connect::default())?;
    t.ok(&mut c, &create("/plain", 0))?;
    t.ok(&mut c, &create_ttl("/ttl", flags::TTL, 1_000_000))?;
    let server = t.start(&PLAIN, crate::target::Seed::LeftBy(server));
    if t.is_ours() {
        let why = server.err().map(|Stop(why)| why).unwrap_or_default();
        t.that("it names the setting", why.contains("without zookeeper.extendedTypesEnabled=true"));
        return Ok(());
    }
    let server = server?;
    let mut c = Client::connect(server.address, &crate::client::Connect::default())?;
    t.ok(&mut c, &get_data("/plain", false))?;
    t.answer(&mut c, &exists("/ttl", false), err::NO_NODE)?;
    Ok(())
}
