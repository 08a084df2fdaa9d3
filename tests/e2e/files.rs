//! What is in the data directory, and what may be.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::PATIENCE;
use crate::client::{Client, now};
use crate::server::{Folder, Server, not_run, until};

fn connect(server: &Server) -> Client {
    Client::connect(server.address, now() + PATIENCE).unwrap()
}

fn create(client: &mut Client, numbers: std::ops::Range<usize>) {
    let numbers: Vec<usize> = numbers.collect();
    for chunk in numbers.chunks(100) {
        for number in chunk {
            client.create(&format!("/n{number}"), format!("value {number}").as_bytes());
        }
        let replies = client.replies(chunk.len()).unwrap();
        assert!(replies.iter().all(|reply| reply.header.err == 0));
    }
}

fn check(client: &mut Client, end: usize) {
    for number in 0..end {
        client.get(&format!("/n{number}"));
        assert_eq!(client.answer().data().0, format!("value {number}").as_bytes());
    }
}

fn names(directory: &Path, start: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(start)).collect()
}

#[test]
fn purging_keeps_what_a_restart_needs() {
    const END: usize = 3000;
    let folder = Folder::new("purge");
    let settings = [
        "snapCount=100",
        "preAllocSize=64",
        "autopurge.snapRetainCount=3",
        "autopurge.purgeInterval=20ms",
    ];
    let server = Server::start(&folder, &settings);
    let mut client = connect(&server);
    for first in (0..END).step_by(100) {
        create(&mut client, first..first + 100);
    }
    let complaint = || format!("{:?} are left", names(&folder.version(), ""));
    until(PATIENCE, complaint, || {
        server.said().contains("Removing file") && names(&folder.version(), "snapshot.").len() <= 4
    });
    server.kill();
    // Without purging, so that what is there is what was left.
    let server = Server::start(&folder, &[]);
    check(&mut connect(&server), END);
    server.kill();
    // The oldest snapshot that was left is worth something, too: it needs its logs.
    let mut snapshots: Vec<(i64, String)> = names(&folder.version(), "snapshot.")
        .into_iter()
        .map(|name| (i64::from_str_radix(&name["snapshot.".len()..], 16).unwrap(), name))
        .collect();
    snapshots.sort();
    for (_, name) in snapshots.drain(1..) {
        fs::remove_file(folder.version().join(name)).unwrap();
    }
    let server = Server::start(&folder, &[]);
    check(&mut connect(&server), END);
}

#[test]
fn snapshots_of_every_kind_are_written_and_read() {
    for (method, suffix, back_end) in [
        ("gz", ".gz", "direct"),
        ("gz", ".gz", "glommio"),
        ("snappy", ".snappy", "direct"),
        ("", "", "direct"),
        ("", "", "glommio"),
    ] {
        let folder = Folder::new("compressed");
        let setting = format!("snapshot.compression.method={method}");
        let back_end = format!("ringkeeper.snapshot.backEnd={back_end}");
        let settings = [setting.as_str(), back_end.as_str(), "snapCount=50", "preAllocSize=64"];
        let server = Server::start(&folder, &settings);
        let mut client = connect(&server);
        let mut end = 0;
        // None is taken while another is being written: on a busy machine, all that fell due with
        // these creates may have been left out.
        until(
            PATIENCE,
            || server.said(),
            || {
                create(&mut client, end..end + 100);
                end += 100;
                3 <= names(&folder.version(), "snapshot.").len()
            },
        );
        if server.said().contains("written without glommio") {
            not_run("snapshots by glommio", "no executor, or no direct writes here");
        }
        server.kill();
        let snapshots = names(&folder.version(), "snapshot.");
        let right =
            |name: &String| name.contains('.') && (method.is_empty() || name.ends_with(suffix));
        assert!(snapshots.iter().all(right), "{snapshots:?}");
        // By a server that writes plain ones itself.
        let server = Server::start(&folder, &[]);
        check(&mut connect(&server), end);
        let loaded = server.said();
        assert!(loaded.contains("Reading snapshot"), "{loaded}");
    }
}

#[test]
fn what_belongs_elsewhere_is_refused_and_what_is_not_ours_is_left_alone() {
    let folder = Folder::new("misplaced");
    let data = folder.path().join("data");
    let logs = folder.path().join("logs");
    fs::create_dir_all(&data).unwrap();
    fs::write(data.join("myid"), "7\n").unwrap();
    let setting = format!("dataLogDir={}", logs.display());
    let server = Server::start(&folder, &[&setting]);
    create(&mut connect(&server), 0..10);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    let epochs = [("currentEpoch", "5"), ("acceptedEpoch", "6"), ("currentEpoch.tmp", "7")];
    for (name, text) in epochs {
        fs::write(folder.version().join(name), text).unwrap();
    }
    let server = Server::start(&folder, &[&setting]);
    check(&mut connect(&server), 10);
    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
    for (name, text) in epochs {
        assert_eq!(fs::read_to_string(folder.version().join(name)).unwrap(), text, "{name}");
    }
    assert_eq!(fs::read_to_string(data.join("myid")).unwrap(), "7\n");
    for (directory, name) in [(folder.version(), "log.1"), (logs.join("version-2"), "snapshot.1")] {
        fs::write(directory.join(name), b"").unwrap();
        let (status, output) = Server::start(&folder, &[&setting]).wait(PATIENCE);
        assert_eq!(status.code(), Some(3), "{output}");
        assert!(output.contains(name) && output.contains("move it there"), "{output}");
        fs::remove_file(directory.join(name)).unwrap();
    }
}

#[test]
fn what_clients_store_is_nobody_elses_to_read() {
    let folder = Folder::new("modes");
    let server = Server::start(&folder, &["snapCount=20", "preAllocSize=64"]);
    create(&mut connect(&server), 0..100);
    until(PATIENCE, || server.said(), || 2 <= names(&folder.version(), "snapshot.").len());
    let mut directories = vec![folder.path().join("data")];
    let mut files = 0;
    while let Some(directory) = directories.pop() {
        let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
        assert_eq!(mode(&directory).unwrap(), 0o700, "{}", directory.display());
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            // One may be renamed just now.
            let Ok(found) = mode(&path) else { continue };
            if path.is_dir() {
                directories.push(path);
            } else {
                assert_eq!(found, 0o600, "{}", path.display());
                files += 1;
            }
        }
    }
    assert!(5 <= files, "only {files} files were looked at");
}
