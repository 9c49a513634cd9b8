//! Follows the bytes of one HTTP/1.1 connection, head after body after head, and says which of them
//! may be read on: none of a head that is refused, and none after an offence in a body.
//!
//! ```text
//!  Head ──► Length(n) ───────────────► Answer ──(answered)──► Head
//!    │ ───► Size ◄─► Data ─► … Trailer ──►┘
//!    └────────────────────────────────────┘
//! ```
//!
//! What follows a message waits until that is answered: nothing is ever read ahead of its turn.

use super::Ambiguous;
use super::head::{self, Body, HeadLimits};

/// What is to be done with the bytes that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// So many of them may be read on; at least one.
    Pass(usize),
    /// They begin something whose end has not come.
    More,
    /// They follow a message that is not answered yet.
    Hold,
    /// They are refused, and with them all that follows.
    Refuse(Ambiguous),
}

/// The state of one connection.
#[derive(Debug)]
pub struct Scanner {
    state: State,
    in_body: bool,
    limits: HeadLimits,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before or in a head, of which so many bytes were searched for the end.
    Head {
        searched: usize,
    },
    /// So many bytes of a body are left.
    Length(u64),
    /// In the line that says a chunk's size.
    Size {
        size: u64,
        digits: u8,
        extension: Option<u16>,
        carriage: bool,
    },
    /// So many bytes of a chunk are left.
    Data(u64),
    /// After a chunk's data: its CR LF, of which the CR has come or not.
    DataEnd {
        carriage: bool,
    },
    /// After the last chunk.
    Trailer {
        carriage: bool,
    },
    /// The message is whole.
    Answer,
    Refused,
}

impl Scanner {
    /// Of a new connection.
    pub fn new(limits: HeadLimits) -> Self {
        Self { state: State::Head { searched: 0 }, in_body: false, limits }
    }

    /// Whether a head has begun and not ended, when there are bytes that wait.
    pub fn is_in_head(&self) -> bool {
        matches!(self.state, State::Head { .. })
    }

    /// Whether an offence lies in a body: what came before it was read on already.
    pub fn is_in_body(&self) -> bool {
        self.in_body
    }

    /// Bytes that may be read on without a look at them.
    pub fn plain_bytes(&self) -> u64 {
        match self.state {
            State::Length(left) | State::Data(left) => left,
            State::Head { .. }
            | State::Size { .. }
            | State::DataEnd { .. }
            | State::Trailer { .. }
            | State::Answer
            | State::Refused => 0,
        }
    }

    /// `bytes` of [`Scanner::plain_bytes`] were read on.
    pub fn passed_plain(&mut self, bytes: usize) {
        let bytes = bytes as u64;
        self.state = match self.state {
            State::Length(left) if left == bytes => State::Answer,
            State::Length(left) => State::Length(left.saturating_sub(bytes)),
            State::Data(left) if left == bytes => State::DataEnd { carriage: false },
            State::Data(left) => State::Data(left.saturating_sub(bytes)),
            other @ (State::Head { .. }
            | State::Size { .. }
            | State::DataEnd { .. }
            | State::Trailer { .. }
            | State::Answer
            | State::Refused) => other,
        };
    }

    /// The message was answered: the next one may be read. Says whether one was waiting for that.
    pub fn answered(&mut self) -> bool {
        let waited = self.state == State::Answer;
        if waited {
            self.state = State::Head { searched: 0 };
        }
        waited
    }

    /// Looks at the bytes that wait, from the first that was not passed yet.
    pub fn step(&mut self, waiting: &[u8]) -> Step {
        if waiting.is_empty() {
            return Step::More;
        }
        let step = match self.state {
            State::Head { searched } => self.head(waiting, searched),
            State::Length(_) | State::Data(_) => {
                let pass =
                    waiting.len().min(usize::try_from(self.plain_bytes()).unwrap_or(usize::MAX));
                self.passed_plain(pass);
                Step::Pass(pass)
            }
            State::Size { .. } | State::DataEnd { .. } | State::Trailer { .. } => {
                self.line(waiting)
            }
            State::Answer => Step::Hold,
            State::Refused => Step::Refuse(Ambiguous("refused already")),
        };
        if matches!(step, Step::Refuse(_)) {
            self.in_body = !self.is_in_head();
            self.state = State::Refused;
        }
        step
    }

    fn head(&mut self, waiting: &[u8], searched: usize) -> Step {
        let Some(end) = head_end(waiting, searched) else {
            if waiting.len() > self.limits.head_bytes_max {
                return Step::Refuse(Ambiguous("headers are too long"));
            }
            // The end may lie across what came and what comes.
            self.state = State::Head { searched: waiting.len().saturating_sub(2) };
            return Step::More;
        };
        if end > self.limits.head_bytes_max {
            return Step::Refuse(Ambiguous("headers are too long"));
        }
        match head::check(&waiting[..end], &self.limits) {
            Err(ambiguous) => Step::Refuse(ambiguous),
            Ok(body) => {
                self.state = match body {
                    Body::None => State::Answer,
                    Body::Length(left) => State::Length(left),
                    Body::Chunked => SIZE,
                };
                Step::Pass(end)
            }
        }
    }

    /// The lines between a chunked body's data (RFC 9112 §7.1), byte by byte.
    fn line(&mut self, waiting: &[u8]) -> Step {
        for (at, byte) in waiting.iter().enumerate() {
            let next = match self.state {
                State::Size { size, digits, extension, carriage } => {
                    size_byte(*byte, size, digits, extension, carriage)
                }
                State::DataEnd { carriage } => data_end_byte(*byte, carriage),
                State::Trailer { carriage } => trailer_byte(*byte, carriage),
                State::Head { .. }
                | State::Length(_)
                | State::Data(_)
                | State::Answer
                | State::Refused => return Step::Pass(at),
            };
            match next {
                Ok(next) => self.state = next,
                Err(ambiguous) => return Step::Refuse(ambiguous),
            }
        }
        Step::Pass(waiting.len())
    }
}

const SIZE: State = State::Size { size: 0, digits: 0, extension: None, carriage: false };

fn size_byte(
    byte: u8,
    size: u64,
    digits: u8,
    extension: Option<u16>,
    carriage: bool,
) -> Result<State, Ambiguous> {
    if carriage {
        return match (byte, size) {
            (b'\n', 0) => Ok(State::Trailer { carriage: false }),
            (b'\n', _) => Ok(State::Data(size)),
            _ => Err(Ambiguous("CR without LF in a chunk's size")),
        };
    }
    let same = |extension| State::Size { size, digits, extension, carriage };
    match (byte, extension) {
        (b'\r', _) if digits > 0 => Ok(State::Size { size, digits, extension, carriage: true }),
        (b'\n', _) => Err(Ambiguous("chunk's size ends in a bare LF")),
        (b';', None) if digits > 0 => Ok(same(Some(0))),
        (_, Some(length)) if byte.is_ascii_graphic() || byte == b' ' || byte == b'\t' => {
            if length >= EXTENSION_BYTES_MAX {
                return Err(Ambiguous("chunk extension is too long"));
            }
            Ok(same(Some(length + 1)))
        }
        (_, None) => {
            let digit = char::from(byte).to_digit(16).ok_or(NO_SIZE)?;
            if digits >= SIZE_DIGITS_MAX {
                return Err(NO_SIZE);
            }
            let size = size * 16 + u64::from(digit);
            Ok(State::Size { size, digits: digits + 1, extension, carriage })
        }
        (_, Some(_)) => Err(Ambiguous("control character in a chunk extension")),
    }
}

fn data_end_byte(byte: u8, carriage: bool) -> Result<State, Ambiguous> {
    match (byte, carriage) {
        (b'\r', false) => Ok(State::DataEnd { carriage: true }),
        (b'\n', true) => Ok(SIZE),
        _ => Err(Ambiguous("chunk is longer than its size")),
    }
}

/// No operation has trailers, so none are taken: after the last chunk comes the empty line.
fn trailer_byte(byte: u8, carriage: bool) -> Result<State, Ambiguous> {
    match (byte, carriage) {
        (b'\r', false) => Ok(State::Trailer { carriage: true }),
        (b'\n', true) => Ok(State::Answer),
        _ => Err(Ambiguous("trailers are not taken")),
    }
}

const NO_SIZE: Ambiguous = Ambiguous("chunk's size is not a plain hexadecimal number");

/// Enough for a terabyte.
const SIZE_DIGITS_MAX: u8 = 10;
/// Bytes of one chunk's extensions.
const EXTENSION_BYTES_MAX: u16 = 256;

/// Where a head ends: after the first empty line, whatever ends its lines.
fn head_end(bytes: &[u8], searched: usize) -> Option<usize> {
    let rest = bytes.get(searched..)?;
    let mut at = 0;
    loop {
        at += rest.get(at..)?.iter().position(|byte| *byte == b'\n')? + 1;
        match rest.get(at..)? {
            [b'\n', ..] => return Some(searched + at + 1),
            [b'\r', b'\n', ..] => return Some(searched + at + 2),
            _ => {}
        }
    }
}
