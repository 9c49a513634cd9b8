//! Overlays: what an operator takes away, for an office, a group of offices or a municipality.
//!
//! ```text
//!  overlays/*.toml ─► read ─► Overlays (immutable) ─► gate(Request) ─► Narrowed: closed reasons,
//!                    every problem together                            paused kinds and types
//! ```
//!
//! INVARIANT: an overlay only narrows. [`Overlays::gate`] gives reasons to refuse and things to
//! leave out, and there is nothing in [`Narrowed`] that could open anything. Two overlays for the
//! same office are both asked; the narrower wins. Overlays are about offices: municipalities,
//! マイナポータル and the other systems are not touched. What protects people is not taken away
//! either: logging out and withdrawing a consent are never stopped by an overlay.
//!
//! Time, address and count come in with the request; the gate reads no clock and allocates nothing.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::str::FromStr;

use serde::Deserialize;

use crate::document::{DocumentKind, DocumentSet};
use crate::identity::{InsurerNumber, OfficeNumber, ServiceType};
use crate::operations::Action;
use crate::problem::Problem;
use crate::reason::{Reason, ReasonSet};

pub mod hours;
pub mod network;
mod read;

use hours::{Moment, Window};
use network::Network;

/// What of a request only overlays look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Circumstances {
    /// Where the request comes from; an unknown address is in no range.
    pub address: Option<IpAddr>,
    /// By which network it comes; an unknown one is none.
    pub network: Option<NetworkKind>,
    /// Reads of persons' documents by the same office in this hour, before this one.
    pub reads_this_hour: u32,
}

/// By which network a request comes: each listener of a gateway stands on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkKind {
    /// The internet.
    Open,
    /// The closed network (IP-VPN, 閉域網) of medical institutions and municipalities.
    Closed,
}

impl NetworkKind {
    /// The word in records, cases and overlays.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
        }
    }
}

impl FromStr for NetworkKind {
    type Err = UnknownNetwork;

    fn from_str(text: &str) -> Result<Self, UnknownNetwork> {
        match text {
            "open" => Ok(Self::Open),
            "closed" => Ok(Self::Closed),
            _ => Err(UnknownNetwork),
        }
    }
}

/// Not the word of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a network is `open` or `closed`")]
pub struct UnknownNetwork;

/// For whom an overlay is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppliesTo {
    /// These offices.
    Offices(Vec<OfficeNumber>),
    /// Every office that has one of these service types.
    ServiceTypes(Vec<ServiceType>),
    /// Every office, for requests about persons of these municipalities.
    Municipalities(Vec<InsurerNumber>),
    /// Every office.
    EveryOffice,
}

/// One overlay. Everything that is given must be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The file's name without its ending.
    pub name: String,
    /// Why it was made, in the operator's words.
    pub source: String,
    /// For whom it is.
    pub applies_to: AppliesTo,
    /// When offices may ask; none given means always.
    pub hours: Option<Vec<Window>>,
    /// From where they may ask.
    pub addresses: Option<Vec<Network>>,
    /// By which networks they may ask.
    pub networks: Option<Vec<NetworkKind>>,
    /// Kinds of document that are paused.
    pub paused_documents: DocumentSet,
    /// Service types whose rules are paused: what an office may only through them is closed.
    pub paused_service_types: Vec<ServiceType>,
    /// Whether everything is paused.
    pub paused_entirely: bool,
    /// Reads of persons' documents by one office in an hour, at most.
    pub reads_per_hour_max: Option<u32>,
    /// The offices of a municipality's pilot; every other one is refused.
    pub pilot: Option<HashSet<OfficeNumber>>,
}

/// A request as overlays see it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The office that asks.
    pub office: OfficeNumber,
    /// Its service types.
    pub service_types: &'a [ServiceType],
    /// The insurer of the person it asks about.
    pub insurer: Option<InsurerNumber>,
    /// What it wants to do.
    pub action: Action,
    /// With which kind of document.
    pub document: Option<DocumentKind>,
    /// When, Unix seconds.
    pub now: u64,
    /// Address, network and count.
    pub circumstances: Circumstances,
}

/// What overlays take away from one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Narrowed {
    /// Why it is closed; empty if no overlay closes it.
    pub reasons: ReasonSet,
    /// Kinds that it may not see.
    pub paused_documents: DocumentSet,
    /// Whether a service type of the office is paused; [`Overlays::pauses`] says which.
    pub has_paused_types: bool,
}

/// Every overlay of a policy, compiled.
#[derive(Debug, Clone, Default)]
pub struct Overlays {
    overlays: Vec<Overlay>,
    by_office: HashMap<OfficeNumber, Vec<usize>>,
    by_service_type: Vec<(ServiceType, usize)>,
    by_insurer: HashMap<InsurerNumber, Vec<usize>>,
    for_every_office: Vec<usize>,
}

impl Overlays {
    /// Reads overlays from their texts, each with its path in the policy's folder. `is_known` says
    /// whether there is such an office; without it, offices are not looked up.
    ///
    /// # Errors
    /// Every problem of every file.
    pub fn parse(
        files: &[(String, String)],
        is_known: Option<&dyn Fn(OfficeNumber) -> bool>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut overlays = Vec::new();
        for (file, text) in files {
            match read::overlay(file, text, is_known) {
                Ok(overlay) => overlays.push(overlay),
                Err(found) => problems.extend(found),
            }
        }
        if problems.is_empty() { Ok(Self::new(overlays)) } else { Err(problems) }
    }

    /// Compiles overlays: each can then be found by what it applies to.
    pub fn new(overlays: Vec<Overlay>) -> Self {
        let mut compiled = Self::default();
        for (at, overlay) in overlays.iter().enumerate() {
            match &overlay.applies_to {
                AppliesTo::Offices(numbers) => {
                    for number in numbers {
                        compiled.by_office.entry(*number).or_default().push(at);
                    }
                }
                AppliesTo::ServiceTypes(codes) => {
                    compiled.by_service_type.extend(codes.iter().map(|code| (*code, at)));
                }
                AppliesTo::Municipalities(insurers) => {
                    for insurer in insurers {
                        compiled.by_insurer.entry(*insurer).or_default().push(at);
                    }
                }
                AppliesTo::EveryOffice => compiled.for_every_office.push(at),
            }
        }
        compiled.overlays = overlays;
        compiled
    }

    /// The overlays, in the order of their files.
    pub fn iter(&self) -> impl Iterator<Item = &Overlay> {
        self.overlays.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.overlays.is_empty()
    }

    /// What the overlays take away from a request.
    pub fn gate(&self, request: &Request<'_>) -> Narrowed {
        let mut narrowed = Narrowed::default();
        if self.overlays.is_empty() || protects_people(request.action) {
            return narrowed;
        }
        for overlay in self.applying(request) {
            narrowed.reasons = narrowed.reasons.union(overlay.closed(request));
            narrowed.paused_documents = narrowed.paused_documents.union(overlay.paused_documents);
            let paused = &overlay.paused_service_types;
            narrowed.has_paused_types |=
                request.service_types.iter().any(|code| paused.contains(code));
        }
        narrowed
    }

    /// The overlays that apply to a request. One that names several service types of the office may
    /// come more than once, which changes nothing.
    pub fn applying<'a>(
        &'a self,
        request: &Request<'a>,
    ) -> impl Iterator<Item = &'a Overlay> + use<'a> {
        let none: &[usize] = &[];
        let by_office = match self.by_office.is_empty() {
            true => none,
            false => self.by_office.get(&request.office).map_or(none, Vec::as_slice),
        };
        let insurer = request.insurer.filter(|_| !self.by_insurer.is_empty());
        let by_insurer = insurer.and_then(|insurer| self.by_insurer.get(&insurer));
        let by_insurer = by_insurer.map_or(none, Vec::as_slice);
        let service_types = request.service_types;
        let by_type = self.by_service_type.iter();
        let by_type = by_type.filter(|(code, _)| service_types.contains(code)).map(|(_, at)| at);
        let named = self.for_every_office.iter().chain(by_office).chain(by_insurer).chain(by_type);
        // INVARIANT: `new` only writes positions of `overlays`.
        named.map(|at| &self.overlays[*at])
    }

    /// Whether an overlay that applies to the request pauses this service type.
    pub fn pauses(&self, request: &Request<'_>, code: ServiceType) -> bool {
        self.applying(request).any(|overlay| overlay.paused_service_types.contains(&code))
    }

    /// The lowest ceiling of reads in an hour for a request, if it counts as a read at all.
    pub fn reads_per_hour_max(&self, request: &Request<'_>) -> Option<u32> {
        if self.overlays.is_empty() || !counts_as_read(request.action) {
            return None;
        }
        self.applying(request).filter_map(|overlay| overlay.reads_per_hour_max).min()
    }
}

impl Overlay {
    /// Why this overlay alone closes a request that it applies to.
    pub fn closed(&self, request: &Request<'_>) -> ReasonSet {
        let mut reasons = ReasonSet::EMPTY;
        let mut close = |closed: bool, reason| {
            if closed {
                reasons.insert(reason);
            }
        };
        let Circumstances { address, network, reads_this_hour } = request.circumstances;
        if let Some(max) = self.reads_per_hour_max {
            let over = counts_as_read(request.action) && reads_this_hour >= max;
            close(over, Reason::BulkCeiling);
        }
        if let Some(windows) = &self.hours {
            let moment = Moment::at(request.now);
            let open = windows.iter().any(|window| window.contains(moment));
            close(!open, Reason::OutOfHours);
        }
        if let Some(ranges) = &self.addresses {
            let inside = |address| ranges.iter().any(|range| range.contains(address));
            close(!address.is_some_and(inside), Reason::AddressNotAllowed);
        }
        if let Some(networks) = &self.networks {
            let inside = network.is_some_and(|network| networks.contains(&network));
            close(!inside, Reason::AddressNotAllowed);
        }
        let document = written_or_read(request);
        let paused = document.is_some_and(|kind| self.paused_documents.contains(kind));
        close(self.paused_entirely || paused, Reason::Paused);
        if let Some(pilot) = &self.pilot {
            close(!pilot.contains(&request.office), Reason::NotInPilot);
        }
        reasons
    }

    /// What it asks for, in one line.
    pub fn describe(&self) -> String {
        let mut parts = Vec::new();
        if let Some(windows) = &self.hours {
            let windows: Vec<String> = windows.iter().map(ToString::to_string).collect();
            parts.push(format!("open {}", windows.join(", ")));
        }
        if let Some(ranges) = &self.addresses {
            let ranges: Vec<String> = ranges.iter().map(ToString::to_string).collect();
            parts.push(format!("from {}", ranges.join(" ")));
        }
        if let Some(networks) = &self.networks {
            let networks: Vec<&str> = networks.iter().map(|network| network.as_str()).collect();
            parts.push(format!("by the {} network", networks.join(" or ")));
        }
        let documents: Vec<&str> = self.paused_documents.iter().map(|kind| kind.as_str()).collect();
        if !documents.is_empty() {
            parts.push(format!("paused {}", documents.join(" ")));
        }
        let types: Vec<&str> = self.paused_service_types.iter().map(ServiceType::as_str).collect();
        if !types.is_empty() {
            parts.push(format!("paused service types {}", types.join(" ")));
        }
        if self.paused_entirely {
            parts.push("paused entirely".to_owned());
        }
        if let Some(max) = self.reads_per_hour_max {
            parts.push(format!("at most {max} reads an hour"));
        }
        if let Some(pilot) = &self.pilot {
            parts.push(format!("a pilot of {} offices", pilot.len()));
        }
        parts.join("; ")
    }
}

/// A file of care plans is a file of 居宅サービス計画; every other operation names its kind.
fn written_or_read(request: &Request<'_>) -> Option<DocumentKind> {
    let file = request.action == Action::SubmitCarePlanFile;
    request.document.or(file.then_some(DocumentKind::HomeCarePlan))
}

/// Operations that an overlay may not stop.
pub const fn protects_people(action: Action) -> bool {
    matches!(action, Action::Logout | Action::WithdrawConsent)
}

/// Operations that the bulk ceiling counts.
pub const fn counts_as_read(action: Action) -> bool {
    matches!(action, Action::ViewDocument | Action::ListDocuments)
}

#[cfg(test)]
mod tests;
