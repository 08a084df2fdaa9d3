//! One case being tried: its corner of the tree, its clients, and what did not come out as told.
//!
//! A check that fails is written down and the case goes on, so that one run shows all that is
//! wrong with it. Only what leaves nothing to go on with is a [`Stop`].

use std::fmt::Debug;
use std::io;

use crate::client::{Client, Connect, Event, Message, PATIENCE, Reply, Wire};
use crate::target::{Seed, Server, Settings, Target, Version};
use crate::wire::{Malformed, Request, Stat, create, err, hex, sync};

/// Why a case could not be tried to its end.
#[derive(Debug)]
pub(crate) struct Stop(pub(crate) String);

impl Stop {
    pub(crate) fn new(why: impl Into<String>) -> Stop {
        Stop(why.into())
    }
}

impl From<io::Error> for Stop {
    fn from(e: io::Error) -> Stop {
        Stop(e.to_string())
    }
}

impl From<Malformed> for Stop {
    fn from(Malformed(why): Malformed) -> Stop {
        Stop(format!("malformed: {why}"))
    }
}

pub(crate) type Outcome = Result<(), Stop>;

/// A case's view of the world.
pub(crate) struct Trial<'a> {
    target: &'a Target,
    server: Option<&'a Server>,
    root: String,
    mismatches: Vec<String>,
}

impl<'a> Trial<'a> {
    pub(crate) fn new(target: &'a Target, server: Option<&'a Server>, number: &str) -> Trial<'a> {
        Trial { target, server, root: format!("/c{number}"), mismatches: Vec::new() }
    }

    /// What did not come out as told, in order.
    pub(crate) fn into_mismatches(self) -> Vec<String> {
        self.mismatches
    }

    /// A path of this case's own: `at("")` is the case's root, `at("/a")` is below it.
    pub(crate) fn at(&self, below: &str) -> String {
        format!("{}{below}", self.root)
    }

    /// Creates the case's root, the parent of everything that [`Trial::at`] names.
    pub(crate) fn make_root(&mut self) -> Outcome {
        let mut client = self.client()?;
        let root = self.at("");
        self.ok(&mut client, &create(&root, 0))?;
        Ok(())
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.target.is_ours()
    }

    /// Whether the target has a change that came with these releases, one per line of releases:
    /// `[(3, 8, 4), (3, 9, 2)]` holds for 3.8.4, 3.9.2 and 3.10.0 but not for 3.9.1.
    pub(crate) fn since(&self, releases: &[Version]) -> bool {
        let (major, minor, patch) = self.target.version();
        match releases.iter().find(|r| (r.0, r.1) == (major, minor)) {
            Some(release) => release.2 <= patch,
            None => releases.iter().all(|r| (r.0, r.1) < (major, minor)),
        }
    }

    pub(crate) fn server(&self) -> Result<&'a Server, Stop> {
        self.server.ok_or_else(|| Stop::new("this case starts its servers itself"))
    }

    /// A server of this case's own.
    pub(crate) fn start(&self, settings: &Settings, seed: Seed<'_>) -> Result<Server, Stop> {
        Server::start(self.target, settings, seed)
    }

    pub(crate) fn wire(&self) -> Result<Wire, Stop> {
        Wire::open(self.server()?.address)
    }

    pub(crate) fn client(&self) -> Result<Client, Stop> {
        self.client_with(&Connect::default())
    }

    pub(crate) fn client_with(&self, connect: &Connect) -> Result<Client, Stop> {
        Client::connect(self.server()?.address, connect)
    }

    /// The session tick of the server in milliseconds.
    pub(crate) fn tick_ms(&self) -> Result<i32, Stop> {
        Ok(self.server()?.tick_ms)
    }

    /// Writes down what differs.
    pub(crate) fn same<T: PartialEq + Debug>(&mut self, what: &str, expected: T, actual: T) {
        if expected != actual {
            self.mismatches
                .push(format!("{what}\n    expected {expected:?}\n    actual   {actual:?}"));
        }
    }

    pub(crate) fn that(&mut self, what: &str, holds: bool) {
        if !holds {
            self.mismatches.push(format!("not so: {what}"));
        }
    }

    pub(crate) fn same_bytes(&mut self, what: &str, expected: &[u8], actual: &[u8]) {
        if expected != actual {
            self.mismatches.push(format!(
                "{what}\n    expected {}\n    actual   {}",
                hex(expected),
                hex(actual)
            ));
        }
    }

    /// Asks and wants the answer `err`, with an empty body if it is an error.
    pub(crate) fn answer(
        &mut self,
        client: &mut Client,
        request: &Request,
        err: i32,
    ) -> Result<Reply, Stop> {
        self.answer_one_of(client, request, &[err])
    }

    /// Asks and wants one of several answers, where a server has the choice.
    pub(crate) fn answer_one_of(
        &mut self,
        client: &mut Client,
        request: &Request,
        errs: &[i32],
    ) -> Result<Reply, Stop> {
        let reply = client.call(request)?;
        self.replied(request, &reply, errs);
        Ok(reply)
    }

    /// Wants `reply` to be an answer to `request` with one of `errs`.
    pub(crate) fn replied(&mut self, request: &Request, reply: &Reply, errs: &[i32]) {
        let sent = || format!("op {} with {}", request.op, hex(&request.body));
        if !errs.contains(&reply.err) {
            self.mismatches.push(format!(
                "{} {:?}\n    expected err {errs:?}\n    actual   err {} zxid {:#x} body {}",
                sent(),
                String::from_utf8_lossy(&request.body[..request.body.len().min(64)]),
                reply.err,
                reply.zxid,
                hex(&reply.body)
            ));
        } else if reply.err != err::OK && !reply.body.is_empty() {
            self.mismatches.push(format!(
                "{}\n    expected err {} with an empty body\n    actual   body {}",
                sent(),
                reply.err,
                hex(&reply.body)
            ));
        }
    }

    /// Asks and cannot go on unless it succeeds.
    pub(crate) fn ok(&mut self, client: &mut Client, request: &Request) -> Result<Reply, Stop> {
        let reply = self.answer(client, request, err::OK)?;
        if reply.err == err::OK {
            Ok(reply)
        } else {
            Err(Stop::new("a step failed that the rest needs"))
        }
    }

    /// The path that a create of any kind made.
    pub(crate) fn created(
        &mut self,
        client: &mut Client,
        request: &Request,
    ) -> Result<String, Stop> {
        Ok(self.ok(client, request)?.input().string()?)
    }

    pub(crate) fn stat(&mut self, client: &mut Client, path: &str) -> Result<Stat, Stop> {
        Ok(self.ok(client, &crate::wire::exists(path, false))?.input().stat()?)
    }

    /// Waits until the server has answered something that is newer than all it was told by
    /// anybody so far, so that the events of all that have arrived here.
    pub(crate) fn settle(&mut self, client: &mut Client) -> Outcome {
        self.ok(client, &sync("/"))?;
        Ok(())
    }

    /// Wants exactly these events, as (type, path), since events were last asked for.
    pub(crate) fn events(
        &mut self,
        what: &str,
        client: &mut Client,
        expected: &[(i32, &str)],
    ) -> Result<Vec<Event>, Stop> {
        self.settle(client)?;
        let events = client.take_events();
        let actual: Vec<(i32, &str)> = events.iter().map(|e| (e.kind, e.path.as_str())).collect();
        self.same(&format!("events: {what}"), expected, &actual);
        for event in &events {
            self.same("the state in an event is SyncConnected", 3, event.state);
        }
        Ok(events)
    }

    /// Wants the connection to end with nothing more on it.
    pub(crate) fn closes(&mut self, what: &str, client: &mut Client) -> Outcome {
        let replies = client.replies_until_close()?;
        self.same(&format!("closed without a word: {what}"), Vec::new(), replies);
        Ok(())
    }

    /// Wants the stream to end with nothing more on it.
    pub(crate) fn ends(&mut self, what: &str, wire: &mut Wire) -> Outcome {
        let rest = wire.drain()?;
        self.same_bytes(&format!("closed without a word: {what}"), b"", &rest);
        Ok(())
    }

    /// Wants the server to close this connection, and nothing else on it, within PATIENCE.
    pub(crate) fn next_is_close(&mut self, what: &str, client: &mut Client) -> Outcome {
        let deadline = std::time::Instant::now() + PATIENCE;
        let message = client.message(deadline)?;
        self.same(what, Message::Closed, message);
        Ok(())
    }
}
