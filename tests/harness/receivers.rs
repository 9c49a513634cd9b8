//! What heads are brought to in a test: an HTTPS endpoint (Python's own server), UDP and unix
//! datagram sockets.

use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::programs::wait_until;
use crate::system::System;

/// What has come so far; the receiver ends when this is dropped.
pub struct Received {
    messages: Arc<Mutex<Vec<String>>>,
    server: Option<Child>,
    folder: Option<std::path::PathBuf>,
    /// Where it listens, as the settings name it.
    pub target: String,
}

impl Received {
    /// Every message so far.
    pub fn all(&self) -> Vec<String> {
        let Some(folder) = &self.folder else { return self.messages.lock().unwrap().clone() };
        let mut files: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|kind| kind == "note"))
            .collect();
        files.sort();
        files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect()
    }

    /// Waits for a message for which `look` gives something.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&str) -> Option<T>) -> T {
        wait_until(what, 20, || self.all().iter().find_map(|message| look(message)))
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// An HTTPS endpoint with the server certificate of the box.
pub fn https(system: &System) -> Received {
    let folder = system.scratch().join("https");
    fs::create_dir(&folder).unwrap();
    // Copies: a process that names the data folder counts as one of the box.
    for name in ["gateway.pem", "gateway.key"] {
        fs::copy(system.path("ca/servers").join(name), folder.join(name)).unwrap();
    }
    let server = Command::new("python3")
        .args(["-c", HTTPS_SERVER])
        .arg(&folder)
        .arg(folder.join("gateway.pem"))
        .arg(folder.join("gateway.key"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("python3");
    let port = wait_until("the HTTPS endpoint to listen", 20, || {
        fs::read_to_string(folder.join("port")).ok()?.trim().parse::<u16>().ok()
    });
    let target = format!("https://localhost:{port}/heads");
    Received { messages: Arc::default(), server: Some(server), folder: Some(folder), target }
}

/// Writes each posted body to a file; answers 204.
const HTTPS_SERVER: &str = r#"
import http.server, os, ssl, sys
folder, certificate, key = sys.argv[1:4]
class Handler(http.server.BaseHTTPRequestHandler):
    count = 0
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        good = self.path == "/heads" and self.headers["content-type"].startswith("text/plain")
        if good:
            Handler.count += 1
            name = os.path.join(folder, "%08d" % Handler.count)
            with open(name, "wb") as file:
                file.write(body)
            os.rename(name, name + ".note")
        self.send_response(204 if good else 400)
        self.end_headers()
    def log_message(self, *args):
        pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
with open(os.path.join(folder, "port.new"), "w") as file:
    file.write(str(server.server_address[1]))
os.rename(os.path.join(folder, "port.new"), os.path.join(folder, "port"))
server.serve_forever()
"#;

/// A UDP socket on loopback.
pub fn datagrams() -> Received {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("udp://{}", socket.local_addr().unwrap());
    socket.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    receive(target, move |buffer| socket.recv(buffer))
}

/// A unix datagram socket.
pub fn unix_datagrams(path: &Path) -> Received {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    receive(format!("unix:{}", path.display()), move |buffer| socket.recv(buffer))
}

fn receive(
    target: String,
    read: impl Fn(&mut [u8]) -> std::io::Result<usize> + Send + 'static,
) -> Received {
    let messages = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::downgrade(&messages);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 * 1024];
        while sink.strong_count() > 0 {
            let Ok(length) = read(&mut buffer) else { continue };
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if let Some(messages) = sink.upgrade() {
                messages.lock().unwrap().push(text);
            }
        }
    });
    Received { messages, server: None, folder: None, target }
}

const READ_TIMEOUT: Duration = Duration::from_millis(200);
