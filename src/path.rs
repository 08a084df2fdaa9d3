//! Paths of znodes: which are valid, and how they take apart.
//!
//! ```text
//! path      = "/" | 1*("/" name)
//! name      = 1*character, neither "." nor ".."
//! ```
//!
//! A path is text, and everything here is about text: whether a znode has it is the tree's matter.
//! The functions other than `validate` take any text, because some requests are looked up as they
//! come (`a/b` has the parent `a`, which no znode has).
//!
//! After `PathUtils.validatePath`, `PathParentIterator` and `PrepRequestProcessor`.

use std::fmt;

pub const ROOT: &str = "/";

/// Why a path is not one. Offsets count UTF-16 code units, as Java does; the texts are Java's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadPath {
    Empty,
    NotAbsolute,
    TrailingSlash,
    Nul { offset: usize },
    EmptyName { offset: usize },
    Relative { offset: usize },
    Character { character: char, offset: usize },
}

impl fmt::Display for BadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            BadPath::Empty => write!(f, "Path length must be > 0"),
            BadPath::NotAbsolute => write!(f, "Path must start with / character"),
            BadPath::TrailingSlash => write!(f, "Path must not end with / character"),
            BadPath::Nul { offset } => write!(f, "null character not allowed @{offset}"),
            BadPath::EmptyName { offset } => write!(f, "empty node name specified @{offset}"),
            BadPath::Relative { offset } => write!(f, "relative paths not allowed @{offset}"),
            BadPath::Character { character, offset } => {
                write!(f, "invalid character @{offset} (U+{:04X})", u32::from(character))
            }
        }
    }
}

impl std::error::Error for BadPath {}

/// Whether a znode may have this path.
pub fn validate(path: &str) -> Result<(), BadPath> {
    validate_by(path, validate_name)
}

/// Whether a znode may have been given this path by any server that there was. Those before 3.5
/// took the first and last of each range of characters that are excluded (`PathUtils`).
pub fn validate_stored(path: &str) -> Result<(), BadPath> {
    const EDGES: [char; 6] = ['\u{1f}', '\u{7f}', '\u{9f}', '\u{f8ff}', '\u{fff0}', '\u{ffff}'];
    validate_by(path, |name, start| {
        let named = validate_name(name, start);
        match named {
            Err(BadPath::Character { .. }) if name.contains(EDGES) => {
                // As long in UTF-16 as what stands in its place.
                validate_name(&name.replace(EDGES, "x"), start)
            }
            named => named,
        }
    })
}

fn validate_by(
    path: &str,
    validate_name: impl Fn(&str, usize) -> Result<usize, BadPath>,
) -> Result<(), BadPath> {
    if is_plain(path) {
        return Ok(());
    }
    if path.is_empty() {
        return Err(BadPath::Empty);
    }
    let Some(names) = path.strip_prefix('/') else { return Err(BadPath::NotAbsolute) };
    if names.is_empty() {
        return Ok(());
    }
    if names.ends_with('/') {
        return Err(BadPath::TrailingSlash);
    }
    let mut offset = 1;
    for name in names.split('/') {
        offset += validate_name(name, offset)? + 1;
    }
    Ok(())
}

/// Whether a path is valid and of printable ASCII, as nearly all are: in one pass, for every write
/// asks.
fn is_plain(path: &str) -> bool {
    let [b'/', names @ ..] = path.as_bytes() else { return false };
    let (mut bytes, mut dots) = (0, 0);
    for &byte in names {
        match byte {
            b'/' if dots == bytes && bytes <= 2 => return false,
            b'/' => (bytes, dots) = (0, 0),
            b'.' => (bytes, dots) = (bytes + 1, dots + 1),
            b' '..=b'~' => bytes += 1,
            _ => return false,
        }
    }
    // No name is empty, `.` or `..`.
    2 < bytes || dots < bytes || names.is_empty()
}

/// Checks one name that starts at `start`; how many UTF-16 code units it has.
fn validate_name(name: &str, start: usize) -> Result<usize, BadPath> {
    match name {
        "" => return Err(BadPath::EmptyName { offset: start }),
        "." => return Err(BadPath::Relative { offset: start }),
        ".." => return Err(BadPath::Relative { offset: start + 1 }),
        _ => {}
    }
    if name.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Ok(name.len());
    }
    let mut units = 0;
    for character in name.chars() {
        let offset = start + units;
        match character {
            '\0' => return Err(BadPath::Nul { offset }),
            // Above U+FFFF stand surrogates in Java's text, which are among the excluded.
            '\u{1}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{e000}'..='\u{f8ff}'
            | '\u{fff0}'..=char::MAX => return Err(BadPath::Character { character, offset }),
            _ => units += character.len_utf16(),
        }
    }
    Ok(units)
}

/// NUL is looked for alone where a path is otherwise looked up as it comes.
#[must_use]
pub fn has_nul(path: &str) -> bool {
    path.as_bytes().contains(&0)
}

/// The root goes by two texts: its path, and the empty one that stands before the slash of `/x`.
#[must_use]
pub fn is_root(path: &str) -> bool {
    matches!(path, "" | ROOT)
}

/// The text before the last slash: of `/x`, and of the root itself, the root. `None` without a
/// slash, which no znode can be created or deleted by.
#[must_use]
pub fn parent(path: &str) -> Option<&str> {
    match path.rfind('/')? {
        0 => Some(ROOT),
        slash => Some(&path[..slash]),
    }
}

/// The text after the last slash: empty for the root.
#[must_use]
pub fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Every path above this one, nearest first, up to and including the root. None above the root.
pub fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(above(path), |path| above(path))
}

/// The same, and the path itself before them.
pub fn with_ancestors(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| above(path))
}

fn above(path: &str) -> Option<&str> {
    if path == ROOT { None } else { parent(path) }
}

/// Whether `path` is a descendant of `prefix`, by whole names: `/q2` is not below `/q`.
#[must_use]
pub fn is_below(prefix: &str, path: &str) -> bool {
    if is_root(prefix) {
        return !is_root(path) && path.starts_with('/');
    }
    path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'))
}

#[must_use]
pub fn is_at_or_below(prefix: &str, path: &str) -> bool {
    path == prefix || (is_root(prefix) && is_root(path)) || is_below(prefix, path)
}

/// Appends the suffix of a sequential znode: its parent's stored cversion in ten digits, a sign
/// being one of the ten (`%010d`).
pub fn push_sequence(path: &mut String, cversion: i32) {
    use fmt::Write as _;
    write!(path, "{cversion:010}").expect("writing to a string succeeds");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_paths_are_valid() {
        for path in ["/", "/a", "/a/b", "/zookeeper/quota", "/...", "/.a", "/a.", "/..a", "/a..b"] {
            assert_eq!(validate(path), Ok(()), "{path}");
        }
    }

    /// What a running server accepted as names.
    #[test]
    fn odd_characters_that_are_valid() {
        for character in ['\\', ' ', '\u{a0}', '\u{e9}', '\u{d7ff}', '\u{f900}', '\u{ffef}'] {
            assert_eq!(validate(&format!("/a{character}b")), Ok(()), "{character:?}");
        }
    }

    /// What a running server refused.
    #[test]
    fn forbidden_characters_are_named_with_their_offset() {
        let forbidden = [
            '\u{1}',
            '\u{1f}',
            '\u{7f}',
            '\u{9f}',
            '\u{e000}',
            '\u{f8ff}',
            '\u{fff0}',
            '\u{fffd}',
            '\u{1f600}',
        ];
        for character in forbidden {
            let refused = Err(BadPath::Character { character, offset: 4 });
            assert_eq!(validate(&format!("/a/é{character}b")), refused, "{character:?}");
        }
        assert_eq!(validate("/a\0b"), Err(BadPath::Nul { offset: 2 }));
    }

    #[test]
    fn older_servers_took_the_edges_of_what_is_forbidden() {
        for character in ['\u{1f}', '\u{7f}', '\u{9f}', '\u{f8ff}', '\u{fff0}', '\u{ffff}'] {
            let path = format!("/a/{character}");
            assert!(validate(&path).is_err(), "{character:?}");
            assert_eq!(validate_stored(&path), Ok(()), "{character:?}");
        }
        for character in ['\u{1}', '\u{1e}', '\u{80}', '\u{e000}', '\u{fff1}', '\u{1f600}'] {
            let path = format!("/\u{7f}/a{character}");
            let refused = Err(BadPath::Character { character, offset: 4 });
            assert_eq!(validate_stored(&path), refused, "{character:?}");
        }
        assert_eq!(validate_stored("/a/"), Err(BadPath::TrailingSlash));
        assert_eq!(validate_stored("/a/.."), Err(BadPath::Relative { offset: 4 }));
    }

    #[test]
    fn names_must_be_names() {
        assert_eq!(validate(""), Err(BadPath::Empty));
        assert_eq!(validate("a"), Err(BadPath::NotAbsolute));
        assert_eq!(validate("a/b"), Err(BadPath::NotAbsolute));
        assert_eq!(validate("/a/"), Err(BadPath::TrailingSlash));
        assert_eq!(validate("//a"), Err(BadPath::EmptyName { offset: 1 }));
        assert_eq!(validate("/a//b"), Err(BadPath::EmptyName { offset: 3 }));
        assert_eq!(validate("/."), Err(BadPath::Relative { offset: 1 }));
        assert_eq!(validate("/a/../b"), Err(BadPath::Relative { offset: 4 }));
        assert_eq!(validate("/a/./b"), Err(BadPath::Relative { offset: 3 }));
    }

    #[test]
    fn a_sequence_suffix_may_make_a_name_valid() {
        let mut path = "/dir/..".to_owned();
        push_sequence(&mut path, 0);
        assert_eq!(path, "/dir/..0000000000");
        assert_eq!(validate(&path), Ok(()));
        assert_eq!(parent("/dir/../"), Some("/dir/.."));
        assert_eq!(parent("/dir//"), Some("/dir/"));
    }

    #[test]
    fn a_sequence_is_ten_wide_with_its_sign() {
        let suffix = |cversion| {
            let mut path = String::new();
            push_sequence(&mut path, cversion);
            path
        };
        assert_eq!(suffix(7), "0000000007");
        assert_eq!(suffix(i32::MAX), "2147483647");
        assert_eq!(suffix(-1), "-000000001");
        assert_eq!(suffix(i32::MIN), "-2147483648");
    }

    #[test]
    fn a_parent_is_the_text_before_the_last_slash() {
        assert_eq!(parent("/x"), Some("/"));
        assert_eq!(parent("/"), Some("/"));
        assert_eq!(parent("/x/y"), Some("/x"));
        assert_eq!(parent("/x/"), Some("/x"));
        assert_eq!(parent("a/b"), Some("a"));
        assert_eq!(parent("a"), None);
        assert_eq!(parent(""), None);
        assert_eq!((name("/x/y"), name("/"), name("a")), ("y", "", "a"));
    }

    #[test]
    fn ancestors_end_at_the_root() {
        let above: Vec<&str> = ancestors("/a/b/c").collect();
        assert_eq!(above, ["/a/b", "/a", "/"]);
        assert_eq!(ancestors("/").count(), 0);
        assert_eq!(with_ancestors("/").collect::<Vec<_>>(), ["/"]);
        assert_eq!(with_ancestors("/a").collect::<Vec<_>>(), ["/a", "/"]);
    }

    #[test]
    fn below_is_by_whole_names() {
        assert!(is_below("/q", "/q/a"));
        assert!(!is_below("/q", "/q2"));
        assert!(!is_below("/q", "/q"));
        assert!(is_at_or_below("/q", "/q"));
        assert!(is_below("/", "/q") && !is_below("/", "/") && is_at_or_below("/", ""));
    }
}
