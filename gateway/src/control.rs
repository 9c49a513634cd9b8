//! What the operator does to a running gateway and sees of it by name: a unix socket of mode 0600.
//!
//! ```text
//!  GET  /top     who does what: parties, refusals by reason, handshakes by outcome
//!  POST /reload  read the configuration again and take it, whole or not at all
//!  POST /drain   stop accepting, answer what there is, end
//! ```
//!
//! The loopback listener ([`crate::admin`]) changes nothing and names nobody.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use policies::identity::OfficeNumber;
use serde::Serialize;
use serde_json::json;
use tokio::sync::{Notify, mpsc, oneshot, watch};

use crate::activity::Activity;
use crate::downstream::LiveConnections;
use crate::facts_feed::{LiveFacts, now_ms};
use crate::metrics::Metrics;
use crate::reload;
use crate::takeover::PrivateSocket;

/// What stands behind the socket.
pub struct Control {
    /// Open connections and what was done on them.
    pub live: Arc<LiveConnections>,
    /// Names of offices.
    pub facts: Arc<LiveFacts>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Where the operator asks for another configuration.
    pub reload: mpsc::Sender<reload::Asked>,
    /// Told when the operator wants the gateway to drain.
    pub drain: Arc<Notify>,
    /// Turns `true` when the gateway drains.
    pub shutdown: watch::Receiver<bool>,
}

/// Serves the socket until the gateway drains.
///
/// # Errors
/// If the socket fails.
pub async fn serve(socket: PrivateSocket, control: Arc<Control>) -> std::io::Result<()> {
    let mut shutdown = control.shutdown.clone();
    let router = Router::new()
        .route("/top", get(top))
        .route("/reload", post(reload))
        .route("/drain", post(drain))
        .with_state(control);
    axum::serve(socket, router)
        .with_graceful_shutdown(async move {
            let _ = shutdown.wait_for(|draining| *draining).await;
        })
        .await
}

/// Sums since the start; who asks twice knows the rates.
#[derive(Serialize)]
struct Top {
    pid: u32,
    at_ms: u64,
    connections_open: i64,
    parties: Vec<Party>,
    /// Parties beyond those that are named.
    more_parties: usize,
    denials: BTreeMap<String, u64>,
    handshakes: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Party {
    party: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(flatten)]
    activity: Activity,
}

async fn top(State(control): State<Arc<Control>>) -> Json<Top> {
    let mut parties: Vec<(String, Activity)> = control.live.activity().into_iter().collect();
    parties.sort_by(|(a, does), (b, other)| other.requests.cmp(&does.requests).then(a.cmp(b)));
    let more_parties = parties.len().saturating_sub(PARTIES_NAMED_MAX);
    parties.truncate(PARTIES_NAMED_MAX);
    let facts = control.facts.current();
    let named = parties.into_iter().map(|(party, activity)| {
        let number = party.strip_prefix("office/").and_then(|number| number.parse().ok());
        let office = number.and_then(|number: OfficeNumber| facts.office(number));
        let name = office.map(|office| office.name.to_string());
        Party { party, name, activity }
    });
    Json(Top {
        pid: std::process::id(),
        at_ms: now_ms(),
        connections_open: control.metrics.connections_open.get(),
        parties: named.collect(),
        more_parties,
        denials: control.metrics.denials(),
        handshakes: control.metrics.handshakes(),
    })
}

async fn reload(State(control): State<Arc<Control>>) -> Response {
    let (asked, answer) = oneshot::channel();
    let answer = match control.reload.try_send(asked) {
        Ok(()) => answer.await.ok(),
        Err(_) => None,
    };
    match answer {
        Some(Ok(reloaded)) => Json(reloaded).into_response(),
        Some(Err(problems)) => {
            let body = Json(json!({ "problems": problems }));
            (StatusCode::UNPROCESSABLE_ENTITY, body).into_response()
        }
        None => {
            let problems = ["the gateway is about to end, or has other reloads to do: try again"];
            let body = Json(json!({ "problems": problems }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn drain(State(control): State<Arc<Control>>) -> StatusCode {
    control.drain.notify_one();
    StatusCode::ACCEPTED
}

/// Parties that one answer names, those with the most requests first.
const PARTIES_NAMED_MAX: usize = 2_000;
