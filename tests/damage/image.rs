//! Data directories as a crash or an end leaves them, with the record of what was acknowledged.
//!
//! A *hot* image is copied at once after a SIGKILL at a moment of full load, with the pipeline
//! full of writes. A *settled* one had time: the server was stopped in order, or idle.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ringkeeper::storage::watermark::Watermark;

use crate::PATIENCE;
use crate::load::{Act, History, Sizes, Writer, served_zxid};
use crate::random::Random;
use crate::server::{Folder, Server, Setup, until};

/// How the server came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// SIGKILL under full load.
    Hot,
    /// SIGKILL right behind the last of a few writes, made one after the other.
    Light,
    /// SIGKILL once the watermark names the last write.
    Idle,
    /// SIGTERM.
    Stopped,
}

/// What an image is to be like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) end: End,
    /// Logs have a directory of their own.
    pub(crate) is_apart: bool,
    /// A first life, ended by SIGKILL, precedes.
    pub(crate) has_past: bool,
    /// Ephemerals of living sessions and of a closed one.
    pub(crate) has_sessions: bool,
    /// Of data to be acknowledged.
    pub(crate) bytes: u64,
    pub(crate) sizes: Sizes,
    pub(crate) settings: &'static [&'static str],
}

const PLAIN: Spec = Spec {
    name: "hot",
    end: End::Hot,
    is_apart: false,
    has_past: false,
    has_sessions: false,
    bytes: 400_000,
    sizes: Sizes(200, 4_000),
    settings: &[],
};

/// Logs roll and snapshots are taken after this many transactions, or somewhat fewer.
const ROLLS: &[&str] = &["snapCount=60"];
const FEW_ROLLS: &[&str] = &["snapCount=250"];

pub(crate) const SPECS: &[Spec] = &[
    PLAIN,
    Spec { name: "hot-small", sizes: Sizes(10, 60), bytes: 20_000, ..PLAIN },
    Spec { name: "hot-rolls", settings: ROLLS, bytes: 300_000, ..PLAIN },
    Spec { name: "hot-past", has_past: true, has_sessions: true, settings: FEW_ROLLS, ..PLAIN },
    Spec { name: "hot-apart", is_apart: true, settings: FEW_ROLLS, ..PLAIN },
    Spec { name: "hot-large", sizes: Sizes(1_000, 300_000), bytes: 2_000_000, ..PLAIN },
    Spec { name: "light", end: End::Light, ..PLAIN },
    Spec { name: "light-apart", end: End::Light, is_apart: true, has_past: true, ..PLAIN },
    Spec { name: "idle", end: End::Idle, has_past: true, bytes: 100_000, ..PLAIN },
    Spec { name: "stopped", end: End::Stopped, settings: ROLLS, bytes: 200_000, ..PLAIN },
];

/// Which of the back ends writes the log.
pub(crate) const BACK_ENDS: [&str; 2] = ["direct", "mapped"];

/// One image. Below `path` lie `data`, `logs` where they are apart, and the same below `earlier`
/// as they were at half of the load.
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) spec: Spec,
    pub(crate) settings: Vec<String>,
    pub(crate) history: History,
}

impl Image {
    /// Made anew, or taken up again where `path` has one. `None`: the back end does not work here.
    pub(crate) fn make(spec: Spec, back_end: &str, path: PathBuf, seed: u64) -> Option<Image> {
        let mut settings =
            vec!["preAllocSize=64".to_owned(), format!("ringkeeper.txnLog.backEnd={back_end}")];
        settings.extend(spec.settings.iter().map(|&setting| setting.to_owned()));
        let name = format!("{}-{back_end}", spec.name);
        let history = History::default();
        let mut image = Image { name, path, spec, settings, history };
        if let Some(history) = History::load(&image.path.join("history")) {
            image.history = history;
            return Some(image);
        }
        fs::create_dir_all(&image.path).expect("the folder can be written");
        let folder = Folder::new("damage-image");
        if spec.has_past {
            image.live_once(&folder, seed);
        }
        image.live(&folder, seed ^ 1, back_end).then_some(())?;
        image.history.save(&image.path.join("history"));
        Some(image)
    }

    /// How to start a server on a copy of it in `path`.
    pub(crate) fn setup(&self, path: &Path) -> Setup {
        let mut settings: Vec<String> = self.settings.clone();
        if self.spec.is_apart {
            settings.push(format!("dataLogDir={}", path.join("logs").display()));
        }
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        Setup::new(&settings).data(&path.join("data"))
    }

    /// The directory with the logs, in a copy of it.
    pub(crate) fn logs(&self) -> &'static str {
        if self.spec.is_apart { "logs" } else { "data" }
    }

    fn live_once(&mut self, folder: &Folder, seed: u64) {
        let server = self.setup(&self.path).start(folder);
        let mut writer = Writer::new(server.address, &mut self.history, seed, self.spec.sizes);
        writer.load(|writer| 60_000 <= writer.acknowledged_bytes);
        writer.fill();
        server.kill();
        writer.drain();
    }

    fn live(&mut self, folder: &Folder, seed: u64, back_end: &str) -> bool {
        let server = self.setup(&self.path).start(folder);
        let mut last = None;
        until(
            PATIENCE,
            || server.said(),
            || {
                last = served_zxid(server.address);
                last.is_some()
            },
        );
        if back_end == "direct" && server.said().contains("logs are mapped") {
            return false;
        }
        let mut history = std::mem::take(&mut self.history);
        history.settle(last.expect("it serves"));
        if self.spec.has_sessions {
            make_ephemerals(&server, &mut history, seed);
        }
        let mut writer = Writer::new(server.address, &mut history, seed, self.spec.sizes);
        let half = self.spec.bytes / 2;
        if self.spec.end == End::Light {
            writer.create_few(100, 100);
            self.copy_earlier();
            writer.create_few(100, 100);
            server.kill();
        } else {
            writer.load(|writer| half <= writer.acknowledged_bytes);
            self.copy_earlier();
            writer.load(|writer| self.spec.bytes <= writer.acknowledged_bytes);
            match self.spec.end {
                End::Hot => {
                    let delay = Random::new(seed).below(3_000);
                    let killer = server.kill_after(Duration::from_micros(delay));
                    writer.load(|_| false);
                    killer.join().expect("the killer ends");
                }
                End::Idle => {
                    writer.finish();
                    let acknowledged = writer.history.acknowledged();
                    let watermark = self.path.join(self.logs()).join("ringkeeper.watermark");
                    until(
                        PATIENCE,
                        || "the watermark stays behind".to_owned(),
                        || marked_zxid(&watermark).is_some_and(|zxid| acknowledged <= zxid),
                    );
                    server.kill();
                }
                End::Stopped => {
                    writer.finish();
                    assert_eq!(server.terminate(PATIENCE).code(), Some(0));
                }
                End::Light => unreachable!("it ended above"),
            }
        }
        self.history = history;
        true
    }

    /// Copies what is there now below `earlier`, while the server runs.
    fn copy_earlier(&self) {
        for part in ["data", "logs"] {
            let (from, to) = (self.path.join(part), self.path.join("earlier").join(part));
            if from.exists() {
                copy_folder(&from, &to).expect("the folder can be copied");
            }
        }
    }
}

/// Two sessions with ephemerals that live on, and one that is closed.
fn make_ephemerals(server: &Server, history: &mut History, seed: u64) {
    for number in 0..3 {
        let mut writer = Writer::new(server.address, history, seed, Sizes(0, 0));
        if number == 0 {
            writer.send(Act::Create, "/e".to_owned(), 0);
        }
        let owner = Act::CreateEphemeral(writer.session());
        for child in 0..4 {
            writer.send(owner, format!("/e/{number}-{child}"), 30);
        }
        writer.finish();
        if number == 1 {
            writer.close();
        }
    }
}

/// What the watermark in `path` says.
pub(crate) fn marked_zxid(path: &Path) -> Option<i64> {
    let (_, watermark) = Watermark::decode(&fs::read(path).ok()?).ok()??;
    Some(watermark.zxid.0)
}

/// Copies all files and folders. What vanishes meanwhile is left out.
pub(crate) fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else if let Err(error) = fs::copy(entry.path(), target)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
    }
    Ok(())
}
