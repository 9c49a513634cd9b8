//! Asks each node, again and again, whether it answers. A hub refuses a request without a permit:
//! any answer in HTTP is one.
//!
//! A node that cannot be connected to does not answer. One that only is slow is asked
//! [`SLOW_IN_A_ROW_MAX`] times, and believed as long as it answers requests: under load everybody
//! is slow, and a hub is not made faster by refusing everybody.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::node::Node;
use super::tunnel;
use crate::config::{HubNode, HubNodes};

/// Asks `node` until `shutdown` turns true or the node's gateway is gone.
pub(super) async fn watch(
    node: Arc<Node>,
    settings: HubNodes,
    mut shutdown: watch::Receiver<bool>,
) {
    let mut slow = 0;
    loop {
        let found = tokio::time::timeout(settings.health_timeout, ask(&node.place)).await;
        slow = if found.is_err() && !node.has_served() { slow + 1 } else { 0 };
        match found {
            Ok(answered) => node.asked(answered.is_ok()),
            Err(_) if slow >= SLOW_IN_A_ROW_MAX => node.asked(false),
            Err(_) => {}
        }
        let pause = settings.health_interval;
        let pause = if node.answers() { pause } else { pause.min(PAUSE_WHILE_DOWN) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = node.trouble.notified() => tokio::time::sleep(PAUSE_MIN).await,
            changed = shutdown.changed() => if changed.is_err() || *shutdown.borrow() { return },
        }
    }
}

async fn ask(place: &HubNode) -> std::io::Result<()> {
    match place {
        HubNode::Unix(path) => ask_on(UnixStream::connect(path).await?).await,
        HubNode::Tcp { address, tls: None } => ask_on(TcpStream::connect(address).await?).await,
        HubNode::Tcp { address, tls: Some(tls) } => {
            ask_on(tunnel::connect(*address, tls).await?).await
        }
    }
}

async fn ask_on(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    stream.write_all(QUESTION).await?;
    stream.flush().await?;
    let mut begin = [0; ANSWER.len()];
    stream.read_exact(&mut begin).await?;
    if &begin == ANSWER { Ok(()) } else { Err(std::io::ErrorKind::InvalidData.into()) }
}

const QUESTION: &[u8] = b"GET /livez HTTP/1.1\r\nhost: hub\r\nconnection: close\r\n\r\n";
const ANSWER: &[u8; 7] = b"HTTP/1.";

/// After so many questions in a row that were not answered in time, a node does not answer.
const SLOW_IN_A_ROW_MAX: u32 = 3;

/// A node that is back is seen soon.
const PAUSE_WHILE_DOWN: Duration = Duration::from_millis(100);

/// However much goes wrong, a node is not asked more often.
const PAUSE_MIN: Duration = Duration::from_millis(50);
