//! The channels between cores: a batch of requests there, one of answers back.
//!
//! *On one thread* is what the queues themselves cost a core. *Spinning* is what a hop takes
//! between two cores that are both awake, *parked* between two that sleep in between, which is
//! mostly the kernel's waking. Between threads it is time on the wall that counts; each needs a
//! core of its own, and a busy machine shows in these first.
//!
//! The throughput is in requests, a way there and a way back each.

mod bed;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::measurement::Measurement;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};

use ringkeeper::exchange::{Applied, ConnectionId, Request, Requests, ShardId, Span, Want};
use ringkeeper::record::data::Id;
use ringkeeper::record::op::code;
use ringkeeper::shell::bench::{Pipeline, Shard, mesh};
use ringkeeper::types::{SessionId, Xid};

const BATCHES: [usize; 3] = [1, 64, 1024];

fn fill(batch: &mut Requests, count: usize, ids: &Arc<[Id]>) {
    for xid in 0..count {
        let start = batch.bodies.len();
        batch.bodies.extend_from_slice(&bed::VALUE);
        batch.requests.push(Request {
            connection: ConnectionId { slot: 0, generation: 0 },
            session: SessionId(1),
            xid: Xid(xid as i32),
            want: Want::Write { op: code::SET_DATA },
            body: Span::since(start, batch.bodies.len()),
            ids: Arc::clone(ids),
        });
    }
}

/// There and back, `wait`ing at each end.
fn bench<M: Measurement>(
    group: &mut BenchmarkGroup<'_, M>,
    size: usize,
    mut answer: impl FnMut(),
    shard: &Shard,
    wait: impl Fn(&Shard),
) {
    let ids: Arc<[Id]> = Arc::from([Id::new("ip", "127.0.0.1")]);
    let mut batch = Requests::new(ShardId(0));
    group.throughput(Throughput::Elements(size as u64));
    group.bench_function(BenchmarkId::from_parameter(size), |b| {
        b.iter(|| {
            fill(&mut batch, size, &ids);
            assert!(shard.send(&mut batch) && batch.is_empty());
            answer();
            loop {
                if let Some(applied) = shard.next() {
                    return applied.zxid;
                }
                wait(shard);
            }
        });
    });
}

fn on_one_thread(c: &mut bed::Bencher) {
    let mut group = bed::group(c, "mesh/there and back on one thread");
    for size in BATCHES {
        let (shard, mut pipeline) = mesh();
        let applied = Arc::new(Applied::default());
        let answer = || {
            assert_eq!(pipeline.take(), Some(size));
            pipeline.publish(&applied);
        };
        bench(&mut group, size, answer, &shard, |_| ());
    }
}

fn between_threads(c: &mut Criterion) {
    type Waits = (&'static str, fn(&Shard), fn(&Pipeline));
    let waits: [Waits; 2] = [
        ("spinning", |_| std::hint::spin_loop(), |_| std::hint::spin_loop()),
        ("parked", Shard::sleep, Pipeline::sleep),
    ];
    for (name, shard_waits, pipeline_waits) in waits {
        let mut group = bed::group(c, &format!("mesh/there and back between threads, {name}"));
        for size in BATCHES {
            let (shard, mut pipeline) = mesh();
            let is_over = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    let applied = Arc::new(Applied::default());
                    while !is_over.load(Ordering::Relaxed) {
                        match pipeline.take() {
                            Some(count) if count == size => pipeline.publish(&applied),
                            Some(0) => {}
                            Some(count) => panic!("a batch of {count}"),
                            None => pipeline_waits(&pipeline),
                        }
                    }
                });
                bench(&mut group, size, || (), &shard, shard_waits);
                is_over.store(true, Ordering::Relaxed);
                // It may be asleep.
                let mut last = Requests::new(ShardId(0));
                fill(&mut last, size, &Arc::from([]));
                assert!(shard.send(&mut last));
            });
        }
    }
}

fn main() {
    on_one_thread(&mut bed::criterion().configure_from_args());
    between_threads(&mut Criterion::default().configure_from_args());
    Criterion::default().configure_from_args().final_summary();
}
