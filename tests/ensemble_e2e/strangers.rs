//! Strangers on the ports that are for servers.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use crate::PATIENCE;
use crate::ensemble::{Ensemble, Plan};
use crate::load::Load;
use crate::random::Random;
use crate::server::until;

const GROWTH_KIB_MAX: u64 = 8 << 10;

#[test]
fn strangers_cost_nothing() {
    let mut random = Random::of_test("strangers");
    let ensemble = Ensemble::started("strangers", &Plan::of(3));
    let load = Load::start(&ensemble, &mut random, 6);
    load.wait_writes(500);
    let leader = ensemble.wait_leader();
    let before: Vec<u64> =
        ensemble.ids().iter().map(|&id| ensemble.server(id).memory_kib("VmRSS")).collect();
    let is_over = Arc::new(AtomicBool::new(false));
    let sent = Arc::new(AtomicU64::new(0));
    let mut strangers = Vec::new();
    for (&id, member) in &ensemble.members {
        for port in [member.quorum, member.election] {
            // A follower does not listen for learners.
            if port == member.quorum && id != leader && TcpStream::connect(port).is_err() {
                continue;
            }
            for kind in 0..4 {
                let (is_over, sent) = (Arc::clone(&is_over), Arc::clone(&sent));
                let random = Random::new(random.next());
                strangers
                    .push(thread::spawn(move || stranger(port, kind, random, &is_over, &sent)));
            }
        }
    }
    load.mark();
    load.wait_writes(1_000);
    until(
        PATIENCE,
        || "strangers cannot send".to_owned(),
        || 1 << 20 < sent.load(Ordering::Relaxed),
    );
    let gap = load.gap();
    for (place, &id) in ensemble.ids().iter().enumerate() {
        let after = ensemble.server(id).memory_kib("VmRSS");
        println!("strangers: server {id}: {} KiB, then {after} KiB", before[place]);
        assert!(after < before[place] + GROWTH_KIB_MAX, "server {id} grows");
    }
    println!("strangers: {} KiB sent, {gap:?} without a write", sent.load(Ordering::Relaxed) >> 10);
    assert_eq!(ensemble.wait_leader(), leader, "nobody was disturbed");
    is_over.store(true, Ordering::Relaxed);
    for stranger in strangers {
        stranger.join().expect("a stranger ends");
    }
    load.finish().check(&ensemble);
}

/// Connects again and again: says nothing, garbage, an endless stream, or a length that is too long.
fn stranger(
    port: SocketAddr,
    kind: u32,
    mut random: Random,
    is_over: &AtomicBool,
    sent: &AtomicU64,
) {
    while !is_over.load(Ordering::Relaxed) {
        thread::park_timeout(Duration::from_millis(10));
        let Ok(mut socket) = TcpStream::connect(port) else { continue };
        socket.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let garbage = |random: &mut Random| -> Vec<u8> {
            (0..512).flat_map(|_| random.next().to_be_bytes()).collect()
        };
        match kind {
            0 => {
                let _ = socket.read(&mut [0]);
            }
            1 => {
                let _ = socket.write_all(&garbage(&mut random));
                let _ = socket.read(&mut [0]);
            }
            2 => {
                while !is_over.load(Ordering::Relaxed) {
                    let bytes = garbage(&mut random);
                    if socket.write_all(&bytes).is_err() {
                        break;
                    }
                    sent.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                }
            }
            _ => {
                // A length that promises much, and as much as is taken of it.
                let length = 0x7fff_ffff_u32.to_be_bytes();
                let _ = socket.write_all(&length);
                while !is_over.load(Ordering::Relaxed) && socket.write_all(&[0; 4096]).is_ok() {
                    sent.fetch_add(4096, Ordering::Relaxed);
                }
            }
        }
    }
}
