//! The channels between cores: bounded queues, one bell per core, batches that come back.
//!
//! ```text
//! shard i  -- requests ----------->  pipeline      one queue per shard: a batch is swapped, not copied
//! shard i  <- spent batches --------  pipeline      the memory comes back, empty
//! shard i  <- FromPipeline ---------  pipeline      one queue per shard, the batch is shared
//! shard i  <- commands -------------  anyone        rare: a new connection, a question, the end
//! ```
//!
//! A hop costs what waking the other core costs, so a core rings only if the other one sleeps,
//! once for all it has put there. In the steady state nothing is allocated.
//!
//! No queue makes its sender wait. A shard whose queue is full goes on gathering into the batch it
//! has, and is rung when there is room again. Who waits for room says so in a flag, and takes the
//! flag back once it has found some; who makes room only reads it, and rings. (Were it to clear the
//! flag as well, it might, late from an earlier look, clear one that has been set anew, and never
//! ring for that.) The pipeline keeps what a shard cannot take and,
//! for as long as there is any of that, should take no new requests (`is_congested`): the memory
//! that a stalled shard holds stays bounded by what clients had in flight.
//!
//! The same ends work on one thread, where nobody sleeps at the other end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll, Waker};

use crossbeam::queue::{ArrayQueue, SegQueue};
use crossbeam::utils::CachePadded;
use parking_lot::Mutex;

use crate::exchange::{Applied, Requests, Serves, Service, ShardId, Touched};

/// Batches of requests on their way from one shard. A shard that finds no room gathers more into
/// each, so this bounds neither requests nor throughput.
const REQUESTS_MAX: usize = 64;
/// Messages on their way to one shard; nearly all of them are batches of outcomes.
const FROM_PIPELINE_MAX: usize = 1024;

/// Wakes one core, if it sleeps.
#[derive(Default)]
pub(crate) struct Bell {
    asleep: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

impl Bell {
    /// Call after having put something where the core looks.
    pub(crate) fn ring(&self) {
        // Pairs with the fence in `poll_work`: either we see the sleeper, or it sees the work.
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed)
            && self.asleep.swap(false, Ordering::Relaxed)
            && let Some(waker) = &*self.waker.lock()
        {
            waker.wake_by_ref();
        }
    }

    /// Ready once `has_work`; until then the core may sleep.
    pub(crate) fn poll_work(
        &self,
        cx: &mut Context<'_>,
        mut has_work: impl FnMut() -> bool,
    ) -> Poll<()> {
        if has_work() {
            return Poll::Ready(());
        }
        {
            // One clone for the life of who waits.
            let mut waker = self.waker.lock();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
        }
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if has_work() {
            self.asleep.store(false, Ordering::Relaxed);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    /// The core does not wait any more, whatever it was that woke it: nobody need ring.
    pub(crate) fn wake_up(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Lets go of the core's waker: nobody waits any more.
    pub(crate) fn unhang(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        *self.waker.lock() = None;
    }
}

/// What a shard says to the pipeline, in order.
pub(crate) enum FromShard {
    Requests(Requests),
    Touched(Touched),
}

/// What the pipeline says to a shard, in order.
pub(crate) enum FromPipeline {
    Applied(Arc<Applied>),
    /// In a box: it is rare, and the queue has room for many.
    Serves(Box<Service>),
}

/// All that is between the pipeline and one shard. `C` is what else a shard may be told.
struct Link<C> {
    requests: ArrayQueue<FromShard>,
    spent: ArrayQueue<Requests>,
    /// The shard found no room and waits to be rung.
    starved: AtomicBool,
    from_pipeline: ArrayQueue<FromPipeline>,
    /// The pipeline found no room and waits to be rung.
    overflowed: AtomicBool,
    commands: SegQueue<C>,
    bell: CachePadded<Bell>,
}

/// The mesh, before its ends go to their cores.
pub(crate) struct Mesh<C> {
    links: Arc<[Link<C>]>,
    pipeline_bell: Arc<CachePadded<Bell>>,
}

impl<C> Mesh<C> {
    pub(crate) fn new(shards: usize) -> Mesh<C> {
        Mesh::with_room(shards, REQUESTS_MAX, FROM_PIPELINE_MAX)
    }

    /// With so many batches of requests under way from each shard, and messages to it.
    fn with_room(shards: usize, requests: usize, from_pipeline: usize) -> Mesh<C> {
        let link = || Link {
            requests: ArrayQueue::new(requests),
            spent: ArrayQueue::new(requests),
            starved: AtomicBool::new(false),
            from_pipeline: ArrayQueue::new(from_pipeline),
            overflowed: AtomicBool::new(false),
            commands: SegQueue::new(),
            bell: CachePadded::default(),
        };
        Mesh { links: (0..shards).map(|_| link()).collect(), pipeline_bell: Arc::default() }
    }

    /// The pipeline's end; there is one.
    pub(crate) fn pipeline_end(&self) -> PipelineEnd<C> {
        PipelineEnd {
            links: Arc::clone(&self.links),
            bell: Arc::clone(&self.pipeline_bell),
            kept: self.links.iter().map(|_| VecDeque::new()).collect(),
            turn: 0,
            is_held: false,
        }
    }

    /// A shard's end; there is one for each.
    pub(crate) fn shard_end(&self, shard: ShardId) -> ShardEnd<C> {
        ShardEnd {
            shard,
            links: Arc::clone(&self.links),
            pipeline_bell: Arc::clone(&self.pipeline_bell),
        }
    }

    /// For whoever is neither: the acceptor, the one who stops us.
    pub(crate) fn commander(&self) -> Commander<C> {
        Commander { links: Arc::clone(&self.links) }
    }

    pub(crate) fn pipeline_bell(&self) -> Arc<CachePadded<Bell>> {
        Arc::clone(&self.pipeline_bell)
    }
}

/// Tells shards things from any thread.
pub(crate) struct Commander<C> {
    links: Arc<[Link<C>]>,
}

impl<C> Clone for Commander<C> {
    fn clone(&self) -> Commander<C> {
        Commander { links: Arc::clone(&self.links) }
    }
}

impl<C> Commander<C> {
    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardId> + use<C> {
        (0..self.links.len()).map(shard_id)
    }

    pub(crate) fn tell(&self, shard: ShardId, command: C) {
        let link = &self.links[usize::from(shard.0)];
        link.commands.push(command);
        link.bell.ring();
    }
}

fn shard_id(index: usize) -> ShardId {
    ShardId(u16::try_from(index).expect("there are fewer shards than 65536"))
}

/// A shard core's end.
pub(crate) struct ShardEnd<C> {
    shard: ShardId,
    links: Arc<[Link<C>]>,
    pipeline_bell: Arc<CachePadded<Bell>>,
}

impl<C> ShardEnd<C> {
    fn link(&self) -> &Link<C> {
        &self.links[usize::from(self.shard.0)]
    }

    /// Sends the batch and leaves an empty one with used memory in its place. False if there is
    /// no room: the batch stays, and the bell rings when there is.
    pub(crate) fn send_requests(&self, batch: &mut Requests) -> bool {
        debug_assert_eq!(batch.shard, self.shard);
        if batch.is_empty() {
            return true;
        }
        let link = self.link();
        // One sender per queue: room that is there now is there for the push below.
        if link.requests.is_full() {
            link.starved.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if link.requests.is_full() {
                return false;
            }
        }
        if link.starved.load(Ordering::Relaxed) {
            link.starved.store(false, Ordering::Relaxed);
        }
        let empty = link.spent.pop().unwrap_or_else(|| Requests::new(self.shard));
        let full = std::mem::replace(batch, empty);
        self.push(FromShard::Requests(full));
        true
    }

    /// Reports who was heard from. False if there is no room; the report is then kept by the
    /// caller and may be sent later.
    pub(crate) fn send_touched(&self, touched: &mut Option<Touched>) -> bool {
        if self.link().requests.is_full() {
            return false;
        }
        if let Some(touched) = touched.take() {
            self.push(FromShard::Touched(touched));
        }
        true
    }

    fn push(&self, item: FromShard) {
        let pushed = self.link().requests.push(item);
        assert!(pushed.is_ok(), "a queue with one sender has the room it had");
        self.pipeline_bell.ring();
    }

    /// The next thing that the pipeline has sent.
    pub(crate) fn next(&self) -> Option<FromPipeline> {
        let link = self.link();
        let item = link.from_pipeline.pop()?;
        // Pairs with the fence in `pass_on`: either the pipeline sees the room, or we see that it
        // waits for some.
        fence(Ordering::SeqCst);
        if link.overflowed.load(Ordering::Relaxed) {
            self.pipeline_bell.ring();
        }
        Some(item)
    }

    pub(crate) fn next_command(&self) -> Option<C> {
        self.link().commands.pop()
    }

    /// Ready when there is something to take, or `also` says so. A batch that found no room is
    /// the caller's to send again whenever this is ready.
    pub(crate) fn poll_work(
        &self,
        cx: &mut Context<'_>,
        mut also: impl FnMut() -> bool,
    ) -> Poll<()> {
        let link = self.link();
        let has_some = || !link.from_pipeline.is_empty() || !link.commands.is_empty();
        link.bell.poll_work(cx, || has_some() || also())
    }

    /// This core does not wait any more.
    pub(crate) fn wake_up(&self) {
        self.link().bell.wake_up();
    }

    /// Whether the pipeline has room for a batch.
    pub(crate) fn has_room(&self) -> bool {
        !self.link().requests.is_full()
    }

    /// This core is about to end.
    pub(crate) fn leave(&self) {
        self.link().bell.unhang();
    }
}

/// The pipeline core's end.
pub(crate) struct PipelineEnd<C> {
    links: Arc<[Link<C>]>,
    bell: Arc<CachePadded<Bell>>,
    /// What a shard's queue had no room for, in order.
    kept: Box<[VecDeque<FromPipeline>]>,
    /// The shard to look at next.
    turn: usize,
    /// No requests are taken for now.
    is_held: bool,
}

impl<C> PipelineEnd<C> {
    /// Has what shards send wait, or not.
    pub(crate) fn hold(&mut self, is_held: bool) {
        self.is_held = is_held;
    }

    /// The next thing that a shard has sent, shard after shard so that none is starved. Batches of
    /// requests are to be given back.
    pub(crate) fn take(&mut self) -> Option<FromShard> {
        for _ in 0..self.links.len() {
            let link = &self.links[self.turn];
            self.turn = (self.turn + 1) % self.links.len();
            let Some(item) = link.requests.pop() else { continue };
            // Pairs with the fence in `send_requests`: either the shard sees the room, or we see
            // that it waits for some.
            fence(Ordering::SeqCst);
            if link.starved.load(Ordering::Relaxed) {
                link.bell.ring();
            }
            return Some(item);
        }
        None
    }

    /// Sends a batch's memory back to where it came from.
    pub(crate) fn give_back(&mut self, mut batch: Requests) {
        batch.clear();
        // With no room there it is not needed.
        let _ = self.links[usize::from(batch.shard.0)].spent.push(batch);
    }

    /// Shares a batch with every shard.
    pub(crate) fn publish(&mut self, applied: &Arc<Applied>) {
        self.send(std::iter::repeat_with(|| FromPipeline::Applied(Arc::clone(applied))));
    }

    /// Tells every shard whether clients are served.
    pub(crate) fn serve(&mut self, serves: Serves) {
        let services = serves.for_shards(self.links.len());
        self.send(services.map(|service| FromPipeline::Serves(Box::new(service))));
    }

    /// Sends one item to each shard, behind what was sent before.
    fn send(&mut self, items: impl Iterator<Item = FromPipeline>) {
        for ((link, kept), item) in self.links.iter().zip(&mut self.kept).zip(items) {
            if !kept.is_empty() {
                kept.push_back(item);
            } else if let Err(item) = link.from_pipeline.push(item) {
                kept.push_back(item);
                link.overflowed.store(true, Ordering::Relaxed);
            }
            // Its fence also comes between saying that we wait and looking for room again.
            link.bell.ring();
        }
    }

    /// Passes on what had found no room, as far as there is some now.
    pub(crate) fn pass_on(&mut self) {
        for (link, kept) in self.links.iter().zip(&mut self.kept) {
            if kept.is_empty() {
                continue;
            }
            while let Some(item) = kept.pop_front() {
                if let Err(item) = link.from_pipeline.push(item) {
                    kept.push_front(item);
                    break;
                }
            }
            // Set since the first of them was kept.
            link.overflowed.store(!kept.is_empty(), Ordering::Relaxed);
            link.bell.ring();
        }
    }

    /// Whether no new requests should be taken: some shard is far behind, or what is taken is held.
    pub(crate) fn takes_none(&self) -> bool {
        self.is_held || self.is_congested()
    }

    /// Whether some shard is so far behind that no new requests should be taken.
    pub(crate) fn is_congested(&self) -> bool {
        self.kept.iter().any(|kept| !kept.is_empty())
    }

    /// Ready when a shard has sent something that may be taken, a kept item may be passed on, or
    /// `also` says so.
    pub(crate) fn poll_work(
        &self,
        cx: &mut Context<'_>,
        mut also: impl FnMut() -> bool,
    ) -> Poll<()> {
        self.bell.poll_work(cx, || also() || self.has_work())
    }

    /// Whether there is nothing to take and nothing to pass on.
    pub(crate) fn is_empty(&self) -> bool {
        !self.is_congested() && self.links.iter().all(|link| link.requests.is_empty())
    }

    fn has_work(&self) -> bool {
        if !self.is_congested() {
            return !self.is_held && self.links.iter().any(|link| !link.requests.is_empty());
        }
        let mut links = self.links.iter().zip(&self.kept);
        links.any(|(link, kept)| !kept.is_empty() && !link.from_pipeline.is_full())
    }

    /// This core is about to end.
    pub(crate) fn leave(&self) {
        self.bell.unhang();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use futures_lite::future::{block_on, poll_fn};

    use super::*;
    use crate::exchange::{ConnectionId, Mode, Request, Span, Want};
    use crate::tree::{self, TreeWriter};
    use crate::types::{SessionId, Xid, Zxid};

    fn request(xid: i32) -> Request {
        Request {
            connection: ConnectionId { slot: 0, generation: 0 },
            session: SessionId(1),
            xid: Xid(xid),
            want: Want::Sync,
            body: Span::default(),
            ids: Arc::from([]),
        }
    }

    /// The zxid of the batch that comes next.
    fn next_zxid(shard: &ShardEnd<()>) -> Option<Zxid> {
        match shard.next()? {
            FromPipeline::Applied(applied) => Some(applied.zxid),
            FromPipeline::Serves(_) => panic!("a batch is next"),
        }
    }

    fn applied(zxid: i64) -> Arc<Applied> {
        Arc::new(Applied { zxid: Zxid(zxid), ..Applied::default() })
    }

    #[test]
    fn every_request_and_every_answer_crosses_in_order() {
        crosses_in_order(20_000, REQUESTS_MAX, FROM_PIPELINE_MAX);
    }

    /// Nearly every batch waits for room here, at both ends.
    #[test]
    fn whoever_waits_for_room_is_rung() {
        crosses_in_order(5_000, 1, 1);
        crosses_in_order(5_000, 2, 3);
    }

    fn crosses_in_order(rounds: i32, requests: usize, applied_room: usize) {
        const SHARDS: u16 = 3;
        let mesh = Mesh::<()>::with_room(usize::from(SHARDS), requests, applied_room);
        let shards: Vec<_> = (0..SHARDS)
            .map(|index| {
                let end = mesh.shard_end(ShardId(index));
                thread::spawn(move || {
                    let mut batch = Requests::new(ShardId(index));
                    let (mut sent, mut seen) = (0, 0);
                    while seen < i64::from(rounds) * i64::from(SHARDS) {
                        while sent < rounds && batch.requests.len() < 10 {
                            batch.requests.push(request(sent));
                            sent += 1;
                        }
                        let _ = end.send_requests(&mut batch);
                        while let Some(zxid) = next_zxid(&end) {
                            assert_eq!(zxid, Zxid(seen + 1));
                            seen += 1;
                        }
                        if seen == i64::from(rounds) * i64::from(SHARDS) {
                            break;
                        }
                        let eager = sent < rounds || !batch.is_empty();
                        block_on(poll_fn(|cx| end.poll_work(cx, || eager && end.has_room())));
                    }
                })
            })
            .collect();
        let mut end = mesh.pipeline_end();
        let mut next = [0; SHARDS as usize];
        let mut zxid = 0;
        while next.iter().any(|&next| next < rounds) || end.is_congested() {
            block_on(poll_fn(|cx| end.poll_work(cx, || false)));
            end.pass_on();
            let mut count = 0;
            while let Some(item) = end.take() {
                let FromShard::Requests(batch) = item else { unreachable!("only requests") };
                let next = &mut next[usize::from(batch.shard.0)];
                for request in &batch.requests {
                    assert_eq!(request.xid, Xid(*next));
                    *next += 1;
                    count += 1;
                }
                end.give_back(batch);
            }
            for _ in 0..count {
                zxid += 1;
                end.publish(&applied(zxid));
            }
        }
        for shard in shards {
            shard.join().unwrap();
        }
    }

    #[test]
    fn a_full_queue_keeps_the_batch_and_rings_when_there_is_room() {
        let mesh = Mesh::<()>::new(1);
        let shard = mesh.shard_end(ShardId(0));
        let mut batch = Requests::new(ShardId(0));
        for xid in 0..REQUESTS_MAX as i32 {
            batch.requests.push(request(xid));
            assert!(shard.send_requests(&mut batch));
        }
        batch.requests.push(request(-1));
        assert!(!shard.send_requests(&mut batch));
        assert_eq!(batch.requests.len(), 1);
        let waiting = thread::spawn(move || {
            block_on(poll_fn(|cx| shard.poll_work(cx, || shard.has_room())));
            assert!(shard.send_requests(&mut batch));
        });
        assert!(mesh.pipeline_end().take().is_some());
        waiting.join().unwrap();
    }

    #[test]
    fn batches_come_back_with_their_memory() {
        let mesh = Mesh::<()>::new(1);
        let (shard, mut pipeline) = (mesh.shard_end(ShardId(0)), mesh.pipeline_end());
        let mut batch = Requests::new(ShardId(0));
        batch.bodies.reserve(10_000);
        batch.requests.push(request(1));
        assert!(shard.send_requests(&mut batch));
        assert!(batch.is_empty());
        let Some(FromShard::Requests(taken)) = pipeline.take() else { panic!("a batch was sent") };
        pipeline.give_back(taken);
        batch.requests.push(request(2));
        assert!(shard.send_requests(&mut batch));
        assert!(batch.is_empty());
        assert!(10_000 <= batch.bodies.capacity());
    }

    #[test]
    fn a_stalled_shard_makes_the_pipeline_congested_and_loses_nothing() {
        let mesh = Mesh::<()>::new(2);
        let (slow, fast) = (mesh.shard_end(ShardId(0)), mesh.shard_end(ShardId(1)));
        let mut pipeline = mesh.pipeline_end();
        let total = FROM_PIPELINE_MAX as i64 + 5;
        for zxid in 1..=total {
            pipeline.publish(&applied(zxid));
            assert_eq!(next_zxid(&fast), Some(Zxid(zxid)));
        }
        assert!(pipeline.is_congested());
        for zxid in 1..=total {
            assert_eq!(next_zxid(&slow), Some(Zxid(zxid)));
            pipeline.pass_on();
        }
        assert!(!pipeline.is_congested());
    }

    #[test]
    fn whether_clients_are_served_keeps_its_place_and_each_shard_has_its_own_reader() {
        let mesh = Mesh::<()>::with_room(2, 1, 1);
        let shards = [mesh.shard_end(ShardId(0)), mesh.shard_end(ShardId(1))];
        let mut pipeline = mesh.pipeline_end();
        let take = |shard: &ShardEnd<()>| match shard.next()? {
            FromPipeline::Applied(applied) => Some(applied.zxid.to_string()),
            FromPipeline::Serves(service) => match *service {
                Service::Nobody => Some("nobody".to_owned()),
                Service::Clients { mode, reader } => Some(format!("{mode:?} {}", reader.view())),
            },
        };
        let mut seen = [Vec::new(), Vec::new()];
        let mut writer = TreeWriter::new(tree::Settings::default());
        let readers = vec![writer.reader(), writer.reader()];
        pipeline.publish(&applied(1));
        pipeline.serve(Serves::Nobody);
        // There is room for one, but others wait for it.
        seen[0].extend(take(&shards[0]));
        pipeline.publish(&applied(2));
        pipeline.serve(Serves::Clients { mode: Mode::ReadOnly, readers });
        for (shard, seen) in shards.iter().zip(&mut seen) {
            pipeline.pass_on();
            while let Some(item) = take(shard) {
                seen.push(item);
                pipeline.pass_on();
            }
            assert_eq!(*seen, ["0x1", "nobody", "0x2", "ReadOnly 0x0"]);
        }
    }

    #[test]
    fn a_command_wakes_a_sleeping_shard() {
        let mesh = Mesh::<&'static str>::new(1);
        let shard = mesh.shard_end(ShardId(0));
        let sleeper = thread::spawn(move || {
            block_on(poll_fn(|cx| shard.poll_work(cx, || false)));
            shard.next_command()
        });
        mesh.commander().tell(ShardId(0), "stop");
        assert_eq!(sleeper.join().unwrap(), Some("stop"));
    }
}
