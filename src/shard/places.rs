//! What a shard does only a few of at a time, and who waits to do it.
//!
//! ```text
//! Long        answers that take several turns: each holds a view, and an answer in memory
//! Ephemerals  getEphemerals with the pipeline: its answer may be long
//! ```
//!
//! A connection that finds no free place waits in line, and the shard does not look at it until it
//! has one. A place that becomes free goes to the first connection in line, which continues in the
//! next turn. When a connection ends, or its request turns out to need no place, it gives its place
//! back or leaves the line. So no place is lost, and every connection in line gets one.

use std::collections::BTreeMap;

use crate::exchange::ConnectionId;
use crate::record::op::code;

use super::connection::{Connection, Traffic};
use super::{Core, Step};

/// What there are places for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Long,
    Ephemerals,
}

/// How many answers of a shard are made over several turns at once. As many share a turn.
pub(super) const LONG_MAX: usize = 8;
/// Its answer is made whole by the pipeline.
const EPHEMERALS_MAX: usize = 1;

/// A connection waits in line for a place, or a place is reserved for it that it has not taken yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    place: Place,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Places {
    long: Line,
    ephemerals: Line,
    /// The connection that asked for ephemerals and ended, and how many answers of the pipeline's
    /// are still to come for it, up to that one. Until then its place is taken.
    left_behind: Option<(ConnectionId, usize)>,
}

#[derive(Debug)]
struct Line {
    free: usize,
    /// By number, which only grows. Nobody is in here while a place is free.
    waiting: BTreeMap<u64, ConnectionId>,
    next_number: u64,
}

impl Line {
    fn new(places: usize) -> Line {
        Line { free: places, waiting: BTreeMap::new(), next_number: 0 }
    }

    /// Takes a place, or gets in line, or stays there; then its number says where.
    fn take(&mut self, id: ConnectionId, number: Option<u64>) -> Result<(), u64> {
        match number {
            Some(number) if self.waiting.contains_key(&number) => Err(number),
            // It had come to the front.
            Some(_) => Ok(()),
            None if 0 < self.free => {
                self.free -= 1;
                Ok(())
            }
            None => {
                let number = self.next_number;
                self.next_number += 1;
                self.waiting.insert(number, id);
                Err(number)
            }
        }
    }

    /// A place is not needed any more: who has it now.
    fn give_back(&mut self) -> Option<ConnectionId> {
        let next = self.waiting.pop_first();
        if next.is_none() {
            self.free += 1;
        }
        next.map(|(_, id)| id)
    }

    /// Takes who has this number out of the line; whether it was there, and not at the front yet.
    fn leave(&mut self, number: u64) -> bool {
        self.waiting.remove(&number).is_some()
    }
}

impl Places {
    pub(super) fn new() -> Places {
        Places {
            long: Line::new(LONG_MAX),
            ephemerals: Line::new(EPHEMERALS_MAX),
            left_behind: None,
        }
    }

    fn line(&mut self, place: Place) -> &mut Line {
        match place {
            Place::Long => &mut self.long,
            Place::Ephemerals => &mut self.ephemerals,
        }
    }

    #[cfg(test)]
    pub(super) fn free(&self, place: Place) -> usize {
        match place {
            Place::Long => self.long.free,
            Place::Ephemerals => self.ephemerals.free,
        }
    }

    /// The invariant that does not hold, by name.
    pub(super) fn broken_invariant<'c>(
        &self,
        connections: impl Iterator<Item = (ConnectionId, &'c Connection)>,
    ) -> Option<&'static str> {
        let (mut long, mut ephemerals) = (0, usize::from(self.left_behind.is_some()));
        let mut waiting = 0;
        for (id, connection) in connections {
            let Some(traffic) = connection.traffic.as_deref() else { continue };
            long += usize::from(traffic.long.as_ref().is_some_and(|long| long.has_place()));
            ephemerals +=
                traffic.unanswered.iter().filter(|of| of.op == code::GET_EPHEMERALS).count();
            let Some(Wait { place, number }) = traffic.wait else { continue };
            let (line, taken) = match place {
                Place::Long => (&self.long, &mut long),
                Place::Ephemerals => (&self.ephemerals, &mut ephemerals),
            };
            match line.waiting.get(&number) {
                Some(of) if *of == id => waiting += 1,
                Some(_) => return Some("each has a number of its own"),
                None => *taken += 1,
            }
        }
        if waiting != self.long.waiting.len() + self.ephemerals.waiting.len() {
            return Some("who is in line is there");
        }
        if long + self.long.free != LONG_MAX || ephemerals + self.ephemerals.free != EPHEMERALS_MAX
        {
            return Some("no place is lost");
        }
        let is_idle = |line: &Line| 0 < line.free && !line.waiting.is_empty();
        if is_idle(&self.long) || is_idle(&self.ephemerals) {
            return Some("nobody waits while a place is free");
        }
        None
    }
}

impl Core {
    /// Takes a place, or has the connection wait in line for one.
    pub(super) fn take_place(&mut self, step: &mut Step<'_>, place: Place) -> bool {
        let number = step.traffic.wait.map(|wait| {
            debug_assert_eq!(wait.place, place, "a connection waits for one thing at a time");
            wait.number
        });
        match self.places.line(place).take(step.id, number) {
            Ok(()) => {
                step.traffic.wait = None;
                true
            }
            Err(number) => {
                step.traffic.wait = Some(Wait { place, number });
                // It goes on when it has come to the front.
                step.traffic.is_queued = true;
                false
            }
        }
    }

    /// A place that was taken is not needed any more. Who comes to the front goes on in the next turn.
    pub(super) fn give_back_place(&mut self, place: Place) {
        if let Some(id) = self.places.line(place).give_back() {
            self.turns.wake(id);
        }
    }

    /// The connection does not wait for a place any more, or does not need what it waited for.
    pub(super) fn stop_waiting(&mut self, traffic: &mut Traffic) {
        if let Some(Wait { place, number }) = traffic.wait.take() {
            if self.places.line(place).leave(number) {
                // It was not in the queue of the next turn.
                traffic.is_queued = false;
            } else {
                self.give_back_place(place);
            }
        }
    }

    /// A connection ends that has a getEphemerals with the pipeline, as the last of so many requests:
    /// its place is taken until that is answered.
    pub(super) fn leave_ephemerals_behind(&mut self, id: ConnectionId, requests: usize) {
        debug_assert_eq!(self.places.left_behind, None, "one at a time is with the pipeline");
        self.places.left_behind = Some((id, requests));
    }

    /// Nothing is with the pipeline any more.
    pub(super) fn forget_left_behind(&mut self) {
        if self.places.left_behind.take().is_some() {
            self.give_back_place(Place::Ephemerals);
        }
    }

    /// The pipeline has answered a connection that has ended, or has ended it.
    pub(super) fn on_late_reply(&mut self, id: ConnectionId) {
        if let Some((of, requests)) = &mut self.places.left_behind
            && *of == id
        {
            *requests -= 1;
            if *requests == 0 {
                self.places.left_behind = None;
                self.give_back_place(Place::Ephemerals);
            }
        }
    }
}
