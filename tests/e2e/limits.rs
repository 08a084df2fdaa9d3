//! What a machine may withhold: io_uring, memory to lock, privileges.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::server::{Folder, Server, Setup, is_root, not_run, own_status, succeeds};

/// Installs a seccomp filter that fails `io_uring_setup` (425 everywhere) with the errno that it
/// is given, as container runtimes do, and becomes the command.
const DENY_IO_URING: &str = r"
import ctypes, os, struct, sys
def op(code, yes, no, value): return struct.pack('HBBI', code, yes, no, value)
program = (op(0x20, 0, 0, 0) + op(0x15, 0, 1, 425)
           + op(6, 0, 0, 0x00050000 | int(sys.argv[1])) + op(6, 0, 0, 0x7fff0000))
code = ctypes.create_string_buffer(program, len(program))
class Program(ctypes.Structure):
    _fields_ = [('count', ctypes.c_ushort), ('code', ctypes.c_void_p)]
libc = ctypes.CDLL(None)
pointer = ctypes.cast(code, ctypes.c_void_p)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(4, pointer)), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
";

/// A server that ends with one line which has all of `words`, and without a panic.
fn refuses(server: Server, words: &[&str]) {
    let (status, output) = server.wait(PATIENCE);
    assert_eq!(status.code(), Some(1), "{output}");
    assert!(!output.contains("panicked"), "{output}");
    let lines = output.lines().filter(|line| words.iter().all(|word| line.contains(word)));
    assert_eq!(lines.count(), 1, "no one line has all of {words:?}: {output}");
}

fn serves(server: Server) {
    let mut client = Client::connect(server.address, now() + PATIENCE).unwrap();
    client.create("/a", b"1");
    client.answer();
    drop(client);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
}

#[test]
fn a_forbidden_io_uring_is_said_with_the_setting_to_change() {
    let name = "a server where io_uring is forbidden";
    if !succeeds(&["python3", "-c", DENY_IO_URING, "1", "/bin/true"]) {
        return not_run(name, "no python3 with ctypes that may install a seccomp filter");
    }
    let folder = Folder::new("uring");
    // EPERM is what Docker says, ENOSYS what others do.
    for errno in ["1", "38"] {
        let setup = Setup::new(&[]).under(&["python3", "-c", DENY_IO_URING, errno]);
        refuses(setup.start(&folder), &["ERROR", "io_uring", "seccomp", "io_uring_setup"]);
    }
}

/// Someone without privileges, with so much memory to lock.
struct Poor {
    folder: Folder,
    setup: Setup,
}

impl Poor {
    /// `None`, said why, where nobody can be made as poor as that.
    fn new(name: &str, memlock_kib: u64) -> Option<Poor> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let limit = format!("--memlock={}", memlock_kib << 10);
        let mut words = vec!["prlimit", &limit];
        // Kernels count locked memory by user, over all of their processes: each is one of its own.
        if !is_root() {
            not_run(name, "only root can run a server as a user who runs nothing else");
            return None;
        }
        let user =
            60_000 + (std::process::id() * 8 + COUNT.fetch_add(1, Ordering::Relaxed)) % 5_000;
        let drop_all = format!(
            "setpriv --reuid={user} --regid=65534 --clear-groups --inh-caps=-all --bounding-set=-all"
        );
        words.extend(drop_all.split(' '));
        let mut probe = words.clone();
        probe.push("/bin/true");
        if !succeeds(&probe) {
            not_run(name, "prlimit and setpriv (util-linux) cannot take privileges away here");
            return None;
        }
        let folder = Folder::for_anyone("memlock");
        // The one that cargo built may lie where only its owner gets.
        let binary: PathBuf = folder.path().join("ringkeeper");
        fs::copy(env!("CARGO_BIN_EXE_ringkeeper"), &binary).expect("there is room for a copy");
        let mut wanted = words.clone();
        let shown = binary.display().to_string();
        wanted.extend([shown.as_str(), "--version"]);
        if !succeeds(&wanted) {
            not_run(name, "nobody may run a program in the folder for temporary files");
            return None;
        }
        let setup = Setup::new(&[]).under(&words).binary(binary);
        Some(Poor { folder, setup })
    }
}

#[test]
fn little_memory_to_lock_leaves_one_core_and_is_said_with_the_settings_to_change() {
    let Some(poor) = Poor::new("64 KiB of locked memory without privileges", 64) else { return };
    let setup = poor.setup.flag("-Dringkeeper.shards=3");
    let server = setup.start(&poor.folder);
    drop(Client::connect(server.address, now() + PATIENCE).unwrap());
    let said = server.said();
    for word in
        ["WARN", "64 KiB", "ulimit -l", "LimitMEMLOCK", "docker run --ulimit", "shared=true"]
    {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    serves(server);
}

#[test]
fn eight_mebibytes_of_locked_memory_are_enough_for_anyone() {
    let Some(poor) = Poor::new("8 MiB of locked memory without privileges", 8 << 10) else {
        return;
    };
    serves(poor.setup.start(&poor.folder));
}

#[test]
fn whoever_may_raise_the_limit_on_locked_memory_raises_it() {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let name = "64 KiB of locked memory, with the privilege to raise it";
    let capabilities = u64::from_str_radix(&own_status("CapEff"), 16).unwrap();
    if capabilities & CAP_SYS_RESOURCE == 0 {
        return not_run(name, "these tests run without CAP_SYS_RESOURCE");
    }
    if !succeeds(&["prlimit", "--memlock=65536", "/bin/true"]) {
        return not_run(name, "there is no prlimit (util-linux)");
    }
    let folder = Folder::new("memlock");
    serves(Setup::new(&[]).under(&["prlimit", "--memlock=65536"]).start(&folder));
}
