//! What is done in this process, under callgrind: decisions and handshakes. Everything that must be
//! there first is made outside of what counts.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use gateway::client_cert::{Seen, take_seen};
use gateway::config::Config;
use gateway::downstream::LiveConnections;
use gateway::facts_feed::LiveFacts;
use gateway::metrics::Metrics;
use gateway::tls::LiveTls;
use policies::decide::{Decision, FeedState, Query, decide};
use policies::document::DocumentSet;
use policies::facts::Facts;
use policies::feed::Fact;
use policies::identity::{Identity, InsuredKey, Job, OfficeNumber, Serial, Staff};
use policies::matrix::{Matrix, Profile};
use policies::operations::{Operation, Operations};
use rustls::client::Resumption;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection};
use rustls_pki_types::ServerName;

use super::Case;
use super::callgrind::counted_by_callgrind;
use super::world::World;

/// Does `case` so many times.
///
/// # Errors
/// If it does not come out as it must: counts of something else would say nothing.
pub(super) fn repeat(case: Case, iterations: u64) -> Result<()> {
    match case {
        Case::DecideAllow => Decisions::new()?.repeat(iterations, true),
        Case::DecideDeny => Decisions::new()?.repeat(iterations, false),
        Case::Handshake => Handshakes::new(&Resumption::disabled)?.repeat(iterations),
        Case::Returning => Handshakes::new(&Resumption::disabled)?.come_back(iterations),
        Case::Resumed => Handshakes::new(&|| Resumption::in_memory_sessions(1))?.resume(iterations),
        Case::Request => bail!("requests are counted in the gateway, not here"),
    }
}

/// Requests of many offices for persons whom they may see or not.
struct Decisions {
    matrix: Matrix,
    facts: Facts,
    asked: Vec<Asked>,
}

struct Asked {
    principal: Identity,
    /// Each its own: one that is hard to look up must not be all that is counted.
    serial: Serial,
    staff: Staff,
    /// For a person of theirs, and for one of somebody else's.
    permitted: Operation,
    refused: Operation,
}

impl Decisions {
    fn new() -> Result<Self> {
        let matrix = Matrix::builtin(Profile::default())?;
        let operations = Operations::builtin()?;
        let mut facts = Facts::new();
        facts.apply(Fact::Sharing { insurer: INSURER.parse()?, from: Some(1) });
        for serial in 1..=REVOKED {
            facts.apply(Fact::Revoked { serial: format!("{serial:016x}").parse()?, at: 1 });
        }
        let mut asked = Vec::new();
        for number in 0..OFFICES {
            let office = office(number)?;
            facts.apply(Fact::Office {
                number: office,
                service_types: vec!["43".parse()?],
                medical: false,
                suspended: false,
                name: String::new(),
            });
            for person in 0..PERSONS_PER_OFFICE {
                register(&mut facts, office, number * PERSONS_PER_OFFICE + person)?;
            }
            for person in (0..PERSONS_PER_OFFICE).step_by(20) {
                let person = number * PERSONS_PER_OFFICE + person;
                asked.push(Asked {
                    principal: Identity::from_path(&format!("office/{office}/terminal/front-1"))?,
                    serial: format!("ab54a98ceb1f{person:020x}").parse()?,
                    staff: staff(office),
                    permitted: view(&operations, person)?,
                    refused: view(&operations, person + OFFICES * PERSONS_PER_OFFICE)?,
                });
            }
        }
        Ok(Self { matrix, facts, asked })
    }

    fn repeat(&self, iterations: u64, allow: bool) -> Result<()> {
        for asked in self.asked.iter().cycle().take(iterations as usize) {
            let query = Query {
                principal: &asked.principal,
                serial: asked.serial,
                not_after: NOW + 1_000,
                staff: Some(&asked.staff),
                operation: if allow { &asked.permitted } else { &asked.refused },
                now: NOW,
                feeds: FeedState::fresh(),
                circumstances: policies::overlay::Circumstances::default(),
            };
            let mut decided = None;
            counted_by_callgrind(&mut || {
                decided = Some(decide(&self.matrix, &self.facts, std::hint::black_box(&query)));
            });
            let decided = decided.context("nothing was decided")?;
            ensure!(decided.is_allow() == allow, "decided otherwise: {:?}", denial(&decided));
        }
        Ok(())
    }
}

fn denial(decision: &Decision) -> Option<String> {
    match decision {
        Decision::Allow(_) => None,
        Decision::Deny(denial) => Some(format!("{:?}", denial.reasons)),
    }
}

fn office(number: u64) -> Result<OfficeNumber> {
    Ok(format!("13{number:08}").parse()?)
}

fn person(number: u64) -> Result<InsuredKey> {
    Ok(format!("{INSURER}/{number:010}").parse()?)
}

fn register(facts: &mut Facts, office: OfficeNumber, number: u64) -> Result<()> {
    let insured = person(number)?;
    facts.apply(Fact::Registration { office, insured, from: 1, until: None, ended: None });
    let scope = DocumentSet::held();
    let id = number + 1;
    facts.apply(Fact::Consent { id, insured, scope, from: 1, until: None, withdrawn: None });
    Ok(())
}

fn staff(office: OfficeNumber) -> Staff {
    Staff {
        id: "staff-1".to_owned(),
        office,
        job: Job::CareManager,
        session: "session-1".to_owned(),
    }
}

/// To see what an office sees with the person's registration and consent only.
fn view(operations: &Operations, number: u64) -> Result<Operation> {
    let path = format!("/v1/insured/{}/documents/life-feedback", person(number)?);
    operations.resolve("GET", &path).with_context(|| format!("`GET {path}` is no operation"))
}

/// Handshakes with the gateway's own TLS settings and verifier, in memory. What a signature takes
/// to verify differs from one to the next, and those in certificates are verified again and again:
/// so there are several sets of them, taken in turn.
struct Handshakes {
    parties: Vec<Party>,
}

/// A server and a terminal that trust each other.
struct Party {
    config: Config,
    facts: Arc<LiveFacts>,
    server: Arc<LiveTls>,
    client: Arc<ClientConfig>,
}

impl Handshakes {
    fn new(resumption: &dyn Fn() -> Resumption) -> Result<Self> {
        let world = World::make()?;
        let config = world.config()?;
        let facts = world.facts(&config)?;
        let party = |_| {
            let world = World::make()?;
            let (config, facts) = (world.config()?, Arc::clone(&facts));
            let server = server(&config, &facts)?;
            Ok(Party { config, facts, server, client: world.client(resumption())? })
        };
        Ok(Self { parties: (0..PARTIES).map(party).collect::<Result<_>>()? })
    }

    /// Each as if the terminal had never been seen.
    fn repeat(&mut self, iterations: u64) -> Result<()> {
        for at in 0..iterations {
            let party = self.parties.get_mut((at % PARTIES) as usize).context("no party")?;
            party.server = server(&party.config, &party.facts)?;
            Self::shake(party, HandshakeKind::Full)?;
        }
        Ok(())
    }

    /// The first of each party are of terminals never seen: they are in both runs.
    fn come_back(&self, iterations: u64) -> Result<()> {
        self.shake_all(PARTIES + iterations, HandshakeKind::Full)
    }

    /// The first of each party are full: they are in both runs.
    fn resume(&self, iterations: u64) -> Result<()> {
        self.shake_all(PARTIES, HandshakeKind::Full)?;
        self.shake_all(iterations, HandshakeKind::Resumed)
    }

    fn shake_all(&self, iterations: u64, expected: HandshakeKind) -> Result<()> {
        let mut parties = self.parties.iter().cycle().take(iterations as usize);
        parties.try_for_each(|party| Self::shake(party, expected))
    }

    /// One handshake; what the server does in it counts.
    fn shake(party: &Party, expected: HandshakeKind) -> Result<()> {
        let name = ServerName::try_from("localhost")?;
        let mut client = ClientConnection::new(Arc::clone(&party.client), name)?;
        let mut server = None;
        let hello = said(&mut client)?;
        let mut answer = Err(anyhow::anyhow!("the server did nothing"));
        counted_by_callgrind(&mut || answer = party.answer(&mut server, &hello));
        let finish = answer_of(&mut client, &answer?)?;
        let mut done = Err(anyhow::anyhow!("the server did nothing"));
        counted_by_callgrind(&mut || done = party.finish(&mut server, &finish));
        let (kind, tickets) = done?;
        hear(&mut client, &tickets)?;
        ensure!(!client.is_handshaking(), "the handshake is not done");
        ensure!(kind == Some(expected), "{kind:?}, but {expected:?} was to be counted");
        Ok(())
    }
}

fn server(config: &Config, facts: &Arc<LiveFacts>) -> Result<Arc<LiveTls>> {
    let metrics = Arc::new(Metrics::new()?);
    let live = LiveConnections::new(Arc::clone(&metrics));
    LiveTls::start(config, Arc::clone(facts), live, metrics).map_err(anyhow::Error::msg)
}

impl Party {
    /// From the client's hello to the server's certificate.
    fn answer(&self, server: &mut Option<ServerConnection>, hello: &[u8]) -> Result<Vec<u8>> {
        let mut fresh = ServerConnection::new(Arc::clone(&self.server.current().server))?;
        let answer = answer_of(&mut fresh, hello);
        *server = Some(fresh);
        answer
    }

    /// From the client's certificate to the tickets, and who it is; the end of the connection too.
    fn finish(
        &self,
        server: &mut Option<ServerConnection>,
        finish: &[u8],
    ) -> Result<(Option<HandshakeKind>, Vec<u8>)> {
        let mut server = server.take().context("there is no connection")?;
        let tickets = answer_of(&mut server, finish)?;
        ensure!(!server.is_handshaking(), "the handshake is not done");
        let candidate = take_seen().and_then(Seen::candidate);
        self.server.admit(server.peer_certificates(), candidate)?;
        Ok((server.handshake_kind(), tickets))
    }
}

/// Gives the bytes to one side and returns what it says to them.
fn answer_of<D>(side: &mut impl Side<D>, bytes: &[u8]) -> Result<Vec<u8>> {
    hear(side, bytes)?;
    said(side)
}

trait Side<D>: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>> {}
impl<D, S: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>> Side<D> for S {}

fn hear<D>(side: &mut impl Side<D>, mut bytes: &[u8]) -> Result<()> {
    while !bytes.is_empty() {
        side.read_tls(&mut bytes)?;
        side.process_new_packets()?;
    }
    Ok(())
}

fn said<D>(side: &mut impl Side<D>) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(FLIGHT_BYTES);
    while side.wants_write() {
        side.write_tls(&mut bytes)?;
    }
    Ok(bytes)
}

const INSURER: &str = "131016";
const NOW: u64 = 1_800_000_000;
const OFFICES: u64 = 200;
const PERSONS_PER_OFFICE: u64 = 100;
const REVOKED: u64 = 1_000;
const PARTIES: u64 = 12;
const FLIGHT_BYTES: usize = 8 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_comes_out_as_it_must() {
        let offline = Case::ALL.iter().filter(|case| **case != Case::Request);
        for case in offline.copied() {
            repeat(case, 3).unwrap();
        }
        assert!(repeat(Case::Request, 1).is_err());
    }

    #[test]
    fn a_decision_that_comes_out_otherwise_is_not_counted() {
        let mut decisions = Decisions::new().unwrap();
        decisions.facts = Facts::new();
        let error = decisions.repeat(1, true).unwrap_err();
        assert!(error.to_string().contains("decided otherwise"), "{error}");
    }

    #[test]
    fn a_full_handshake_is_not_counted_as_a_resumed_one() {
        let handshakes = Handshakes::new(&Resumption::disabled).unwrap();
        let error = handshakes.resume(1).unwrap_err();
        assert!(error.to_string().contains("but Resumed"), "{error}");
    }
}
