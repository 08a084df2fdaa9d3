//! Authentication and ACL ids: cases 106 to 115.

use std::fmt::Write as _;

use crate::client::{Client, Connect};
use crate::md5::md5;
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{
    Acl, OPEN_ACL, Out, Request, auth, close_session, create, create_acl, err, exists, get_acl,
    get_data, op, perms, ping, sasl, set_acl,
};

pub(crate) fn auth_packets(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for (xid, text) in [(-4, "user:pw"), (9, "no colon"), (0, ":"), (-4, "")] {
        c.send_as(xid, &auth("digest", text.as_bytes()))?;
        let reply = c.reply()?;
        let actual = (reply.xid, reply.zxid, reply.err, reply.body.len());
        t.same("(xid, zxid, err, body)", (xid, 0, err::OK, 0), actual);
    }
    c.send_as(-4, &auth("ip", b"whatever"))?;
    let reply = c.reply()?;
    t.same("an ip packet", (0, err::OK), (reply.zxid, reply.err));

    let null_data = Out::new().int(0).string("digest").null();
    let null_scheme = Out::new().int(0).null().buffer(b"user:pw");
    let refused = [
        ("null data", Request::new(op::AUTH, null_data)),
        ("null scheme", Request::new(op::AUTH, null_scheme)),
        ("unknown scheme", auth("nobody", b"user:pw")),
        ("world", auth("world", b"anyone")),
        ("sasl", auth("sasl", b"user")),
    ];
    for (what, request) in refused {
        let mut c = t.client()?;
        c.send_as(-4, &request)?;
        let replies = c.replies_until_close()?;
        let actual: Vec<_> = replies.iter().map(|r| (r.xid, r.zxid, r.err, r.body.len())).collect();
        t.same(what, vec![(-4, 0, err::AUTH_FAILED, 0)], actual);
    }
    let mut c = t.client()?;
    c.send_as(-4, &Request::new(op::AUTH, Out::new().bytes(&[0, 0])))?;
    t.closes("an auth packet that does not decode", &mut c)
}

/// The ACL that a node of this client's `auth` gets.
fn expanded(
    t: &mut Trial<'_>,
    c: &mut Client,
    name: &str,
) -> Result<Vec<(i32, String, String)>, Stop> {
    let path = t.at(name);
    t.ok(c, &create_acl(&path, &[(perms::ALL, "auth", "anything")]))?;
    let mut acl = t.ok(c, &get_acl(&path))?.input().acl()?;
    acl.sort();
    Ok(acl)
}

pub(crate) fn digest_of_odd_texts(t: &mut Trial<'_>) -> Outcome {
    let vectors = [
        ("foo", "foo:C+7Hteo/D9vJXQ3UfzxbwnXaijM="),
        ("user:pw", "user:2Om+GBbT2q/tS6pdvACZbbm7/1A="),
        ("", ":2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
    ];
    for (i, (text, id)) in vectors.into_iter().enumerate() {
        let mut c = t.client()?;
        t.ok(&mut c, &auth("digest", text.as_bytes()))?;
        let acl = expanded(t, &mut c, &format!("/{i}"))?;
        t.same(text, vec![(31, "digest".to_owned(), id.to_owned())], acl);
    }
    Ok(())
}

pub(crate) fn two_digests(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    t.ok(&mut c, &auth("digest", b"user:pw"))?;
    t.ok(&mut c, &auth("digest", b"super2:test"))?;
    t.ok(&mut c, &auth("digest", b"user:pw"))?;
    let acl = expanded(t, &mut c, "/n")?;
    let users: Vec<_> = acl.iter().map(|e| e.2.split(':').next().unwrap_or("")).collect();
    t.same("users", vec!["super2", "user"], users);

    // Only whoever proves it is that user.
    let path = t.at("/n");
    let mut other = t.client()?;
    t.settle(&mut other)?;
    t.answer(&mut other, &get_data(&path, false), err::NO_AUTH)?;
    t.ok(&mut other, &auth("digest", b"user:wrong"))?;
    t.answer(&mut other, &get_data(&path, false), err::NO_AUTH)?;
    t.ok(&mut other, &auth("digest", b"super2:test"))?;
    t.ok(&mut other, &get_data(&path, false))?;
    // An id belongs to the connection.
    let mut again = other.reconnect()?;
    t.answer(&mut again, &get_data(&path, false), err::NO_AUTH)?;
    Ok(())
}

/// Which ids a scheme takes: each good one makes a node, each bad one is refused.
fn takes(t: &mut Trial<'_>, scheme: &str, good: &[&str], bad: &[&str]) -> Outcome {
    let mut c = t.client()?;
    for (i, id) in good.iter().enumerate() {
        let path = t.at(&format!("/{scheme}-{i}"));
        let reply = c.call(&create_acl(&path, &[(31, scheme, id)]))?;
        t.same(&format!("err for {scheme}:{id}"), err::OK, reply.err);
    }
    let path = t.at("/bad");
    for id in bad {
        let reply = c.call(&create_acl(&path, &[(31, scheme, id)]))?;
        t.same(&format!("err for {scheme}:{id}"), err::INVALID_ACL, reply.err);
    }
    Ok(())
}

pub(crate) fn digest_ids(t: &mut Trial<'_>) -> Outcome {
    takes(t, "digest", &["a:b", ":x", "a:b:", "a:b::"], &["user:", "abc", "a:b:c", "", ":"])
}

pub(crate) fn ip_ids(t: &mut Trial<'_>) -> Outcome {
    let four = ["127.0.0.1", "127.0.0.1/8", "127.0.0.1/0", "127.0.0.1/32", "01.2.3.4", "+1.2.3.4"];
    let six = ["::1", "::1/128", "fe80::1:2/64", "1:2:3:4:5:6:7:8", "::"];
    let bad = [
        "127.0.0.1/33",
        "127.0.0.1/-1",
        "127.0.0.1/",
        "127.0.0.1/8/9",
        "127.0.0.1/x",
        "1.2.3",
        "1.2.3.4.5",
        "256.0.0.1",
        "localhost",
        "",
        "1:2:3:4:5:6:7",
        "::ffff:1.2.3.4",
        "::1%eth0",
    ];
    takes(t, "ip", &four, &bad)?;
    if t.since(&[(3, 9, 4)]) {
        let mut c = t.client()?;
        for (i, id) in six.iter().enumerate() {
            let path = t.at(&format!("/six-{i}"));
            let reply = c.call(&create_acl(&path, &[(31, "ip", id)]))?;
            t.same(&format!("err for ip:{id}"), err::OK, reply.err);
        }
        takes(t, "ip", &[], &["::1/129", "1::2::3", "12345::"])?;
    } else {
        takes(t, "ip", &[], &six)?;
    }
    let mut c = t.client()?;
    let matches = [
        ("10.0.0.0/0", true),
        ("127.0.0.1", true),
        ("127.5.5.5/8", true),
        ("128.0.0.1/8", false),
        ("127.0.0.2", false),
        ("127.0.0.3/30", true),
        ("127.0.0.4/30", false),
    ];
    for (i, (id, matches)) in matches.into_iter().enumerate() {
        let path = t.at(&format!("/match-{i}"));
        t.ok(&mut c, &create_acl(&path, &[(perms::READ, "ip", id)]))?;
        let reply = c.call(&get_data(&path, false))?;
        let expected = if matches { err::OK } else { err::NO_AUTH };
        t.same(&format!("a client of 127.0.0.1 and ip:{id}"), expected, reply.err);
    }
    Ok(())
}

pub(crate) fn schemes_without_provider(t: &mut Trial<'_>) -> Outcome {
    takes(t, "super", &[], &["", "super"])?;
    takes(t, "x509", &[], &["CN=a"])?;
    takes(t, "sasl", &[], &["user", "a@b"])
}

pub(crate) fn sasl_not_configured(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    for token in [&b""[..], b"token"] {
        let xid = c.send(&sasl(token))?;
        let reply = c.reply()?;
        t.same("(xid, zxid, err)", (xid, 0, err::OK), (reply.xid, reply.zxid, reply.err));
        t.same_bytes("token", &[0xff; 4], &reply.body);
    }
    t.ok(&mut c, &exists("/", false))?;
    c.send(&Request::new(op::SASL, Out::new().null()))?;
    t.closes("a null token", &mut c)
}

const REALM: &str = "zk-sasl-md5";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String succeeds");
        text
    })
}

/// The answer of RFC 2831 to a challenge.
fn digest_md5(challenge: &str, user: &str, password: &str) -> String {
    let nonce = challenge.split("nonce=\"").nth(1).and_then(|rest| rest.split('"').next());
    let nonce = nonce.unwrap_or("");
    let (cnonce, uri) = ("c0ffee", format!("zookeeper/{REALM}"));
    let secret = md5(format!("{user}:{REALM}:{password}").as_bytes());
    let a1 = [&secret[..], format!(":{nonce}:{cnonce}").as_bytes()].concat();
    let a2 = format!("AUTHENTICATE:{uri}");
    let (a1, a2) = (hex(&md5(&a1)), hex(&md5(a2.as_bytes())));
    let response = hex(&md5(format!("{a1}:{nonce}:00000001:{cnonce}:auth:{a2}").as_bytes()));
    format!(
        "charset=utf-8,username=\"{user}\",realm=\"{REALM}\",nonce=\"{nonce}\",nc=00000001,\
         cnonce=\"{cnonce}\",digest-uri=\"{uri}\",maxbuf=65536,response={response},qop=auth"
    )
}

pub(crate) fn sasl_logins(t: &mut Trial<'_>) -> Outcome {
    let server = t.start(&crate::target::SASL, crate::target::Seed::Empty)?;
    let login = |t: &mut Trial<'_>, user: &str, password: &str| -> Result<Client, Stop> {
        let mut c = Client::connect(server.address, &Connect::default())?;
        let token = t.ok(&mut c, &sasl(b""))?.input().buffer()?.unwrap_or_default();
        let challenge = String::from_utf8_lossy(&token).into_owned();
        let expected = format!("realm=\"{REALM}\",nonce=\"");
        t.that("the challenge begins with realm and nonce", challenge.starts_with(&expected));
        let rest = "\",charset=utf-8,algorithm=md5-sess";
        t.that("the challenge ends with charset and algorithm", challenge.ends_with(rest));
        c.send(&sasl(digest_md5(&challenge, user, password).as_bytes()))?;
        Ok(c)
    };
    let is_refusal = |t: &mut Trial<'_>, what: &str, c: &mut Client| -> Outcome {
        let replies = c.replies_until_close()?;
        let actual: Vec<_> = replies.iter().map(|r| (r.zxid, r.err, r.body.clone())).collect();
        t.same(what, vec![(0, err::AUTH_FAILED, vec![0xff; 4])], actual);
        Ok(())
    };
    for (user, password) in [("bob", "wrong"), ("nobody", "nothing")] {
        let mut c = login(t, user, password)?;
        is_refusal(t, &format!("{user}:{password}"), &mut c)?;
    }
    let mut c = login(t, "bob", "secret")?;
    let reply = c.reply()?;
    t.same("(zxid, err)", (0, err::OK), (reply.zxid, reply.err));
    let token = reply.input().buffer()?.unwrap_or_default();
    t.that("the last token proves the server", token.starts_with(b"rspauth="));
    t.ok(&mut c, &exists("/", false))?;
    c.send(&sasl(b"more"))?;
    is_refusal(t, "a token after the login", &mut c)
}

pub(crate) fn enforced(t: &mut Trial<'_>) -> Outcome {
    let refused = [
        exists("/", false),
        ping(),
        close_session(),
        Request::new(77, Out::new()),
        create("/c114", 0),
    ];
    for request in refused {
        let mut c = t.client()?;
        c.send_as(5, &request)?;
        let replies = c.replies_until_close()?;
        let actual: Vec<_> = replies.iter().map(|r| (r.xid, r.zxid, r.err, r.body.len())).collect();
        let what = format!("op {} before authentication", request.op);
        t.same(&what, vec![(5, 0, err::AUTH_REQUIRED, 0)], actual);
    }
    let mut c = t.client()?;
    t.ok(&mut c, &auth("digest", b"user:pw"))?;
    t.ok(&mut c, &create("/c114", 0))?;
    let mut again = c.reconnect()?;
    again.send(&exists("/c114", false))?;
    let replies = again.replies_until_close()?;
    let errs: Vec<i32> = replies.iter().map(|r| r.err).collect();
    t.same("after a reconnect", vec![err::AUTH_REQUIRED], errs);
    let mut again = c.reconnect()?;
    t.ok(&mut again, &auth("digest", b"user:pw"))?;
    t.ok(&mut again, &exists("/c114", false))?;
    Ok(())
}

pub(crate) fn skipped(t: &mut Trial<'_>) -> Outcome {
    let (path, mut c) = (t.at("/n"), t.client()?);
    t.ok(&mut c, &create_acl(&path, &[(0, "world", "anyone")]))?;
    t.ok(&mut c, &get_data(&path, false))?;
    t.ok(&mut c, &create(&format!("{path}/x"), 0))?;
    t.ok(&mut c, &set_acl(&path, &[(perms::READ, "digest", "user:hash")], -1))?;
    let acl = t.ok(&mut c, &get_acl(&path))?.input().acl()?;
    t.same("acl", vec![(perms::READ, "digest".to_owned(), "user:hash".to_owned())], acl);
    // What is no ACL at all is refused all the same.
    t.answer(&mut c, &create_acl(&t.at("/m"), &[(31, "foo", "bar")]), err::INVALID_ACL)?;
    Ok(())
}

/// Text beyond the first plane comes as four bytes or as two surrogates of three each; an id of
/// an ACL may have it, or no text at all, and the connection lives on.
pub(crate) fn ids_of_any_text(t: &mut Trial<'_>) -> Outcome {
    let mut c = t.client()?;
    let ids: [&[u8]; 4] =
        ["a:\u{1f600}".as_bytes(), b"a:\xed\xa0\xbd\xed\xb8\x80", b"a:\xff\xfe", b"a:\xc3"];
    for (i, id) in ids.into_iter().enumerate() {
        let path = t.at(&format!("/{i}"));
        let acl = Out::new().int(1).int(perms::ALL).string("digest").buffer(id);
        let body = Out::new().string(&path).buffer(b"").bytes(&acl.done()).int(0);
        t.ok(&mut c, &Request::new(op::CREATE, body))?;
        t.answer(&mut c, &get_acl(&path), err::NO_AUTH)?;
    }
    Ok(())
}

pub(crate) fn pipelined_set_acl(t: &mut Trial<'_>) -> Outcome {
    let (root, mut c) = (t.at(""), t.client()?);
    let without_create = &[(perms::ALL & !perms::CREATE, "world", "anyone")] as &[Acl<'_>];
    for round in 0..30 {
        let path = format!("{root}/{round}");
        t.ok(&mut c, &create(&path, 0))?;
        let closed = set_acl(&path, without_create, -1).frame(1);
        let child = create(&format!("{path}/x"), 0).frame(2);
        let opened = set_acl(&path, OPEN_ACL, -1).frame(3);
        let other = create(&format!("{path}/y"), 0).frame(4);
        c.wire.send(&[closed, child, opened, other].concat())?;
        let errs = [c.reply()?.err, c.reply()?.err, c.reply()?.err, c.reply()?.err];
        if t.is_ours() {
            t.same("errs", [err::OK, err::NO_AUTH, err::OK, err::OK], errs);
        } else {
            let as_it_comes = [err::OK, err::NO_AUTH];
            t.same("errs of setACL", [err::OK, err::OK], [errs[0], errs[2]]);
            t.that("the creates are checked against some state", {
                as_it_comes.contains(&errs[1]) && as_it_comes.contains(&errs[3])
            });
        }
    }
    Ok(())
}
