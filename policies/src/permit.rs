//! How a permitted request crosses from the gateway to the hub: a claim set sealed with a MAC.
//!
//! The header [`HEADER`] holds `v1.<base64url(claims JSON)>.<base64url(HMAC-SHA-256)>`. The hub
//! accepts no request without one that fits its method and target and has not run out.
//!
//! Invariants: only [`PermitKey::seal`] makes the header and only [`PermitKey::open`] makes
//! [`OpenedPermit`], which has no other constructor; nothing in it was taken from the client
//! unchecked.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::decide::{Grant, GrantedKind};
use crate::identity::{Identity, InsuredKey, InsurerNumber, Serial, Staff};

/// The request header that carries the sealed permit.
pub const HEADER: &str = "sekisho-permit";

/// How long a permit is good for after it was sealed, in milliseconds.
pub const LIFETIME_MS: u64 = 10_000;

/// What the gateway tells the hub about a permitted request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PermitClaims {
    /// The HTTP method.
    pub method: String,
    /// Path and query, exactly as the hub receives them.
    pub target: String,
    /// The id of the matched entry of the operations table.
    pub operation: String,
    /// The principal of the verified certificate.
    pub principal: Identity,
    /// The certificate's serial number.
    pub serial: Serial,
    /// SHA-256 of the certificate, base64url without padding (RFC 8705 `x5t#S256`).
    pub certificate_sha256: String,
    /// The member of staff, where a staff token was verified.
    pub staff: Option<Staff>,
    /// The person the request is about.
    pub insured: Option<InsuredKey>,
    /// The insurer in the path, where there is one.
    pub insurer: Option<InsurerNumber>,
    /// What may be shown or stored, and what the hub must find true in its own rows.
    pub grants: Vec<GrantedKind>,
    /// What the hub must find true whatever the kind of document.
    pub needs: crate::decide::Needs,
    /// The id shared by decision record, completion record and error text.
    pub request_id: String,
    /// Facts sequence of the cert-authority's feed that the decision was made from.
    pub facts_ca_seq: u64,
    /// Facts sequence of the hub's feed that the decision was made from.
    pub facts_hub_seq: u64,
    /// When the permit runs out, Unix milliseconds.
    pub expires_ms: u64,
}

impl PermitClaims {
    /// Copies what `grant` allows into the claims.
    pub fn set_grant(&mut self, grant: &Grant) {
        self.grants = grant.kinds().collect();
        self.needs = grant.needs();
    }
}

/// Why the hub refuses a permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The key file is not 32 bytes.
    #[error("permit key must be 32 bytes")]
    Key,
    /// The header is not of the form `v1.<claims>.<mac>`.
    #[error("permit header is not understood")]
    Malformed,
    /// The MAC does not fit.
    #[error("permit was not made by the gateway")]
    Mac,
    /// The permit was made for another method or target.
    #[error("permit is for another request")]
    OtherRequest,
    /// The permit ran out.
    #[error("permit has run out")]
    Expired,
}

/// The key shared by gateway and hub.
#[derive(Clone)]
pub struct PermitKey(hmac::Key);

/// Claims that were checked by [`PermitKey::open`].
#[derive(Debug)]
pub struct OpenedPermit(PermitClaims);

impl OpenedPermit {
    /// The checked claims.
    pub fn claims(&self) -> &PermitClaims {
        &self.0
    }
}

impl PermitKey {
    /// Takes the 32 bytes of the key file.
    ///
    /// # Errors
    /// [`Error::Key`] for any other length.
    pub fn new(bytes: &[u8]) -> Result<Self, Error> {
        if bytes.len() != 32 {
            return Err(Error::Key);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The header value for `claims`.
    pub fn seal(&self, claims: &PermitClaims) -> Result<String, Error> {
        let json = serde_json::to_vec(claims).map_err(|_| Error::Malformed)?;
        let body = format!("v1.{}", URL_SAFE_NO_PAD.encode(json));
        let mac = URL_SAFE_NO_PAD.encode(hmac::sign(&self.0, body.as_bytes()));
        Ok(format!("{body}.{mac}"))
    }

    /// Checks a header value against the request it came with. `now_ms` is Unix milliseconds.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Key`]; the request must then be refused.
    pub fn open(
        &self,
        header: &str,
        method: &str,
        target: &str,
        now_ms: u64,
    ) -> Result<OpenedPermit, Error> {
        let (body, mac) = header.rsplit_once('.').ok_or(Error::Malformed)?;
        let mac = URL_SAFE_NO_PAD.decode(mac).map_err(|_| Error::Malformed)?;
        hmac::verify(&self.0, body.as_bytes(), &mac).map_err(|_| Error::Mac)?;
        let json = body.strip_prefix("v1.").ok_or(Error::Malformed)?;
        let json = URL_SAFE_NO_PAD.decode(json).map_err(|_| Error::Malformed)?;
        let claims: PermitClaims = serde_json::from_slice(&json).map_err(|_| Error::Malformed)?;
        if claims.method != method || claims.target != target {
            return Err(Error::OtherRequest);
        }
        if claims.expires_ms < now_ms || claims.expires_ms > now_ms + 2 * LIFETIME_MS {
            return Err(Error::Expired);
        }
        Ok(OpenedPermit(claims))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims() -> PermitClaims {
        PermitClaims {
            method: "GET".into(),
            target: "/v1/x?y=1".into(),
            operation: "documents.view".into(),
            principal: Identity::from_path("office/1370000001/terminal/a").unwrap(),
            serial: "01ab".parse().unwrap(),
            certificate_sha256: "x".into(),
            staff: None,
            insured: None,
            insurer: None,
            grants: Vec::new(),
            needs: crate::decide::Needs::NONE,
            request_id: "r".into(),
            facts_ca_seq: 1,
            facts_hub_seq: 2,
            expires_ms: 1_000 + LIFETIME_MS,
        }
    }

    #[test]
    fn a_sealed_permit_opens_only_for_its_own_request_and_time() {
        let key = PermitKey::new(&[7; 32]).unwrap();
        let header = key.seal(&claims()).unwrap();
        let open = |method, target, now| key.open(&header, method, target, now).map(|_| ());
        assert_eq!(open("GET", "/v1/x?y=1", 1_000), Ok(()));
        assert_eq!(open("PUT", "/v1/x?y=1", 1_000), Err(Error::OtherRequest));
        assert_eq!(open("GET", "/v1/x", 1_000), Err(Error::OtherRequest));
        assert_eq!(open("GET", "/v1/x?y=1", 1_001 + LIFETIME_MS), Err(Error::Expired));
        let far_ahead = PermitClaims { expires_ms: 1_000 + 3 * LIFETIME_MS, ..claims() };
        let header = key.seal(&far_ahead).unwrap();
        assert_eq!(key.open(&header, "GET", "/v1/x?y=1", 1_000).map(|_| ()), Err(Error::Expired));
    }

    #[test]
    fn another_key_and_a_changed_byte_are_refused() {
        let key = PermitKey::new(&[7; 32]).unwrap();
        let other = PermitKey::new(&[8; 32]).unwrap();
        let header = other.seal(&claims()).unwrap();
        let refused = key.open(&header, "GET", "/v1/x?y=1", 1_000).map(|_| ());
        assert_eq!(refused, Err(Error::Mac));
        let mut header = key.seal(&claims()).unwrap();
        header.replace_range(5..6, if &header[5..6] == "A" { "B" } else { "A" });
        assert_eq!(key.open(&header, "GET", "/v1/x?y=1", 1_000).map(|_| ()), Err(Error::Mac));
        assert_eq!(PermitKey::new(b"short").map(|_| ()), Err(Error::Key));
    }
}
