//! The operator's door: registrations in a demo, staff, the index of the gateway's records, and the
//! state of the hub, on the admin socket (mode 0600, own uid). Every change is audited like any
//! other write.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::json;

use crate::refusal::{Refusal, finish};
use crate::{Hub, gateway_records, registration, routes, staff};

/// The router of the admin socket.
pub(crate) fn router(hub: Hub) -> Router {
    Router::new()
        .route("/registrations", post(registration::record_by_operator))
        .route("/registrations/end", post(registration::end_by_operator))
        .route("/staff", post(staff::set))
        .route("/staff/lock", post(staff::lock))
        .route("/access-index", get(gateway_records::status))
        .route("/access-index/rebuild", post(gateway_records::rebuild))
        .route("/status", get(status))
        .route("/metrics", get(metrics))
        .fallback(routes::no_such_operation)
        .method_not_allowed_fallback(routes::no_such_operation)
        .layer(from_fn(to_the_end))
        .with_state(hub)
}

/// Runs a call to its end even when the caller hangs up, and gives refusals their body.
async fn to_the_end(request: Request, next: Next) -> Response {
    let response = match tokio::spawn(next.run(request)).await {
        Ok(response) => response,
        Err(error) => Refusal::Internal(Box::new(error)).into_response(),
    };
    finish(response, "")
}

/// `GET /metrics`: what the hub's audit log counts about itself.
async fn metrics(State(hub): State<Hub>) -> Response {
    let form = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (form, hub.audit.metrics().text()).into_response()
}

/// `GET /status`.
async fn status(State(hub): State<Hub>) -> Result<Response, Refusal> {
    let mut tx = hub.store.read().await?;
    let mut counts = [0i64; 3];
    let queries = [
        "SELECT COUNT(*) FROM documents",
        "SELECT COUNT(*) FROM registrations WHERE ended_s IS NULL",
        "SELECT COUNT(*) FROM consents WHERE withdrawn_s IS NULL",
    ];
    for (count, query) in counts.iter_mut().zip(queries) {
        *count = sqlx::query_scalar(query).fetch_one(&mut *tx).await?;
    }
    let [documents, registrations, consents] = counts;
    Ok(axum::Json(json!({
        "documents": documents,
        "registrations": registrations,
        "consents": consents,
        "demo": hub.limits.demo,
        "audit_available": hub.audit.is_available(),
        "feed_seq": hub.store.seq(),
        "gateways": hub.gateways.status(),
    }))
    .into_response())
}
