//! One TLS connection for several HTTP/1.1 requests, by `openssl s_client`: what happens to a
//! client that stays connected while facts change.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::client::Reply;
use crate::system::System;

/// An open connection; closed when dropped.
pub struct KeptOpen {
    child: Child,
    stdin: Option<ChildStdin>,
    received: Arc<Mutex<Received>>,
}

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    ended: bool,
}

/// How long one answer may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);

impl KeptOpen {
    /// Connects with more `openssl s_client` arguments, such as `-sess_out FILE`.
    pub fn connect(system: &System, cert: &Path, key: &Path, more: &[&str]) -> Self {
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_quiet", "-verify_return_error"])
            .args(["-connect", system.gateway_address(), "-servername", "localhost"])
            .arg("-CAfile")
            .arg(system.trust())
            .arg("-cert")
            .arg(cert)
            .arg("-cert_chain")
            .arg(cert)
            .arg("-key")
            .arg(key)
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl s_client");
        let received = Arc::new(Mutex::new(Received::default()));
        let mut stdout = child.stdout.take().expect("stdout");
        let sink = Arc::clone(&received);
        std::thread::spawn(move || {
            let mut buffer = [0; 16 * 1024];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                sink.lock().unwrap().bytes.extend_from_slice(&buffer[..count]);
            }
            sink.lock().unwrap().ended = true;
        });
        let stdin = child.stdin.take();
        Self { child, stdin, received }
    }

    /// GET on this connection; `None` when the other side closed it instead of answering.
    pub fn get(&mut self, path: &str, token: Option<&str>) -> Option<Reply> {
        let bearer = token.map(|token| format!("authorization: Bearer {token}\r\n"));
        let bearer = bearer.unwrap_or_default();
        self.raw(&format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n{bearer}\r\n"))
    }

    /// Sends bytes as they are and reads one answer; `None` when the connection was closed.
    pub fn raw(&mut self, request: &str) -> Option<Reply> {
        let stdin = self.stdin.as_mut().expect("stdin");
        if stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush()).is_err() {
            return None;
        }
        let end = Instant::now() + ANSWER_TIME_MAX;
        loop {
            {
                let mut received = self.received.lock().unwrap();
                if let Some((reply, length)) = parse(&received.bytes) {
                    received.bytes.drain(..length);
                    return Some(reply);
                }
                if received.ended {
                    return None;
                }
            }
            assert!(Instant::now() < end, "no answer and no end within {ANSWER_TIME_MAX:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits until the other side has closed the connection, at most `limit`; says whether it did.
    pub fn closed_within(&mut self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self.received.lock().unwrap().ended {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for KeptOpen {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let end = Instant::now() + Duration::from_millis(500);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first whole HTTP/1.1 answer in `bytes` and its length.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let head_end = find(bytes, b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..head_end]).into_owned();
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let pairs = lines.filter_map(|line| line.split_once(':'));
    let headers: Vec<(String, String)> =
        pairs.map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())).collect();
    let header = |name: &str| headers.iter().find(|(have, _)| have == name).map(|(_, v)| v.clone());
    let rest = &bytes[head_end..];
    let (body, length) = match header("content-length").and_then(|length| length.parse().ok()) {
        Some(length) => (rest.get(..length)?.to_vec(), length),
        None if header("transfer-encoding").is_some() => chunked(rest)?,
        None => (Vec::new(), 0),
    };
    let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let reply = Reply { status, http_version: "1.1".into(), headers, body, json };
    Some((reply, head_end + length))
}

fn chunked(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let line = at + find(&bytes[at..], b"\r\n")?;
        let size = String::from_utf8_lossy(&bytes[at..line]).into_owned();
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        let start = line + 2;
        body.extend_from_slice(bytes.get(start..start + size)?);
        at = start + size + 2;
        bytes.get(..at)?;
        if size == 0 {
            return Some((body, at));
        }
    }
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
