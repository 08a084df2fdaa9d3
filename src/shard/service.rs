//! Whether clients are served, from which tree, and what ends when they no longer are.
//!
//! ```text
//! Nobody ──── Clients { mode, reader } ───► served in this mode, from this reader's tree
//!    ▲                                                   │
//!    └───────────────────── Nobody ──────────────────────┘
//! ```
//!
//! A server that has lost its quorum or changes its role serves nobody. Then all sessions'
//! connections end, with their requests, watches and views, and without a word; the clients come
//! back when it serves again, or go elsewhere. There may be many thousands, so only some of them
//! end in each turn. Until its turn has come, such a connection is not acted for: whatever happens
//! to it ends it. Four-letter words are answered all the time, and who has not said yet whether it
//! wants a session may still ask one.
//!
//! After `ServerCnxnFactory.closeAll` and `ReadOnlyZooKeeperServer`.

use crate::exchange::{Mode, Service};
use crate::tree::TreeReader;
use crate::types::Now;

use super::connection::{Connection, State};
use super::{Close, Core, Output, Shard};

/// How many slots of connections are gone through in a turn when nobody is served any more.
const ENDED_PER_TURN: u32 = 256;

impl Shard {
    /// Whether clients are served from here on. The connections of those that were served before end.
    pub fn on_service(&mut self, now: Now, service: Service, out: &mut Output) {
        if self.core.serves.take().is_some() {
            self.core.ending_from = Some(0);
            // The former tree need not keep anything for this view any more.
            self.core.tree = TreeReader::of_nothing();
            // Requests of connections that end.
            out.requests.clear();
        }
        match service {
            Service::Nobody => {}
            Service::Clients { mode, reader } => {
                // Only where clients are served again within a few turns, some are still to be ended.
                while self.core.ending_from.is_some() {
                    self.end_some(now, out);
                }
                // The pipeline answers nothing that it was asked before.
                self.core.forget_left_behind();
                self.core.tree = reader;
                self.core.serves = Some(mode);
            }
        }
        self.check_if_small();
    }

    /// Ends some of the connections that have lost their service.
    pub(super) fn end_some(&mut self, now: Now, out: &mut Output) {
        let Some(from) = self.core.ending_from else { return };
        let to = from.saturating_add(ENDED_PER_TURN).min(self.connections.slot_count());
        for slot in from..to {
            let Some((id, connection)) = self.connections.at(slot) else { continue };
            if has_session(connection) {
                self.bare_step(now, id, out, |core, step| core.end(step, Close::AfterFlush));
            }
        }
        self.core.ending_from = (to < self.connections.slot_count()).then_some(to);
    }
}

impl Core {
    /// Whether a connection was served before, and is yet to be ended.
    pub(super) fn has_lost_service(&self, connection: &Connection) -> bool {
        self.serves.is_none() && has_session(connection)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.serves == Some(Mode::ReadOnly)
    }
}

/// Whether a connection has a session, or has asked for one.
fn has_session(connection: &Connection) -> bool {
    match connection.state {
        State::Opening { .. } | State::Live { .. } | State::Leaving { .. } => true,
        State::Connecting | State::Word | State::Closing(_) => false,
    }
}
