//! What identities may do: an ACL against the ids of a connection.
//!
//! An ACL is a list of entries, each an id and the permissions it has. Permissions add up; there
//! is no refusing entry. Nothing is inherited: a znode's ACL says nothing of its children.
//!
//! ```text
//! world:anyone   everybody
//! auth:          in a request only: whoever is asking, as the ids that say who that is
//! scheme:id      the ids of that scheme that match
//! ```
//!
//! After `ZooKeeperServer.checkACL` and `PrepRequestProcessor.fixupACL`.

use std::collections::BTreeSet;

use crate::auth::{self, Providers};
use crate::record::code::Code;
use crate::record::data::{Acl, AclText, Id};

const WORLD: &str = "world";
const ANYONE: &str = "anyone";
const AUTH: &str = "auth";

/// Whether a connection with these ids has one of the permissions `perm`. An empty ACL allows
/// everything. (`skipACL` is the caller's to ask first.)
#[must_use]
pub fn permits(acl: &[Acl], perm: i32, ids: &[Id], providers: &Providers) -> bool {
    acl.is_empty()
        || acl.iter().any(|entry| entry.perms & perm != 0 && names(&entry.id, ids, providers))
        || ids.iter().any(|id| id.scheme == auth::SUPER)
}

fn names(acl_id: &Id, ids: &[Id], providers: &Providers) -> bool {
    (acl_id.scheme == WORLD && acl_id.id == ANYONE)
        || ids.iter().any(|id| providers.matches(id, acl_id))
}

/// The ACL to keep for one that a request brought: duplicates dropped, `auth` replaced by the ids
/// of who is asking, everything else valid. What comes to more than `bytes_max` is refused: an
/// `auth` for each set of permissions there is, times many ids, is more than any memory holds.
pub fn fixup(
    acl: Option<Vec<AclText<'_>>>,
    ids: &[Id],
    providers: &Providers,
    bytes_max: usize,
) -> Result<Vec<Acl>, Code> {
    let acl = acl.unwrap_or_default();
    if acl.is_empty() {
        return Err(Code::InvalidAcl);
    }
    let mut seen = BTreeSet::new();
    let mut kept = Vec::with_capacity(acl.len());
    let mut auth_bytes = 0;
    for AclText { perms, id } in &acl {
        let scheme = id.scheme.as_deref();
        let text = id.id.as_deref();
        if !seen.insert((*perms, scheme, text)) {
            continue;
        }
        let scheme = scheme.ok_or(Code::InvalidAcl)?;
        if scheme == AUTH {
            let somebody = ids.iter().filter(|id| providers.is_somebody(id));
            auth_bytes += somebody.clone().map(|id| id.scheme.len() + id.id.len()).sum::<usize>();
            if bytes_max < auth_bytes {
                return Err(Code::InvalidAcl);
            }
            let kept_before = kept.len();
            kept.extend(somebody.map(|id| Acl { perms: *perms, id: id.clone() }));
            if kept.len() == kept_before {
                return Err(Code::InvalidAcl);
            }
            continue;
        }
        if scheme != WORLD && !providers.exists(scheme) {
            return Err(Code::InvalidAcl);
        }
        // A null id makes Java's providers throw, which a client sees as this code.
        let text = text.ok_or(Code::MarshallingError)?;
        if (scheme == WORLD && text == ANYONE) || providers.is_valid(scheme, text) {
            kept.push(Acl::new(*perms, scheme, text));
        } else {
            return Err(Code::InvalidAcl);
        }
    }
    Ok(kept)
}

/// An ACL as those may see it who do not administer its znode: without the hashes of passwords.
#[must_use]
pub fn masked(acl: &[Acl]) -> Vec<Acl> {
    let mask = |entry: &Acl| match entry.id.scheme.as_str() {
        auth::digest::SCHEME => {
            Acl::new(entry.perms, auth::digest::SCHEME, auth::digest::mask(&entry.id.id))
        }
        _ => entry.clone(),
    };
    acl.iter().map(mask).collect()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::record::data::{IdText, perms};

    const BYTES_MAX: usize = 1 << 20;

    fn text(
        perms: i32,
        scheme: Option<&'static str>,
        id: Option<&'static str>,
    ) -> AclText<'static> {
        AclText { perms, id: IdText { scheme: scheme.map(Cow::from), id: id.map(Cow::from) } }
    }

    fn fixup_one(scheme: Option<&'static str>, id: Option<&'static str>) -> Result<Vec<Acl>, Code> {
        let ids = [Id::new("ip", "127.0.0.1")];
        fixup(Some(vec![text(1, scheme, id)]), &ids, &Providers::default(), BYTES_MAX)
    }

    #[test]
    fn permissions_add_up_over_matching_entries() {
        let providers = Providers::default();
        let acl = [
            Acl::new(perms::READ, "world", "anyone"),
            Acl::new(perms::WRITE, "digest", "u:h"),
            Acl::new(perms::ALL, "nosuch", "u:h"),
            Acl::new(perms::DELETE, "ip", "127.0.0.0/8"),
        ];
        let permits = |perm, ids: &[Id]| permits(&acl, perm, ids, &providers);
        let user = Id::new("digest", "u:h");
        assert!(permits(perms::READ, &[]));
        assert!(!permits(perms::WRITE, &[]));
        assert!(permits(perms::WRITE, std::slice::from_ref(&user)));
        assert!(!permits(perms::CREATE, &[user.clone(), Id::new("nosuch", "u:h")]));
        assert!(permits(perms::DELETE, &[user, Id::new("ip", "127.0.0.1")]));
        assert!(permits(perms::READ | perms::ADMIN, &[]));
        assert!(permits(perms::ADMIN, &[Id::new("super", "")]));
    }

    #[test]
    fn an_empty_acl_allows_and_permissions_of_zero_deny() {
        let providers = Providers::default();
        assert!(permits(&[], perms::ALL, &[], &providers));
        assert!(!permits(&[Acl::new(0, "world", "anyone")], perms::ALL, &[], &providers));
    }

    #[test]
    fn null_and_empty_lists_are_refused() {
        assert_eq!(fixup(None, &[], &Providers::default(), BYTES_MAX), Err(Code::InvalidAcl));
        assert_eq!(
            fixup(Some(Vec::new()), &[], &Providers::default(), BYTES_MAX),
            Err(Code::InvalidAcl)
        );
    }

    #[test]
    fn entries_that_are_refused() {
        for (scheme, id, code) in [
            (Some("foo"), Some("bar"), Code::InvalidAcl),
            (Some("foo"), None, Code::InvalidAcl),
            (Some("world"), Some("x"), Code::InvalidAcl),
            (Some("world"), None, Code::MarshallingError),
            (Some("digest"), None, Code::MarshallingError),
            (Some("digest"), Some("user:"), Code::InvalidAcl),
            (Some("ip"), Some("localhost"), Code::InvalidAcl),
            (Some("super"), Some(""), Code::InvalidAcl),
            (Some("x509"), Some("CN=a"), Code::InvalidAcl),
            (Some("sasl"), Some("bob"), Code::InvalidAcl),
            (Some("auth"), Some(""), Code::InvalidAcl),
            (None, Some("anyone"), Code::InvalidAcl),
        ] {
            assert_eq!(fixup_one(scheme, id), Err(code), "{scheme:?}:{id:?}");
        }
        assert_eq!(fixup_one(Some("ip"), Some("::1")), Ok(vec![Acl::new(1, "ip", "::1")]));
    }

    #[test]
    fn duplicates_are_dropped_and_permissions_kept_as_they_are() {
        let twice = vec![text(i32::MAX, Some("world"), Some("anyone")); 2];
        let kept = fixup(Some(twice), &[], &Providers::default(), BYTES_MAX);
        assert_eq!(kept, Ok(vec![Acl::new(i32::MAX, "world", "anyone")]));
    }

    #[test]
    fn auth_stands_for_every_id_that_says_who() {
        let ids = [
            Id::new("ip", "127.0.0.1"),
            Id::new("digest", "a:1"),
            Id::new("super", ""),
            Id::new("digest", "b:2"),
        ];
        let expanded = vec![Acl::new(3, "digest", "a:1"), Acl::new(3, "digest", "b:2")];
        for id in [Some("anything"), None] {
            let kept = fixup(
                Some(vec![text(3, Some("auth"), id)]),
                &ids,
                &Providers::default(),
                BYTES_MAX,
            );
            assert_eq!(kept, Ok(expanded.clone()));
        }
    }

    /// Both numbers are a client's to choose: the entries of a list, and its own ids.
    #[test]
    fn an_acl_does_not_outgrow_its_bound() {
        let ids: Vec<Id> = (0..100).map(|n| Id::new("digest", format!("{n}:hash"))).collect();
        let auths = |count| Some((0..count).map(|n| text(n, Some("auth"), None)).collect());
        let fixup = |count| fixup(auths(count), &ids, &Providers::default(), 10_000);
        assert_eq!(fixup(7).map(|acl| acl.len()), Ok(700));
        assert_eq!(fixup(8), Err(Code::InvalidAcl));
    }

    #[test]
    fn a_masked_acl_shows_no_hashes() {
        let acl = [Acl::new(1, "digest", "user:hash"), Acl::new(31, "ip", "10.0.0.0/8")];
        let masked_acl = [Acl::new(1, "digest", "user:x"), Acl::new(31, "ip", "10.0.0.0/8")];
        assert_eq!(masked(&acl), masked_acl);
    }
}
