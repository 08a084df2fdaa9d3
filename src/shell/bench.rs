//! A door for `benches/mesh.rs`, and for nobody else: the channels between cores with two ends of
//! plain threads.

use std::sync::Arc;

use futures_lite::future::{block_on, poll_fn};

use super::mesh::{FromPipeline, FromShard, Mesh, PipelineEnd, ShardEnd};
use crate::exchange::{Applied, Requests, ShardId};

/// A mesh of one shard, taken apart.
#[must_use]
pub fn mesh() -> (Shard, Pipeline) {
    let mesh = Mesh::new(1);
    (Shard(mesh.shard_end(ShardId(0))), Pipeline(mesh.pipeline_end()))
}

pub struct Shard(ShardEnd<()>);

impl Shard {
    /// Sends the batch and leaves an empty one; false where there is no room.
    pub fn send(&self, batch: &mut Requests) -> bool {
        self.0.send_requests(batch)
    }

    #[must_use]
    pub fn next(&self) -> Option<Arc<Applied>> {
        match self.0.next()? {
            FromPipeline::Applied(applied) => Some(applied),
            FromPipeline::Serves(_) => unreachable!("`Pipeline` sends none here"),
        }
    }

    /// Sleeps until there is something to take.
    pub fn sleep(&self) {
        block_on(poll_fn(|cx| self.0.poll_work(cx, || false)));
    }
}

pub struct Pipeline(PipelineEnd<()>);

impl Pipeline {
    /// Takes a batch and gives it back; how many requests were in it.
    pub fn take(&mut self) -> Option<usize> {
        let FromShard::Requests(batch) = self.0.take()? else { return Some(0) };
        let count = batch.requests.len();
        self.0.give_back(batch);
        Some(count)
    }

    pub fn publish(&mut self, applied: &Arc<Applied>) {
        self.0.publish(applied);
    }

    /// Sleeps until there is something to take.
    pub fn sleep(&self) {
        block_on(poll_fn(|cx| self.0.poll_work(cx, || false)));
    }
}
