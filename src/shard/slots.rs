//! The connections of a shard, by slot.

use std::ops::Range;

use super::connection::Connection;
use crate::exchange::ConnectionId;
use crate::types::SessionId;

/// The connections by slot. A slot is used again, with another generation.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// How many are neither used nor free: something still goes by their numbers.
    reserved: usize,
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

impl Connections {
    pub(super) fn insert(&mut self, connection: Box<Connection>) -> ConnectionId {
        if let Some(number) = self.free.pop() {
            let slot = &mut self.slots[number as usize];
            slot.generation = slot.generation.wrapping_add(1);
            slot.connection = Some(connection);
            return ConnectionId { slot: number, generation: slot.generation };
        }
        let number = u32::try_from(self.slots.len()).expect("fewer than 2^32 connections");
        self.slots.push(Slot { generation: 0, connection: Some(connection) });
        ConnectionId { slot: number, generation: 0 }
    }

    pub(super) fn find(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.connection.as_deref_mut() } else { None }
    }

    pub(super) fn at(&mut self, number: u32) -> Option<(ConnectionId, &mut Connection)> {
        let slot = self.slots.get_mut(number as usize)?;
        let id = ConnectionId { slot: number, generation: slot.generation };
        slot.connection.as_deref_mut().map(|connection| (id, connection))
    }

    /// The connection is no more. Where its slot is reserved, that is used again after `release`.
    pub(super) fn remove(&mut self, id: ConnectionId, is_reserved: bool) {
        let slot = &mut self.slots[id.slot as usize];
        assert_eq!(slot.generation, id.generation, "only a live connection is removed");
        slot.connection = None;
        if is_reserved {
            self.reserved += 1;
        } else {
            self.free.push(id.slot);
        }
    }

    /// Nothing goes by this number any more, but a connection if there is one.
    pub(super) fn release(&mut self, number: u32) {
        if self.slots[number as usize].connection.is_none() {
            self.reserved -= 1;
            self.free.push(number);
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len() - self.reserved
    }

    pub(super) fn session_at(&self, number: u32) -> Option<SessionId> {
        let connection = self.slots.get(number as usize)?.connection.as_deref()?;
        connection.session().map(|(session, _)| session)
    }

    pub(super) fn for_each(&mut self, change: impl FnMut(&mut Connection)) {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_deref_mut()).for_each(change);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.iter_in(0..u32::MAX)
    }

    pub(super) fn slot_count(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("fewer than 2^32 connections")
    }

    /// Those in these slots.
    pub(super) fn iter_in(
        &self,
        slots: Range<u32>,
    ) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        let end = slots.end.min(self.slot_count());
        let slots = slots.start.min(end)..end;
        let found = &self.slots[slots.start as usize..slots.end as usize];
        found.iter().zip(slots).filter_map(|(slot, number)| {
            let id = ConnectionId { slot: number, generation: slot.generation };
            slot.connection.as_deref().map(|connection| (id, connection))
        })
    }
}
