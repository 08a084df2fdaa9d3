//! The scheme `ip`: addresses, and prefixes of them.
//!
//! ```text
//! id        = address ["/" bits]          bits: 0 to 32, or to 128; missing: all of them
//! address   = 4 decimal numbers by dots   leading zeros and "+" are tolerated
//!           / hexadecimal groups, 8 or fewer around one "::"   no dots, no zone
//! ```
//!
//! After `IPAuthenticationProvider`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const SCHEME: &str = "ip";

/// The leading `bits` of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Prefix {
    address: IpAddr,
    bits: u32,
}

#[must_use]
pub fn is_valid(id: &str) -> bool {
    parse(id).is_some()
}

/// Whether a connection's address lies within the prefix of an ACL. Families do not mix, not even
/// with `/0`.
#[must_use]
pub fn matches(id: &str, acl_id: &str) -> bool {
    let (Some(address), Some(prefix)) = (parse_address(id), parse(acl_id)) else { return false };
    match (address, prefix.address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(u32::BITS - prefix.bits).unwrap_or(0) == 0
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).checked_shr(u128::BITS - prefix.bits).unwrap_or(0) == 0
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

fn parse(id: &str) -> Option<Prefix> {
    let (address, bits) = match id.split_once('/') {
        Some((address, bits)) => (parse_address(address)?, Some(bits.parse().ok()?)),
        None => (parse_address(id)?, None),
    };
    let bits_max = match address {
        IpAddr::V4(_) => u32::BITS,
        IpAddr::V6(_) => u128::BITS,
    };
    let bits = bits.unwrap_or(bits_max);
    (bits <= bits_max).then_some(Prefix { address, bits })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    if text.contains(':') {
        return if text.contains('.') {
            None
        } else {
            text.parse().ok().map(|address: Ipv6Addr| IpAddr::V6(address))
        };
    }
    let mut octets = [0; 4];
    let mut numbers = text.split('.');
    for octet in &mut octets {
        *octet = numbers.next()?.parse().ok()?;
    }
    numbers.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a running server accepted and refused as ids of this scheme.
    #[test]
    fn ids_are_addresses_with_bits_or_without() {
        for id in [
            "127.0.0.1",
            "127.0.0.1/8",
            "127.0.0.1/0",
            "127.0.0.1/32",
            "01.2.3.4",
            "+1.2.3.4",
            "::1",
            "::1/128",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7::",
            "::",
        ] {
            assert!(is_valid(id), "{id}");
        }
        for id in [
            "127.0.0.1/33",
            "127.0.0.1/-1",
            "127.0.0.1/",
            "127.0.0.1/8/9",
            "1.2.3",
            "1.2.3.256",
            "1.2.3.4.5",
            "localhost",
            "",
            "1:2:3:4:5:6:7",
            "::ffff:1.2.3.4",
            "fe80::1%eth0",
            "1:2:3:4::5:6:7:8",
            "::1/129",
            "12345::",
            "1..2.3",
            ":::",
        ] {
            assert!(!is_valid(id), "{id}");
        }
    }

    #[test]
    fn a_prefix_matches_what_it_covers() {
        for (id, acl_id, matched) in [
            ("127.0.0.1", "127.0.0.1", true),
            ("127.0.0.1", "127.0.0.2", false),
            ("127.0.0.1", "127.255.0.0/8", true),
            ("127.0.0.1", "126.0.0.0/8", false),
            ("127.0.0.1", "10.0.0.0/0", true),
            ("127.0.0.1", "127.0.0.0/31", true),
            ("127.0.0.2", "127.0.0.0/31", false),
            ("0:0:0:0:0:0:0:1", "::1", true),
            ("0:0:0:0:0:0:0:1", "::/127", true),
            ("0:0:0:0:0:0:0:2", "::/127", false),
            ("0:0:0:0:0:0:0:2", "ffff::/0", true),
            ("127.0.0.1", "::/0", false),
            ("0:0:0:0:0:0:0:1", "0.0.0.0/0", false),
        ] {
            assert_eq!(matches(id, acl_id), matched, "{id} against {acl_id}");
        }
    }
}
