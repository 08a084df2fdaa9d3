//! `acceptedEpoch` and `currentEpoch`: a decimal number in a file of its own.
//!
//! Written without a newline. Read as `QuorumPeer.readLongFromFile` does: the first line alone,
//! with no blanks around the number.

use crate::types::Epoch;

pub const ACCEPTED_EPOCH_NAME: &str = "acceptedEpoch";
pub const CURRENT_EPOCH_NAME: &str = "currentEpoch";

/// A file that holds no epoch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{name}: {line:?} is not an epoch; restore the file, or let the server be synchronised anew"
)]
pub struct EpochError {
    pub name: String,
    pub line: String,
}

/// The epoch in the file `name`. `None` is ZooKeeper's -1: a server that must not vote yet.
pub fn decode_epoch(name: &str, file: &[u8]) -> Result<Option<Epoch>, EpochError> {
    let line = file.split(|byte| matches!(byte, b'\n' | b'\r')).next().unwrap_or_default();
    // Long enough for any number, short enough for a message.
    let line = String::from_utf8_lossy(&line[..line.len().min(24)]);
    match line.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(epoch) if let Ok(epoch) = u32::try_from(epoch) => Ok(Some(Epoch(epoch))),
        _ => Err(EpochError { name: name.to_owned(), line: line.into_owned() }),
    }
}

/// What the file holds.
#[must_use]
pub fn encode_epoch(epoch: Option<Epoch>) -> String {
    epoch.map_or_else(|| "-1".to_owned(), |Epoch(epoch)| epoch.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(file: &str) -> Option<Option<Epoch>> {
        decode_epoch(CURRENT_EPOCH_NAME, file.as_bytes()).ok()
    }

    #[test]
    fn an_epoch_is_one_decimal_line() {
        assert_eq!(decode("0"), Some(Some(Epoch(0))));
        assert_eq!(decode("12\nrest"), Some(Some(Epoch(12))));
        assert_eq!(decode("12\r\n"), Some(Some(Epoch(12))));
        assert_eq!(decode("-1"), Some(None));
        for epoch in [None, Some(Epoch(0)), Some(Epoch(u32::MAX))] {
            assert_eq!(decode(&encode_epoch(epoch)), Some(epoch));
        }
    }

    #[test]
    fn anything_else_is_refused_with_its_name() {
        for file in
            ["", "\n1", " 1", "1 ", "0x1", "one", "-2", "4294967296", "99999999999999999999"]
        {
            assert_eq!(decode(file), None, "{file:?}");
        }
        let error = decode_epoch(ACCEPTED_EPOCH_NAME, b"\xff").unwrap_err().to_string();
        assert!(error.starts_with("acceptedEpoch: "), "{error}");
    }
}
