//! What the core of the pipeline does for a server of an ensemble: its links, and what Zab wants on
//! the disk besides records.
//!
//! ```text
//! links --events--> Pipeline::step --to_links--> links            on this core
//!                                  --stores----> log: epochs      on this core, as a round
//!                                  --stores----> background: where to cut, then log
//!                                  --reload----> background: what is left on the disk
//!                                  --loads-----> background: the leader's snapshot, then log
//!                                  --to_links--> threads of their own: what the log has for learners
//! ```
//!
//! While the files change under a truncation or a leader's snapshot, the background thread waits for
//! the log: so it neither writes a snapshot nor purges meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::io::{self, Read as _};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;

use crossbeam::channel;
use tracing::{error, info, warn};

use super::background::Job;
use super::directories::Directories;
use super::disk::Log;
use super::links::snapshot::snapshot_pipe;
use super::links::{self, Links};
use super::member::{self, ReadPlaces, SnapshotSink};
use super::pipeline_core::PipelineInbox;
use super::recover::{RecoverOptions, Recovered, recover};
use super::ring::Ring;
use crate::pipeline::{LinkInput, Restored, ToLink};
use crate::storage::history::Wanted;
use crate::storage::journal::{EpochFile, Replacement, Storing, Truncation};
use crate::storage::standing::Standing;
use crate::types::{Epoch, Zxid};
use crate::zab::Durable;
use crate::zab::LinkId;
use crate::zab::election::Notification;
use crate::zab::leader::Span;

/// What of a leader's snapshot may have come and not be written yet.
const SNAPSHOT_BYTES_MAX: usize = 4 << 20;
const READ_BYTES: usize = 128 << 10;

/// What an ensemble's server is made of, besides the pipeline.
pub(crate) struct EnsembleParts {
    pub(crate) links: links::LinksParts,
    pub(crate) directories: Arc<Directories>,
    pub(crate) recover: RecoverOptions,
    /// `zookeeper.snapshotSizeFactor`.
    pub(crate) snapshot_size_factor: f64,
    /// Epochs that no file says yet.
    pub(crate) derived: Vec<(EpochFile, Epoch)>,
}

/// A change of what the disk has, that waits for an idle log.
pub(crate) enum Change {
    Truncate(Truncation),
    Replace(Replacement),
}

/// What a thread that may wait has found or done.
pub(crate) enum Found {
    /// The log is to be changed so; `done` is told when it is.
    Change { change: Box<Change>, done: channel::Sender<()> },
    /// The disk has this now.
    State { restored: Box<Restored>, stored: Durable },
    /// The log has no such transaction: nothing was cut.
    NoSuchZxid(Zxid),
    /// The leader's snapshot did not come whole, or is of no use.
    SnapshotLost,
    /// Whether the log has what a learner lacks.
    Looked { link: LinkId, has_all: bool },
}

pub(crate) struct EnsembleSide {
    pub(crate) links: Links,
    directories: Arc<Directories>,
    recover: RecoverOptions,
    snapshot_size_factor: f64,
    /// How far the log was read for learners.
    read: Arc<ReadPlaces>,
    inbox: PipelineInbox,
    jobs: channel::Sender<Job>,
    /// What waits until the log is idle, and who waits for it.
    change: Option<(Box<Change>, channel::Sender<()>)>,
    /// Who waits for the change under way.
    changing: Option<channel::Sender<()>>,
    to_links: VecDeque<ToLink>,
}

impl EnsembleSide {
    pub(crate) fn start(
        parts: EnsembleParts,
        inbox: PipelineInbox,
        jobs: channel::Sender<Job>,
        log: &mut Log,
        ring: &Ring,
    ) -> io::Result<EnsembleSide> {
        let EnsembleParts { links, directories, recover, snapshot_size_factor, derived } = parts;
        for (file, epoch) in derived {
            log.store_epoch(file, epoch);
        }
        let links = links::LinksParts { is_buffered: ring.is_buffered(), ..links };
        Ok(EnsembleSide {
            links: Links::start(links)?,
            directories,
            recover,
            snapshot_size_factor,
            read: Arc::default(),
            inbox,
            jobs,
            change: None,
            changing: None,
            to_links: VecDeque::new(),
        })
    }

    // ---- links ------------------------------------------------------------------------------

    /// Takes what a step has asked for.
    pub(crate) fn ask(&mut self, to_links: impl Iterator<Item = ToLink>) {
        self.to_links.extend(to_links);
    }

    /// Does it, and sends what can be sent.
    pub(crate) fn flush(&mut self, ring: &mut Ring, newest: impl FnMut() -> Notification) {
        let mut tells = BTreeSet::new();
        while let Some(to_link) = self.to_links.pop_front() {
            match to_link {
                ToLink::Send(link, bytes) => self.links.send(link, bytes),
                ToLink::Snapshot(link, job) => {
                    info!(
                        target: "ringkeeper::shell::ensemble",
                        "Sending snapshot last zxid of peer is {}", job.zxid
                    );
                    self.links.send_snapshot(link, Box::new(move |out| job.write_body(out)));
                }
                ToLink::Look(link, span) => self.look(link, span),
                ToLink::Logged(link, span) => {
                    let directories = Arc::clone(&self.directories);
                    let read = Arc::clone(&self.read);
                    let write = move |out: &mut dyn io::Write| {
                        member::write_logged(&directories, &read, span, out)
                    };
                    self.links.send_logged(link, Box::new(write));
                }
                ToLink::Close(link) => self.links.close(link, ring),
                ToLink::Call(server) => self.links.call(server),
                ToLink::Tell(server) => {
                    tells.insert(server);
                }
            }
        }
        if !tells.is_empty() {
            self.links.tell(&tells);
        }
        self.links.flush(ring, newest);
    }

    /// Looks whether the log has all of this for a learner.
    fn look(&self, link: LinkId, span: Span) {
        let (directories, inbox) = (Arc::clone(&self.directories), self.inbox.clone());
        let Span { after, through } = span;
        let wanted = Wanted { after, through, size_factor: self.snapshot_size_factor };
        let look = move || {
            let read = member::read_logged(&directories, wanted, |_, _| ControlFlow::Continue(()));
            let has_all = read.unwrap_or_else(|error| {
                warn!(%error, "the log cannot be read for a learner");
                false
            });
            inbox.found(Found::Looked { link, has_all });
        };
        if let Err(error) = thread::Builder::new().name("log-look".to_owned()).spawn(look) {
            warn!(%error, "the log is not read for a learner");
            self.inbox.found(Found::Looked { link, has_all: false });
        }
    }

    // ---- the disk ---------------------------------------------------------------------------

    /// Has something made durable besides records.
    pub(crate) fn store(&mut self, log: &mut Log, durable: Durable) {
        match durable {
            Durable::AcceptedEpoch(epoch) => log.store_epoch(EpochFile::Accepted, epoch),
            Durable::CurrentEpoch(epoch) => log.store_epoch(EpochFile::Current, epoch),
            Durable::Truncated(to) => self.truncate(to),
            Durable::Snapshot(_) => unreachable!("a snapshot is stored as it is loaded"),
        }
    }

    fn truncate(&mut self, to: Zxid) {
        let directories = Arc::clone(&self.directories);
        let inbox = self.inbox.clone();
        self.in_background(move || {
            let found = match member::find_truncation(&directories, to) {
                Ok(Some(truncation)) if truncation.zxid == to => truncation,
                Ok(_) => return inbox.found(Found::NoSuchZxid(to)),
                Err(error) => {
                    error!(%error, "the log cannot be cut");
                    return inbox.found(Found::NoSuchZxid(to));
                }
            };
            let (done, wait) = channel::bounded(1);
            let change = Box::new(Change::Truncate(found));
            inbox.found(Found::Change { change, done });
            let _ = wait.recv();
        });
    }

    /// Loads the state anew that a truncation has left on the disk.
    pub(crate) fn reload(&mut self, to: Zxid) {
        let (directories, options) = (Arc::clone(&self.directories), self.recover);
        let inbox = self.inbox.clone();
        self.in_background(move || {
            match recover(&directories, options) {
                Ok(Recovered { standing: Some(Standing { doubt: Some(doubt), .. }), .. }) => {
                    inbox.fail(doubt);
                }
                Ok(recovered) => {
                    let (restored, stored) = (Box::new(recovered.state), Durable::Truncated(to));
                    inbox.found(Found::State { restored, stored });
                }
                // What is durable is right, and a start reads it: this process cannot go on.
                Err(error) => inbox.fail(error.to_string()),
            }
        });
    }

    /// Takes in the snapshot that a leader sends over `link`.
    pub(crate) fn load(&mut self, link: LinkId, zxid: Zxid) {
        let (inlet, mut outlet) = snapshot_pipe(SNAPSHOT_BYTES_MAX, self.inbox.bell());
        self.links.receive_snapshot(link, inlet);
        let (directories, options) = (Arc::clone(&self.directories), self.recover);
        let inbox = self.inbox.clone();
        let mut receive = move || -> Result<(Restored, Replacement), String> {
            let text = |error: &dyn std::fmt::Display| error.to_string();
            let mut sink = SnapshotSink::create(&directories).map_err(|e| text(&e))?;
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let count = outlet.read(&mut buffer).map_err(|e| text(&e))?;
                if count == 0 {
                    break;
                }
                sink.take(&buffer[..count]).map_err(|e| text(&e))?;
            }
            let restored = sink.finish(&directories, options, zxid).map_err(|e| text(&e))?;
            let replacement = member::find_replacement(&directories, zxid).map_err(|e| text(&e))?;
            Ok((restored, replacement))
        };
        self.in_background(move || match receive() {
            Ok((restored, replacement)) => {
                let (done, wait) = channel::bounded(1);
                let change = Box::new(Change::Replace(replacement));
                inbox.found(Found::Change { change, done });
                if wait.recv().is_ok() {
                    let (restored, stored) = (Box::new(restored), Durable::Snapshot(zxid));
                    inbox.found(Found::State { restored, stored });
                }
            }
            Err(error) => {
                warn!(error, "the leader's snapshot is not taken");
                inbox.found(Found::SnapshotLost);
            }
        });
    }

    /// The leader has this server's word that it has the new state: the old one may go.
    pub(crate) fn remove_replaced(&self) {
        let directories = Arc::clone(&self.directories);
        self.in_background(move || {
            if let Err(error) = member::remove_replaced(&directories) {
                warn!(%error, "what the leader's snapshot has replaced is still there");
            }
        });
    }

    fn in_background(&self, job: impl FnOnce() + Send + 'static) {
        // Once the background thread has ended, so do we.
        let _ = self.jobs.send(Job::Change(Box::new(job)));
    }

    /// A change waits for an idle log.
    pub(crate) fn change(&mut self, change: Box<Change>, done: channel::Sender<()>) {
        self.change = Some((change, done));
    }

    /// Begins a change that waits, if the log is idle.
    pub(crate) fn begin_change(&mut self, log: &mut Log) {
        if !log.is_idle() {
            return;
        }
        let Some((change, done)) = self.change.take() else { return };
        self.changing = Some(done);
        match *change {
            Change::Truncate(truncation) => log.truncate(truncation),
            Change::Replace(replacement) => log.replace(replacement),
        }
    }

    /// Something besides records is durable. Says what Zab is to be told.
    pub(crate) fn on_stored(&mut self, stored: &Storing) -> Option<Durable> {
        if stored.end().is_some()
            && let Some(done) = self.changing.take()
        {
            let _ = done.send(());
        }
        match *stored {
            Storing::Epoch { file: EpochFile::Accepted, epoch } => {
                Some(Durable::AcceptedEpoch(epoch))
            }
            Storing::Epoch { file: EpochFile::Current, epoch } => {
                Some(Durable::CurrentEpoch(epoch))
            }
            Storing::Truncation(Truncation { zxid, .. }) => Some(Durable::Truncated(zxid)),
            // The thread that has loaded it tells.
            Storing::Replacement(_) => None,
        }
    }
}

/// What has come over links, as the pipeline takes it. `None`: it is of no interest to it.
pub(crate) fn input_of(event: links::Event<'_>) -> Option<LinkInput<'_>> {
    Some(match event {
        links::Event::Notified { from, notification } => {
            LinkInput::Notification { from, notification }
        }
        links::Event::ElectionReached { server } => LinkInput::ElectionReached(server),
        links::Event::ElectionRefused { server } => LinkInput::ElectionRefused(server),
        links::Event::ElectionGone { server } => LinkInput::ElectionClosed(server),
        links::Event::LearnerConnected { link } => LinkInput::LearnerConnected(link),
        links::Event::LeaderReached { link, server } => LinkInput::LeaderReached { link, server },
        links::Event::LeaderSilent { server } => LinkInput::LeaderSilent(server),
        links::Event::LeaderRefused { server } => LinkInput::LeaderRefused(server),
        links::Event::LinkClosed { link } => LinkInput::Closed(link),
        links::Event::FromLearner { link, packet } => LinkInput::FromLearner { link, packet },
        links::Event::FromLeader { link, packet } => LinkInput::FromLeader { link, packet },
        links::Event::SnapshotCame { link, .. } | links::Event::BodyMoved { link } => {
            LinkInput::Progress(link)
        }
        links::Event::BodySent { link } => LinkInput::Streamed(link),
        links::Event::SnapshotEnded { .. } => return None,
        links::Event::CannotListen { host, port, error } => {
            error!(host, port, %error, "no server can connect here");
            return None;
        }
    })
}
