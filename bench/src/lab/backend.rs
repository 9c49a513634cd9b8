//! The back end of all measured systems: HTTP/1.1 on a unix socket, one thread, nothing allocated
//! for a request, so that what is measured is the system in front of it.
//!
//! It answers 403 to a request that says in no header who is asking: a system that skips its
//! identity headers does less work than the others, and shows it. It declares person and kind of
//! the document as the hub does, from the path.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Arguments of `backend`.
#[derive(Debug, Args)]
pub(crate) struct BackendArgs {
    /// Unix socket to listen on
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// Serves until it is ended.
///
/// # Errors
/// If the socket can not be used.
pub(crate) fn run(args: &BackendArgs) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &BackendArgs) -> anyhow::Result<()> {
    // A socket of an earlier run is in the way.
    let _ = std::fs::remove_file(&args.socket);
    let listener = UnixListener::bind(&args.socket)
        .with_context(|| format!("cannot listen on `{}`", args.socket.display()))?;
    // nginx's worker may be another user than we are.
    std::fs::set_permissions(&args.socket, std::fs::Permissions::from_mode(0o666))?;
    let answers = Answers::new();
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A peer that goes away is no news.
            let _ = Connection::new(stream, answers).serve().await;
        });
    }
}

/// Whole answers, put together once.
#[derive(Clone, Copy)]
struct Answers {
    /// What comes after the status line and what the answer declares.
    document: &'static [u8],
    refusal: &'static [u8],
}

impl Answers {
    fn new() -> Self {
        let open = r#"{"document":"insured-card","text":""#;
        let body = format!("{open}{}\"}}", "x".repeat(DOCUMENT_BYTES - open.len() - 2));
        let document = format!("{}{body}", head(body.len() as u64));
        let refusal = format!("HTTP/1.1 403 Forbidden\r\n{}", head(0));
        // Two strings for the life of the process.
        Self { document: document.leak().as_bytes(), refusal: refusal.leak().as_bytes() }
    }
}

/// The end of a head.
fn head(bytes: u64) -> String {
    format!("content-type: application/json\r\ncontent-length: {bytes}\r\n\r\n")
}

struct Connection {
    stream: UnixStream,
    answers: Answers,
    buffer: Vec<u8>,
    /// What is sent, from the status line on.
    answer: Vec<u8>,
}

/// What of a request's head matters here.
struct Asked {
    head_bytes: usize,
    body: Body,
    known: bool,
    /// The length of the answer, if the query gives one.
    bytes: Option<u64>,
    closes: bool,
}

enum Body {
    Length(u64),
    Chunked,
}

impl Connection {
    fn new(stream: UnixStream, answers: Answers) -> Self {
        let answer = Vec::with_capacity(2 * DOCUMENT_BYTES);
        Self { stream, answers, buffer: Vec::with_capacity(BUFFER_BYTES), answer }
    }

    async fn serve(mut self) -> std::io::Result<()> {
        loop {
            let asked = loop {
                if let Some(asked) = asked(&self.buffer, &mut self.answer)? {
                    break asked;
                }
                if self.read().await? == 0 {
                    return Ok(());
                }
            };
            self.buffer.drain(..asked.head_bytes);
            match asked.body {
                Body::Length(length) => self.skip(length).await?,
                Body::Chunked => self.skip_chunks().await?,
            }
            match (asked.known, asked.bytes) {
                (false, _) => self.stream.write_all(self.answers.refusal).await?,
                (true, None) => {
                    self.answer.extend_from_slice(self.answers.document);
                    self.stream.write_all(&self.answer).await?;
                }
                (true, Some(bytes)) => self.send(bytes).await?,
            }
            if asked.closes {
                return self.stream.shutdown().await;
            }
        }
    }

    async fn read(&mut self) -> std::io::Result<usize> {
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn skip(&mut self, mut left: u64) -> std::io::Result<()> {
        while left > 0 {
            if self.buffer.is_empty() && self.read().await? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            let here = left.min(self.buffer.len() as u64);
            self.buffer.drain(..here as usize);
            left -= here;
        }
        Ok(())
    }

    async fn skip_chunks(&mut self) -> std::io::Result<()> {
        loop {
            let (head_bytes, size) = loop {
                match httparse::parse_chunk_size(&self.buffer) {
                    Ok(httparse::Status::Complete(found)) => break found,
                    Ok(httparse::Status::Partial) => {}
                    Err(_) => return Err(std::io::ErrorKind::InvalidData.into()),
                }
                if self.read().await? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            };
            self.skip(head_bytes as u64 + size + 2).await?;
            if size == 0 {
                return Ok(());
            }
        }
    }

    async fn send(&mut self, bytes: u64) -> std::io::Result<()> {
        self.answer.extend_from_slice(head(bytes).as_bytes());
        self.stream.write_all(&self.answer).await?;
        let mut left = bytes;
        while left > 0 {
            let here = left.min(FILLING.len() as u64);
            self.stream.write_all(FILLING.get(..here as usize).unwrap_or_default()).await?;
            left -= here;
        }
        Ok(())
    }
}

/// Reads the head, once it is whole, and begins the answer to it.
fn asked(buffer: &[u8], answer: &mut Vec<u8>) -> std::io::Result<Option<Asked>> {
    if buffer.is_empty() {
        return Ok(None);
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let head_bytes = match request.parse(buffer) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) | Err(_) => {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
    };
    begin_answer(request.path.unwrap_or_default(), answer);
    let mut asked = Asked {
        head_bytes,
        body: Body::Length(0),
        known: false,
        bytes: request.path.and_then(bytes_of_query),
        closes: request.version == Some(0),
    };
    for header in request.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let length = std::str::from_utf8(header.value).ok().and_then(|text| text.parse().ok());
            asked.body = Body::Length(length.unwrap_or(0));
        } else if is("transfer-encoding") {
            asked.body = Body::Chunked;
        } else if is("connection") {
            asked.closes = header.value.eq_ignore_ascii_case(b"close");
        } else if IDENTITY_HEADERS.iter().any(|name| is(name)) {
            asked.known = true;
        }
    }
    Ok(Some(asked))
}

/// The status line, and what the answer declares of itself: `/v1/insured/A/B/documents/K` is about
/// `A/B` and holds a `K`.
fn begin_answer(path: &str, answer: &mut Vec<u8>) {
    answer.clear();
    answer.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    let path = path.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix("/v1/insured/") else { return };
    let Some((person, rest)) = path.split_once("/documents") else { return };
    let kind = rest.trim_start_matches('/').split('/').next().unwrap_or_default();
    for part in ["sekisho-insured: ", person, "\r\nsekisho-document-kind: ", kind, "\r\n"] {
        answer.extend_from_slice(part.as_bytes());
    }
}

fn bytes_of_query(path: &str) -> Option<u64> {
    let (_, query) = path.split_once('?')?;
    let value = query.split('&').find_map(|part| part.strip_prefix("bytes="))?;
    value.parse().ok().filter(|bytes| *bytes <= ANSWER_BYTES_MAX)
}

/// One of these says who is asking; the last one is for loads that go straight to the back end.
const IDENTITY_HEADERS: [&str; 3] = ["sekisho-principal", "x-ssl-client-dn", "x-bench-direct"];

const DOCUMENT_BYTES: usize = 1024;
const BUFFER_BYTES: usize = 64 * 1024;
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 64 * 1024;
const ANSWER_BYTES_MAX: u64 = 64 << 30;
static FILLING: [u8; 64 * 1024] = [b'x'; 64 * 1024];

#[cfg(test)]
mod tests {
    use super::*;

    async fn answer_to(request: &str) -> String {
        let (mut near, far) = UnixStream::pair().unwrap();
        tokio::spawn(Connection::new(far, Answers::new()).serve());
        near.write_all(request.as_bytes()).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = String::new();
        near.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn requests_without_an_identity_header_are_refused() {
        let refused = answer_to("GET /a HTTP/1.1\r\nhost: b\r\n\r\n").await;
        assert!(refused.starts_with("HTTP/1.1 403 "), "{refused}");
        for name in IDENTITY_HEADERS {
            let request = format!("GET /a HTTP/1.1\r\nhost: b\r\n{name}: c\r\n\r\n");
            let answer = answer_to(&request).await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{name}: {answer}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            assert_eq!(body.len(), DOCUMENT_BYTES);
            let json: serde_json::Value = serde_json::from_str(body).unwrap();
            assert_eq!(json["document"], "insured-card");
        }
    }

    #[tokio::test]
    async fn an_answer_declares_whom_it_is_about() {
        let known = "host: b\r\nx-bench-direct: 1\r\n";
        let path = "/v1/insured/131016/0000000001/documents/insured-card?bytes=3";
        let answer = answer_to(&format!("GET {path} HTTP/1.1\r\n{known}\r\n")).await;
        let declared = "sekisho-insured: 131016/0000000001\r\n\
                        sekisho-document-kind: insured-card\r\n";
        assert!(answer.contains(declared), "{answer}");
        assert!(answer.ends_with("\r\n\r\nxxx"), "{answer}");
    }

    #[tokio::test]
    async fn bodies_are_taken_and_the_next_request_is_found() {
        let known = "host: b\r\nx-bench-direct: 1\r\n";
        let chunks = "3\r\nabc\r\n0\r\n\r\n";
        let request = format!(
            "POST /a HTTP/1.1\r\n{known}content-length: 5\r\n\r\nhelloPOST /a HTTP/1.1\r\n{known}\
             transfer-encoding: chunked\r\n\r\n{chunks}GET /a?bytes=70000 HTTP/1.1\r\n{known}\r\n"
        );
        let answer = answer_to(&request).await;
        assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 3);
        assert!(answer.ends_with(&"x".repeat(70_000)));
        assert!(answer.contains("content-length: 70000"));
    }
}
