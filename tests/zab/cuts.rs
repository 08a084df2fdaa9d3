//! The shapes in which a network comes apart.

use std::collections::BTreeSet;

use ringkeeper::types::ServerId;

use crate::rng::Rng;

pub(crate) const ALL: &[&str] = &[
    "a pair is cut",
    "a one-way cut",
    "one server is cut off",
    "one server hears nobody",
    "one server is heard by nobody",
    "two halves",
    "a bridge between two halves",
    "a ring of majorities",
];

/// A shape and its name: nothing passes from the first to the second of each pair.
pub(crate) fn draw(
    rng: &mut Rng,
    servers: &[ServerId],
) -> (&'static str, BTreeSet<(ServerId, ServerId)>) {
    let name = *rng.pick(ALL);
    let count = servers.len();
    let (one, other, turn) = (rng.index(count), rng.index(count), rng.index(count));
    // The places of servers in a row that begins anywhere.
    let is_first_half = |place: usize| (place + turn) % count < count / 2;
    let distance = |from: usize, to: usize| from.abs_diff(to).min(count - from.abs_diff(to));
    let is_cut = |from: usize, to: usize| match name {
        "a pair is cut" => [(one, other), (other, one)].contains(&(from, to)),
        "a one-way cut" => (one, other) == (from, to),
        "one server is cut off" => from == one || to == one,
        "one server hears nobody" => to == one,
        "one server is heard by nobody" => from == one,
        "two halves" => is_first_half(from) != is_first_half(to),
        "a bridge between two halves" => {
            from != one && to != one && is_first_half(from) != is_first_half(to)
        }
        "a ring of majorities" => count / 4 < distance(from, to),
        _ => unreachable!("all shapes are here"),
    };
    let mut cuts = BTreeSet::new();
    for from in 0..count {
        for to in (0..count).filter(|to| *to != from && is_cut(from, *to)) {
            cuts.insert((servers[from], servers[to]));
        }
    }
    (name, cuts)
}
