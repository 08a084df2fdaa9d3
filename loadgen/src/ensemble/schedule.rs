//! What is done to the servers of an ensemble, and when.
//!
//! ```text
//! begin ── every/2 ── event ── down ── again ── … ── event ── …
//!                       └──────── every ──────────────┘
//! ```
//!
//! A server is back before the next event comes, so that no more than one is ever missing: where
//! it takes longer than `every`, the events are further apart and fewer.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::servers::Mode;
use crate::report::{as_span, span};
use crate::{Fault, hold};

/// What is done to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deed {
    /// SIGKILL, and it is started again.
    Kill,
    /// SIGTERM, and it is started again.
    Stop,
    /// SIGSTOP, and SIGCONT.
    Pause,
}

/// To whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Whom {
    Leader,
    Follower,
    Observer,
}

/// One thing that happens: `kill-leader`, `stop-follower`, `pause-observer`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub deed: Deed,
    pub whom: Whom,
}

const DEEDS: [(&str, Deed); 3] =
    [("kill", Deed::Kill), ("stop", Deed::Stop), ("pause", Deed::Pause)];
const WHOM: [(&str, Whom); 3] =
    [("leader", Whom::Leader), ("follower", Whom::Follower), ("observer", Whom::Observer)];

impl Whom {
    #[must_use]
    pub fn mode(self) -> Mode {
        match self {
            Whom::Leader => Mode::Leader,
            Whom::Follower => Mode::Follower,
            Whom::Observer => Mode::Observer,
        }
    }
}

impl FromStr for Event {
    type Err = String;

    fn from_str(text: &str) -> Result<Event, String> {
        let found = text.split_once('-').and_then(|(deed, whom)| {
            let deed = DEEDS.into_iter().find(|(name, _)| *name == deed)?.1;
            let whom = WHOM.into_iter().find(|(name, _)| *name == whom)?.1;
            Some(Event { deed, whom })
        });
        found.ok_or_else(|| {
            format!("'{text}' is not one of kill, stop, pause and one of leader, follower, observer, as in kill-leader")
        })
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deed = DEEDS.into_iter().find(|(_, deed)| *deed == self.deed);
        let whom = WHOM.into_iter().find(|(_, whom)| *whom == self.whom);
        let (Some((deed, _)), Some((whom, _))) = (deed, whom) else {
            unreachable!("each has a name")
        };
        write!(f, "{deed}-{whom}")
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// When what happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// One after the other, and again from the first.
    pub events: Vec<Event>,
    #[serde(serialize_with = "as_span")]
    pub every: Duration,
    /// How long a server is down or paused.
    #[serde(serialize_with = "as_span")]
    pub down: Duration,
}

impl Schedule {
    pub fn check(&self, load: Duration) -> Result<(), Fault> {
        hold(&[
            (!self.events.is_empty(), "an event at least"),
            (self.down < self.every, "--down is shorter than --every"),
            (self.every <= load, "--every is not longer than the load lasts"),
        ])
    }

    /// The event that comes after so many, and when: counted from the begin of a load of this
    /// length. None: that is too late, for what it does could not be seen to its end.
    #[must_use]
    pub fn next(
        &self,
        done: usize,
        not_before: Duration,
        load: Duration,
    ) -> Option<(Duration, Event)> {
        let planned = self.every / 2 + self.every * done as u32;
        // An event that others have delayed leaves as much time behind it as one that is in time.
        let at = planned.max(not_before);
        let event = self.events[done % self.events.len()];
        (at + self.every / 2 <= load).then_some((at, event))
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let events: Vec<_> = self.events.iter().map(Event::to_string).collect();
        let (every, down) = (span(self.every), span(self.down));
        write!(f, "--event {} --every {every} --down {down}", events.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    fn schedule(events: &str) -> Schedule {
        Schedule {
            events: events.split(',').map(|event| event.parse().unwrap()).collect(),
            every: seconds(10.0),
            down: seconds(3.0),
        }
    }

    #[test]
    fn an_event_is_read_as_it_is_printed() {
        for (name, _) in DEEDS {
            for (whom, _) in WHOM {
                let text = format!("{name}-{whom}");
                assert_eq!(text.parse::<Event>().unwrap().to_string(), text);
            }
        }
        for text in ["", "kill", "kill-", "leader-kill", "kill-leader-", "Kill-leader"] {
            assert!(text.parse::<Event>().unwrap_err().contains("as in kill-leader"), "{text}");
        }
    }

    #[test]
    fn a_minute_of_events_every_ten_seconds_has_six() {
        let schedule = schedule("kill-leader,stop-follower");
        let load = seconds(60.0);
        let planned: Vec<_> =
            (0..).map_while(|done| schedule.next(done, Duration::ZERO, load)).collect();
        let at: Vec<_> = planned.iter().map(|(at, _)| at.as_secs()).collect();
        assert_eq!(at, [5, 15, 25, 35, 45, 55]);
        let events: Vec<_> = planned.iter().map(|(_, event)| event.to_string()).collect();
        assert_eq!(events[..3], ["kill-leader", "stop-follower", "kill-leader"]);
    }

    #[test]
    fn an_event_waits_for_the_one_before_and_leaves_time_behind_it() {
        let schedule = schedule("kill-leader");
        let load = seconds(30.0);
        let at = |done, not_before| schedule.next(done, seconds(not_before), load);
        assert_eq!(at(1, 22.5).unwrap().0, seconds(22.5));
        assert_eq!(at(2, 22.5).unwrap().0, seconds(25.0));
        assert_eq!(at(2, 25.5), None);
        assert_eq!(at(3, 0.0), None);
    }

    #[test]
    fn a_schedule_that_cannot_be_kept_is_refused() {
        let good = schedule("kill-leader");
        good.check(seconds(10.0)).unwrap();
        assert!(good.check(seconds(9.0)).is_err());
        assert!(Schedule { down: seconds(10.0), ..good.clone() }.check(seconds(60.0)).is_err());
        assert!(Schedule { events: Vec::new(), ..good }.check(seconds(60.0)).is_err());
    }
}
