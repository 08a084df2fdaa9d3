//! Who belongs to the ensemble, in which role, and what is a quorum of it.
//!
//! ```text
//! server.ID = ADDRESS ( "|" ADDRESS )* [ ";" CLIENT ] [ ";" SECURE ]
//! ADDRESS   = host ":" quorum port ":" election port [ ":" role ]
//! CLIENT, SECURE = [ host ":" ] port          an IPv6 host stands in brackets
//! group.G   = ID ( ":" ID )*                  any group or weight makes the quorum hierarchical
//! weight.ID = number
//! ```
//!
//! The canonical text is what `/zookeeper/config` holds and what servers compare: every server
//! must print the same for the same ensemble.
//!
//! After `QuorumPeer.QuorumServer`, `ConfigUtils.getHostAndPort`, `QuorumMaj` and
//! `QuorumHierarchical`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::types::ServerId;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Participant,
    Observer,
}

/// Where other servers reach one: the quorum port for its learners, the election port for votes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PeerAddress {
    pub host: String,
    pub quorum_port: u16,
    pub election_port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// As written, without the brackets of an IPv6 address. Resolved on every use.
    pub host: String,
    pub port: u16,
}

/// One server of the ensemble.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: ServerId,
    /// In the order of their hosts; never empty.
    pub addresses: Vec<PeerAddress>,
    pub role: Role,
    /// The client port of this line; a server may have it from `clientPort` instead.
    pub client: Option<HostPort>,
    pub secure: Option<HostPort>,
}

/// Which sets of participants decide.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Quorum {
    Majority,
    /// A majority of the groups that weigh anything, and in each of them more than half of its
    /// weight.
    Hierarchical {
        groups: BTreeMap<i64, BTreeSet<ServerId>>,
        weights: BTreeMap<ServerId, i64>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensemble {
    pub members: BTreeMap<ServerId, Member>,
    pub quorum: Quorum,
    /// The zxid that committed this membership; 0 for one from a file.
    pub version: i64,
}

/// A `server.`, `group` or `weight` line that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnsembleError {
    // The end of the sentence is what ZooKeeper prints since 3.10.
    #[error(
        "{0} does not have the form server_config or server_config;client_config where \
         server_config is the pipe separated list of host:port:port or host:port:port:type and \
         client_config is host:clientPort;host:secureClientPort or clientPort or host:clientPort \
         or ';secureClientPort' or ';host:secureClientPort'"
    )]
    Form(String),
    #[error("{0} starts with '[' but has no matching ']:'")]
    Bracket(String),
    #[error("{0} doesn't have a port after colon")]
    NoPort(String),
    #[error("Address unresolved: {host}:{port}")]
    PortNotNumber { host: String, port: String },
    #[error("port out of range:{0}")]
    PortRange(i64),
    #[error(
        "Client and election port must be different! Please update the configuration file on \
         server.{0}"
    )]
    EqualPorts(ServerId),
    #[error("Unrecognised peertype: {0}")]
    Role(String),
    #[error("Multiple addresses should have similar roles: {0} vs {1}")]
    Roles(Role, Role),
    #[error(
        "Multiple address feature is disabled, but multiple addresses were specified for sid {0}"
    )]
    MultiAddress(ServerId),
    #[error("For input string: \"{0}\"")]
    Number(String),
    // The missing blanks are ZooKeeper's (QuorumHierarchical.parse).
    #[error("Server {0}is not in a group")]
    NoGroup(ServerId),
    #[error("Server {0}is in multiple groups")]
    TwoGroups(ServerId),
}

impl Ensemble {
    /// Reads the lines of an ensemble; other keys are passed over. Several addresses for one
    /// server have to be allowed.
    pub fn parse<'a>(
        lines: impl IntoIterator<Item = (&'a str, &'a str)>,
        multi_address: bool,
    ) -> Result<Ensemble, EnsembleError> {
        let mut members = BTreeMap::new();
        let mut groups: BTreeMap<i64, BTreeSet<ServerId>> = BTreeMap::new();
        let mut weights = BTreeMap::new();
        let mut grouped = BTreeSet::new();
        let mut is_hierarchical = false;
        for (key, value) in lines {
            if let Some(id) = key.strip_prefix("server.") {
                let id = ServerId(number(id)?);
                members.insert(id, Member::parse(id, value, multi_address)?);
            } else if key.starts_with("group") {
                is_hierarchical = true;
                let group = number(after_dot(key))?;
                for id in split(value, ':') {
                    let id = ServerId(number(id)?);
                    if !grouped.insert(id) {
                        return Err(EnsembleError::TwoGroups(id));
                    }
                    groups.entry(group).or_default().insert(id);
                }
            } else if key.starts_with("weight") {
                is_hierarchical = true;
                weights.insert(ServerId(number(after_dot(key))?), number(value)?);
            }
        }
        let mut ensemble = Ensemble { members, quorum: Quorum::Majority, version: 0 };
        if is_hierarchical {
            for id in ensemble.participants() {
                if !grouped.contains(&id) {
                    return Err(EnsembleError::NoGroup(id));
                }
                weights.entry(id).or_insert(1);
            }
            ensemble.quorum = Quorum::Hierarchical { groups, weights };
        }
        Ok(ensemble)
    }

    pub fn participants(&self) -> impl Iterator<Item = ServerId> {
        self.of_role(Role::Participant)
    }

    pub fn observers(&self) -> impl Iterator<Item = ServerId> {
        self.of_role(Role::Observer)
    }

    /// Whether a server votes.
    #[must_use]
    pub fn is_participant(&self, server: ServerId) -> bool {
        self.members.get(&server).is_some_and(|member| member.role == Role::Participant)
    }

    /// What a server's vote counts: 1 for everybody, known or not, where a majority decides; zero
    /// for a stranger to a hierarchy (`QuorumMaj.getWeight`, `QuorumHierarchical.getWeight`).
    #[must_use]
    pub fn weight(&self, server: ServerId) -> i64 {
        match &self.quorum {
            Quorum::Majority => 1,
            Quorum::Hierarchical { weights, .. } => weights.get(&server).copied().unwrap_or(0),
        }
    }

    fn of_role(&self, role: Role) -> impl Iterator<Item = ServerId> {
        self.members.values().filter(move |member| member.role == role).map(|member| member.id)
    }

    /// Whether these servers together may decide. Observers and strangers do not count.
    #[must_use]
    pub fn is_quorum(&self, servers: &BTreeSet<ServerId>) -> bool {
        match &self.quorum {
            Quorum::Majority => {
                let agreed = self.participants().filter(|id| servers.contains(id)).count();
                self.participants().count() < 2 * agreed
            }
            Quorum::Hierarchical { groups, weights } => {
                let participants: BTreeSet<ServerId> = self.participants().collect();
                // Sums of a file's numbers: wide enough never to overflow.
                let weigh = |ids: &mut dyn Iterator<Item = &ServerId>| -> i128 {
                    ids.filter_map(|id| weights.get(id)).map(|&weight| i128::from(weight)).sum()
                };
                let (mut groups_that_count, mut groups_agreed) = (0, 0);
                for group in groups.values() {
                    let members = group.intersection(&participants);
                    let total = weigh(&mut members.clone());
                    if total == 0 {
                        continue;
                    }
                    groups_that_count += 1;
                    if total < 2 * weigh(&mut members.filter(|id| servers.contains(id))) {
                        groups_agreed += 1;
                    }
                }
                groups_that_count < 2 * groups_agreed
            }
        }
    }

    /// Every line but the version, `key=value`, in the order of their numbers.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let members = self.members.values().map(|member| format!("server.{}={member}", member.id));
        let (groups, weights) = match &self.quorum {
            Quorum::Majority => (None, None),
            Quorum::Hierarchical { groups, weights } => (Some(groups), Some(weights)),
        };
        let groups = groups.into_iter().flatten().map(|(group, ids)| {
            let ids: Vec<String> = ids.iter().map(ServerId::to_string).collect();
            format!("group.{group}={}", ids.join(":"))
        });
        let weights =
            weights.into_iter().flatten().map(|(id, weight)| format!("weight.{id}={weight}"));
        members.chain(groups).chain(weights)
    }
}

/// The text of `/zookeeper/config`: a line each, the version last and without a line end.
impl fmt::Display for Ensemble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines() {
            writeln!(f, "{line}")?;
        }
        write!(f, "version={:x}", self.version)
    }
}

impl Member {
    fn parse(id: ServerId, value: &str, multi_address: bool) -> Result<Member, EnsembleError> {
        let form = || EnsembleError::Form(value.to_owned());
        let parts = split(value, ';');
        let &addresses = parts.first().ok_or_else(form)?;
        let client = match parts.get(1) {
            Some(part) if !part.is_empty() => Some(HostPort::parse(part, form)?),
            _ => None,
        };
        let secure = match parts[..] {
            [_, _, part] => Some(HostPort::parse(part, form)?),
            _ => None,
        };
        let texts = split(addresses, '|');
        let mut addresses = Vec::with_capacity(texts.len());
        let mut role: Option<Role> = None;
        for text in &texts {
            let parts = host_and_ports(text)?;
            let (&[host, quorum, election], rest) = parts.split_first_chunk().ok_or_else(form)?;
            let (quorum_port, election_port) = (port(host, quorum)?, port(host, election)?);
            match *rest {
                [] => {}
                [text] => {
                    let given: Role = text.parse()?;
                    match role {
                        Some(before) if before != given => {
                            return Err(EnsembleError::Roles(before, given));
                        }
                        _ => role = Some(given),
                    }
                }
                _ => return Err(form()),
            }
            if quorum_port == election_port {
                return Err(EnsembleError::EqualPorts(id));
            }
            addresses.push(PeerAddress { host: host.to_owned(), quorum_port, election_port });
        }
        match addresses.len() {
            0 => return Err(form()),
            1 => {}
            _ if !multi_address => return Err(EnsembleError::MultiAddress(id)),
            _ => {}
        }
        addresses.sort();
        addresses.dedup();
        Ok(Member { id, addresses, role: role.unwrap_or(Role::Participant), client, secure })
    }
}

/// The value of its `server.` line.
impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, address) in self.addresses.iter().enumerate() {
            let PeerAddress { host, quorum_port, election_port } = address;
            let separator = if place == 0 { "" } else { "|" };
            write!(f, "{separator}{}:{quorum_port}:{election_port}", Bracketed(host))?;
        }
        write!(f, ":{}", self.role)?;
        if let Some(client) = &self.client {
            write!(f, ";{client}")?;
        }
        if let Some(secure) = &self.secure {
            write!(f, "{};{secure}", if self.client.is_none() { ";" } else { "" })?;
        }
        Ok(())
    }
}

impl HostPort {
    fn parse(part: &str, form: impl Fn() -> EnsembleError) -> Result<HostPort, EnsembleError> {
        let (host, text) = match host_and_ports(part)?[..] {
            [port] => ("0.0.0.0", port),
            [host, port] => (host, port),
            _ => return Err(form()),
        };
        Ok(HostPort { host: host.to_owned(), port: port(host, text)? })
    }

    /// Whether it stands for every address of the machine.
    #[must_use]
    pub fn is_wildcard(&self) -> bool {
        matches!(self.host.as_str(), "0.0.0.0" | "::" | "0:0:0:0:0:0:0:0")
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", Bracketed(&self.host), self.port)
    }
}

impl std::str::FromStr for Role {
    type Err = EnsembleError;

    fn from_str(text: &str) -> Result<Role, EnsembleError> {
        match text.trim().to_lowercase().as_str() {
            "participant" => Ok(Role::Participant),
            "observer" => Ok(Role::Observer),
            _ => Err(EnsembleError::Role(text.to_owned())),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Participant => "participant",
            Role::Observer => "observer",
        })
    }
}

/// A host as it stands before a colon.
struct Bracketed<'a>(&'a str);

impl fmt::Display for Bracketed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(self.0) }
    }
}

/// Cuts a host, which may be an IPv6 address in brackets, and what follows at its colons.
fn host_and_ports(text: &str) -> Result<Vec<&str>, EnsembleError> {
    let Some(bracketed) = text.strip_prefix('[') else {
        return Ok(split(text, ':'));
    };
    let (host, rest) =
        bracketed.split_once("]:").ok_or_else(|| EnsembleError::Bracket(text.to_owned()))?;
    if rest.is_empty() {
        return Err(EnsembleError::NoPort(text.to_owned()));
    }
    let mut parts = vec![host];
    parts.extend(split(rest, ':'));
    Ok(parts)
}

fn port(host: &str, text: &str) -> Result<u16, EnsembleError> {
    let number: i32 = text.parse().map_err(|_| EnsembleError::PortNotNumber {
        host: host.to_owned(),
        port: text.to_owned(),
    })?;
    u16::try_from(number).map_err(|_| EnsembleError::PortRange(i64::from(number)))
}

fn number(text: &str) -> Result<i64, EnsembleError> {
    text.parse().map_err(|_| EnsembleError::Number(text.to_owned()))
}

/// What follows the first dot of a key; all of it where there is none, as in Java, where the
/// place of a missing dot is -1.
fn after_dot(key: &str) -> &str {
    key.split_once('.').map_or(key, |(_, rest)| rest)
}

/// Java's `String.split`: empty parts at the end vanish, though not the only one.
fn split(text: &str, separator: char) -> Vec<&str> {
    let mut parts: Vec<&str> = text.split(separator).collect();
    if !text.is_empty() {
        while parts.last().is_some_and(|part| part.is_empty()) {
            parts.pop();
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(lines: &[(&str, &str)]) -> Result<Ensemble, EnsembleError> {
        Ensemble::parse(lines.iter().copied(), true)
    }

    fn ids(ids: &[i64]) -> BTreeSet<ServerId> {
        ids.iter().copied().map(ServerId).collect()
    }

    #[test]
    fn a_server_line_has_one_canonical_text() {
        for (text, canonical) in [
            ("zoo1:2888:3888", "zoo1:2888:3888:participant"),
            ("zoo1:2888:3888;2181", "zoo1:2888:3888:participant;0.0.0.0:2181"),
            ("zoo1:2888:3888: Observer ;h:2181", "zoo1:2888:3888:observer;h:2181"),
            ("zoo1:2888:3888;;2281", "zoo1:2888:3888:participant;;0.0.0.0:2281"),
            ("a:1:2;2181;b:2281", "a:1:2:participant;0.0.0.0:2181;b:2281"),
            ("a:1:2;", "a:1:2:participant"),
            ("a:1:2;1;2;3", "a:1:2:participant;0.0.0.0:1"),
            ("[::1]:1:2;[::]:2181", "[::1]:1:2:participant;[::]:2181"),
            ("b:1:2|a:1:2", "a:1:2|b:1:2:participant"),
            ("a:1:2|b:1:2:observer", "a:1:2|b:1:2:observer"),
        ] {
            let ensemble = parse(&[("server.1", text)]).unwrap();
            assert_eq!(ensemble.to_string(), format!("server.1={canonical}\nversion=0"), "{text}");
            assert_eq!(parse(&[("server.1", canonical)]).unwrap(), ensemble, "{canonical}");
        }
    }

    #[test]
    fn a_broken_server_line_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "does not have the form"),
            (";", "does not have the form"),
            ("|", "does not have the form"),
            ("127.0.1.1", "127.0.1.1 does not have the form"),
            ("a:1", "does not have the form"),
            ("a:1:2:participant:x", "does not have the form"),
            ("a:1:2;a:b:c", "a:1:2;a:b:c does not have the form"),
            ("a:x:2", "Address unresolved: a:x"),
            ("a:1:2;x", "Address unresolved: 0.0.0.0:x"),
            ("a:70000:2", "port out of range:70000"),
            ("a:-1:2", "port out of range:-1"),
            ("a:1:1", "must be different! Please update the configuration file on server.7"),
            ("a:1:2:leader", "Unrecognised peertype: leader"),
            ("a:1:2:observer|b:1:2:participant", "should have similar roles: observer vs part"),
            ("[::1:1:2", "[::1:1:2 starts with '[' but has no matching ']:'"),
            ("[::1]:", "[::1]: doesn't have a port after colon"),
        ] {
            let error = parse(&[("server.7", text)]).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(parse(&[("server.x", "a:1:2")]), Err(EnsembleError::Number("x".into())));
        let two = Ensemble::parse([("server.4", "a:1:2|b:1:2")], false);
        assert_eq!(two, Err(EnsembleError::MultiAddress(ServerId(4))));
    }

    const NINE: [(&str, &str); 9] = [
        ("server.1", "a:1:2"),
        ("server.2", "b:1:2"),
        ("server.3", "c:1:2"),
        ("server.4", "d:1:2"),
        ("server.5", "e:1:2"),
        ("server.6", "f:1:2"),
        ("server.7", "g:1:2"),
        ("server.8", "h:1:2"),
        ("server.9", "i:1:2"),
    ];

    #[test]
    fn a_majority_of_participants_is_a_quorum() {
        let lines = [NINE[0], NINE[1], NINE[2], ("server.4", "d:1:2:observer")];
        let ensemble = parse(&lines).unwrap();
        assert!(ensemble.is_quorum(&ids(&[1, 3])));
        assert!(!ensemble.is_quorum(&ids(&[1, 4])));
        assert!(!ensemble.is_quorum(&ids(&[1, 9])));
        assert!(!parse(&NINE[..4]).unwrap().is_quorum(&ids(&[1, 2])));
        assert!(!parse(&[]).unwrap().is_quorum(&ids(&[])));
    }

    #[test]
    fn a_hierarchical_quorum_takes_most_groups_and_most_weight_in_each() {
        let mut lines = NINE.to_vec();
        lines.extend([("group.1", "1:2:3"), ("group.2", "4:5:6"), ("group.3", "7:8:9")]);
        let ensemble = parse(&lines).unwrap();
        assert!(ensemble.is_quorum(&ids(&[1, 2, 4, 5])));
        assert!(!ensemble.is_quorum(&ids(&[1, 2, 3, 4, 7])));
        let all_weights: String = (1..=9).map(|id| format!("weight.{id}=1\n")).collect();
        let text = ensemble.to_string();
        let groups = "group.1=1:2:3\ngroup.2=4:5:6\ngroup.3=7:8:9\n";
        assert!(text.ends_with(&format!("{groups}{all_weights}version=0")), "{text}");

        // A group that weighs nothing does not count; one server may outweigh its group.
        lines.extend([("weight.7", "0"), ("weight.8", "0"), ("weight.9", "0"), ("weight.1", "9")]);
        let ensemble = parse(&lines).unwrap();
        assert!(ensemble.is_quorum(&ids(&[1, 4, 5])));
        assert!(!ensemble.is_quorum(&ids(&[1, 7, 8, 9])));
    }

    #[test]
    fn every_participant_is_in_one_group() {
        let three = &NINE[..3];
        let missing = parse(&[three, &[("group.1", "1:2")]].concat());
        assert_eq!(missing.unwrap_err().to_string(), "Server 3is not in a group");
        let twice = parse(&[three, &[("group.1", "1:2:3"), ("group.2", "3")]].concat());
        assert_eq!(twice.unwrap_err().to_string(), "Server 3is in multiple groups");
    }

    proptest! {
        #[test]
        fn any_text_is_a_server_or_refused(value in "[a-z0-9:;|\\[\\]. -]{0,40}") {
            if let Ok(ensemble) = parse(&[("server.1", &value)]) {
                let text = ensemble.to_string();
                let (_, canonical) = text.lines().next().unwrap().split_once('=').unwrap();
                prop_assert_eq!(parse(&[("server.1", canonical)]).unwrap(), ensemble);
            }
        }

        #[test]
        fn two_quorums_share_a_server(
            weights in prop::collection::vec(0i64..4, 6),
            left in prop::collection::btree_set(1i64..=6, 0..6),
        ) {
            let keys: Vec<String> = (1..=6).map(|id| format!("weight.{id}")).collect();
            let values: Vec<String> = weights.iter().map(i64::to_string).collect();
            let mut lines = NINE[..6].to_vec();
            lines.extend([("group.1", "1:2"), ("group.2", "3:4"), ("group.3", "5:6")]);
            lines.extend(keys.iter().zip(&values).map(|(key, value)| (key.as_str(), value.as_str())));
            let ensemble = parse(&lines).unwrap();
            let right: Vec<i64> = (1..=6).filter(|id| !left.contains(id)).collect();
            let left: Vec<i64> = left.into_iter().collect();
            prop_assert!(!(ensemble.is_quorum(&ids(&left)) && ensemble.is_quorum(&ids(&right))));
        }
    }
}
