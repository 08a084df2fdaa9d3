//! The matrix: every image, everything that can be wrong with it, one at a time.
//!
//! ```text
//! CASES=20000   so many cases (2,000 in CI)
//! SEED=n        which cases come first, and what is drawn at random
//! KIND=text     those of whose kind this is a part, and no others
//! CASE=n        this one alone; its folder is kept, as it was before the start and after
//! IMAGES=path   images that an earlier run has kept there, or keeps there now
//! ```
//!
//! Images differ from run to run, as a kill does. So a case is the same again only on the same
//! images: a run with findings keeps them and prints how to run a case again.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::damage::{Damage, damages};
use crate::image::{BACK_ENDS, Image, SPECS, copy_folder};
use crate::random::Random;
use crate::server::{Folder, Setup, is_root, not_run, succeeds};
use crate::verdict::{Finding, Judge, Outcome, Verdict};

/// What a plain `cargo test` runs.
const CASES: usize = 300;
/// Random cases of each image, beyond which they are drawn again with other numbers.
const RANDOM_EACH: usize = 60;

fn from_environment(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Someone who is not root and runs nothing else.
const OTHER_USER: u32 = 64_321;

struct Plan {
    images: Vec<Image>,
    /// Which image, and what is done to it.
    cases: Vec<(usize, Damage)>,
    seed: u64,
    other: Option<AsOther>,
}

fn make_images(path: &Path, seed: u64) -> Vec<Image> {
    let mut images = Vec::new();
    for back_end in BACK_ENDS {
        for (number, spec) in SPECS.iter().enumerate() {
            let path = path.join(format!("{}-{back_end}", spec.name));
            match Image::make(*spec, back_end, path, seed.wrapping_add(number as u64)) {
                Some(image) => images.push(image),
                None => {
                    not_run(
                        "images of the direct back end",
                        "no direct writes on this file system",
                    );
                    break;
                }
            }
        }
    }
    images
}

/// Each image's cases of each kind in turn, so that any number of them is of all kinds.
fn draw(images: &[Image], seed: u64, count: usize) -> Vec<(usize, Damage)> {
    let mut random = Random::new(seed);
    let mut groups: BTreeMap<(&str, usize), Vec<Damage>> = BTreeMap::new();
    let random_each = RANDOM_EACH.max(count / images.len().max(1));
    for (number, image) in images.iter().enumerate() {
        for damage in damages(image, images, &mut random, random_each) {
            groups.entry((damage.kind, number)).or_default().push(damage);
        }
    }
    let mut groups: Vec<_> = groups.into_iter().map(|((_, image), cases)| (image, cases)).collect();
    groups.iter_mut().for_each(|(_, cases)| random.shuffle(cases));
    random.shuffle(&mut groups);
    let mut cases = Vec::new();
    while !groups.is_empty() {
        for (image, group) in &mut groups {
            cases.extend(group.pop().map(|damage| (*image, damage)));
        }
        groups.retain(|(_, group)| !group.is_empty());
    }
    cases
}

/// Starts servers as a user who is not root, so that files can be unreadable, which the one who
/// judges has to read all the same.
pub(crate) struct AsOther {
    /// The one that cargo built may lie where only its owner gets.
    binary: PathBuf,
    _folder: Folder,
}

impl AsOther {
    /// `None`, said why, where there is none.
    pub(crate) fn new(what: &str) -> Option<AsOther> {
        if !is_root() {
            not_run(what, "only root can start a server as someone else");
            return None;
        }
        let folder = Folder::for_anyone("damage-binary");
        let binary = folder.path().join("ringkeeper");
        fs::copy(env!("CARGO_BIN_EXE_ringkeeper"), &binary).expect("there is room for a copy");
        let other = AsOther { binary, _folder: folder };
        let (user, shown) = (OTHER_USER.to_string(), other.binary.display().to_string());
        let words =
            ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", &shown, "--version"];
        if !succeeds(&words) {
            not_run(what, "setpriv (util-linux) cannot start the binary as someone else here");
            return None;
        }
        Some(other)
    }

    /// Gives the folder to that user, and has the server started as that user.
    pub(crate) fn take(&self, setup: Setup, path: &Path) -> Setup {
        give_away(path);
        let user = OTHER_USER.to_string();
        let words = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
        setup.under(&words).binary(self.binary.clone())
    }
}

impl Drop for AsOther {
    fn drop(&mut self) {
        // Too large to be left behind by a test that failed.
        let _ = fs::remove_file(&self.binary);
    }
}

impl Plan {
    /// Where a case runs: a copy of its image, damaged; and how it is started.
    fn prepare(&self, number: usize) -> Option<(Folder, Setup)> {
        let (image, damage) = &self.cases[number];
        let image = &self.images[*image];
        let name = format!("damage-case-{number}");
        let by_other = damage.by_other_user && is_root();
        let folder = if by_other { Folder::for_anyone(&name) } else { Folder::new(&name) };
        let path = folder.path();
        for part in ["data", "logs"] {
            if image.path.join(part).exists() {
                copy_folder(&image.path.join(part), &path.join(part)).expect("there is room");
            }
        }
        let mut setup = image.setup(path);
        if let Some(logs) = &damage.logs {
            let mut settings: Vec<String> = image.settings.clone();
            if !logs.is_empty() {
                settings.push(format!("dataLogDir={}", path.join(logs).display()));
            }
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            setup = Setup::new(&settings).data(&path.join("data"));
        }
        for flag in &damage.flags {
            setup = setup.flag(flag);
        }
        if damage.by_other_user {
            setup = self.other.as_ref()?.take(setup, path);
        }
        damage.apply(&image.path, path);
        Some((folder, setup))
    }

    fn run(&self, number: usize, keep: bool) -> Option<Outcome> {
        let (folder, setup) = self.prepare(number)?;
        if keep {
            for part in ["data", "logs"] {
                let from = folder.path().join(part);
                if from.exists() {
                    let to = folder.path().with_extension("before").join(part);
                    copy_folder(&from, &to).expect("there is room");
                }
            }
        }
        let (image, damage) = &self.cases[number];
        let judge = Judge {
            twice: number.is_multiple_of(8),
            must_serve: damage.must_serve,
            ..Judge::of(&self.images[*image].history)
        };
        let outcome = judge.judge(&setup, &folder);
        if keep {
            println!("kept: {} and the same with .before", folder.path().display());
            std::mem::forget(folder);
        }
        Some(outcome)
    }
}

fn give_away(path: &Path) {
    chown(path, Some(OTHER_USER), Some(OTHER_USER)).expect("root may");
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("it is ours") {
            give_away(&entry.expect("it can be listed").path());
        }
    }
}

/// How many cases of a kind came to what.
#[derive(Default)]
struct Row {
    whole: usize,
    prefix: usize,
    refused: usize,
    findings: usize,
}

#[test]
fn damage_is_served_whole_or_refused_by_name() {
    let count = from_environment("CASES").map_or(CASES, |cases| cases as usize);
    let seed = from_environment("SEED").unwrap_or_else(|| u64::from(std::process::id()) << 20);
    let only = from_environment("CASE").map(|case| case as usize);
    let kept = Folder::new("damage-images");
    let path = std::env::var("IMAGES").map_or(kept.path().to_path_buf(), PathBuf::from);
    println!("SEED={seed} CASES={count}");
    let images = make_images(&path, seed);
    for image in &images {
        let history = &image.history;
        let (acknowledged, sent) = (history.acknowledged(), history.sent());
        let writes = history.writes.len();
        println!(
            "image {}: {writes} writes, acknowledged 0x{acknowledged:x}, sent 0x{sent:x}",
            image.name
        );
    }
    let cases = draw(&images, seed, count);
    let all = cases.len();
    let plan = Plan { images, cases, seed, other: AsOther::new("unreadable files and folders") };
    let numbers: Vec<usize> = match only {
        Some(number) => vec![number],
        None => {
            let kind = std::env::var("KIND").unwrap_or_default();
            let is_wanted = |number: &usize| plan.cases[*number].1.kind.contains(&kind);
            (0..all).filter(is_wanted).take(count).collect()
        }
    };
    let (next, not_run_count) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let rows: Mutex<BTreeMap<&str, Row>> = Mutex::default();
    let findings: Mutex<Vec<(usize, Finding, String)>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from) + 1;
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(&number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let Some(outcome) = plan.run(number, only.is_some()) else {
                        not_run_count.fetch_add(1, Ordering::Relaxed);
                        continue;
                    };
                    let mut rows = rows.lock().unwrap();
                    let row = rows.entry(plan.cases[number].1.kind).or_default();
                    let said = outcome.last_lines();
                    match outcome.verdict {
                        Verdict::Whole => row.whole += 1,
                        Verdict::Prefix => row.prefix += 1,
                        Verdict::Refused => row.refused += 1,
                        Verdict::Finding(finding) => {
                            row.findings += 1;
                            // A soak takes long: what it finds is said at once, too.
                            eprintln!("CASE={number}: {}: {}", finding.kind, finding.what);
                            findings.lock().unwrap().push((number, finding, said));
                        }
                    }
                }
            });
        }
    });
    let (rows, mut findings) = (rows.into_inner().unwrap(), findings.into_inner().unwrap());
    findings.sort_by_key(|(number, ..)| *number);
    let report = report(&plan, &rows, &findings);
    // Past the harness, which swallows what a test prints that passes.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), report.as_bytes());
    let run_count: usize = rows.values().map(Row::count).sum();
    assert_eq!(run_count + not_run_count.into_inner(), numbers.len(), "cases were lost");
    if !findings.is_empty() {
        let images = path.display();
        panic!(
            "{} findings in {} cases; one again: IMAGES={images} SEED={} CASES={count} CASE=n",
            findings.len(),
            numbers.len(),
            plan.seed,
        );
    }
}

impl Row {
    fn count(&self) -> usize {
        self.whole + self.prefix + self.refused + self.findings
    }
}

fn report(
    plan: &Plan,
    rows: &BTreeMap<&str, Row>,
    findings: &[(usize, Finding, String)],
) -> String {
    /// More of a kind than these are only counted.
    const SHOWN: usize = 2;
    let mut text = String::new();
    let mut shown: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (number, finding, said) in findings {
        let (image, damage) = &plan.cases[*number];
        let image = &plan.images[*image].name;
        let seen = shown.entry((finding.kind, damage.kind)).or_default();
        *seen += 1;
        if SHOWN < *seen {
            continue;
        }
        let Damage { label, kind, .. } = damage;
        let Finding { kind: found, what } = finding;
        let _ = writeln!(text, "\nCASE={number} {image}: {label} [{kind}]");
        let _ = writeln!(text, "  {found}: {what}");
        said.lines().for_each(|line| {
            let _ = writeln!(text, "  | {line}");
        });
    }
    if !findings.is_empty() {
        let _ = writeln!(text, "\nfindings by kind:");
        for ((found, kind), count) in &shown {
            let _ = writeln!(text, "{count:6}  {found} [{kind}]");
        }
    }
    let _ = writeln!(
        text,
        "\n{:24}{:>8}{:>8}{:>8}{:>8}{:>10}",
        "damage, seed and cases", "cases", "whole", "prefix", "refused", "findings"
    );
    let mut total = Row::default();
    for (kind, row) in rows {
        let Row { whole, prefix, refused, findings } = row;
        let count = row.count();
        let _ = writeln!(text, "{kind:24}{count:8}{whole:8}{prefix:8}{refused:8}{findings:10}");
        total.whole += whole;
        total.prefix += prefix;
        total.refused += refused;
        total.findings += findings;
    }
    let Row { whole, prefix, refused, findings } = total;
    let count = total.count();
    let seed = format!("SEED={}", plan.seed);
    let _ = writeln!(text, "{seed:24}{count:8}{whole:8}{prefix:8}{refused:8}{findings:10}");
    text
}
