//! What happens to the servers while a load runs: the schedule is kept here, on the thread that
//! has started them, for they end with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use super::schedule::{Deed, Event, Schedule, Whom};
use super::servers::{Mode, SERVE_WITHIN, Servers, Used};
use crate::{Fault, Progress, sys};

/// How often a server is asked whether it is back.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// The longest wait in which an interrupt is not seen.
const LISTEN_MAX: Duration = Duration::from_millis(50);
/// How much of the time between two events the servers are left alone at least.
const REST: u32 = 4;

/// What the load's thread tells.
pub(super) enum Word {
    Begin(Instant),
    Second {
        elapsed: Duration,
        replies: u64,
    },
    End(Instant),
    /// Everything is answered. Whoever has sent this waits until all servers are back.
    Held(Sender<()>),
}

/// One event, and what came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Happened {
    pub(super) event: Event,
    pub(super) id: usize,
    pub(super) at: Instant,
    /// From the request to end until it had ended, where it was asked.
    pub(super) ended_in: Option<Duration>,
    /// When it was started again, or went on.
    pub(super) again: Instant,
    /// When it served again.
    pub(super) back: Instant,
    pub(super) mode: Mode,
}

/// What the servers had used and did, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) used: Vec<Used>,
    pub(super) modes: Vec<Option<Mode>>,
}

pub(super) struct Conductor<'a> {
    servers: &'a mut Servers,
    words: Receiver<Word>,
    /// Grown each time all sessions of a storm are to be cut.
    cuts: Arc<AtomicU64>,
    said: &'a mut dyn FnMut(&str),
    progress: Progress<'a>,
    begin: Option<Instant>,
    end: Option<Instant>,
    looks: [Option<Look>; 2],
    held: Option<Sender<()>>,
    /// Whether the load's thread has ended.
    is_gone: bool,
}

/// What the load's time has been like for the servers.
pub(super) struct Conducted {
    pub(super) happened: Vec<Happened>,
    pub(super) begin: Option<Instant>,
    pub(super) end: Option<Instant>,
    pub(super) looks: [Option<Look>; 2],
}

impl<'a> Conductor<'a> {
    pub(super) fn new(
        servers: &'a mut Servers,
        words: Receiver<Word>,
        cuts: Arc<AtomicU64>,
        said: &'a mut dyn FnMut(&str),
        progress: Progress<'a>,
    ) -> Conductor<'a> {
        Conductor {
            servers,
            words,
            cuts,
            said,
            progress,
            begin: None,
            end: None,
            looks: [None, None],
            held: None,
            is_gone: false,
        }
    }

    /// Keeps the schedule while a load of this length runs, and stays until it has ended.
    pub(super) fn conduct(
        mut self,
        schedule: Option<&Schedule>,
        load: Duration,
    ) -> Result<Conducted, Fault> {
        self.wait_for(|it| it.begin.is_some())?;
        let mut happened = Vec::new();
        if let (Some(begin), Some(schedule)) = (self.begin, schedule) {
            let mut not_before = Duration::ZERO;
            while let Some((at, event)) = schedule.next(happened.len(), not_before, load) {
                self.wait_until(begin + at, |it| it.end.is_some())?;
                if self.is_gone || self.end.is_some() {
                    break;
                }
                let last = happened.iter().rev().find(|it: &&Happened| it.event.whom == event.whom);
                let done = self.make_happen(event, last.map(|it| it.id), schedule.down)?;
                not_before = done.back - begin + schedule.every / REST;
                happened.push(done);
            }
        }
        self.wait_for(|it| it.end.is_some())?;
        self.servers.wait_all(SERVE_WITHIN)?;
        self.wait_for(|it| it.held.is_some())?;
        if let Some(held) = self.held.take() {
            // Whoever has gone meanwhile waits for nothing.
            let _ = held.send(());
        }
        self.wait_for(|_| false)?;
        Ok(Conducted { happened, begin: self.begin, end: self.end, looks: self.looks })
    }

    /// Listens until something is so, or the load's thread has ended.
    fn wait_for(&mut self, is_so: impl Fn(&Self) -> bool) -> Result<(), Fault> {
        while !self.is_gone && !is_so(self) {
            self.listen(LISTEN_MAX)?;
        }
        Ok(())
    }

    /// The same until a moment at most.
    fn wait_until(&mut self, moment: Instant, is_so: impl Fn(&Self) -> bool) -> Result<(), Fault> {
        loop {
            let left = moment.saturating_duration_since(Instant::now());
            if left.is_zero() || self.is_gone || is_so(self) {
                return Ok(());
            }
            self.listen(left.min(LISTEN_MAX))?;
        }
    }

    fn listen(&mut self, within: Duration) -> Result<(), Fault> {
        if sys::is_interrupted() {
            return Err(Fault::Interrupted);
        }
        match self.words.recv_timeout(within) {
            Ok(Word::Begin(at)) => {
                self.begin = Some(at);
                self.looks[0] = Some(self.look());
            }
            Ok(Word::End(at)) => {
                self.end = Some(at);
                self.looks[1] = Some(self.look());
            }
            Ok(Word::Second { elapsed, replies }) => (self.progress)(elapsed, replies),
            Ok(Word::Held(held)) => self.held = Some(held),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.is_gone = true,
        }
        Ok(())
    }

    /// CPU time first, for to ask what each does takes a while.
    fn look(&self) -> Look {
        let used = self.servers.used();
        let modes = self.servers.iter().map(|server| server.mode()).collect();
        Look { used, modes }
    }

    fn make_happen(
        &mut self,
        event: Event,
        last: Option<usize>,
        down: Duration,
    ) -> Result<Happened, Fault> {
        let id = self.choose(event, last)?;
        let elapsed = self.begin.map(|begin| begin.elapsed()).unwrap_or_default();
        (self.said)(&format!("{:5.1} s: {event}, server {id}", elapsed.as_secs_f64()));
        let at = Instant::now();
        let mut ended_in = None;
        match event.deed {
            Deed::Kill => self.servers.kill(id),
            Deed::Stop => ended_in = Some(self.servers.stop(id)),
            Deed::Pause => self.servers.pause(id)?,
        }
        if event.whom == Whom::Leader {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        }
        self.wait_until(at + down, |_| false)?;
        let again = match event.deed {
            Deed::Kill | Deed::Stop => {
                self.servers.start(id)?;
                self.servers.iter().find_map(|it| it.since().filter(|_| it.place.id == id))
            }
            Deed::Pause => {
                self.servers.go_on(id)?;
                None
            }
        };
        let again = again.unwrap_or_else(Instant::now);
        let mode = loop {
            let mode = self.servers.mode(id);
            // One that was paused says what it was until it hears of the others.
            let is_back = event.deed != Deed::Pause || self.servers.all_serve();
            if let (Some(mode), true) = (mode, is_back) {
                break mode;
            }
            if SERVE_WITHIN <= again.elapsed() {
                let what =
                    format!("after {event} server {id} does not serve within {SERVE_WITHIN:?}");
                return Err(Fault::SetUp { what });
            }
            self.servers.none_has_ended()?;
            self.wait_until(Instant::now() + ASK_EVERY, |_| false)?;
            if self.is_gone {
                // The wait above returns at once then.
                super::servers::pause()?;
            }
        };
        let back = Instant::now();
        let ms = (back - again).as_secs_f64() * 1e3;
        (self.said)(&format!("         server {id} is back after {ms:.0} ms: {mode}"));
        Ok(Happened { event, id, at, ended_in, again, back, mode })
    }

    /// The server that an event befalls: in turn where there are several of a kind.
    fn choose(&mut self, event: Event, last: Option<usize>) -> Result<usize, Fault> {
        self.servers.wait_all(SERVE_WITHIN)?;
        let wanted = event.whom.mode();
        let ids: Vec<_> = self
            .servers
            .iter()
            .filter(|server| server.mode() == Some(wanted))
            .map(|server| server.place.id)
            .collect();
        let next = ids.iter().copied().find(|&id| last.is_some_and(|last| last < id));
        next.or(ids.first().copied())
            .ok_or_else(|| Fault::Load(format!("{event}: the ensemble has no {wanted}")))
    }
}
