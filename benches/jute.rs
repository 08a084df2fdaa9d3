//! Records in and out: what a request, a reply and a transaction cost to read and to write.
//!
//! The throughput is in bytes of the encoded form. A shard at a million requests a second has
//! 1000 ns for each, of which these are a part.

mod bed;

use std::hint::black_box;

use criterion::{Throughput, criterion_group, criterion_main};

use bed::{Bencher, VALUE};
use ringkeeper::jute::frame::{self, Front};
use ringkeeper::jute::record::Record;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::data::{AclBytes, Stat};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{
    CreateRequest, GetDataResponse, MULTI_END, MultiHeader, PathWatch, ReplyHeader, RequestHeader,
    SetDataRequest,
};

const PATH: &str = "/service/members/member-0000000042";

fn stat() -> Stat {
    Stat {
        czxid: 0x1_0000_0001,
        mzxid: 0x1_0000_0002,
        ctime: 1_700_000_000_000,
        mtime: 1_700_000_000_001,
        version: 1,
        cversion: 0,
        aversion: 0,
        ephemeral_owner: 0,
        data_length: 100,
        num_children: 0,
        pzxid: 0x1_0000_0001,
    }
}

fn framed(body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write(&mut out, body);
    out
}

/// Writing a record into a buffer that is there already, as a connection's is.
fn write(c: &mut Bencher, name: &str, body: impl Fn(&mut Vec<u8>)) {
    let bytes = framed(&body).len();
    let mut group = bed::group(c, "jute/write");
    group.throughput(Throughput::Bytes(bytes as u64));
    let mut out = Vec::with_capacity(bytes);
    group.bench_function(name, |b| {
        b.iter(|| {
            out.clear();
            frame::write(&mut out, &body);
            black_box(out.as_slice());
        });
    });
    group.finish();
}

/// Reading a frame and what is in it.
fn read(
    c: &mut Bencher,
    name: &str,
    body: impl FnOnce(&mut Vec<u8>),
    read: impl Fn(&mut Reader<'_>),
) {
    let bytes = framed(body);
    let mut group = bed::group(c, "jute/read");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group.bench_function(name, |b| {
        b.iter(|| {
            let Front::Frame { body } = frame::cut(black_box(&bytes), 1 << 20) else {
                panic!("a whole frame");
            };
            read(&mut Reader::new(body));
        });
    });
    group.finish();
}

fn take<'a, R: Record<'a>>(reader: &mut Reader<'a>) {
    black_box(R::read(reader).expect("what was written can be read"));
}

fn get_request(out: &mut Vec<u8>) {
    RequestHeader { xid: 1, op: code::GET_DATA }.write(out);
    PathWatch { path: Some(PATH.into()), watch: false }.write(out);
}

fn set_request(out: &mut Vec<u8>) {
    RequestHeader { xid: 1, op: code::SET_DATA }.write(out);
    SetDataRequest { path: Some(PATH.into()), data: Some(&VALUE), version: -1 }.write(out);
}

fn create_request(out: &mut Vec<u8>) {
    RequestHeader { xid: 1, op: code::CREATE }.write(out);
    create_record().write(out);
}

fn create_record() -> CreateRequest<'static> {
    CreateRequest { path: Some(PATH.into()), data: Some(&VALUE), acl: AclBytes::OPEN, flags: 0 }
}

fn get_reply(out: &mut Vec<u8>) {
    ReplyHeader { xid: 1, zxid: 0x1_0000_0002, err: 0 }.write(out);
    GetDataResponse { data: Some(&VALUE), stat: stat() }.write(out);
}

fn requests(c: &mut Bencher) {
    write(c, "getData request", get_request);
    read(c, "getData request", get_request, |reader| {
        take::<RequestHeader>(reader);
        take::<PathWatch<'_>>(reader);
    });
    write(c, "setData request, 100 bytes", set_request);
    read(c, "setData request, 100 bytes", set_request, |reader| {
        take::<RequestHeader>(reader);
        take::<SetDataRequest<'_>>(reader);
    });
    write(c, "create request, 100 bytes", create_request);
    read(c, "create request, 100 bytes", create_request, |reader| {
        take::<RequestHeader>(reader);
        take::<CreateRequest<'_>>(reader);
    });
}

fn replies(c: &mut Bencher) {
    write(c, "getData reply, 100 bytes", get_reply);
    read(c, "getData reply, 100 bytes", get_reply, |reader| {
        take::<ReplyHeader>(reader);
        take::<GetDataResponse<'_>>(reader);
    });
}

/// A multi of 100 creates, which is read one sub-operation at a time.
fn multi(c: &mut Bencher) {
    let body = |out: &mut Vec<u8>| {
        RequestHeader { xid: 1, op: code::MULTI }.write(out);
        for _ in 0..100 {
            MultiHeader { kind: code::CREATE, done: false, err: -1 }.write(out);
            create_record().write(out);
        }
        MULTI_END.write(out);
    };
    write(c, "multi of 100 creates", body);
    read(c, "multi of 100 creates", body, |reader| {
        take::<RequestHeader>(reader);
        while !MultiHeader::read(reader).expect("what was written can be read").done {
            take::<CreateRequest<'_>>(reader);
        }
    });
}

/// A listing of 1000 children: a vector of texts.
fn children(c: &mut Bencher) {
    let body = |out: &mut Vec<u8>| {
        ReplyHeader { xid: 1, zxid: 1, err: 0 }.write(out);
        out.put_count(Some(1000));
        for _ in 0..1000 {
            out.put_text("member-0000000042");
        }
    };
    write(c, "1000 children", body);
    read(c, "1000 children", body, |reader| {
        take::<ReplyHeader>(reader);
        let count = reader.count().expect("a count").expect("children");
        for _ in 0..count {
            black_box(reader.text().expect("what was written can be read"));
        }
    });
}

/// A read's worth of pipelined requests: the frames of a full buffer, cut and counted.
fn frames(c: &mut Bencher) {
    let mut bytes = Vec::new();
    for _ in 0..1000 {
        frame::write(&mut bytes, get_request);
    }
    let mut group = bed::group(c, "jute/frames");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("cut 1000 getData requests", |b| {
        b.iter(|| {
            let mut rest = black_box(bytes.as_slice());
            let mut count = 0;
            while let Front::Frame { body } = frame::cut(rest, 1 << 20) {
                rest = &rest[frame::PREFIX_BYTES + body.len()..];
                count += 1;
            }
            assert_eq!(count, 1000);
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = bed::criterion();
    targets = requests, replies, multi, children, frames
}
criterion_main!(benches);
