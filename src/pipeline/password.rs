//! Session passwords, bit for bit as ZooKeeper makes them.
//!
//! Sixteen bytes of `java.util.Random` seeded with the session's id: a checksum rather than a
//! secret, but every server of an ensemble, Java or ours, must come to the same.
//! After `ZooKeeperServer.generatePasswd`.

use crate::types::SessionId;

const SUPER_SECRET: i64 = 0xB341_5C00;
const MULTIPLIER: u64 = 0x5_DEEC_E66D;
const MASK: u64 = (1 << 48) - 1;

#[must_use]
pub fn password(session: SessionId) -> [u8; 16] {
    let mut state = ((session.0 ^ SUPER_SECRET) as u64 ^ MULTIPLIER) & MASK;
    let mut password = [0; 16];
    for word in password.chunks_exact_mut(4) {
        state = state.wrapping_mul(MULTIPLIER).wrapping_add(0xB) & MASK;
        word.copy_from_slice(&((state >> 16) as u32).to_le_bytes());
    }
    password
}

/// Whether `claimed` is the session's password. Takes the same time wherever it differs.
#[must_use]
pub fn is_password(session: SessionId, claimed: &[u8; 16]) -> bool {
    let differing = password(session).iter().zip(claimed).fold(0, |bits, (a, b)| bits | (a ^ b));
    session != SessionId(0) && differing == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_those_of_zookeeper() {
        let hex = |session: i64| -> String {
            password(SessionId(session)).iter().map(|byte| format!("{byte:02x}")).collect()
        };
        assert_eq!(hex(0x0100_000f_b90a_0000), "649f16e221e79a0be2da0875d2866623");
        assert_eq!(hex(0x0100_001e_9516_0000), "e8f33cea557b8b5506ad8ecd26585d00");
        assert!(!is_password(SessionId(0), &password(SessionId(0))));
    }
}
