//! HTTP/2 frames written byte by byte, and what the gateway makes of them: no library stands
//! between a test and the wire.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;

/// One frame (RFC 9113 §4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Header fields in the order in which they are sent.
#[derive(Clone, Default)]
pub struct Fields(Vec<(Vec<u8>, Vec<u8>)>);

impl Fields {
    pub fn of(fields: &[(&str, &str)]) -> Self {
        fields.iter().fold(Self::default(), |all, (name, value)| all.add(name, value))
    }

    pub fn add(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let mut all = self.clone();
        all.0.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        all
    }

    pub fn first(&self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        let mut all = self.clone();
        all.0.insert(0, (name.as_ref().to_vec(), value.as_ref().to_vec()));
        all
    }

    pub fn without(&self, name: &str) -> Self {
        Self(self.0.iter().filter(|(have, _)| have != name.as_bytes()).cloned().collect())
    }

    /// Another value in the place of the one that `name` has.
    pub fn set(&self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let mut all = self.clone();
        let mut of_name = all.0.iter_mut().filter(|(have, _)| have == name.as_bytes());
        of_name.next().unwrap().1 = value.as_ref().to_vec();
        all
    }

    /// Every field as a literal that is not indexed (RFC 7541 §6.2.2).
    pub fn block(&self) -> Vec<u8> {
        let mut block = Vec::new();
        for (name, value) in &self.0 {
            block.push(0);
            for text in [name, value] {
                put_length(&mut block, text.len());
                block.extend(text);
            }
        }
        block
    }

    /// In one HEADERS frame.
    pub fn headers(&self, stream: u32, flags: u8) -> Vec<u8> {
        frame(HEADERS, flags | END_HEADERS, stream, &self.block())
    }

    /// A whole request without a body on stream 1.
    pub fn alone(&self) -> Vec<u8> {
        self.headers(1, END_STREAM)
    }

    /// A whole request on stream 1 with `body` in one DATA frame.
    pub fn with_body(&self, body: &[u8]) -> Vec<u8> {
        [self.headers(1, 0), frame(DATA, END_STREAM, 1, body)].concat()
    }
}

/// A string's length with a prefix of seven bits, no Huffman code (RFC 7541 §5.1).
fn put_length(block: &mut Vec<u8>, length: usize) {
    if length < 127 {
        block.push(u8::try_from(length).unwrap());
        return;
    }
    block.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// What the gateway made of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// An answer.
    Status(u16),
    /// The stream was refused, with this error code.
    Reset(u32),
    /// The connection was, with this error code, or without a word.
    Closed(Option<u32>),
    /// Nothing came.
    Silence,
}

/// A connection on which frames are written.
pub struct Raw {
    stream: TlsStream<TcpStream>,
}

impl Raw {
    /// After both sides' prefaces.
    pub async fn begin(stream: TlsStream<TcpStream>) -> Self {
        let mut raw = Self { stream };
        raw.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        raw
    }

    /// Writes; a gateway that has closed already will be seen to have.
    pub async fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// Whether all of `bytes` could be written, as far as is known.
    pub async fn sent(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok() && self.stream.flush().await.is_ok()
    }

    /// The first that is more than the exchange of settings.
    pub async fn verdict(&mut self, patience: Duration) -> Verdict {
        timeout(patience, self.read_verdict()).await.unwrap_or(Verdict::Silence)
    }

    /// When the connection has ended.
    pub async fn ended(&mut self) {
        let mut rest = [0; 4096];
        while self.stream.read(&mut rest).await.is_ok_and(|read| read > 0) {}
    }

    async fn read_verdict(&mut self) -> Verdict {
        loop {
            let mut head = [0; 9];
            if self.stream.read_exact(&mut head).await.is_err() {
                return Verdict::Closed(None);
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            if self.stream.read_exact(&mut payload).await.is_err() {
                return Verdict::Closed(None);
            }
            let code_at = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match head[3] {
                HEADERS => return Verdict::Status(status(&payload)),
                RST_STREAM => return Verdict::Reset(code_at(0)),
                GOAWAY if code_at(4) != 0 => return Verdict::Closed(Some(code_at(4))),
                _ => {}
            }
        }
    }
}

/// `:status`, which stands first, of the first block that a connection carries.
fn status(block: &[u8]) -> u16 {
    let block = match block {
        // A change of the table's size comes before.
        [size, rest @ ..] if size & 0xe0 == 0x20 => rest,
        block => block,
    };
    match block {
        [0x88, ..] => 200,
        [0x89, ..] => 204,
        [0x8c, ..] => 400,
        [0x8d, ..] => 404,
        [0x8e, ..] => 500,
        [0x08 | 0x18 | 0x48, length, text @ ..] if length & 0x80 != 0 => {
            huffman_digits(&text[..usize::from(length & 0x7f)]).parse().unwrap()
        }
        [0x08 | 0x18 | 0x48, length, text @ ..] => {
            std::str::from_utf8(&text[..usize::from(*length)]).unwrap().parse().unwrap()
        }
        _ => panic!("no status first: {block:02x?}"),
    }
}

/// Digits in the code of RFC 7541, Appendix B: five bits for 0 to 2, six for the rest.
fn huffman_digits(coded: &[u8]) -> String {
    let bits: String = coded.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut rest, mut digits) = (bits.as_str(), String::new());
    while rest.len() >= 5 {
        let five = u8::from_str_radix(&rest[..5], 2).unwrap();
        if five <= 2 {
            digits.push(char::from(b'0' + five));
            rest = &rest[5..];
            continue;
        }
        let Some(six) = rest.get(..6).map(|six| u8::from_str_radix(six, 2).unwrap()) else { break };
        match six {
            0x19..=0x1f => digits.push(char::from(b'3' + six - 0x19)),
            _ => break,
        }
        rest = &rest[6..];
    }
    digits
}
