//! What only the operating system knows: open files, the sizes of directories, the environment.
//!
//! To find out, files are opened and directories are listed, which takes as long as there are many,
//! or as a disk is busy. So a thread of its own does it, when somebody asks, and no core waits.
//! Questions that come meanwhile are answered together.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{self, Receiver, Sender};

use super::directories::{Directories, names};
use super::sys;
use crate::admin::Sizes;

/// What is to be found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) open_files: bool,
    pub(crate) sizes: bool,
    pub(crate) environment: bool,
}

/// What was found out; of what nobody wanted, nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) open_files: u64,
    pub(crate) sizes: Sizes,
    /// What `envi` shows.
    pub(crate) environment: Vec<(String, String)>,
}

struct Question {
    wanted: Wanted,
    give: Box<dyn FnOnce(Facts) + Send>,
}

/// Something to ask with. The thread ends with the last of these.
pub(crate) struct Observer {
    questions: Sender<Question>,
}

impl Observer {
    pub(crate) fn start(directories: Arc<Directories>) -> io::Result<Observer> {
        let (questions, inbox) = channel::unbounded();
        let thread = thread::Builder::new().name("observer".to_owned());
        thread.spawn(move || answer(&inbox, &directories))?;
        Ok(Observer { questions })
    }

    /// `give` gets what was found out, on the thread.
    pub(crate) fn ask(&self, wanted: Wanted, give: impl FnOnce(Facts) + Send + 'static) {
        if wanted == Wanted::default() {
            return give(Facts::default());
        }
        let _ = self.questions.send(Question { wanted, give: Box::new(give) });
    }
}

fn answer(inbox: &Receiver<Question>, directories: &Directories) {
    while let Ok(first) = inbox.recv() {
        let questions: Vec<Question> = [first].into_iter().chain(inbox.try_iter()).collect();
        let any = |of: fn(&Wanted) -> bool| questions.iter().any(|asked| of(&asked.wanted));
        let facts = Facts {
            open_files: if any(|wanted| wanted.open_files) { open_files() } else { 0 },
            sizes: if any(|wanted| wanted.sizes) { sizes(directories) } else { Sizes::default() },
            environment: if any(|of| of.environment) { environment() } else { Vec::new() },
        };
        for question in questions {
            (question.give)(facts.clone());
        }
    }
}

fn open_files() -> u64 {
    fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64)
}

fn sizes(directories: &Directories) -> Sizes {
    Sizes {
        data_dir_bytes: bytes_in(directories.snapshots()),
        data_log_dir_bytes: bytes_in(directories.logs()),
    }
}

fn bytes_in(directory: &Path) -> u64 {
    names(directory).map_or(0, |names| names.iter().map(|(_, bytes)| bytes).sum())
}

/// What `envi` shows; where a line is about a Java machine, what is nearest to it.
fn environment() -> Vec<(String, String)> {
    let read = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).ok();
    let unknown = || "<NA>".to_owned();
    let variable = |name: &str| std::env::var(name).ok();
    let directory = std::env::current_dir().map(|path| path.display().to_string());
    let status = read("/proc/self/status").unwrap_or_default();
    let resident_mb = status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .map_or(0, |kib: u64| kib / 1024);
    let meminfo = read("/proc/meminfo").unwrap_or_default();
    let meminfo_mb = |name: &str| {
        meminfo
            .lines()
            .find_map(|line| {
                line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
            })
            .map_or(0, |kib: u64| kib / 1024)
    };
    let lines = [
        ("host.name", read("/proc/sys/kernel/hostname").unwrap_or_else(unknown)),
        ("java.version", "n/a".to_owned()),
        ("java.vendor", "n/a".to_owned()),
        ("java.home", "n/a".to_owned()),
        ("java.class.path", "n/a".to_owned()),
        ("java.library.path", "n/a".to_owned()),
        ("java.io.tmpdir", std::env::temp_dir().display().to_string()),
        ("java.compiler", unknown()),
        ("os.name", "Linux".to_owned()),
        (
            "os.arch",
            if cfg!(target_arch = "x86_64") { "amd64" } else { std::env::consts::ARCH }.to_owned(),
        ),
        ("os.version", read("/proc/sys/kernel/osrelease").unwrap_or_else(unknown)),
        ("user.name", sys::user_name().or_else(|| variable("USER")).unwrap_or_else(unknown)),
        ("user.home", variable("HOME").unwrap_or_else(unknown)),
        ("user.dir", directory.unwrap_or_else(|_| unknown())),
        ("jvm.memory.free", format!("{}MB", meminfo_mb("MemAvailable:"))),
        ("jvm.memory.max", format!("{}MB", meminfo_mb("MemTotal:"))),
        ("jvm.memory.total", format!("{resident_mb}MB")),
    ];
    lines.map(|(key, value)| (key.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::scratch::Scratch;

    #[test]
    fn whoever_asks_is_given_what_it_wants_by_another_thread() {
        let scratch = Scratch::new("observer");
        let directories =
            Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap();
        fs::write(directories.logs().join("log.1"), [0; 100]).unwrap();
        let observer = Observer::start(Arc::new(directories)).unwrap();
        let (give, given) = channel::unbounded();
        let ask = |wanted| {
            let give = give.clone();
            observer.ask(wanted, move |facts| {
                let name = thread::current().name().map(str::to_owned);
                give.send((name, facts)).unwrap();
            });
            given.recv().unwrap()
        };
        let nothing = Wanted::default();
        let (thread, facts) = ask(Wanted { open_files: true, sizes: true, ..nothing });
        assert_eq!(thread.as_deref(), Some("observer"));
        assert!(3 <= facts.open_files);
        assert_eq!(facts.sizes.data_log_dir_bytes, 100);
        let (_, facts) = ask(Wanted { environment: true, ..nothing });
        assert!(!facts.environment.is_empty());
        let (thread, _) = ask(nothing);
        assert_ne!(thread.as_deref(), Some("observer"), "nothing is found out at once");
    }

    #[test]
    fn the_environment_has_the_names_that_scripts_look_for() {
        let environment = environment();
        let names: Vec<_> = environment.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names.first(), Some(&"host.name"));
        assert!(names.contains(&"os.arch") && names.contains(&"user.dir"));
        assert!(environment.iter().all(|(_, value)| !value.is_empty()));
    }
}
