//! Imports point down: each module of the library may use only what its floor allows
//! (`ARCHITECTURE.md`, "Floors").

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A module and what of ours it may import; `*` is everything above it in this table.
const FLOORS: &[(&str, &str)] = &[
    ("types", ""),
    ("path", ""),
    ("jute", ""),
    ("record", "jute types"),
    ("ensemble", "types"),
    ("metrics", "types"),
    ("acl", "auth record types"),
    ("auth", "record types"),
    ("config", "types ensemble"),
    ("tree", "types path jute record"),
    ("storage", "types jute record"),
    ("zab", "types ensemble jute record"),
    ("exchange", "types record tree"),
    (
        "pipeline",
        "types path jute record ensemble metrics acl auth config tree storage zab exchange",
    ),
    ("shard", "types path jute record metrics acl auth config tree exchange"),
    ("admin", "types config ensemble metrics"),
    ("shell", "*"),
    ("cli", "*"),
];

/// Crates that only the outermost floors may name.
const SHELL_CRATES: &[&str] =
    &["glommio", "io_uring", "memmap2", "futures_lite", "tracing_subscriber"];

fn sources(module: &str) -> Vec<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let file = source.join(format!("{module}.rs"));
    if file.exists() {
        return vec![file];
    }
    let mut pending = vec![source.join(module)];
    let mut files = Vec::new();
    while let Some(folder) = pending.pop() {
        let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        for entry in entries {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files
}

/// The modules that a file names as `crate::module`, in whatever form.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut found = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        let names: Vec<&str> = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or("").split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let end = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            let name = name.trim().split(end).next().unwrap_or("");
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn every_module_imports_only_what_is_below_it() {
    let known: BTreeSet<&str> = FLOORS.iter().map(|(module, _)| *module).collect();
    let mut wrong = Vec::new();
    for (at, (module, allowed)) in FLOORS.iter().enumerate() {
        let allowed: BTreeSet<&str> = match *allowed {
            "*" => FLOORS[..at].iter().map(|(module, _)| *module).collect(),
            list => list.split_whitespace().collect(),
        };
        let files = sources(module);
        assert!(!files.is_empty(), "{module} has no files");
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            for import in imports(&text) {
                let is_ours = known.contains(import.as_str()) && import != *module;
                if is_ours && !allowed.contains(import.as_str()) {
                    wrong.push(format!("{}: {module} must not import {import}", file.display()));
                }
            }
            if !matches!(*module, "shell" | "cli") {
                for name in SHELL_CRATES.iter().filter(|name| text.contains(&format!("{name}::"))) {
                    wrong.push(format!("{}: {name} belongs to the shell", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_has_a_floor() {
    let library = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs");
    let text = fs::read_to_string(library).unwrap();
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let declared: BTreeSet<&str> = declared.collect();
    let known: BTreeSet<&str> = FLOORS.iter().map(|(module, _)| *module).collect();
    assert_eq!(declared, known);
}

#[test]
fn the_import_reader_sees_each_form() {
    let text =
        "use crate::tree::{self, X};\nuse crate::{jute, record as r};\nlet x = crate::acl::y();";
    let expected = ["acl", "jute", "record", "tree"].map(str::to_owned);
    assert_eq!(imports(text), BTreeSet::from(expected));
}
