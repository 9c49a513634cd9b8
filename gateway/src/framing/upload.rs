//! What the library says of an HTTP/2 stream only when it is asked: that it was reset, and that its
//! body ended with trailers.
//!
//! pingora passes a stream that was reset after its end (RFC 9113 §5.4.2) on to the hub, and drops
//! trailers, also such as make the request malformed (§8.1). HTTP/1.1 is looked at byte by byte,
//! and has no trailers either ([`super::scanner`]).

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use pingora_core::protocols::http::ServerSession;

use super::Ambiguous;

/// Why a request is not sent on, or not to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// The stream was reset: nobody waits for an answer.
    Reset,
    /// The body is more than a body.
    Malformed(Ambiguous),
}

/// Checks that neither side has reset the stream: right before the head goes to the hub.
///
/// # Errors
/// [`Broken::Reset`].
pub async fn check_standing(session: &mut ServerSession) -> Result<(), Broken> {
    let Some(closing) = session.watch_h2_stream_close() else { return Ok(()) };
    let mut reset = pin!(closing);
    let is_reset = poll_fn(|context| Poll::Ready(reset.as_mut().poll(context).is_ready())).await;
    if is_reset { Err(Broken::Reset) } else { Ok(()) }
}

/// Checks a body of which all is read that will come; `is_last` if no bytes came with the end.
///
/// # Errors
/// [`Broken`] says why it must not be ended at the hub.
pub async fn check_end(session: &mut ServerSession, is_last: bool) -> Result<(), Broken> {
    check_standing(session).await?;
    if session.is_http2() && is_last && !session.is_body_done() {
        // What is left in the stream is no data.
        return Err(Broken::Malformed(Ambiguous("trailers are not offered")));
    }
    Ok(())
}
