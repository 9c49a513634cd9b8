//! (verified client, request, facts) → [`Permit`] or [`Denied`]: the one place where a request is
//! let through.
//!
//! Invariants: a [`Permit`] has private fields, one constructor ([`Access::authorize`]) and no
//! `Clone`; everything in it comes from verified values; a denial names every missing thing.

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use policies::decide::{Decision, Query, decide, reads_per_hour_max};
use policies::facts::Facts;
use policies::identity::{Identity, Staff};
use policies::matrix::Matrix;
use policies::operations::{Action, Operation, Operations};
use policies::overlay::{Circumstances, NetworkKind};
use policies::permit::{LIFETIME_MS, PermitClaims, PermitKey};
use policies::reason::{Reason, ReasonSet};

use crate::bulk::{Counted, Reads};
use crate::client_cert::{VerifiedClient, now};
use crate::facts_feed::{LiveFacts, now_ms};
use crate::policy::LivePolicy;
use crate::session::StaffTokens;

/// Leave to pass one request to the hub.
#[derive(Debug)]
pub struct Permit {
    claims: PermitClaims,
    generation: u64,
    operation: Operation,
    policy: Arc<Matrix>,
    circumstances: Circumstances,
}

impl Permit {
    /// What the hub is told.
    pub fn claims(&self) -> &PermitClaims {
        &self.claims
    }

    /// What was asked for.
    pub fn operation(&self) -> &Operation {
        &self.operation
    }

    /// The policy that the permit was decided with.
    pub fn policy(&self) -> &Matrix {
        &self.policy
    }

    /// The generation of the facts that the permit was decided from.
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

/// A refused request: every reason, and what is known for the record.
#[derive(Debug)]
pub struct Denied {
    /// Every reason, in gate order.
    pub reasons: ReasonSet,
    /// The operation, where method and path matched one.
    pub operation: Option<Box<Operation>>,
    /// The member of staff, where the token verified.
    pub staff: Option<Staff>,
    /// The policy that it was decided with, where it was.
    pub policy: Option<Arc<Matrix>>,
}

impl Denied {
    /// A denial for one reason, before any operation is known.
    pub fn because(reason: Reason) -> Self {
        Self { reasons: reason.into(), operation: None, staff: None, policy: None }
    }
}

/// One request, as far as access is concerned.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'r> {
    /// The method.
    pub method: &'r str,
    /// Path without query.
    pub path: &'r str,
    /// Path and query.
    pub target: &'r str,
    /// The headers; only what the staff token needs is read from them.
    pub headers: &'r HeaderMap,
    /// The request id.
    pub request_id: &'r str,
    /// Where it comes from.
    pub address: IpAddr,
    /// By which network.
    pub network: NetworkKind,
}

/// Decides requests from the facts in memory.
pub struct Access {
    policy: Arc<LivePolicy>,
    operations: Operations,
    facts: Arc<LiveFacts>,
    tokens: StaffTokens,
    reads: Reads,
    permit_key: PermitKey,
}

impl Access {
    /// Puts the decision point together.
    pub fn new(
        policy: Arc<LivePolicy>,
        operations: Operations,
        facts: Arc<LiveFacts>,
        tokens: StaffTokens,
        permit_key: PermitKey,
    ) -> Self {
        let reads = Reads::default();
        Self { policy, operations, facts, tokens, reads, permit_key }
    }

    /// The sequences of the facts in force: cert-authority's and hub's.
    pub fn facts_seq(&self) -> (u64, u64) {
        let facts = self.facts.current();
        (facts.seq(policies::feed::Source::Ca), facts.seq(policies::feed::Source::Hub))
    }

    /// A denial for one reason that does not come from a decision; names what was asked for as far
    /// as method and path say it.
    pub fn denied(&self, method: &str, path: &str, reason: Reason) -> Denied {
        let operation = self.operations.resolve(method, path).map(Box::new);
        Denied { operation, ..Denied::because(reason) }
    }

    /// Decides one request.
    ///
    /// # Errors
    /// [`Denied`] with every reason.
    pub fn authorize(&self, client: &VerifiedClient, asked: Asked<'_>) -> Result<Permit, Denied> {
        let generation = self.facts.generation();
        let facts = self.facts.current();
        let operation = self
            .operations
            .resolve(asked.method, asked.path)
            .ok_or_else(|| Denied::because(Reason::NoSuchOperation))?;
        if let Err(reason) = client.may_ask() {
            return Err(Denied { operation: Some(Box::new(operation)), ..Denied::because(reason) });
        }
        let (staff, mut reasons) = self.staff(client, &operation, asked, &facts);
        let policy = Arc::clone(&self.policy.current());
        let mut query = Query {
            principal: client.identity(),
            serial: client.serial(),
            not_after: client.not_after(),
            staff: staff.as_ref(),
            operation: &operation,
            now: now(),
            feeds: self.facts.feed_state(),
            circumstances: Circumstances {
                address: Some(asked.address),
                network: Some(asked.network),
                reads_this_hour: 0,
            },
        };
        let counted = self.count(&policy, &facts, &query);
        query.circumstances.reads_this_hour = counted.as_ref().map_or(0, Counted::before);
        let circumstances = query.circumstances;
        let decision = decide(&policy, &facts, &query);
        self.policy.compare(&facts, &query, &decision, asked.request_id);
        match decision {
            Decision::Allow(grant) if reasons.is_empty() => {
                counted.into_iter().for_each(Counted::keep);
                let mut claims = self.claims(client, asked, &operation, staff);
                claims.facts_ca_seq = facts.seq(policies::feed::Source::Ca);
                claims.facts_hub_seq = facts.seq(policies::feed::Source::Hub);
                claims.set_grant(&grant);
                Ok(Permit { claims, generation, operation, policy, circumstances })
            }
            Decision::Allow(_) => {
                let operation = Some(Box::new(operation));
                Err(Denied { reasons, operation, staff, policy: Some(policy) })
            }
            Decision::Deny(denial) => {
                // A token that does not count says more than that there is none.
                let told = !reasons.is_empty();
                let rest = denial.reasons;
                let rest = if told { rest.without(Reason::StaffTokenMissing) } else { rest };
                reasons = reasons.union(rest);
                let operation = Some(Box::new(operation));
                Err(Denied { reasons, operation, staff, policy: Some(policy) })
            }
        }
    }

    /// Counts a read that has a ceiling, under the policy in force or under the candidate.
    fn count(&self, policy: &Matrix, facts: &Facts, query: &Query<'_>) -> Option<Counted<'_>> {
        let office = query.principal.office()?;
        let shadow = self.policy.shadow();
        let limited = reads_per_hour_max(policy, facts, query).is_some()
            || shadow.as_ref().is_some_and(|it| reads_per_hour_max(it, facts, query).is_some());
        limited.then(|| self.reads.take(office, query.now))
    }

    /// Decides again from facts and policy of now, if they moved since `permit` was made or if the
    /// facts have grown too old. Called before the first byte of the response leaves, and for every
    /// piece of a body.
    ///
    /// # Errors
    /// The reasons that closed in between.
    pub fn still_allowed(&self, client: &VerifiedClient, permit: &Permit) -> Result<(), ReasonSet> {
        client.may_ask()?;
        let policy = self.policy.current();
        let feeds = self.facts.feed_state();
        let unmoved =
            self.facts.generation() == permit.generation && Arc::ptr_eq(&policy, &permit.policy);
        if unmoved && feeds.in_lease() {
            return Ok(());
        }
        let facts = self.facts.current();
        let staff = permit.claims.staff.as_ref();
        if staff.is_some_and(|staff| facts.session_ended(&staff.session))
            && permit.operation.action != Action::Logout
        {
            return Err(Reason::StaffSessionEnded.into());
        }
        let query = Query {
            principal: client.identity(),
            serial: client.serial(),
            not_after: client.not_after(),
            staff,
            operation: &permit.operation,
            now: now(),
            feeds,
            circumstances: permit.circumstances,
        };
        match decide(&policy, &facts, &query) {
            Decision::Allow(_) => Ok(()),
            Decision::Deny(denial) => Err(denial.reasons),
        }
    }

    /// The header value that carries `permit` to the hub.
    ///
    /// # Errors
    /// If the claims cannot be written; the request is then refused.
    pub fn seal(&self, permit: &Permit) -> Result<String, policies::permit::Error> {
        self.permit_key.seal(&permit.claims)
    }

    /// An office needs a staff token for everything but logging in. A token that does not count is
    /// a reason of its own, and the rest of the decision is made as if there were none.
    fn staff(
        &self,
        client: &VerifiedClient,
        operation: &Operation,
        asked: Asked<'_>,
        facts: &Facts,
    ) -> (Option<Staff>, ReasonSet) {
        let is_office = matches!(client.identity(), Identity::Office { .. });
        if !is_office || operation.action == Action::Login {
            return (None, ReasonSet::EMPTY);
        }
        match self.tokens.verify((asked.method, asked.headers), client, facts, now()) {
            Ok(verified) => (Some(verified.staff().clone()), ReasonSet::EMPTY),
            Err(reason) => (None, reason.into()),
        }
    }

    fn claims(
        &self,
        client: &VerifiedClient,
        asked: Asked<'_>,
        operation: &Operation,
        staff: Option<Staff>,
    ) -> PermitClaims {
        PermitClaims {
            method: asked.method.to_owned(),
            target: asked.target.to_owned(),
            operation: operation.id.to_string(),
            principal: client.identity().clone(),
            serial: client.serial(),
            certificate_sha256: client.sha256().to_owned(),
            staff,
            insured: operation.insured,
            insurer: operation.insurer,
            grants: Vec::new(),
            needs: policies::decide::Needs::NONE,
            request_id: asked.request_id.to_owned(),
            facts_ca_seq: 0,
            facts_hub_seq: 0,
            expires_ms: now_ms() + LIFETIME_MS,
        }
    }
}
