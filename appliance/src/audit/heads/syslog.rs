//! A syslog receiver: one RFC 5424 message a head, with the note in base64.
//!
//! A datagram that was sent may still be lost on its way; a TCP receiver is the safer choice.

use anyhow::Context as _;
use audit_log::Checkpoint;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket, UnixDatagram};

use crate::settings::SyslogSink;

/// Sends one head.
///
/// # Errors
/// When there is nobody to take it.
pub(super) async fn send(sink: &SyslogSink, head: &Checkpoint) -> anyhow::Result<()> {
    let message = message(head, &host_name(), std::process::id());
    match sink {
        SyslogSink::Udp(to) => udp(to, &message).await.context("no datagram could be sent"),
        SyslogSink::Tcp(to) => tcp(to, &message).await.context("no connection"),
        SyslogSink::Unix(path) => {
            let socket = UnixDatagram::unbound()?;
            let sent = socket.send_to(message.as_bytes(), path).await;
            sent.map(|_| ()).with_context(|| format!("nobody listens on `{}`", path.display()))
        }
    }
}

async fn udp(to: &str, message: &str) -> std::io::Result<()> {
    let address = tokio::net::lookup_host(to).await?.next();
    let address = address.ok_or_else(|| std::io::Error::other("the host has no address"))?;
    let own = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(own).await?;
    socket.send_to(message.as_bytes(), address).await.map(|_| ())
}

/// Octet counting (RFC 6587 §3.4.1).
async fn tcp(to: &str, message: &str) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(to).await?;
    stream.write_all(format!("{} {message}", message.len()).as_bytes()).await?;
    stream.shutdown().await
}

fn message(head: &Checkpoint, host: &str, pid: u32) -> String {
    use base64::Engine as _;
    let note = base64::engine::general_purpose::STANDARD.encode(head.note());
    format!(
        "<{PRIORITY}>1 {} {host} sekisho {pid} checkpoint [checkpoint@{ENTERPRISE} \
         origin=\"{}\" size=\"{}\"] {note}",
        head.time(),
        head.origin(),
        head.size()
    )
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name: String = name.trim().chars().filter(char::is_ascii_graphic).take(255).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

/// Facility 13 (log audit), severity 5 (notice): RFC 5424 §6.2.1.
const PRIORITY: u8 = 13 * 8 + 5;

/// The enterprise number for examples (RFC 5612); the origin says whose it is.
const ENTERPRISE: u32 = 32_473;

#[cfg(test)]
mod tests {
    use super::*;
    use audit_log::{AuditLog, CheckpointKey, Options};
    use base64::Engine as _;

    #[test]
    fn a_message_has_the_fields_of_rfc_5424_and_the_whole_note() {
        let folder = tempfile::tempdir().unwrap();
        let (key, _) = CheckpointKey::generate("id.example/audit/hub").unwrap();
        let writer = AuditLog::open(folder.path(), Options::new("hub", key.clone())).unwrap();
        writer.append(&audit_log::Event::ServiceStopped).unwrap().durable_blocking().unwrap();
        writer.close();
        let head =
            audit_log::latest_checkpoint(folder.path(), key.verifying_key()).unwrap().unwrap();
        let text = message(&head, "box", 7);
        let start = format!("<109>1 {} box sekisho 7 checkpoint [checkpoint@32473 ", head.time());
        assert!(text.starts_with(&start), "{text}");
        let (data, note) = text.rsplit_once("] ").unwrap();
        assert!(data.contains("origin=\"id.example/audit/hub\" size=\""), "{text}");
        let note = base64::engine::general_purpose::STANDARD.decode(note).unwrap();
        assert_eq!(note, head.note().as_bytes());
    }
}
