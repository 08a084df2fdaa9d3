//! Who a connection is: the schemes by which it may say so, and what their ids mean.
//!
//! A connection has a set of ids. It starts with its address (`ip`), gains one with each
//! successful auth packet, and never loses any. ACLs name ids of the same schemes; `matches` says
//! whether one of the connection's is meant. The schemes:
//!
//! | scheme | who | file |
//! |---|---|---|
//! | `ip` | an address, or all with the same first bits | `ip.rs` |
//! | `digest` | a user who knows a password | `digest.rs` |
//! | `sasl` | a principal; logging in is the connection's matter, here are only its ids | `sasl.rs` |
//! | `ensemble` | nobody: a client that makes sure to reach the ensemble it means | here |
//! | `super` | whom no ACL stops; no scheme of its own, but an id that others add | here |
//!
//! `world` and `auth` are words of ACLs, not schemes (`acl.rs`).
//!
//! After `ProviderRegistry`, `ServerAuthenticationProvider` and `AuthenticationHelper`.

pub mod digest;
pub mod ip;
pub mod sasl;

use std::net::IpAddr;

use crate::record::data::Id;
use crate::types::AddressText;

pub const SUPER: &str = "super";
pub const ENSEMBLE: &str = "ensemble";

/// Which schemes there are, and their settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None`: `zookeeper.DigestAuthenticationProvider.enabled=false`.
    pub digest: Option<DigestSettings>,
    /// `None` unless `zookeeper.authProvider.N` names `SASLAuthenticationProvider`.
    pub sasl: Option<SaslSettings>,
    /// `None` unless `zookeeper.authProvider.N` names `EnsembleAuthenticationProvider`; the names
    /// of `zookeeper.ensembleAuthName`, where none means that any is right.
    pub ensemble_names: Option<Vec<String>>,
    /// A connection must have an id of one of these before its requests are served. Empty unless
    /// `zookeeper.enforce.auth.enabled`.
    pub enforced_schemes: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DigestSettings {
    pub algorithm: digest::Algorithm,
    /// `zookeeper.DigestAuthenticationProvider.superDigest`: who has this id is super.
    pub super_digest: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SaslSettings {
    /// `zookeeper.letAnySaslUserDoX`: an id that every principal matches.
    pub any_user_id: Option<String>,
}

impl Default for Settings {
    /// What a server without any such setting has.
    fn default() -> Settings {
        Settings {
            digest: Some(DigestSettings::default()),
            sasl: None,
            ensemble_names: None,
            enforced_schemes: Vec::new(),
        }
    }
}

/// An enforced scheme that nobody could ever fulfil.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zookeeper.enforce.auth.schemes names {0:?}, which has no authentication provider")]
pub struct UnknownScheme(pub String);

/// Why an auth packet fails. The client is told -115 and the connection closed, save for
/// `WrongEnsemble`, which closes without a word so that the client tries elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailed {
    #[error("no authentication provider for scheme {0:?}")]
    Scheme(Option<String>),
    #[error("scheme {0} needs data")]
    NoData(&'static str),
    #[error("scheme sasl is not authenticated by an auth packet")]
    Sasl,
    #[error("the client looks for ensemble {0:?}")]
    WrongEnsemble(String),
}

/// The schemes of a server.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    settings: Settings,
}

enum Provider<'a> {
    Ip,
    Digest(&'a DigestSettings),
    Sasl(&'a SaslSettings),
    Ensemble(&'a [String]),
}

impl Providers {
    pub fn new(settings: Settings) -> Result<Providers, UnknownScheme> {
        let providers = Providers { settings };
        let enforced = &providers.settings.enforced_schemes;
        match enforced.iter().find(|scheme| !providers.exists(scheme)) {
            Some(scheme) => Err(UnknownScheme(scheme.clone())),
            None => Ok(providers),
        }
    }

    /// The ids of a connection that has not said anything yet.
    #[must_use]
    pub fn at_accept(&self, remote: IpAddr) -> Vec<Id> {
        vec![Id::new(ip::SCHEME, AddressText(remote).to_string())]
    }

    /// The ids that an auth packet adds to the connection's.
    pub fn authenticate(
        &self,
        scheme: Option<&str>,
        data: Option<&[u8]>,
        remote: IpAddr,
    ) -> Result<Vec<Id>, AuthFailed> {
        let provider = scheme.and_then(|scheme| self.provider(scheme));
        match provider.ok_or_else(|| AuthFailed::Scheme(scheme.map(str::to_owned)))? {
            Provider::Ip => Ok(self.at_accept(remote)),
            Provider::Digest(settings) => {
                let data = data.ok_or(AuthFailed::NoData(digest::SCHEME))?;
                let id = digest::hash(settings.algorithm, &String::from_utf8_lossy(data));
                let is_super = settings
                    .super_digest
                    .as_ref()
                    .is_some_and(|of_super| digest::matches(&id, of_super));
                let mut ids = vec![Id::new(digest::SCHEME, id)];
                if is_super {
                    ids.push(Id::new(SUPER, ""));
                }
                Ok(ids)
            }
            Provider::Sasl(_) => Err(AuthFailed::Sasl),
            Provider::Ensemble(names) => {
                let name = String::from_utf8_lossy(data.unwrap_or_default());
                if name.is_empty() || names.is_empty() || names.iter().any(|known| *known == name) {
                    Ok(Vec::new())
                } else {
                    Err(AuthFailed::WrongEnsemble(name.into_owned()))
                }
            }
        }
    }

    /// Whether a connection with these ids has authenticated as the settings demand; asked before
    /// every request that is not itself an authentication.
    #[must_use]
    pub fn admits(&self, ids: &[Id]) -> bool {
        let enforced = &self.settings.enforced_schemes;
        enforced.is_empty() || ids.iter().any(|id| enforced.contains(&id.scheme))
    }

    #[must_use]
    pub fn exists(&self, scheme: &str) -> bool {
        self.provider(scheme).is_some()
    }

    /// Whether an ACL may name this id: its scheme exists and accepts it.
    #[must_use]
    pub fn is_valid(&self, scheme: &str, id: &str) -> bool {
        self.provider(scheme).is_some_and(|provider| match provider {
            Provider::Ip => ip::is_valid(id),
            Provider::Digest(_) => digest::is_valid(id),
            Provider::Sasl(_) => sasl::is_valid(id),
            Provider::Ensemble(_) => false,
        })
    }

    /// Whether an id of a connection is meant by an id of an ACL.
    #[must_use]
    pub fn matches(&self, id: &Id, acl_id: &Id) -> bool {
        id.scheme == acl_id.scheme
            && self.provider(&id.scheme).is_some_and(|provider| match provider {
                Provider::Ip => ip::matches(&id.id, &acl_id.id),
                Provider::Digest(_) => digest::matches(&id.id, &acl_id.id),
                Provider::Sasl(settings) => {
                    sasl::matches(&id.id, &acl_id.id, settings.any_user_id.as_deref())
                }
                Provider::Ensemble(_) => false,
            })
    }

    /// Whether an id says who somebody is, rather than where: these are what `auth` in an ACL
    /// stands for (`isAuthenticated`).
    #[must_use]
    pub fn is_somebody(&self, id: &Id) -> bool {
        self.provider(&id.scheme).is_some_and(|provider| match provider {
            Provider::Digest(_) | Provider::Sasl(_) => true,
            Provider::Ip | Provider::Ensemble(_) => false,
        })
    }

    /// An id as whoAmI shows it: without secrets.
    #[must_use]
    pub fn user_name<'a>(&self, id: &'a Id) -> &'a str {
        match self.provider(&id.scheme) {
            Some(Provider::Digest(_)) => digest::user(&id.id),
            Some(Provider::Ip | Provider::Sasl(_) | Provider::Ensemble(_)) => &id.id,
            None => "",
        }
    }

    fn provider(&self, scheme: &str) -> Option<Provider<'_>> {
        let Settings { digest, sasl, ensemble_names, enforced_schemes: _ } = &self.settings;
        match scheme {
            ip::SCHEME => Some(Provider::Ip),
            digest::SCHEME => digest.as_ref().map(Provider::Digest),
            sasl::SCHEME => sasl.as_ref().map(Provider::Sasl),
            ENSEMBLE => ensemble_names.as_deref().map(Provider::Ensemble),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn with_super() -> Providers {
        let super_digest = Some("super:D/InIHSb7yEEbrWz8b9l71RjZJU=".to_owned());
        let digest = Some(DigestSettings { super_digest, ..DigestSettings::default() });
        Providers::new(Settings { digest, ..Settings::default() }).unwrap()
    }

    #[test]
    fn a_connection_starts_with_its_address() {
        let providers = Providers::default();
        assert_eq!(providers.at_accept(HERE), [Id::new("ip", "127.0.0.1")]);
        let local: IpAddr = "::1".parse().unwrap();
        assert_eq!(providers.at_accept(local), [Id::new("ip", "0:0:0:0:0:0:0:1")]);
    }

    #[test]
    fn any_digest_authenticates_and_ip_needs_no_data() {
        let providers = Providers::default();
        let ids = providers.authenticate(Some("digest"), Some(b"user:pw"), HERE);
        assert_eq!(ids, Ok(vec![Id::new("digest", "user:2Om+GBbT2q/tS6pdvACZbbm7/1A=")]));
        let ids = providers.authenticate(Some("digest"), Some(b""), HERE);
        assert_eq!(ids, Ok(vec![Id::new("digest", ":2jmj7l5rSw0yVb/vlWAYkK/YBwk=")]));
        let ids = providers.authenticate(Some("ip"), None, HERE);
        assert_eq!(ids, Ok(vec![Id::new("ip", "127.0.0.1")]));
    }

    #[test]
    fn what_does_not_authenticate() {
        let providers = Providers::default();
        for scheme in [None, Some("world"), Some("sasl"), Some("super"), Some("nosuch")] {
            assert_eq!(
                providers.authenticate(scheme, Some(b"x"), HERE),
                Err(AuthFailed::Scheme(scheme.map(str::to_owned)))
            );
        }
        let null = providers.authenticate(Some("digest"), None, HERE);
        assert_eq!(null, Err(AuthFailed::NoData("digest")));
        let settings = Settings { digest: None, ..Settings::default() };
        let disabled = Providers::new(settings).unwrap();
        assert!(disabled.authenticate(Some("digest"), Some(b"user:pw"), HERE).is_err());
    }

    #[test]
    fn the_super_digest_makes_super() {
        let providers = with_super();
        let ids = providers.authenticate(Some("digest"), Some(b"super:test"), HERE).unwrap();
        assert_eq!(ids[1], Id::new("super", ""));
        let ids = providers.authenticate(Some("digest"), Some(b"super:wrong"), HERE).unwrap();
        assert_eq!(ids.len(), 1);
        assert_eq!(
            Providers::default()
                .authenticate(Some("digest"), Some(b"super:test"), HERE)
                .unwrap()
                .len(),
            1
        );
    }

    #[test]
    fn an_id_matches_within_its_scheme_only() {
        let providers = Providers::default();
        assert!(providers.matches(&Id::new("ip", "127.0.0.1"), &Id::new("ip", "127.0.0.0/8")));
        assert!(!providers.matches(&Id::new("ip", "127.0.0.1"), &Id::new("digest", "127.0.0.1")));
        assert!(providers.matches(&Id::new("digest", "u:h"), &Id::new("digest", "u:h")));
        assert!(!providers.matches(&Id::new("nosuch", "a"), &Id::new("nosuch", "a")));
    }

    #[test]
    fn enforced_schemes_must_exist_and_admit_who_has_one() {
        let enforcing = |schemes: &[&str]| {
            let enforced_schemes = schemes.iter().map(|&scheme| scheme.to_owned()).collect();
            Providers::new(Settings { enforced_schemes, ..Settings::default() })
        };
        let address = [Id::new("ip", "127.0.0.1")];
        let digest = [address[0].clone(), Id::new("digest", "u:h")];
        assert!(Providers::default().admits(&address));
        assert!(!enforcing(&["digest"]).unwrap().admits(&address));
        assert!(enforcing(&["digest"]).unwrap().admits(&digest));
        assert!(enforcing(&["digest", "ip"]).unwrap().admits(&address));
        assert_eq!(enforcing(&["sasl"]).err(), Some(UnknownScheme("sasl".to_owned())));
    }

    #[test]
    fn an_ensemble_is_the_one_meant_unless_nobody_says() {
        let ensemble_names = Some(vec!["blue".to_owned(), "green".to_owned()]);
        let settings = Settings { ensemble_names, ..Settings::default() };
        let providers = Providers::new(settings).unwrap();
        let authenticate = |data| providers.authenticate(Some("ensemble"), data, HERE);
        for data in [None, Some(&b""[..]), Some(b"green")] {
            assert_eq!(authenticate(data), Ok(Vec::new()));
        }
        assert_eq!(authenticate(Some(b"red")), Err(AuthFailed::WrongEnsemble("red".to_owned())));
    }

    #[test]
    fn who_am_i_shows_no_secrets() {
        let providers = Providers::default();
        assert_eq!(providers.user_name(&Id::new("digest", "user:hash")), "user");
        assert_eq!(providers.user_name(&Id::new("ip", "127.0.0.1")), "127.0.0.1");
        assert_eq!(providers.user_name(&Id::new("super", "")), "");
    }
}
