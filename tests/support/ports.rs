//! Ports for servers that tests start.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below those that the kernel gives to outgoing connections: no client of another test can have
/// taken one when its server starts, or starts again, and none can connect to itself.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// Listens on a port of loopback that this process has not asked for before.
pub(crate) fn listen() -> TcpListener {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(97);
    let ports = (0..COUNT).map(|_| {
        let offset = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        u16::try_from(FIRST + offset).expect("20000 to 31999")
    });
    ports
        .filter_map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok())
        .next()
        .expect("one of thousands of ports is free")
}
