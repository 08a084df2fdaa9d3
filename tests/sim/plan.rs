//! What a seed decides before anything happens: sizes, speeds, and which faults there are. Each
//! fault is off in half of the seeds, so that none hides behind another.

use std::time::Duration;

use ringkeeper::pipeline::{ReaperSettings, RollSettings};
use ringkeeper::shard::TurnBudget;
use ringkeeper::storage::Compression;
use ringkeeper::storage::gathering::Shaping;
use ringkeeper::storage::journal::{self, BackEnd};

use crate::log::Layout;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) shards: usize,
    pub(crate) clients: usize,
    /// Of each client.
    pub(crate) requests: u32,
    pub(crate) think_us: i64,
    pub(crate) tick_ms: i64,
    /// The shortest and the longest timeout that clients ask for.
    pub(crate) timeouts_ms: (i32, i32),
    /// How long there are faults.
    pub(crate) faulty_us: i64,
    pub(crate) roll: RollSettings,
    pub(crate) reaper: ReaperSettings,
    pub(crate) journal: journal::Settings,
    pub(crate) layout: Layout,
    pub(crate) compression: Compression,
    pub(crate) with_zxid: bool,
    pub(crate) retain: usize,
    pub(crate) purge_us: Option<i64>,
    pub(crate) extended_types: bool,
    pub(crate) digests: bool,
    /// A closeSession lists what it deletes.
    pub(crate) lists_paths: bool,
    pub(crate) network_us: i64,
    pub(crate) mesh_us: i64,
    pub(crate) sync_us: i64,
    /// How much a client may leave unread.
    pub(crate) window_bytes: usize,
    pub(crate) outstanding_max: usize,
    pub(crate) output_bytes_max: usize,
    pub(crate) input_bytes_max: usize,
    /// What a connection may have of a shard in one turn.
    pub(crate) turn: TurnBudget,
    pub(crate) write_back_us: i64,
    /// The zxid of a snapshot of nothing, where a history begins that is not a server's first.
    pub(crate) begins_at: i64,
    pub(crate) faults: Vec<Fault>,
    /// Between two faults, on average.
    pub(crate) fault_us: i64,
}

/// What may happen to a world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// The process is asked to end, and does so in order.
    Stop,
    /// The process ends at once.
    Kill,
    /// The process ends within the next steps of the disk.
    KillAtStep,
    PowerLoss,
    PowerLossAtStep,
    /// Crashes come in recovery too.
    CrashInRecovery,
    /// One connection ends.
    Cut,
    /// One connection falls silent, and nobody is told.
    HalfOpen,
    /// A sync fails.
    SyncError,
    /// The disk is full for a while.
    Full,
    /// Syncs take long for a while.
    SlowDisk,
    /// A shard does nothing for a while.
    Stall,
    /// The wall clock jumps.
    WallJump,
    /// The newest snapshot goes bad while the server is down.
    DamagedSnapshot,
    /// A restart knows TTLs no more, or again.
    TypesSwitched,
}

const FAULTS: [Fault; 15] = [
    Fault::Stop,
    Fault::Kill,
    Fault::KillAtStep,
    Fault::PowerLoss,
    Fault::PowerLossAtStep,
    Fault::CrashInRecovery,
    Fault::Cut,
    Fault::HalfOpen,
    Fault::SyncError,
    Fault::Full,
    Fault::SlowDisk,
    Fault::Stall,
    Fault::WallJump,
    Fault::DamagedSnapshot,
    Fault::TypesSwitched,
];

impl Plan {
    pub(crate) fn draw(rng: &mut Rng) -> Plan {
        let tick_ms = rng.between(100, 500);
        let purge_us = rng.coin().then(|| rng.between(200_000, 3_000_000));
        let clients = rng.mostly_small(2, 10) as usize;
        Plan {
            shards: rng.between(1, 3) as usize,
            clients,
            requests: (rng.between(500, 8_000) / clients as i64) as u32,
            think_us: rng.mostly_small(1_000, 60_000),
            tick_ms,
            timeouts_ms: ((2 * tick_ms) as i32, (8 * tick_ms) as i32),
            faulty_us: rng.between(5_000_000, 40_000_000),
            roll: RollSettings {
                txns: rng.between(20, 200) as u64,
                bytes: if rng.coin() { 0 } else { rng.between(4_000, 60_000) as u64 },
                log_bytes: if rng.coin() { 0 } else { rng.between(2_000, 30_000) as u64 },
                put_off: rng.coin(),
            },
            reaper: ReaperSettings {
                check_interval_ms: rng.between(500, 3_000),
                per_minute_max: 1_000_000,
                never_used_ms_max: 0,
            },
            journal: journal::Settings {
                back_end: if rng.coin() { BackEnd::Direct } else { BackEnd::Mapped },
                step_bytes: 4096 * rng.between(1, 12) as u64,
                force_sync: true,
                shaping: rng.chance(200).then(|| Shaping {
                    delay: Duration::from_millis(rng.between(1, 40) as u64),
                    poll: Duration::from_millis(rng.between(1, 20) as u64),
                    batch_max: rng.between(2, 50) as u64,
                }),
                waits_for_answered: rng.coin(),
            },
            compression: *rng.pick(&[
                Compression::None,
                Compression::None,
                Compression::Gzip,
                Compression::Snappy,
            ]),
            with_zxid: rng.coin(),
            retain: rng.between(1, 3) as usize,
            purge_us,
            extended_types: rng.coin(),
            digests: rng.chance(700),
            lists_paths: rng.coin(),
            network_us: rng.mostly_small(100, 20_000),
            mesh_us: rng.mostly_small(1, 2_000),
            sync_us: rng.mostly_small(50, 30_000),
            window_bytes: *rng.pick(&[300, 4_000, 1 << 20]),
            outstanding_max: *rng.pick(&[2, 1_000]),
            output_bytes_max: *rng.pick(&[200, 4_000, 1 << 20]),
            input_bytes_max: *rng.pick(&[50, 1 << 20]),
            write_back_us: *rng.pick(&[1_000, 20_000, 1_000_000, 20_000_000]),
            // Now and then the low half of the zxid runs over on the way.
            begins_at: if rng.chance(250) { (1 << 32) - rng.mostly_small(2, 2_000) } else { 0 },
            faults: FAULTS.into_iter().filter(|_| rng.coin()).collect(),
            fault_us: rng.between(200_000, 1_500_000),
            turn: *rng.pick(&[
                TurnBudget { bytes: 200, steps: 3 },
                TurnBudget { bytes: 2_000, steps: 40 },
                TurnBudget { bytes: 1 << 20, steps: 1 << 20 },
            ]),
            layout: if rng.coin() { Layout::Apart } else { Layout::Together },
        }
    }

    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}
