//! What the server counts, core by core, merged when it is read.
//!
//! Counting is on every request's way, reading is now and then. So each core writes cells of its
//! own, padded against its neighbours, by a plain load and a plain store; nothing is locked and no
//! line is shared. Whoever reads adds the cores up.
//!
//! | kind | what is kept | read as |
//! |---|---|---|
//! | `Counter` | a sum | itself |
//! | `Summary`, basic | count, sum, least, greatest | avg, min, max, cnt, sum |
//! | `Summary`, advanced | a histogram as well | p50, p95, p99, p999 too |
//! | `KeyedCounter`, `KeyedSummary` | one of these for each key | the same, by key |
//!
//! A reset (`srst`) writes nothing in the cells: it keeps what was counted so far, and reading
//! subtracts that. Least and greatest cannot be subtracted, so they carry the generation that they
//! belong to, and the writer starts them over when the generation has moved on.
//!
//! Names are those of ZooKeeper's `mntr`, all of them, whether this server has such a thing or
//! not: dashboards assume that every name is there. After `ServerMetrics`, `ServerStats`,
//! `BufferStats` and `AvgMinMaxPercentileCounter`, which keeps samples where a histogram is here.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

macro_rules! catalogue {
    ($(#[$meta:meta])* pub enum $name:ident { $($variant:ident => $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $name { $($variant),* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The name in `mntr`, less its prefix.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }
    };
}

catalogue! {
    /// What only ever grows, between resets.
    pub enum Counter {
        PacketsReceived => "packets_received",
        PacketsSent => "packets_sent",
        FsyncThresholdExceedCount => "fsync_threshold_exceed_count",
        AuthFailedCount => "auth_failed_count",
        NonMtlsRemoteConnCount => "non_mtls_remote_conn_count",
        NonMtlsLocalConnCount => "non_mtls_local_conn_count",
        SnapshotErrorCount => "snapshot_error_count",
        SnapshotRateLimitedCount => "snapshot_rate_limited_count",
        RestoreErrorCount => "restore_error_count",
        RestoreRateLimitedCount => "restore_rate_limited_count",
        LookingCount => "looking_count",
        DiffCount => "diff_count",
        SnapCount => "snap_count",
        CommitCount => "commit_count",
        ConnectionRequestCount => "connection_request_count",
        ConnectionRejected => "connection_rejected",
        BytesReceivedCount => "bytes_received_count",
        UnrecoverableErrorCount => "unrecoverable_error_count",
        AddDeadWatcherStallTime => "add_dead_watcher_stall_time",
        DeadWatchersQueued => "dead_watchers_queued",
        DeadWatchersCleared => "dead_watchers_cleared",
        ResponsePacketCacheHits => "response_packet_cache_hits",
        ResponsePacketCacheMisses => "response_packet_cache_misses",
        ResponsePacketGetChildrenCacheHits => "response_packet_get_children_cache_hits",
        ResponsePacketGetChildrenCacheMisses => "response_packet_get_children_cache_misses",
        EnsembleAuthSuccess => "ensemble_auth_success",
        EnsembleAuthFail => "ensemble_auth_fail",
        EnsembleAuthSkip => "ensemble_auth_skip",
        PrepProcessorRequestQueued => "prep_processor_request_queued",
        OutstandingChangesQueued => "outstanding_changes_queued",
        OutstandingChangesRemoved => "outstanding_changes_removed",
        RevalidateCount => "revalidate_count",
        ConnectionDropCount => "connection_drop_count",
        ConnectionRevalidateCount => "connection_revalidate_count",
        SessionlessConnectionsExpired => "sessionless_connections_expired",
        StaleSessionsExpired => "stale_sessions_expired",
        RequestCommitQueued => "request_commit_queued",
        ThrottledOps => "throttled_ops",
        LearnerProposalReceivedCount => "learner_proposal_received_count",
        LearnerCommitReceivedCount => "learner_commit_received_count",
        SyncProcessorRequestQueued => "sync_processor_request_queued",
        ProposalCount => "proposal_count",
        QuitLeadingDueToDisloyalVoter => "quit_leading_due_to_disloyal_voter",
        StaleRequests => "stale_requests",
        StaleRequestsDropped => "stale_requests_dropped",
        StaleReplies => "stale_replies",
        RequestThrottleWaitCount => "request_throttle_wait_count",
        LargeRequestsRejected => "large_requests_rejected",
        DigestMismatchesCount => "digest_mismatches_count",
        UnsuccessfulHandshake => "unsuccessful_handshake",
        InsecureAdminCount => "insecure_admin_count",
        TlsHandshakeExceeded => "tls_handshake_exceeded",
        CnxnClosedWithoutZkServerRunning => "cnxn_closed_without_zk_server_running",
        SkipLearnerRequestToNextProcessorCount => "skip_learner_request_to_next_processor_count",
        RequestsNotForwardedToCommitProcessor => "requests_not_forwarded_to_commit_processor",
        ResponseBytes => "response_bytes",
        WatchBytes => "watch_bytes",
        TtlNodeDeletedCount => "ttl_node_deleted_count",
        TtlNodeCreatedCount => "ttl_node_created_count",
        OpCountTotal => "op_count_total",
        OpCountAddWatch => "op_count_add_watch",
        OpCountCheck => "op_count_check",
        OpCountCheckWatches => "op_count_check_watches",
        OpCountCloseSession => "op_count_close_session",
        OpCountCreate => "op_count_create",
        OpCountCreateSession => "op_count_create_session",
        OpCountDelete => "op_count_delete",
        OpCountExists => "op_count_exists",
        OpCountGetAcl => "op_count_get_acl",
        OpCountGetAllChildrenNumber => "op_count_get_all_children_number",
        OpCountGetChildren => "op_count_get_children",
        OpCountGetData => "op_count_get_data",
        OpCountGetEphemerals => "op_count_get_ephemerals",
        OpCountMulti => "op_count_multi",
        OpCountMultiRead => "op_count_multi_read",
        OpCountPing => "op_count_ping",
        OpCountReconfig => "op_count_reconfig",
        OpCountRemoveWatches => "op_count_remove_watches",
        OpCountSetAcl => "op_count_set_acl",
        OpCountSetData => "op_count_set_data",
        OpCountSetWatches => "op_count_set_watches",
        OpCountSync => "op_count_sync",
        OpCountWhoAmI => "op_count_who_am_i",
    }
}

impl Counter {
    /// Those that ZooKeeper registers as counters. The others it keeps elsewhere and shows as
    /// gauges.
    #[must_use]
    pub fn registered() -> &'static [Counter] {
        &Counter::ALL[Counter::SnapshotErrorCount as usize..]
    }

    /// Whether `srst` puts it back to zero.
    const fn is_reset(self) -> bool {
        !matches!(
            self,
            Counter::FsyncThresholdExceedCount
                | Counter::AuthFailedCount
                | Counter::NonMtlsRemoteConnCount
                | Counter::NonMtlsLocalConnCount
        )
    }
}

catalogue! {
    /// What is measured again and again. `..Time`, `..Latency` and `..Ms` are milliseconds.
    pub enum Summary {
        RequestLatency => "latency",
        ClientResponseSize => "client_response_size",
        FsyncTime => "fsynctime",
        SnapshotTime => "snapshottime",
        RestoreTime => "restore_time",
        DbInitTime => "dbinittime",
        FollowerSyncTime => "follower_sync_time",
        ObserverSyncTime => "observer_sync_time",
        ElectionTime => "election_time",
        ConnectionTokenDeficit => "connection_token_deficit",
        InflightSnapCount => "inflight_snap_count",
        InflightDiffCount => "inflight_diff_count",
        NodeCreatedWatchCount => "node_created_watch_count",
        NodeDeletedWatchCount => "node_deleted_watch_count",
        NodeChangedWatchCount => "node_changed_watch_count",
        NodeChildrenWatchCount => "node_children_watch_count",
        PrepProcessorQueueSize => "prep_processor_queue_size",
        PrepProcessTime => "prep_process_time",
        ProposalProcessTime => "proposal_process_time",
        UnavailableTime => "unavailable_time",
        LeaderUnavailableTime => "leader_unavailable_time",
        RequestsInSessionQueue => "requests_in_session_queue",
        PendingSessionQueueSize => "pending_session_queue_size",
        ReadsAfterWriteInSessionQueue => "reads_after_write_in_session_queue",
        ReadsIssuedFromSessionQueue => "reads_issued_from_session_queue",
        SessionQueuesDrained => "session_queues_drained",
        TimeWaitingEmptyPoolInCommitProcessorReadMs => "time_waiting_empty_pool_in_commit_processor_read_ms",
        WriteBatchTimeInCommitProcessor => "write_batch_time_in_commit_processor",
        ConcurrentRequestProcessingInCommitProcessor => "concurrent_request_processing_in_commit_processor",
        ReadCommitProcReqQueued => "read_commit_proc_req_queued",
        WriteCommitProcReqQueued => "write_commit_proc_req_queued",
        CommitCommitProcReqQueued => "commit_commit_proc_req_queued",
        ReadCommitProcIssued => "read_commit_proc_issued",
        WriteCommitProcIssued => "write_commit_proc_issued",
        CommitProcessTime => "commit_process_time",
        StartupTxnsLoaded => "startup_txns_loaded",
        StartupTxnsLoadTime => "startup_txns_load_time",
        StartupSnapLoadTime => "startup_snap_load_time",
        SyncProcessorQueueSize => "sync_processor_queue_size",
        SyncProcessTime => "sync_process_time",
        SyncProcessorBatchSize => "sync_processor_batch_size",
        NettyQueuedBufferCapacity => "netty_queued_buffer_capacity",
        LearnerRequestProcessorQueueSize => "learner_request_processor_queue_size",
        SocketClosingTime => "socket_closing_time",
        ReadLatency => "readlatency",
        UpdateLatency => "updatelatency",
        PropagationLatency => "propagation_latency",
        DeadWatchersCleanerLatency => "dead_watchers_cleaner_latency",
        PrepProcessorQueueTimeMs => "prep_processor_queue_time_ms",
        CloseSessionPrepTime => "close_session_prep_time",
        ReadCommitProcTimeMs => "read_commitproc_time_ms",
        WriteCommitProcTimeMs => "write_commitproc_time_ms",
        LocalWriteCommittedTimeMs => "local_write_committed_time_ms",
        ServerWriteCommittedTimeMs => "server_write_committed_time_ms",
        OmProposalProcessTimeMs => "om_proposal_process_time_ms",
        OmCommitProcessTimeMs => "om_commit_process_time_ms",
        ReadFinalProcTimeMs => "read_final_proc_time_ms",
        WriteFinalProcTimeMs => "write_final_proc_time_ms",
        ProposalLatency => "proposal_latency",
        ProposalAckCreationLatency => "proposal_ack_creation_latency",
        CommitPropagationLatency => "commit_propagation_latency",
        SyncProcessorQueueAndFlushTimeMs => "sync_processor_queue_and_flush_time_ms",
        SyncProcessorQueueTimeMs => "sync_processor_queue_time_ms",
        SyncProcessorQueueFlushTimeMs => "sync_processor_queue_flush_time_ms",
        QuorumAckLatency => "quorum_ack_latency",
        RequestThrottleQueueTimeMs => "request_throttle_queue_time_ms",
        JvmPauseTimeMs => "jvm_pause_time_ms",
    }
}

impl Summary {
    /// Those that ZooKeeper registers as summaries. The others it shows as gauges.
    #[must_use]
    pub fn registered() -> &'static [Summary] {
        &Summary::ALL[Summary::FsyncTime as usize..]
    }

    /// Where its histogram is, if it has one.
    const fn histogram(self) -> Option<usize> {
        (self as usize).checked_sub(Summary::ReadLatency as usize)
    }

    #[must_use]
    pub const fn is_advanced(self) -> bool {
        self.histogram().is_some()
    }
}

const HISTOGRAMS: usize = Summary::ALL.len() - Summary::ReadLatency as usize;

catalogue! {
    /// Counters of which there is one for each key.
    pub enum KeyedCounter {
        QuotaExceededErrorPerNamespace => "quota_exceeded_error_per_namespace",
    }
}

catalogue! {
    /// Summaries of which there is one for each key. A namespace is the first name of a path.
    pub enum KeyedSummary {
        WritePerNamespace => "write_per_namespace",
        ReadPerNamespace => "read_per_namespace",
        LearnerHandlerQpSize => "learner_handler_qp_size",
        LearnerHandlerQpTimeMs => "learner_handler_qp_time_ms",
        AckLatency => "ack_latency",
    }
}

impl KeyedSummary {
    #[must_use]
    pub const fn is_advanced(self) -> bool {
        matches!(self, KeyedSummary::LearnerHandlerQpTimeMs | KeyedSummary::AckLatency)
    }
}

/// Keys come from paths, which clients choose. A core keeps this many in all, and what is measured
/// under any further one is lost.
const KEYS_MAX: usize = 512;

/// One core's cells. Only that core's `Recorder` writes them.
#[repr(align(128))]
struct Core {
    counters: [AtomicU64; Counter::ALL.len()],
    summaries: [SummaryCell; Summary::ALL.len()],
    histograms: [Histogram; HISTOGRAMS],
    last_response: LastResponse,
    /// Filled from the front, and never emptied.
    keyed: Box<[OnceLock<Keyed>]>,
    generation: Arc<AtomicU64>,
}

#[derive(Default)]
struct SummaryCell {
    count: AtomicU64,
    sum: AtomicU64,
    /// These two are of the generation below, and of no other.
    min: AtomicU64,
    max: AtomicU64,
    generation: AtomicU64,
}

#[derive(Default)]
struct LastResponse {
    bytes: AtomicU64,
    at_ms: AtomicU64,
}

struct Keyed {
    metric: KeyedMetric,
    key: Box<str>,
    cell: SummaryCell,
    histogram: Option<Histogram>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyedMetric {
    Counter(KeyedCounter),
    Summary(KeyedSummary),
}

/// Adds to a cell that nobody else writes.
fn bump(cell: &AtomicU64, by: u64) {
    cell.store(cell.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl SummaryCell {
    fn record(&self, value: u64, generation: u64) {
        bump(&self.count, 1);
        bump(&self.sum, value);
        if self.generation.load(Ordering::Relaxed) == generation {
            if value < self.min.load(Ordering::Relaxed) {
                self.min.store(value, Ordering::Relaxed);
            }
            if self.max.load(Ordering::Relaxed) < value {
                self.max.store(value, Ordering::Relaxed);
            }
        } else {
            self.min.store(value, Ordering::Relaxed);
            self.max.store(value, Ordering::Relaxed);
            // Who sees the new generation sees its least and greatest.
            self.generation.store(generation, Ordering::Release);
        }
    }
}

/// How often each value came: exactly below `EXACT`, above that by its five highest bits, which is
/// off by a sixteenth at most. Values above 32 bits count as the greatest of these: in milliseconds
/// that is seven weeks.
struct Histogram(Box<[AtomicU64]>);

const EXACT: u64 = 32;
const STEPS_PER_OCTAVE: usize = 16;
const BUCKETS: usize = EXACT as usize + (32 - 5) * STEPS_PER_OCTAVE;
const _: () = assert!(bucket_of(u64::MAX) == BUCKETS - 1);

const fn bucket_of(value: u64) -> usize {
    if value < EXACT {
        return value as usize;
    }
    let value = if value < u32::MAX as u64 { value } else { u32::MAX as u64 };
    let exponent = value.ilog2() as usize;
    let step = (value >> (exponent - 4)) as usize - STEPS_PER_OCTAVE;
    EXACT as usize + (exponent - 5) * STEPS_PER_OCTAVE + step
}

/// The greatest value that falls into a bucket.
const fn bucket_max(bucket: usize) -> u64 {
    let Some(above_exact) = bucket.checked_sub(EXACT as usize) else { return bucket as u64 };
    let exponent = 5 + above_exact / STEPS_PER_OCTAVE;
    let step = above_exact % STEPS_PER_OCTAVE;
    (((STEPS_PER_OCTAVE + step + 1) as u64) << (exponent - 4)) - 1
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram((0..BUCKETS).map(|_| AtomicU64::new(0)).collect())
    }
}

/// How often each value came, in plain numbers: for who counts and knows nobody who reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tally([u32; BUCKETS]);

impl Default for Tally {
    fn default() -> Tally {
        Tally([0; BUCKETS])
    }
}

impl Tally {
    pub fn add(&mut self, value: u64) {
        let count = &mut self.0[bucket_of(value)];
        *count = count.wrapping_add(1);
    }

    /// A value that came so many times.
    pub fn add_many(&mut self, value: u64, times: u64) {
        let count = &mut self.0[bucket_of(value)];
        *count = count.wrapping_add(times as u32);
    }
}

/// One core's hand on its cells: there is one per core, and it does not leave its thread.
pub struct Recorder {
    core: Arc<Core>,
    /// Where in `keyed` each key is, by metric.
    keyed_counters: [Keys; KeyedCounter::ALL.len()],
    keyed_summaries: [Keys; KeyedSummary::ALL.len()],
    keyed_len: usize,
    /// A shared recorder would lose counts: a load and a store are not one step.
    one_thread: PhantomData<Cell<()>>,
}

type Keys = HashMap<Box<str>, usize, foldhash::fast::RandomState>;

impl Recorder {
    pub fn add(&self, counter: Counter, by: u64) {
        bump(&self.core.counters[counter as usize], by);
    }

    pub fn record(&self, summary: Summary, value: u64) {
        let generation = self.core.generation.load(Ordering::Relaxed);
        self.core.summaries[summary as usize].record(value, generation);
        if let Some(histogram) = summary.histogram() {
            bump(&self.core.histograms[histogram].0[bucket_of(value)], 1);
        }
    }

    /// Many values at once, of which only these are left: how many, their sum, least and greatest.
    pub fn record_many(&self, summary: Summary, count: u64, sum: u64, min: u64, max: u64) {
        if count == 0 {
            return;
        }
        let cell = &self.core.summaries[summary as usize];
        let generation = self.core.generation.load(Ordering::Relaxed);
        cell.record(min, generation);
        cell.record(max, generation);
        // These two were counted as values.
        bump(&cell.count, count.wrapping_sub(2));
        bump(&cell.sum, sum.wrapping_sub(min).wrapping_sub(max));
    }

    /// Which values those of `record_many` were, by what came to `now` since `before`.
    pub fn record_tally(&self, summary: Summary, now: &Tally, before: &Tally) {
        let Some(histogram) = summary.histogram() else { return };
        let cells = &self.core.histograms[histogram].0;
        for (cell, (now, before)) in cells.iter().zip(now.0.iter().zip(&before.0)) {
            let new = now.wrapping_sub(*before);
            if new != 0 {
                bump(cell, u64::from(new));
            }
        }
    }

    /// The size of a reply's body, and when it was sent, which tells whose was the last.
    pub fn record_response(&self, bytes: u64, now_ms: u64) {
        self.record(Summary::ClientResponseSize, bytes);
        self.note_last_response(bytes, now_ms);
    }

    /// The last of many replies that were recorded together.
    pub fn note_last_response(&self, bytes: u64, now_ms: u64) {
        self.core.last_response.bytes.store(bytes, Ordering::Relaxed);
        self.core.last_response.at_ms.store(now_ms, Ordering::Relaxed);
    }

    pub fn add_keyed(&mut self, counter: KeyedCounter, key: &str, by: u64) {
        let keys = &mut self.keyed_counters[counter as usize];
        let metric = KeyedMetric::Counter(counter);
        if let Some(keyed) = find(&self.core, keys, &mut self.keyed_len, metric, key) {
            bump(&keyed.cell.sum, by);
        }
    }

    pub fn record_keyed(&mut self, summary: KeyedSummary, key: &str, value: u64) {
        let keys = &mut self.keyed_summaries[summary as usize];
        let metric = KeyedMetric::Summary(summary);
        if let Some(keyed) = find(&self.core, keys, &mut self.keyed_len, metric, key) {
            keyed.cell.record(value, self.core.generation.load(Ordering::Relaxed));
            if let Some(histogram) = &keyed.histogram {
                bump(&histogram.0[bucket_of(value)], 1);
            }
        }
    }
}

/// The cell of a key, made when it is new and there is room.
fn find<'a>(
    core: &'a Core,
    keys: &mut Keys,
    keyed_len: &mut usize,
    metric: KeyedMetric,
    key: &str,
) -> Option<&'a Keyed> {
    if let Some(&index) = keys.get(key) {
        return core.keyed[index].get();
    }
    let index = *keyed_len;
    let slot = core.keyed.get(index)?;
    *keyed_len += 1;
    keys.insert(key.into(), index);
    let is_advanced = matches!(metric, KeyedMetric::Summary(summary) if summary.is_advanced());
    Some(slot.get_or_init(|| Keyed {
        metric,
        key: key.into(),
        cell: SummaryCell::default(),
        histogram: is_advanced.then(Histogram::default),
    }))
}

/// All cores' cells, for whoever reads.
pub struct Metrics {
    cores: Vec<Arc<Core>>,
    /// How many resets there have been, plus one: cells begin in generation 0, which is none.
    generation: Arc<AtomicU64>,
    /// What had been counted at the last reset.
    baseline: Mutex<Totals>,
}

impl Metrics {
    /// The cells of so many cores, and each core's hand on its own.
    #[must_use]
    pub fn new(cores: usize) -> (Metrics, Vec<Recorder>) {
        let generation = Arc::new(AtomicU64::new(1));
        let cores: Vec<Arc<Core>> = (0..cores)
            .map(|_| {
                Arc::new(Core {
                    counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
                    summaries: std::array::from_fn(|_| SummaryCell::default()),
                    histograms: std::array::from_fn(|_| Histogram::default()),
                    last_response: LastResponse::default(),
                    keyed: (0..KEYS_MAX).map(|_| OnceLock::new()).collect(),
                    generation: Arc::clone(&generation),
                })
            })
            .collect();
        let recorders = cores
            .iter()
            .map(|core| Recorder {
                core: Arc::clone(core),
                keyed_counters: Default::default(),
                keyed_summaries: Default::default(),
                keyed_len: 0,
                one_thread: PhantomData,
            })
            .collect();
        (Metrics { cores, generation, baseline: Mutex::default() }, recorders)
    }

    /// What was counted since the last reset.
    #[must_use]
    pub fn read(&self) -> Readings {
        let baseline = self.baseline.lock();
        let generation = self.generation.load(Ordering::Relaxed);
        let totals = self.totals(generation);
        let summary = |summary: &Summary| {
            totals.summaries[*summary as usize].since(baseline.summaries.get(*summary as usize))
        };
        let counter = |counter: &Counter| {
            let before = baseline.counters.get(*counter as usize).copied().unwrap_or(0);
            let before = if counter.is_reset() { before } else { 0 };
            totals.counters[*counter as usize].wrapping_sub(before)
        };
        let mut readings = Readings {
            counters: Counter::ALL.iter().map(counter).collect(),
            summaries: Summary::ALL.iter().map(summary).collect(),
            last_response_bytes: totals.last_response_bytes,
            keyed_counters: BTreeMap::new(),
            keyed_summaries: BTreeMap::new(),
        };
        for ((metric, key), total) in totals.keyed {
            let reading = total.since(baseline.keyed.get(&(metric, key.clone())));
            match metric {
                KeyedMetric::Counter(counter) => {
                    readings.keyed_counters.insert((counter, key), reading.sum);
                }
                KeyedMetric::Summary(summary) => {
                    readings.keyed_summaries.insert((summary, key), reading);
                }
            }
        }
        readings
    }

    /// Starts everything over that `srst` starts over.
    pub fn reset(&self) {
        let mut baseline = self.baseline.lock();
        let generation = self.generation.load(Ordering::Relaxed);
        *baseline = self.totals(generation);
        self.generation.store(generation + 1, Ordering::Relaxed);
    }

    fn totals(&self, generation: u64) -> Totals {
        let mut totals = Totals {
            counters: vec![0; Counter::ALL.len()],
            summaries: Vec::with_capacity(Summary::ALL.len()),
            ..Totals::default()
        };
        for core in &self.cores {
            for (total, cell) in totals.counters.iter_mut().zip(&core.counters) {
                *total = total.wrapping_add(cell.load(Ordering::Relaxed));
            }
        }
        for &summary in Summary::ALL {
            let mut total = Total::default();
            for core in &self.cores {
                let histogram = summary.histogram().map(|index| &core.histograms[index]);
                total.add(&core.summaries[summary as usize], histogram, generation);
            }
            totals.summaries.push(total);
        }
        for keyed in self.cores.iter().flat_map(|core| core.keyed.iter().map_while(OnceLock::get)) {
            let total = totals.keyed.entry((keyed.metric, keyed.key.clone())).or_default();
            total.add(&keyed.cell, keyed.histogram.as_ref(), generation);
        }
        let last = |core: &Arc<Core>| {
            let at_ms = core.last_response.at_ms.load(Ordering::Relaxed);
            (at_ms, core.last_response.bytes.load(Ordering::Relaxed))
        };
        totals.last_response_bytes =
            self.cores.iter().map(last).max().map_or(0, |(_, bytes)| bytes);
        totals
    }
}

/// What all cores counted since the start.
#[derive(Default)]
struct Totals {
    counters: Vec<u64>,
    summaries: Vec<Total>,
    last_response_bytes: u64,
    keyed: BTreeMap<(KeyedMetric, Box<str>), Total>,
}

#[derive(Default)]
struct Total {
    count: u64,
    sum: u64,
    /// Of one generation; `None` if nothing came in it.
    range: Option<(u64, u64)>,
    /// Empty without a histogram.
    buckets: Vec<u64>,
}

impl Total {
    fn add(&mut self, cell: &SummaryCell, histogram: Option<&Histogram>, generation: u64) {
        self.count = self.count.wrapping_add(cell.count.load(Ordering::Relaxed));
        self.sum = self.sum.wrapping_add(cell.sum.load(Ordering::Relaxed));
        if cell.generation.load(Ordering::Acquire) == generation {
            let cell_min = cell.min.load(Ordering::Relaxed);
            let cell_max = cell.max.load(Ordering::Relaxed);
            let (min, max) = self.range.unwrap_or((cell_min, cell_max));
            self.range = Some((min.min(cell_min), max.max(cell_max)));
        }
        if let Some(histogram) = histogram {
            self.buckets.resize(BUCKETS, 0);
            for (total, bucket) in self.buckets.iter_mut().zip(&histogram.0) {
                *total = total.wrapping_add(bucket.load(Ordering::Relaxed));
            }
        }
    }

    fn since(&self, before: Option<&Total>) -> Reading {
        let nothing = Total::default();
        let before = before.unwrap_or(&nothing);
        let count = self.count.wrapping_sub(before.count);
        let (min, max) = self.range.unwrap_or((0, 0));
        let buckets = self.buckets.iter().enumerate().map(|(bucket, &total)| {
            total.wrapping_sub(before.buckets.get(bucket).copied().unwrap_or(0))
        });
        Reading {
            count,
            sum: self.sum.wrapping_sub(before.sum),
            min,
            max,
            buckets: buckets.collect(),
        }
    }
}

/// Everything that was counted, at one moment; core by core, not all at the same instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readings {
    counters: Vec<u64>,
    summaries: Vec<Reading>,
    last_response_bytes: u64,
    pub keyed_counters: BTreeMap<(KeyedCounter, Box<str>), u64>,
    pub keyed_summaries: BTreeMap<(KeyedSummary, Box<str>), Reading>,
}

impl Readings {
    #[must_use]
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    #[must_use]
    pub fn summary(&self, summary: Summary) -> &Reading {
        &self.summaries[summary as usize]
    }

    /// The size of the last reply; `None` if there was none.
    #[must_use]
    pub fn last_response_bytes(&self) -> Option<u64> {
        let sizes = self.summary(Summary::ClientResponseSize);
        (0 < sizes.count).then_some(self.last_response_bytes)
    }
}

/// One summary. All zero if nothing came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub count: u64,
    pub sum: u64,
    pub min: u64,
    pub max: u64,
    buckets: Vec<u64>,
}

impl Reading {
    /// Rounded to four decimals, halves up.
    #[must_use]
    pub fn average(&self) -> f64 {
        if self.count == 0 {
            return 0.0;
        }
        let (sum, count) = (u128::from(self.sum), u128::from(self.count));
        let ten_thousandths = (sum * 20_000 + count) / (count * 2);
        ten_thousandths as f64 / 10_000.0
    }

    /// The value that so many thousandths of all values do not exceed. 0 without a histogram.
    #[must_use]
    pub fn percentile(&self, thousandths: u64) -> u64 {
        let counted: u64 = self.buckets.iter().sum();
        let rank = (u128::from(counted) * u128::from(thousandths)).div_ceil(1000).max(1);
        let mut seen = 0;
        let bucket = self.buckets.iter().position(|&count| {
            seen += u128::from(count);
            rank <= seen
        });
        bucket.map_or(0, |bucket| bucket_max(bucket).clamp(self.min, self.max.max(self.min)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_are_added_up() {
        let (metrics, recorders) = Metrics::new(3);
        for (recorder, by) in recorders.iter().zip([1, 10, 100]) {
            recorder.add(Counter::BytesReceivedCount, by);
            recorder.add(Counter::BytesReceivedCount, by);
            recorder.record(Summary::ReadLatency, by);
            recorder.record_response(by, by);
        }
        let readings = metrics.read();
        assert_eq!(readings.counter(Counter::BytesReceivedCount), 222);
        assert_eq!(readings.counter(Counter::CommitCount), 0);
        let Reading { count, sum, min, max, .. } = *readings.summary(Summary::ReadLatency);
        assert_eq!((count, sum, min, max), (3, 111, 1, 100));
        assert_eq!(readings.summary(Summary::ReadLatency).average(), 37.0);
        assert_eq!(readings.last_response_bytes(), Some(100));
        assert_eq!(readings.summary(Summary::ClientResponseSize).max, 100);
    }

    #[test]
    fn nothing_recorded_reads_as_zero() {
        let readings = Metrics::new(2).0.read();
        assert!(Summary::ALL.iter().all(|&summary| {
            let reading = readings.summary(summary);
            (reading.count, reading.sum, reading.min, reading.max) == (0, 0, 0, 0)
                && reading.average() == 0.0
                && reading.percentile(500) == 0
        }));
        assert_eq!(readings.last_response_bytes(), None);
    }

    #[test]
    fn a_reset_starts_everything_over_at_once() {
        let (metrics, mut recorders) = Metrics::new(2);
        recorders[0].record(Summary::UpdateLatency, 900);
        recorders[1].record(Summary::UpdateLatency, 1);
        recorders[0].add(Counter::PacketsSent, 5);
        recorders[0].add(Counter::AuthFailedCount, 5);
        recorders[0].record_keyed(KeyedSummary::WritePerNamespace, "app", 77);
        recorders[0].record_response(10, 1);
        metrics.reset();
        let readings = metrics.read();
        let latency = readings.summary(Summary::UpdateLatency);
        assert_eq!((latency.count, latency.sum, latency.min, latency.max), (0, 0, 0, 0));
        assert_eq!(latency.percentile(990), 0);
        assert_eq!(readings.counter(Counter::PacketsSent), 0);
        assert_eq!(readings.counter(Counter::AuthFailedCount), 5);
        assert_eq!(readings.last_response_bytes(), None);
        let app = (KeyedSummary::WritePerNamespace, "app".into());
        assert_eq!(readings.keyed_summaries[&app].count, 0);

        recorders[0].record(Summary::UpdateLatency, 7);
        recorders[0].add(Counter::PacketsSent, 1);
        let readings = metrics.read();
        let latency = readings.summary(Summary::UpdateLatency);
        assert_eq!((latency.count, latency.sum, latency.min, latency.max), (1, 7, 7, 7));
        assert_eq!((latency.percentile(500), latency.percentile(999)), (7, 7));
        assert_eq!(readings.counter(Counter::PacketsSent), 1);
    }

    #[test]
    fn buckets_are_in_order_and_narrow() {
        for bucket in 1..BUCKETS {
            let (below, max) = (bucket_max(bucket - 1), bucket_max(bucket));
            assert_eq!(bucket_of(below + 1), bucket, "{bucket}");
            assert_eq!(bucket_of(max), bucket, "{bucket}");
            assert!((max - below - 1) * 16 <= max, "{bucket} is wide: {below} to {max}");
        }
        assert_eq!(bucket_max(BUCKETS - 1), u64::from(u32::MAX));
    }

    #[test]
    fn percentiles_are_ranks() {
        let (metrics, recorders) = Metrics::new(1);
        for value in 1..=1000 {
            recorders[0].record(Summary::ReadLatency, value);
        }
        let readings = metrics.read();
        let latency = readings.summary(Summary::ReadLatency);
        for (thousandths, exact) in [(1, 1), (20, 20), (500, 500), (950, 950), (999, 999)] {
            let found = latency.percentile(thousandths);
            assert!(exact <= found && found <= exact + exact / 16, "{thousandths}: {found}");
        }
        assert_eq!(latency.percentile(1000), 1000);
    }

    #[test]
    fn averages_round_to_four_decimals() {
        let average = |sum, count| Reading { sum, count, ..Reading::default() }.average();
        assert_eq!(average(2, 18), 0.1111);
        assert_eq!(average(153, 11), 13.9091);
        assert_eq!(average(43, 13), 3.3077);
        assert_eq!(average(351, 4), 87.75);
        assert_eq!(average(u64::MAX, 1), u64::MAX as f64);
    }

    #[test]
    fn keys_are_told_apart_and_bounded() {
        let (metrics, mut recorders) = Metrics::new(2);
        for recorder in &mut recorders {
            recorder.record_keyed(KeyedSummary::ReadPerNamespace, "app", 4);
            recorder.record_keyed(KeyedSummary::AckLatency, "2", 9);
            recorder.add_keyed(KeyedCounter::QuotaExceededErrorPerNamespace, "app", 1);
        }
        for key in 0..2 * KEYS_MAX {
            recorders[1].record_keyed(KeyedSummary::ReadPerNamespace, &key.to_string(), 1);
        }
        let readings = metrics.read();
        let app = readings.keyed_summaries[&(KeyedSummary::ReadPerNamespace, "app".into())].clone();
        assert_eq!((app.count, app.sum), (2, 8));
        let acks = &readings.keyed_summaries[&(KeyedSummary::AckLatency, "2".into())];
        assert_eq!(acks.percentile(500), 9);
        let exceeded = (KeyedCounter::QuotaExceededErrorPerNamespace, "app".into());
        assert_eq!(readings.keyed_counters[&exceeded], 2);
        let keys = readings.keyed_counters.len() + readings.keyed_summaries.len();
        assert_eq!(keys, KEYS_MAX);
    }
}
