//! x
mod watch;
