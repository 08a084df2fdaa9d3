//! A shard's counts into the metrics.
//!
//! A shard counts in plain numbers, as it knows nothing of who reads them. Now and then the shell
//! adds what is new to the core's cells.

use crate::metrics::{Counter, KeyedCounter, Recorder, Summary, Tally};
use crate::pipeline;
use crate::record::op::code;
use crate::shard::{Counters, Measured};
use crate::types::Now;

/// Which counter the requests of an opcode go to.
const OPERATIONS: [(i32, Counter); 31] = [
    (code::ADD_WATCH, Counter::OpCountAddWatch),
    (code::CHECK, Counter::OpCountCheck),
    (code::CHECK_WATCHES, Counter::OpCountCheckWatches),
    (code::CLOSE_SESSION, Counter::OpCountCloseSession),
    (code::CREATE, Counter::OpCountCreate),
    (code::CREATE2, Counter::OpCountCreate),
    (code::CREATE_CONTAINER, Counter::OpCountCreate),
    (code::CREATE_TTL, Counter::OpCountCreate),
    (code::CREATE_SESSION, Counter::OpCountCreateSession),
    (code::DELETE, Counter::OpCountDelete),
    (code::DELETE_CONTAINER, Counter::OpCountDelete),
    (code::EXISTS, Counter::OpCountExists),
    (code::GET_ACL, Counter::OpCountGetAcl),
    (code::GET_ALL_CHILDREN_NUMBER, Counter::OpCountGetAllChildrenNumber),
    (code::GET_CHILDREN, Counter::OpCountGetChildren),
    (code::GET_CHILDREN2, Counter::OpCountGetChildren),
    (code::GET_DATA, Counter::OpCountGetData),
    (code::GET_EPHEMERALS, Counter::OpCountGetEphemerals),
    (code::MULTI, Counter::OpCountMulti),
    (code::MULTI_READ, Counter::OpCountMultiRead),
    (code::PING, Counter::OpCountPing),
    (code::RECONFIG, Counter::OpCountReconfig),
    (code::REMOVE_WATCHES, Counter::OpCountRemoveWatches),
    (code::SET_ACL, Counter::OpCountSetAcl),
    (code::SET_DATA, Counter::OpCountSetData),
    (code::SET_WATCHES, Counter::OpCountSetWatches),
    (code::SET_WATCHES2, Counter::OpCountSetWatches),
    (code::SYNC, Counter::OpCountSync),
    (code::WHO_AM_I, Counter::OpCountWhoAmI),
    // Counted in the total alone.
    (code::AUTH, Counter::OpCountTotal),
    (code::SASL, Counter::OpCountTotal),
];

/// One of a shard's counts.
type Of<T> = fn(&Counters) -> T;
type RefOf<T> = fn(&Counters) -> &T;

/// Adds what was counted since `before`.
pub(crate) fn publish(recorder: &Recorder, counters: &Counters, before: &Counters, now: Now) {
    for (op, counter) in OPERATIONS {
        let new = counters.op_count(op) - before.op_count(op);
        recorder.add(counter, new);
        if counter != Counter::OpCountTotal {
            recorder.add(Counter::OpCountTotal, new);
        }
    }
    let sums: [(Counter, Of<u64>); 11] = [
        (Counter::PacketsReceived, |of| of.packets_received),
        (Counter::PacketsSent, |of| of.packets_sent),
        (Counter::BytesReceivedCount, |of| of.bytes_received),
        (Counter::ResponseBytes, |of| of.response_bytes.sum),
        (Counter::WatchBytes, |of| of.watch_bytes),
        (Counter::ConnectionRequestCount, |of| of.connections_accepted),
        (Counter::AuthFailedCount, |of| of.auth_failed),
        (Counter::LargeRequestsRejected, |of| of.large_requests_rejected),
        (Counter::ConnectionDropCount, |of| of.connections_throttled),
        (Counter::ThrottledOps, |of| of.throttled_ops),
        (Counter::SessionlessConnectionsExpired, |of| of.sessionless_connections_expired),
    ];
    for (counter, of) in sums {
        recorder.add(counter, of(counters) - of(before));
    }
    let measured: [(Summary, Of<Measured>); 8] = [
        (Summary::ReadLatency, |of| of.read_latency_ms),
        (Summary::UpdateLatency, |of| of.update_latency_ms),
        (Summary::ClientResponseSize, |of| of.response_bytes),
        (Summary::ConnectionTokenDeficit, |of| of.connection_token_deficit),
        (Summary::NodeCreatedWatchCount, |of| of.created_watches),
        (Summary::NodeDeletedWatchCount, |of| of.deleted_watches),
        (Summary::NodeChangedWatchCount, |of| of.changed_watches),
        (Summary::NodeChildrenWatchCount, |of| of.children_watches),
    ];
    for (summary, of) in measured {
        record(recorder, summary, of(counters), of(before));
    }
    let tallies: [(Summary, RefOf<Tally>); 2] = [
        (Summary::ReadLatency, |of| &of.read_latencies),
        (Summary::UpdateLatency, |of| &of.update_latencies),
    ];
    for (summary, of) in tallies {
        recorder.record_tally(summary, of(counters), of(before));
    }
    record(recorder, Summary::RequestLatency, latency(counters), latency(before));
    if before.response_bytes.count < counters.response_bytes.count {
        let now_ms = u64::try_from(now.monotonic_ms).unwrap_or(0);
        recorder.note_last_response(counters.last_response_bytes, now_ms);
    }
}

/// Adds what the pipeline has counted since the last time.
pub(crate) fn publish_pipeline(recorder: &mut Recorder, counts: &pipeline::Counts) {
    recorder.add(Counter::DigestMismatchesCount, counts.digest_mismatches);
    recorder.add(Counter::TtlNodeCreatedCount, counts.ttl_created);
    recorder.add(Counter::TtlNodeDeletedCount, counts.ttl_deleted);
    for (namespace, count) in &counts.quota_exceeded {
        recorder.add_keyed(KeyedCounter::QuotaExceededErrorPerNamespace, namespace, *count);
    }
    publish_quorum(recorder, &counts.quorum);
}

fn publish_quorum(recorder: &Recorder, counts: &pipeline::QuorumCounts) {
    for (counter, count) in [
        (Counter::LookingCount, counts.looking),
        (Counter::ProposalCount, counts.proposals),
        (Counter::CommitCount, counts.commits),
        (Counter::DiffCount, counts.diffs),
        (Counter::SnapCount, counts.snaps),
        (Counter::LearnerProposalReceivedCount, counts.proposals_received),
        (Counter::LearnerCommitReceivedCount, counts.commits_received),
    ] {
        recorder.add(counter, count);
    }
    for (summary, times) in [
        (Summary::ElectionTime, &counts.election_ms),
        (Summary::FollowerSyncTime, &counts.follower_sync_ms),
        (Summary::ObserverSyncTime, &counts.observer_sync_ms),
        (Summary::UnavailableTime, &counts.unavailable_ms),
        (Summary::LeaderUnavailableTime, &counts.leader_unavailable_ms),
    ] {
        times.iter().for_each(|&took_ms| recorder.record(summary, took_ms));
    }
    let acks = &counts.quorum_ack_ms;
    if let (Some((&min, _)), Some((&max, _))) = (acks.first_key_value(), acks.last_key_value()) {
        let (mut count, mut sum, mut tally) = (0, 0, Tally::default());
        for (&took_ms, &times) in acks {
            count += times;
            sum += took_ms * times;
            tally.add_many(took_ms, times);
        }
        recorder.record_many(Summary::QuorumAckLatency, count, sum, min, max);
        recorder.record_tally(Summary::QuorumAckLatency, &tally, &Tally::default());
    }
}

fn latency(of: &Counters) -> Measured {
    Measured {
        count: of.latency_count,
        sum: of.latency_sum_ms,
        min: of.latency_min_ms.map(u64::from),
        max: u64::from(of.latency_max_ms),
    }
}

/// The least and the greatest are those since the shard's counts began, which is when the metrics
/// were last reset.
fn record(recorder: &Recorder, summary: Summary, now: Measured, before: Measured) {
    let count = now.count - before.count;
    recorder.record_many(summary, count, now.sum - before.sum, now.min.unwrap_or(0), now.max);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_is_new_is_added_once() {
        let (metrics, recorders) = Metrics::new(1);
        let mut counters = Counters::default();
        counters.packets_received = 3;
        counters.latency_count = 2;
        counters.latency_sum_ms = 12;
        counters.latency_min_ms = Some(2);
        counters.latency_max_ms = 10;
        publish(&recorders[0], &counters, &Counters::default(), Now::default());
        publish(&recorders[0], &counters, &counters, Now::default());
        let readings = metrics.read();
        assert_eq!(readings.counter(Counter::PacketsReceived), 3);
        let latency = readings.summary(Summary::RequestLatency);
        assert_eq!((latency.count, latency.sum, latency.min, latency.max), (2, 12, 2, 10));
        let mut more = counters;
        (more.latency_count, more.latency_sum_ms) = (3, 16);
        publish(&recorders[0], &more, &counters, Now::default());
        let readings = metrics.read();
        let latency = readings.summary(Summary::RequestLatency);
        assert_eq!((latency.count, latency.sum, latency.min, latency.max), (3, 16, 2, 10));
    }

    #[test]
    fn what_a_quorum_takes_is_measured() {
        let (metrics, mut recorders) = Metrics::new(1);
        let mut counts = pipeline::Counts::default();
        counts.quorum.commits = 100;
        counts.quorum.quorum_ack_ms = [(2, 98), (7, 1), (30, 1)].into();
        counts.quorum.election_ms = vec![10, 250];
        publish_pipeline(&mut recorders[0], &counts);
        let readings = metrics.read();
        assert_eq!(readings.counter(Counter::CommitCount), 100);
        let acks = readings.summary(Summary::QuorumAckLatency);
        assert_eq!((acks.count, acks.sum, acks.min, acks.max), (100, 233, 2, 30));
        let percentiles = [500, 990, 999].map(|of| acks.percentile(of));
        assert_eq!(percentiles, [2, 7, 30]);
        let elections = readings.summary(Summary::ElectionTime);
        assert_eq!((elections.count, elections.min, elections.max), (2, 10, 250));
    }

    #[test]
    fn percentiles_are_of_what_was_counted_since_the_reset() {
        let (metrics, recorders) = Metrics::new(1);
        let counted = |latencies: &[u64]| {
            let mut counters = Counters::default();
            for &latency_ms in latencies {
                counters.update_latencies.add(latency_ms);
                counters.update_latency_ms.count += 1;
                counters.update_latency_ms.sum += latency_ms;
                let min = counters.update_latency_ms.min.map_or(latency_ms, |m| m.min(latency_ms));
                counters.update_latency_ms.min = Some(min);
                counters.update_latency_ms.max = counters.update_latency_ms.max.max(latency_ms);
            }
            counters
        };
        let first = counted(&[1, 2, 3]);
        publish(&recorders[0], &first, &Counters::default(), Now::default());
        publish(&recorders[0], &counted(&[1, 2, 3, 20]), &first, Now::default());
        let percentile = |of| metrics.read().summary(Summary::UpdateLatency).percentile(of);
        assert_eq!((percentile(500), percentile(990)), (2, 20));
        metrics.reset();
        assert_eq!(percentile(500), 0);
        publish(&recorders[0], &counted(&[7]), &Counters::default(), Now::default());
        assert_eq!((percentile(500), percentile(990)), (7, 7));
    }
}
