//! The scheme `sasl`, as far as ACLs go: ids are Kerberos names.
//!
//! ```text
//! id   = text without "@"
//!      / primary ["/" host] "@" realm      none of them with "/" or "@"
//! ```
//!
//! After `SASLAuthenticationProvider` and `KerberosName`.

pub const SCHEME: &str = "sasl";

#[must_use]
pub fn is_valid(id: &str) -> bool {
    match id.split_once('@') {
        None => true,
        Some((name, realm)) => !realm.contains(['@', '/']) && name.matches('/').count() <= 1,
    }
}

/// Equality, except that the principal `super` matches every id, and every principal matches the
/// id that the settings give to all (`letAnySaslUserDoX`).
#[must_use]
pub fn matches(id: &str, acl_id: &str, any_user_id: Option<&str>) -> bool {
    id == acl_id || id == super::SUPER || any_user_id == Some(acl_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_kerberos_names() {
        for id in ["", "bob", "a/b/c", "bob@REALM", "zookeeper/host@REALM", "@"] {
            assert!(is_valid(id), "{id}");
        }
        for id in ["a@b@c", "a/b/c@REALM", "a@b/c"] {
            assert!(!is_valid(id), "{id}");
        }
    }

    #[test]
    fn principals_match_themselves_and_what_all_may() {
        assert!(matches("bob", "bob", None));
        assert!(!matches("bob", "eve", None));
        assert!(matches("super", "eve", None));
        assert!(matches("bob", "X", Some("X")));
    }
}
