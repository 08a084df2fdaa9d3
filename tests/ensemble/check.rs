//! What has to hold at every moment, and once the faults are over.

use std::collections::{BTreeMap, BTreeSet};

use ringkeeper::record::txn::Txn;
use ringkeeper::storage::replay::read_payload;
use ringkeeper::types::{ServerId, Zxid};

/// What a batch of seeds must have reached.
pub(crate) const MARKS: &[&str] = &[
    "a leader serves",
    "a follower serves",
    "an observer serves",
    "a write through a follower",
    "a failed write through a follower",
    "a multi through a follower",
    "a sync through a follower",
    "a session moved",
    "a session was refused",
    "a session expired",
    "a session was closed through a follower",
    "DIFF",
    "DIFF from the log",
    "TRUNC",
    "TRUNC in memory",
    "TRUNC by reload",
    "SNAP",
    "a power cut",
    "a partition",
];

/// The history as servers have shown it.
#[derive(Debug, Default)]
pub(crate) struct History {
    /// The record with this zxid that some server has shown as committed.
    records: BTreeMap<Zxid, Box<[u8]>>,
    /// By session: the last of its requests that was done, and its transaction.
    done: BTreeMap<i64, (i32, Zxid)>,
    /// Sessions whose clients count anew with each connection.
    pub(crate) counted_anew: BTreeSet<i64>,
    pub(crate) marks: BTreeSet<&'static str>,
}

impl History {
    pub(crate) fn mark(&mut self, mark: &'static str) {
        self.marks.insert(mark);
    }

    /// A server counts a record as committed.
    pub(crate) fn committed(&mut self, server: ServerId, zxid: Zxid, payload: &[u8]) {
        if !self.records.contains_key(&zxid) {
            self.is_new(zxid, payload);
        }
        let record = self.records.entry(zxid).or_insert_with(|| payload.into());
        assert_eq!(&record[..], payload, "{server} has committed another {zxid}");
    }

    /// What a session asks for is done in the order in which it asks, over whatever servers.
    fn is_new(&mut self, zxid: Zxid, payload: &[u8]) {
        let (header, txn, _) = read_payload(payload).unwrap();
        let is_counted_anew = self.counted_anew.contains(&header.client_id);
        if header.cxid == 0 || is_counted_anew || matches!(txn, Txn::Error { .. }) {
            return;
        }
        let done = self.done.entry(header.client_id).or_insert((header.cxid, zxid));
        if done.1 < zxid {
            let (before, at) = *done;
            assert!(
                before < header.cxid,
                "{:#x} asked for {} before {before}, which was done at {at}, and {zxid} does it",
                header.client_id,
                header.cxid
            );
            *done = (header.cxid, zxid);
        }
    }

    /// Whether what was committed, up to `end`, is in a log that has these records.
    pub(crate) fn is_whole<'r>(
        &self,
        from: Zxid,
        end: Zxid,
        log: impl Iterator<Item = (Zxid, &'r [u8])>,
    ) -> Result<(), String> {
        let log: BTreeMap<Zxid, &[u8]> = log.collect();
        for (zxid, payload) in
            self.records.range((std::ops::Bound::Excluded(from), std::ops::Bound::Included(end)))
        {
            match log.get(zxid) {
                None => return Err(format!("{zxid} is committed and lost")),
                Some(found) if **found != payload[..] => {
                    return Err(format!("{zxid} is committed and is another"));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    pub(crate) fn last(&self) -> Zxid {
        self.records.last_key_value().map_or(Zxid::ZERO, |(zxid, _)| *zxid)
    }

    pub(crate) fn record(&self, zxid: Zxid) -> Option<&[u8]> {
        self.records.get(&zxid).map(|record| &**record)
    }
}
