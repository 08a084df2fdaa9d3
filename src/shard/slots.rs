//! The connections of a shard, by slot.

use super::connection::Connection;
use crate::exchange::ConnectionId;
use crate::types::SessionId;

/// The connections by slot. A slot is used again, with another generation.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slots: Vec<Slot>,
    free: Vec<u32>,
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

    pub(super) fn remove(&mut self, id: ConnectionId) {
        let slot = &mut self.slots[id.slot as usize];
        assert_eq!(slot.generation, id.generation, "only a live connection is removed");
        slot.connection = None;
        self.free.push(id.slot);
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn session_at(&self, number: u32) -> Option<SessionId> {
        let connection = self.slots.get(number as usize)?.connection.as_deref()?;
        connection.session().map(|(session, _)| session)
    }

    pub(super) fn for_each(&mut self, change: impl FnMut(&mut Connection)) {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_deref_mut()).for_each(change);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.slots.iter().zip(0..).filter_map(|(slot, number)| {
            let id = ConnectionId { slot: number, generation: slot.generation };
            slot.connection.as_deref().map(|connection| (id, connection))
        })
    }
}
