//! How far a long reading is: one line on standard error, where that is a terminal.

use std::io::{IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

/// The line. Cleared when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    next: Instant,
    was_drawn: bool,
}

impl Progress {
    /// Nothing is shown during the first moment, nor where nobody looks.
    pub(super) fn new() -> Self {
        Self {
            is_shown: std::io::stderr().is_terminal(),
            next: Instant::now() + DRAW_INTERVAL,
            was_drawn: false,
        }
    }

    /// Replaces the line, a few times a second.
    pub(super) fn tell(&mut self, text: impl FnOnce() -> String) {
        if self.is_shown && Instant::now() >= self.next {
            let _closed_pipe = write!(std::io::stderr().lock(), "\r\x1b[K{}", text());
            self.next = Instant::now() + DRAW_INTERVAL;
            self.was_drawn = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.was_drawn {
            let _closed_pipe = write!(std::io::stderr().lock(), "\r\x1b[K");
        }
    }
}

const DRAW_INTERVAL: Duration = Duration::from_millis(200);
