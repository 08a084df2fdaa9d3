//! The table: each numbered fact about the client port, the server it is tried on, and what
//! other releases and ringkeeper do about it.
//!
//! A number alone is an edge case of the protocol's description; a letter behind it marks a
//! second server or a second half of the same fact. `D` numbers are behaviour of the reference
//! that ringkeeper must not copy. `L` are limits and switches, `G` are the golden packets, `P` the session passwords, `O` the
//! order in which things may be seen.

use crate::cases::{acl, create, framing, header, multi, session, tree, watch};
use crate::golden;
use crate::target::{
    ENFORCED, LIMITED, OPEN, PLAIN, SHORT, Settings, THREE_EACH, THREE_IN_ALL, Target,
};
use crate::trial::{Outcome, Trial};

/// The server a case is tried on.
#[derive(Clone, Copy)]
pub(crate) enum On {
    /// One that other cases use too.
    Shared(&'static Settings),
    /// One that nobody has used.
    Fresh(&'static Settings),
    /// The case starts what it needs.
    Own,
    /// Several servers; there are none yet.
    Ensemble,
}

/// Who has to answer as the case says.
#[derive(Clone, Copy)]
pub(crate) enum Against {
    Both,
    /// The reference must not be given this input.
    RingkeeperOnly(&'static str),
    /// Ringkeeper does not do this yet; when it does, the case fails until this is removed.
    ZooKeeperUntil(&'static str),
}

/// A line of the table.
pub(crate) struct Case {
    pub(crate) number: &'static str,
    pub(crate) name: &'static str,
    pub(crate) on: On,
    pub(crate) run: fn(&mut Trial<'_>) -> Outcome,
    pub(crate) against: Against,
    /// What other releases answer.
    versions: Option<&'static str>,
    /// Where ringkeeper differs on purpose, and why.
    differs: Option<&'static str>,
}

impl Case {
    /// Why the case is not tried on this target, if it is not.
    pub(crate) fn why_not_run(&self, target: &Target) -> Option<&'static str> {
        match (self.on, self.against) {
            (On::Ensemble, _) => Some("needs an ensemble"),
            (_, Against::RingkeeperOnly(why)) if !target.is_ours() => Some(why),
            (_, Against::Both | Against::RingkeeperOnly(_) | Against::ZooKeeperUntil(_)) => None,
        }
    }

    /// What a reader of a failure should know about releases and differences.
    pub(crate) fn note(&self) -> Option<String> {
        match (self.versions, self.differs) {
            (None, None) => None,
            (Some(note), None) | (None, Some(note)) => Some(note.to_owned()),
            (Some(versions), Some(differs)) => Some(format!("{versions}; {differs}")),
        }
    }

    const fn versions(mut self, note: &'static str) -> Case {
        self.versions = Some(note);
        self
    }

    const fn differs(mut self, why: &'static str) -> Case {
        self.differs = Some(why);
        self
    }

    const fn against(mut self, against: Against) -> Case {
        self.against = against;
        self
    }
}

const fn case(
    number: &'static str,
    on: On,
    name: &'static str,
    run: fn(&mut Trial<'_>) -> Outcome,
) -> Case {
    Case { number, name, on, run, against: Against::Both, versions: None, differs: None }
}

/// A fact that takes several servers.
const fn ensemble(number: &'static str, name: &'static str) -> Case {
    case(number, On::Ensemble, name, |_| Ok(()))
}

const OPEN_: On = On::Shared(&OPEN);
const PLAIN_: On = On::Shared(&PLAIN);
const SHORT_: On = On::Shared(&SHORT);
const ENFORCED_: On = On::Shared(&ENFORCED);
const LIMITED_: On = On::Shared(&LIMITED);
const FRESH: On = On::Fresh(&OPEN);

const ENDS_IT: &str = "ends the process of the reference";

#[rustfmt::skip]
pub(crate) const TABLE: &[Case] = &[
    // Connection and framing.
    case("1", OPEN_, "a first frame longer than jute.maxbuffer closes the connection", framing::frame_too_long),
    case("2", OPEN_, "a frame of exactly jute.maxbuffer is served", framing::frame_of_the_longest),
    case("3", OPEN_, "a negative length closes the connection", framing::length_negative),
    case("4", OPEN_, "a first frame of length 0 closes the connection", framing::length_zero),
    case("5", OPEN_, "four unknown letters close the connection", framing::unknown_word),
    case("6", OPEN_, "ruok is answered before the handshake and closes after it", framing::ruok),
    case("7", OPEN_, "stmk sets the trace mask that gtmk tells", framing::trace_mask),
    case("8", PLAIN_, "a word that is not whitelisted says so", framing::word_not_whitelisted),
    case("9", OPEN_, "any protocolVersion is taken and 0 is answered", framing::protocol_version),
    case("10", OPEN_, "readOnly is answered to those who sent it", framing::read_only_flag)
        .versions("3.9.0 to 3.9.2 send it to everybody"),
    case("11", OPEN_, "bytes behind a ConnectRequest are ignored", framing::junk_behind_connect),
    case("12", OPEN_, "a new session may come with any password", framing::password_of_new_session),
    case("13", OPEN_, "the session timeout is clamped", framing::timeout_clamped),
    case("14", OPEN_, "a client that has seen a later zxid is sent away without a word", framing::client_from_the_future),
    case("15", OPEN_, "a wrong password is refused", framing::wrong_password),
    case("16", OPEN_, "an unknown session with its right password is refused", framing::unknown_session),
    ensemble("16b", "a follower asks its leader before it refuses an unknown session"),
    case("17", OPEN_, "a closed session is refused", framing::closed_session),
    case("18", OPEN_, "a reconnect closes the session's other connection", framing::reconnect_replaces),
    case("19", OPEN_, "a reconnect negotiates the timeout again", framing::reconnect_renegotiates),
    case("20", OPEN_, "what is pipelined behind closeSession is not done", framing::pipelined_behind_connect),
    case("21", OPEN_, "a frame too short for a header closes the connection", framing::frame_without_header),
    ensemble("22", "a server without a quorum closes connections and answers ruok"),

    // Headers and op codes.
    case("23", OPEN_, "any xid is answered with the same xid", header::any_xid),
    case("24", OPEN_, "a ping is answered with xid -2", header::ping_xid),
    case("25", OPEN_, "an invalid op code is unimplemented and closes", header::invalid_ops)
        .versions("a check outside a multi is refused since 3.8.5 and 3.9.3"),
    case("26", OPEN_, "a body that ends too soon is a marshalling error", header::body_too_short),
    case("27", OPEN_, "bytes behind a body are ignored", header::bytes_behind_body),
    case("28", OPEN_, "any byte but 0 is true", header::any_byte_is_true),
    case("29", OPEN_, "a negative length of a path is a marshalling error", header::negative_string),
    case("30", OPEN_, "an acl count is neither believed nor allocated", header::acl_counts),
    case("31", OPEN_, "a data length beyond the frame is a marshalling error", header::data_length_beyond),
    case("32", OPEN_, "pipelined requests are answered in order", header::replies_in_order),
    case("33", OPEN_, "pipelined reads see the writes before them", header::reads_own_writes),
    ensemble("33b", "pipelined reads see the writes before them on a follower"),

    // create.
    case("34", OPEN_, "create: paths out of shape", create::paths_out_of_shape),
    case("35", OPEN_, "create: a trailing slash", create::trailing_slash),
    case("36", OPEN_, "create: an empty component, a NUL", create::empty_component_and_nul),
    case("37", OPEN_, "create: a sequential name without a prefix", create::sequential_without_prefix),
    case("38", OPEN_, "create: a number can make a name valid", create::sequential_mends_names),
    case("39", OPEN_, "create: which characters a path may have", create::characters),
    case("40", FRESH, "create: the first number below the root is 0", create::first_number_of_root),
    case("41", OPEN_, "create: numbers count all creations below a parent", create::numbers_count_creations),
    case("42", OPEN_, "create: an ephemeral has no children", create::child_of_ephemeral),
    case("43", OPEN_, "create: containers and TTL nodes have children", create::child_of_container_or_ttl),
    case("44", OPEN_, "create: the op code decides the kind", create::op_decides_kind),
    case("45", OPEN_, "create: the bounds of a TTL", create::ttl_bounds),
    case("45b", PLAIN_, "create: TTLs are unimplemented where switched off", create::ttl_switched_off),
    case("46", OPEN_, "create: which ACLs are invalid", create::acl_invalid)
        .differs("ringkeeper may call a null id an invalid ACL instead of an internal error"),
    case("47", OPEN_, "create: ACLs are stored as given, once, and auth expanded", create::acl_stored),
    case("48", OPEN_, "create: ACL before parent before name; permission before existence", create::order_of_checks),
    case("49", OPEN_, "create: permission before the final name", create::permission_before_name),
    case("50", OPEN_, "create2 answers the fresh stat", create::stat_of_create2),

    // delete, set, read, stat.
    case("51", OPEN_, "the reserved nodes cannot be deleted, not even by super", tree::reserved_stay),
    case("52", OPEN_, "delete: paths that name nothing", tree::delete_of_nothing),
    case("53", OPEN_, "delete: version before children", tree::version_before_children),
    case("54", OPEN_, "delete: permission on the parent before existence", tree::delete_needs_the_parent),
    case("55", OPEN_, "delete: the node's own ACL does not matter", tree::delete_ignores_own_acl),
    case("56", OPEN_, "anybody may delete an ephemeral, and its owner no longer lists it", tree::ephemeral_of_another),
    case("57", OPEN_, "only -1 is any version", tree::any_version),
    case("58", On::Own, "versions wrap, and skip -1", tree::versions_wrap)
        .versions("-1 is skipped since 3.10.0"),
    case("59", OPEN_, "the empty path is the root for reads and no path for writes", tree::empty_and_null_paths),
    case("60", OPEN_, "null data stays null", tree::null_data),
    case("61", OPEN_, "a failed write's zxid is not before the last", tree::zxid_of_failed_write)
        .differs("ringkeeper need not give a failed write a zxid of its own"),
    case("62", OPEN_, "a parent's stat after a create and a delete below it", tree::parent_of_created_and_deleted),
    case("63", OPEN_, "setACL changes aversion only, and fires nothing", tree::set_acl_changes_aversion),
    case("64", OPEN_, "setACL: ACL before node before permission before version", tree::set_acl_order),
    case("65", FRESH, "the stats of the reserved nodes on a fresh server", tree::fresh_root),
    case("66", FRESH, "/zookeeper/config is for super to change", tree::config_is_guarded),
    case("67", OPEN_, "getACL masks digests from those who may not administer", tree::get_acl_masks),
    case("68", FRESH, "getAllChildrenNumber counts descendants", tree::counts_of_descendants),
    case("69", OPEN_, "getEphemerals lists by string prefix", tree::ephemerals_by_prefix),
    case("70", OPEN_, "reads look at one node's ACL and at no path's shape", tree::reads_look_at_one_node)
        .versions("exists needs READ since 3.8.4 and 3.9.2"),
    case("71", OPEN_, "sync answers any path", tree::sync_of_anything),
    case("72", OPEN_, "whoAmI lists the connection's ids", tree::who_am_i_lists_ids),

    // multi.
    case("73", OPEN_, "multi: an empty one succeeds with a zxid", multi::empty),
    case("74", OPEN_, "multi: one failure undoes all and is told apart", multi::failed),
    case("75", OPEN_, "multi: operations see those before them", multi::sees_itself),
    case("76", OPEN_, "multi: create, delete and create one path", multi::same_path_again),
    case("77", OPEN_, "multi: delete a child, then its parent", multi::child_then_parent),
    case("78", OPEN_, "multi: a failed one gives its numbers back", multi::numbers_given_back),
    case("79", OPEN_, "multi: no child of an ephemeral just created", multi::child_of_ephemeral),
    case("80", OPEN_, "multi: what does not belong in it is a marshalling error", multi::undecodable),
    case("81", OPEN_, "multi: check needs READ", multi::check_needs_read),
    case("82", OPEN_, "multi: which creates answer a stat", multi::result_types)
        .versions("create2 does since 3.7.2, 3.8.2 and 3.9.0"),
    case("82b", OPEN_, "multi: how types and flags combine", multi::flags_of_subs)
        .versions("bad flags fail the decoding since 3.7.2, 3.8.2 and 3.9.0"),
    case("83", OPEN_, "multi: empty and null paths of a delete", multi::paths_of_delete)
        .versions("before 3.9.0 the error for a null path has a body"),
    case("84", OPEN_, "multiRead: each read succeeds or fails by itself", multi::reads),
    case("85", OPEN_, "multiRead: watch flags are ignored", multi::reads_set_no_watch),
    case("86", OPEN_, "multi: watches fire if it succeeds, in order, with its zxid", multi::watches_of_parent)
        .versions("events carry zxids since 3.9.0"),

    // Watches.
    case("87", OPEN_, "exists watches what is missing, getData does not", watch::of_missing_nodes),
    case("88", OPEN_, "data and child watches fire once each", watch::once_per_table),
    case("89", OPEN_, "a deletion is told once", watch::deleted_once),
    case("90", OPEN_, "the event of a client's own write precedes its reply", watch::event_before_reply),
    case("91", OPEN_, "setACL, check and quota stats fire nothing", watch::silent_changes),
    case("92", OPEN_, "addWatch takes two modes and any path", watch::modes_and_paths),
    case("93", OPEN_, "a persistent watch tells all of its node, each time", watch::persistent),
    case("94", OPEN_, "a recursive watch tells all below, but not of children", watch::recursive)
        .versions("it stands beside a child watch since 3.9.0"),
    case("95", OPEN_, "two modes, one event", watch::one_event_for_two_modes),
    case("96", OPEN_, "a recursive watch on the root tells everything", watch::recursive_on_root),
    case("97", OPEN_, "removeWatches and checkWatches by type", watch::removal_by_type)
        .versions("types 4 and 5, and modes side by side, since 3.9.0"),
    case("97b", OPEN_, "removeWatches of one-shot watches", watch::removal_of_standard),
    case("98", OPEN_, "an event carries the zxid of its transaction", watch::zxids_of_events)
        .versions("since 3.9.0, -1 before"),
    case("99", OPEN_, "setWatches catches up before its reply", watch::catch_up),
    case("100", OPEN_, "setWatches: null lists and bogus paths", watch::null_lists),
    case("101", OPEN_, "setWatches2: persistent lists do not catch up", watch::persistent_lists),
    case("102", OPEN_, "watches end with their connection", watch::gone_with_connection),
    case("103", OPEN_, "an event of an unreadable node is dropped, its watch consumed", watch::filtered_by_acl)
        .versions("since 3.8.4 and 3.9.2, delivered before"),
    case("104", OPEN_, "a recursive watch tells of what is readable", watch::filtered_one_by_one)
        .versions("since 3.8.4 and 3.9.2, everything before"),
    case("105", OPEN_, "the end of a session is one transaction", watch::end_of_session),

    // Authentication.
    case("106", OPEN_, "auth packets and what refuses them", acl::auth_packets),
    case("107", OPEN_, "the digest of odd texts", acl::digest_of_odd_texts),
    case("108", OPEN_, "auth expands to each digest of the connection", acl::two_digests),
    case("109", OPEN_, "which digest ids are valid", acl::digest_ids),
    case("110", OPEN_, "which ip ids are valid, and whom they match", acl::ip_ids)
        .versions("IPv6 since 3.9.4"),
    case("111", OPEN_, "schemes without a provider are invalid in an ACL", acl::schemes_without_provider),
    case("112", OPEN_, "SASL where none is configured", acl::sasl_not_configured),
    case("113", On::Own, "SASL logins that fail, and one that succeeds", acl::sasl_logins)
        .against(Against::ZooKeeperUntil("SASL logins are not there yet")),
    case("114", ENFORCED_, "nothing is answered before an enforced authentication", acl::enforced),
    case("115", OPEN_, "a create behind a setACL is judged by the new ACL", acl::pipelined_set_acl)
        .differs("the reference judges by the ACL that is applied, old or new as it comes: a race \
                  lets through what the client itself has just forbidden"),

    // Sessions, quota, containers, TTL.
    case("116", SHORT_, "an idle session expires after its timeout", session::idle_session_expires),
    case("116b", SHORT_, "pings keep a session", session::pings_keep),
    case("117", SHORT_, "a dropped connection leaves its session until that expires", session::dropped_connection),
    ensemble("118", "a session that moved to another server"),
    ensemble("119", "local sessions"),
    ensemble("120", "a read-only server"),
    case("121", PLAIN_, "reconfig is disabled by default", session::reconfig_switched_off),
    case("121b", SHORT_, "reconfig is unimplemented on a standalone server", session::reconfig_of_standalone),
    ensemble("121c", "reconfig: configuration and members before permission"),
    case("122", OPEN_, "hard limits refuse what exceeds them, soft ones nothing", session::quota_limits),
    case("122b", PLAIN_, "limits refuse nothing where not enforced", session::quota_not_enforced),
    case("123", OPEN_, "quota stats are the server's, silent and outside the stat", session::quota_stats),
    case("124", OPEN_, "quotas: multi, neighbours and removal", session::quota_in_multi),
    case("125", SHORT_, "a container that is emptied goes, one never used stays", session::containers),
    case("125b", PLAIN_, "a container never used goes after maxNeverUsedIntervalMs", session::container_never_used),
    case("126", SHORT_, "a TTL node goes when it is over age and childless", session::ttl_nodes),
    case("127", On::Own, "a server that knows no TTLs takes their nodes for orphans, or refuses to start", create::ttl_unknown_after_restart),
    case("128", OPEN_, "closeSession deletes an ephemeral created just before it", session::pending_ephemeral),

    // Limits and switches.
    case("L1", On::Fresh(&THREE_EACH), "maxClientCnxns is a limit for each address", framing::three_connections),
    case("L2", On::Fresh(&THREE_IN_ALL), "maxCnxns is a limit for all", framing::three_connections),
    case("L3", LIMITED_, "jute.maxbuffer is a limit for frames", framing::frame_limit_configured),
    case("L4", LIMITED_, "minSessionTimeout and maxSessionTimeout clamp", framing::timeouts_configured),
    case("L5", LIMITED_, "a connection that does not connect is closed", framing::silent_connection),
    case("L6", LIMITED_, "skipACL=yes asks nobody", acl::skipped),
    case("L7", OPEN_, "ids of any text", acl::ids_of_any_text),

    // What ringkeeper must not copy.
    case("D1", OPEN_, "a write that does not decode leaves no trace", header::malformed_writes),
    case("D2", OPEN_, "createTTL of a kind without a TTL is a bad argument", header::ttl_out_of_place)
        .against(Against::RingkeeperOnly(ENDS_IT)),
    case("D3", FRESH, "names of quota nodes elsewhere are only names", session::quota_names_elsewhere)
        .against(Against::RingkeeperOnly(ENDS_IT)),
    case("D4", OPEN_, "quota nodes that do not parse limit nothing", session::quota_unparsable)
        .against(Against::RingkeeperOnly(ENDS_IT)),
    case("D5", OPEN_, "deleteContainer is not for clients", header::delete_container_from_client)
        .versions("the path is found since 3.9.0")
        .differs("the reference deletes without looking at sessions or ACLs"),
    case("D6", OPEN_, "createSession is not for clients", header::create_session_from_client)
        .differs("the reference makes the session anew and answers a second ConnectResponse"),
    ensemble("D8", "an eager ACL check and a read-only server keep replies in order"),
    case("D9", OPEN_, "a stranger with a wrong password leaves the session's connection alone", framing::stranger_with_wrong_password)
        .differs("the reference closes it before it looks at the password"),
    ensemble("D10", "a new session on a read-only server gets a ConnectResponse"),
    case("D11", OPEN_, "a write in a multiRead is a marshalling error without a body", multi::write_among_reads)
        .differs("the reference sends a body behind the error, which no client reads"),
    case("D14", OPEN_, "pending children of the root are seen", multi::numbers_below_root),
    case("D15", On::Own, "a count of creations that overflows is survived", tree::creations_overflow),

    // The whole.
    case("G1", FRESH, "a whole conversation, byte for byte", golden::conversation),
    case("P1", OPEN_, "session passwords follow from session ids", framing::passwords),
    case("P2", OPEN_, "session ids ascend", framing::session_ids),
    case("P3", On::Own, "a killed server has kept what it acknowledged, and the session", framing::killed_server),
    case("O1", OPEN_, "an event is told before newer data", watch::event_before_newer_data),
    case("O2", OPEN_, "zxids follow the order of writes across sessions", session::writes_in_zxid_order),
];
