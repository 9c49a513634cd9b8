//! Integers, identifiers and texts to bytes and back, with the place of whatever is wrong.
//!
//! INVARIANT: no length that was read is allocated before the bytes themselves have come.

use std::io::{self, ErrorKind, Read, Write};
use std::str::FromStr;

use crate::document::DocumentSet;
use crate::facts::registrations::TERMS_MAX;

/// Why a copy of the facts cannot be used. A fresh snapshot from the source takes its place.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The bytes could not be read.
    #[error("the copy cannot be read in its {part}, at byte {at}")]
    Unreadable {
        /// The part of the copy.
        part: &'static str,
        /// Bytes from its beginning.
        at: u64,
        /// What the system says.
        source: io::Error,
    },
    /// It ends before its end.
    #[error(
        "the copy ends in its {part}, at byte {at}: it was not written whole; remove it, and a \
         snapshot will be asked for"
    )]
    Short {
        /// The part of the copy.
        part: &'static str,
        /// Bytes from its beginning.
        at: u64,
    },
    /// It says what the facts cannot say.
    #[error(
        "the copy is damaged in its {part}, at byte {at}: {what}; remove it, and a snapshot will \
         be asked for"
    )]
    Damaged {
        /// The part of the copy.
        part: &'static str,
        /// Bytes from its beginning.
        at: u64,
        /// What is wrong there.
        what: &'static str,
    },
    /// Another version wrote it.
    #[error(
        "the copy is of layout {found}, and this version reads layout {wanted}: remove it, and a \
         snapshot will be asked for"
    )]
    OtherLayout {
        /// The layout and the layout of pair numbers that it names.
        found: String,
        /// Those of this version.
        wanted: String,
    },
}

/// Writes the parts of a copy.
pub(in crate::facts) struct Output<'a, W>(pub(in crate::facts) &'a mut W);

impl<W: Write> Output<'_, W> {
    pub(in crate::facts) fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    pub(in crate::facts) fn u8(&mut self, value: u8) -> io::Result<()> {
        self.bytes(&[value])
    }

    pub(in crate::facts) fn u16(&mut self, value: u16) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(in crate::facts) fn u32(&mut self, value: u32) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(in crate::facts) fn u64(&mut self, value: u64) -> io::Result<()> {
        self.bytes(&value.to_le_bytes())
    }

    pub(in crate::facts) fn count(&mut self, count: usize) -> io::Result<()> {
        self.u64(count as u64)
    }

    pub(in crate::facts) fn text(&mut self, text: &str) -> io::Result<()> {
        if text.len() > TEXT_BYTES_MAX {
            let what = format!("a text of {} bytes, more than a copy holds", text.len());
            return Err(io::Error::new(ErrorKind::InvalidInput, what));
        }
        self.u32(text.len() as u32)?;
        self.bytes(text.as_bytes())
    }

    pub(in crate::facts) fn option(&mut self, value: Option<u64>) -> io::Result<()> {
        self.u8(u8::from(value.is_some()))?;
        value.map_or(Ok(()), |value| self.u64(value))
    }

    /// Last seconds that rows name by their number.
    pub(in crate::facts) fn terms(&mut self, terms: &[u64]) -> io::Result<()> {
        self.u16(terms.len() as u16)?;
        terms.iter().try_for_each(|term| self.u64(*term))
    }

    /// Integers of four bytes, many at once.
    pub(in crate::facts) fn u32s(&mut self, values: &[u32]) -> io::Result<()> {
        for chunk in values.chunks(CHUNK_BYTES / 4) {
            let bytes: Vec<u8> = chunk.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.bytes(&bytes)?;
        }
        Ok(())
    }
}

/// Reads the parts of a copy, and knows where it is.
pub(in crate::facts) struct Input<'a, R> {
    from: &'a mut R,
    at: u64,
    part: &'static str,
}

impl<'a, R: Read> Input<'a, R> {
    pub(in crate::facts) fn new(from: &'a mut R) -> Self {
        Self { from, at: 0, part: "head" }
    }

    /// Names the part that comes next.
    pub(in crate::facts) fn part(&mut self, part: &'static str) {
        self.part = part;
    }

    pub(in crate::facts) fn damaged(&self, what: &'static str) -> CopyError {
        CopyError::Damaged { part: self.part, at: self.at, what }
    }

    /// An error at the bytes before the last `back`.
    pub(in crate::facts) fn damaged_before(&self, back: u64, what: &'static str) -> CopyError {
        CopyError::Damaged { part: self.part, at: self.at.saturating_sub(back), what }
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), CopyError> {
        let (part, at) = (self.part, self.at);
        self.from.read_exact(bytes).map_err(|source| {
            match source.kind() == ErrorKind::UnexpectedEof {
                true => CopyError::Short { part, at },
                false => CopyError::Unreadable { part, at, source },
            }
        })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    pub(in crate::facts) fn exact<const N: usize>(&mut self) -> Result<[u8; N], CopyError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(in crate::facts) fn u8(&mut self) -> Result<u8, CopyError> {
        self.exact::<1>().map(|[byte]| byte)
    }

    pub(in crate::facts) fn u16(&mut self) -> Result<u16, CopyError> {
        self.exact().map(u16::from_le_bytes)
    }

    pub(in crate::facts) fn u32(&mut self) -> Result<u32, CopyError> {
        self.exact().map(u32::from_le_bytes)
    }

    pub(in crate::facts) fn u64(&mut self) -> Result<u64, CopyError> {
        self.exact().map(u64::from_le_bytes)
    }

    pub(in crate::facts) fn flag(&mut self) -> Result<bool, CopyError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(self.damaged_before(1, "neither yes nor no")),
        }
    }

    pub(in crate::facts) fn option(&mut self) -> Result<Option<u64>, CopyError> {
        match self.flag()? {
            true => self.u64().map(Some),
            false => Ok(None),
        }
    }

    /// An identifier of `N` ASCII characters.
    pub(in crate::facts) fn parsed<const N: usize, T: FromStr>(&mut self) -> Result<T, CopyError> {
        let bytes: [u8; N] = self.exact()?;
        let text = std::str::from_utf8(&bytes).ok();
        let parsed = text.and_then(|text| text.parse().ok());
        parsed.ok_or_else(|| self.damaged_before(N as u64, "not an identifier"))
    }

    pub(in crate::facts) fn text(&mut self) -> Result<String, CopyError> {
        let length = self.u32()? as usize;
        if length > TEXT_BYTES_MAX {
            return Err(self.damaged_before(4, "a text longer than any"));
        }
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| self.damaged_before(length as u64, "not UTF-8"))
    }

    pub(in crate::facts) fn kinds(&mut self) -> Result<DocumentSet, CopyError> {
        let kinds = DocumentSet::from_bits(self.u16()?);
        kinds.ok_or_else(|| self.damaged_before(2, "a kind of document that does not exist"))
    }

    /// Last seconds that rows name by their number.
    pub(in crate::facts) fn terms(&mut self) -> Result<Vec<u64>, CopyError> {
        let count = self.u16()?;
        if usize::from(count) > TERMS_MAX {
            return Err(self.damaged_before(2, "more terms than a row can name"));
        }
        (0..count).map(|_| self.u64()).collect()
    }

    /// `length` bytes. Grows as they come, so that a length that lies costs nothing.
    pub(in crate::facts) fn bytes(&mut self, length: usize) -> Result<Vec<u8>, CopyError> {
        let mut bytes = Vec::new();
        while bytes.len() < length {
            let (had, left) = (bytes.len(), length - bytes.len());
            if bytes.capacity() == had {
                bytes.reserve_exact(left.min(had.max(CHUNK_BYTES)));
            }
            bytes.resize(had + left.min(CHUNK_BYTES).min(bytes.capacity() - had), 0);
            self.fill(&mut bytes[had..])?;
        }
        Ok(bytes)
    }

    /// Integers of four bytes, many at once; grows as they come.
    pub(in crate::facts) fn u32s(&mut self, count: usize) -> Result<Vec<u32>, CopyError> {
        let mut values = Vec::new();
        let mut bytes = vec![0; CHUNK_BYTES];
        while values.len() < count {
            let left = count - values.len();
            let chunk = &mut bytes[..4 * left.min(CHUNK_BYTES / 4)];
            self.fill(chunk)?;
            if values.capacity() == values.len() {
                values.reserve_exact(left.min(values.len().max(CHUNK_BYTES)));
            }
            let (whole, _) = chunk.as_chunks::<4>();
            values.extend(whole.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        }
        Ok(values)
    }
}

/// The longest text: many times an office's name or a key's coordinate.
const TEXT_BYTES_MAX: usize = 1 << 16;
const CHUNK_BYTES: usize = 1 << 20;
