//! The scheme `digest`: `user:password`, kept as `user:hash`, and the super user.
//!
//! Any password authenticates: a wrong one makes an identity that no ACL names. The hash covers
//! the whole of `user:password`, and is plain Base64 with padding.
//!
//! After `DigestAuthenticationProvider`.

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha1::Sha1;
use sha2::{Digest as _, Sha224, Sha256, Sha384, Sha512};

pub const SCHEME: &str = "digest";

/// `zookeeper.DigestAuthenticationProvider.digestAlg`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    #[default]
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// A name that is none of ours. Java's `MessageDigest` knows a few more, all of them rare.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown digest algorithm {0:?}; known are SHA1, SHA-224, SHA-256, SHA-384 and SHA-512")]
pub struct UnknownAlgorithm(pub String);

impl FromStr for Algorithm {
    type Err = UnknownAlgorithm;

    /// The names of `MessageDigest.getInstance`, whose case does not matter.
    fn from_str(name: &str) -> Result<Algorithm, UnknownAlgorithm> {
        Ok(match name.to_ascii_uppercase().as_str() {
            "SHA" | "SHA1" | "SHA-1" => Algorithm::Sha1,
            "SHA224" | "SHA-224" => Algorithm::Sha224,
            "SHA256" | "SHA-256" => Algorithm::Sha256,
            "SHA384" | "SHA-384" => Algorithm::Sha384,
            "SHA512" | "SHA-512" => Algorithm::Sha512,
            _ => return Err(UnknownAlgorithm(name.to_owned())),
        })
    }
}

impl Algorithm {
    fn base64(self, bytes: &[u8]) -> String {
        match self {
            Algorithm::Sha1 => STANDARD.encode(Sha1::digest(bytes)),
            Algorithm::Sha224 => STANDARD.encode(Sha224::digest(bytes)),
            Algorithm::Sha256 => STANDARD.encode(Sha256::digest(bytes)),
            Algorithm::Sha384 => STANDARD.encode(Sha384::digest(bytes)),
            Algorithm::Sha512 => STANDARD.encode(Sha512::digest(bytes)),
        }
    }
}

/// What `user:password` is kept as. Without a colon the whole text is the user.
#[must_use]
pub fn hash(algorithm: Algorithm, user_password: &str) -> String {
    let hash = algorithm.base64(user_password.as_bytes());
    format!("{}:{hash}", user(user_password))
}

/// The part of an id before its first colon.
#[must_use]
pub fn user(id: &str) -> &str {
    id.split_once(':').map_or(id, |(user, _)| user)
}

/// Two parts by colon, as Java's `split` counts them: empty parts at the end do not count.
#[must_use]
pub fn is_valid(id: &str) -> bool {
    id.trim_end_matches(':').split(':').count() == 2
}

/// Whether two ids are the same, in a time that does not depend on where they differ.
#[must_use]
pub fn matches(id: &str, acl_id: &str) -> bool {
    let differing = id.bytes().zip(acl_id.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    id.len() == acl_id.len() && std::hint::black_box(differing) == 0
}

/// An id as those may see it who do not administer its znode.
#[must_use]
pub fn mask(id: &str) -> String {
    match id.split_once(':') {
        Some((user, _)) => format!("{user}:x"),
        None => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_zookeeper() {
        for (user_password, id) in [
            ("user:pw", "user:2Om+GBbT2q/tS6pdvACZbbm7/1A="),
            ("super:test", "super:D/InIHSb7yEEbrWz8b9l71RjZJU="),
            ("foo", "foo:C+7Hteo/D9vJXQ3UfzxbwnXaijM="),
            ("", ":2jmj7l5rSw0yVb/vlWAYkK/YBwk="),
        ] {
            assert_eq!(hash(Algorithm::Sha1, user_password), id);
        }
    }

    #[test]
    fn other_algorithms_have_their_java_names() {
        let id = |name: &str| hash(name.parse().unwrap(), "user:pw");
        assert_eq!(id("sha-256"), "user:Fh8MmK6jIxqd61iqgh3Q7UZ5AQo6NbHt+ZWIwPHmup4=");
        assert_eq!(
            id("SHA-512"),
            "user:bxuaEbeoHON6HbuCrnA/gB8aYah2KRHyD2q5whekPmB6+BuOzxIr/1zj+fA8dbkGNlWblYgcL1Riuu4O7ljjKg=="
        );
        assert_eq!(id("SHA-1"), id("SHA1"));
        assert_eq!("ROT13".parse::<Algorithm>(), Err(UnknownAlgorithm("ROT13".to_owned())));
    }

    /// What a running server accepted and refused as ids of this scheme.
    #[test]
    fn ids_have_two_parts() {
        for (id, valid) in [
            ("a:b", true),
            (":x", true),
            ("a:b:", true),
            ("user:", false),
            ("abc", false),
            ("", false),
            ("a:b:c", false),
            ("::", false),
        ] {
            assert_eq!(is_valid(id), valid, "{id}");
        }
    }

    #[test]
    fn ids_match_when_equal() {
        assert!(matches("user:abc", "user:abc"));
        assert!(!matches("user:abc", "user:abd"));
        assert!(!matches("user:abc", "user:abcd"));
        assert!(!matches("user:abc", ""));
    }

    #[test]
    fn a_mask_hides_all_after_the_user() {
        assert_eq!(mask("user:2Om+GBbT2q/tS6pdvACZbbm7/1A="), "user:x");
        assert_eq!(mask("user:a:b\nc"), "user:x");
        assert_eq!(mask("nobody"), "nobody");
    }
}
