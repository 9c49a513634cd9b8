//! Recorded decisions, made again: from the audit log of the gateway and the facts of now.
//!
//! A record holds a pseudonym in place of the insured person. Whose it is can be found only among
//! those whom the facts are about; a decision about anybody else stays as it was recorded.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use audit_log::{Entry, Event, Found, Pseudonym, Query as Search};
use policies::decide::{FeedState, Query};
use policies::facts::Facts;
use policies::feed::Source;
use policies::identity::{Identity, InsuredKey, Serial, Staff};
use policies::operations::{Operation, Operations};
use policies::overlay::{Circumstances, NetworkKind};

use super::feeds;
use crate::audit_keys;
use crate::exit::usage;
use crate::files;
use crate::layout::{Layout, Part};
use crate::part_config;

/// The facts of now, and who is behind which pseudonym.
pub(super) struct Known {
    /// The facts.
    pub(super) facts: Facts,
    insured: HashMap<String, InsuredKey>,
    operations: Operations,
}

/// A recorded request, as it can be decided again.
pub(super) struct Request {
    principal: Identity,
    serial: Serial,
    staff: Option<Staff>,
    operation: Operation,
    now: u64,
    circumstances: Circumstances,
}

impl Known {
    /// Reads both feeds of the running box.
    ///
    /// # Errors
    /// When the box does not run, or the key of the pseudonyms cannot be read.
    pub(super) async fn read(layout: &Layout, also: Option<InsuredKey>) -> anyhow::Result<Self> {
        let mut facts = Facts::new();
        feeds::read(layout, Source::Ca, &mut facts).await?;
        let told = feeds::read(layout, Source::Hub, &mut facts).await?;
        let pseudonym = pseudonym(layout)?;
        let named = |insured: InsuredKey| (pseudonym.of(&insured.to_string()), insured);
        let insured = told.insured.into_iter().chain(also).map(named).collect();
        Ok(Self { facts, insured, operations: Operations::builtin()? })
    }

    /// What a decision record asked, if everybody in it is known.
    pub(super) fn request(&self, entry: &Entry, reads_this_hour: u32) -> Option<Request> {
        let Event::Decision { actor, action, object, client_addr, network, .. } = &entry.event
        else {
            return None;
        };
        let action = action.as_deref()?;
        let found = self.operations.entries().find(|entry| entry.id() == action)?;
        let insured = match &object.insured {
            Some(pseudonym) => Some(*self.insured.get(pseudonym)?),
            None => None,
        };
        let municipality = object
            .name
            .as_deref()
            .and_then(|name| name.strip_prefix("municipality/")?.split('/').next()?.parse().ok());
        let document = match &object.document {
            Some(kind) => Some(kind.parse().ok()?),
            None => None,
        };
        let principal = Identity::from_path(&actor.principal).ok()?;
        let staff = principal.office().zip(actor.staff.as_ref()).and_then(|(office, id)| {
            let job = actor.job.as_ref()?.parse().ok()?;
            Some(Staff { id: id.clone(), office, job, session: "recorded".to_owned() })
        });
        let network = network.as_deref().map_or(Some(NetworkKind::Open), |it| it.parse().ok());
        let address = client_addr.parse().ok().map(|address: SocketAddr| address.ip());
        Some(Request {
            principal,
            serial: actor.serial.as_ref()?.parse().ok()?,
            staff,
            operation: Operation {
                id: found.id().into(),
                action: found.action(),
                document,
                insured,
                insurer: insured.map(|insured| insured.insurer).or(municipality),
                numbered: None,
            },
            now: unix(&entry.at)?,
            circumstances: Circumstances { address, network, reads_this_hour },
        })
    }
}

impl Request {
    /// The question to decide. Certificate and session are taken as good: the record says so.
    pub(super) fn query(&self) -> Query<'_> {
        Query {
            principal: &self.principal,
            serial: self.serial,
            not_after: u64::MAX,
            staff: self.staff.as_ref(),
            operation: &self.operation,
            now: self.now,
            feeds: FeedState::fresh(),
            circumstances: self.circumstances,
        }
    }
}

/// The decision with this request id, with its completion.
///
/// # Errors
/// When the log cannot be read; a usage error when it holds no such request.
pub(super) fn find(layout: &Layout, request_id: &str) -> anyhow::Result<Found> {
    let folder = audit_keys::log_folder(layout, Part::Gateway)?;
    let query = Search { request_id: Some(request_id.to_owned()), ..Search::default() };
    for found in audit_log::search(&folder, &query, &mut |_| ()) {
        let found = found?;
        if matches!(found.entry.event, Event::Decision { .. }) {
            return Ok(found);
        }
    }
    Err(usage(format!(
        "the gateway's audit log has no request `{request_id}`: check the id; denials of a flood \
         are only counted"
    )))
}

/// The newest decisions, oldest first.
///
/// # Errors
/// When the log cannot be read.
pub(super) fn newest(layout: &Layout, count: usize) -> anyhow::Result<VecDeque<Entry>> {
    let folder = audit_keys::log_folder(layout, Part::Gateway)?;
    let mut newest = VecDeque::new();
    for entry in audit_log::read(&folder) {
        let entry = entry?;
        if matches!(entry.event, Event::Decision { .. }) {
            newest.push_back(entry);
            if newest.len() > count {
                newest.pop_front();
            }
        }
    }
    Ok(newest)
}

fn pseudonym(layout: &Layout) -> anyhow::Result<Pseudonym> {
    let path = part_config::value(layout, Part::Gateway, "audit.pseudonym_key")?;
    let key: [u8; 32] = files::read_at_most(path.as_ref(), 32)?
        .try_into()
        .map_err(|_| usage(format!("key file `{path}` has not 32 bytes: restore it")))?;
    Ok(Pseudonym::new(&key))
}

fn unix(at: &str) -> Option<u64> {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(at, format).ok()?;
    u64::try_from(at.unix_timestamp()).ok()
}
