//! The trust bundle: the CAs whose client certificates are accepted, and the chains that verified.
//!
//! A chain costs a signature check and two parses of the leaf. One that verified is remembered by
//! SHA-256 of its leaf with what was read from it, so a terminal that comes back costs only the
//! check that it holds the key. Validity, revocation and the office's state are no part of what is
//! remembered.
//!
//! Invariants:
//! - a chain is remembered only after a handshake in which the client proved that it holds the key:
//!   who merely has a certificate, which is no secret, pushes nobody out;
//! - no refusal is remembered;
//! - a chain is remembered by one bundle; the next begins with none.

use std::sync::Arc;

use prometheus::IntCounter;
use quick_cache::sync::Cache;
use rustls::DistinguishedName;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::client_cert::{
    Candidate, Digest, Leaf, LeafRules, Reason, Refused, Said, Validity, VerifiedClient,
    read_kokuho, sha256,
};
use crate::metrics::Metrics;
use crate::outside_ca::{IdentityRule, OutsideCa};

/// A CA whose signature counts.
#[derive(Debug)]
pub(crate) struct Anchor {
    /// Of its name and key.
    pub(crate) digest: Digest,
    /// How its certificates' holders are read.
    pub(crate) rule: Rule,
    validity: Validity,
}

/// How a CA's certificates name their holders. The rule is the anchor's that a chain led to,
/// whatever the certificate says.
#[derive(Debug)]
pub(crate) enum Rule {
    /// Ours: SAN URI and policy.
    Own,
    /// An outside CA's own way.
    Outside(Arc<OutsideCa>),
}

impl Rule {
    fn same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Own, Self::Own) => true,
            (Self::Outside(one), Self::Outside(other)) => one.identity() == other.identity(),
            (Self::Own, Self::Outside(_)) | (Self::Outside(_), Self::Own) => false,
        }
    }
}

/// Tells a CA by its name and key.
pub(crate) fn anchor_digest(root: &TrustAnchor<'_>) -> Digest {
    sha256(&[root.subject.as_ref(), root.subject_public_key_info.as_ref()].concat())
}

/// The CAs whose client certificates are accepted.
pub struct TrustBundle {
    generation: u64,
    /// As `roots`, one for one.
    anchors: Vec<Arc<Anchor>>,
    roots: Vec<TrustAnchor<'static>>,
    hints: Vec<DistinguishedName>,
    rules: LeafRules,
    algorithms: WebPkiSupportedAlgorithms,
    verified: Cache<Digest, Arc<Leaf>>,
    hits: IntCounter,
    misses: IntCounter,
}

/// What a bundle is made from.
pub struct Ingredients<'a> {
    /// Differs from every other bundle's of this process.
    pub generation: u64,
    /// Our issuing CAs.
    pub anchors: &'a [CertificateDer<'static>],
    /// Outside CAs with their anchors.
    pub outside: &'a [(Arc<OutsideCa>, Vec<CertificateDer<'static>>)],
    /// What every leaf must say.
    pub rules: LeafRules,
    /// The signatures that count.
    pub algorithms: WebPkiSupportedAlgorithms,
    /// Chains remembered at once.
    pub verified_chains_max: usize,
}

impl TrustBundle {
    /// A bundle that trusts the `anchors` and nothing else.
    ///
    /// # Errors
    /// A line for the operator if an anchor cannot be used.
    pub fn new(from: Ingredients<'_>, metrics: &Metrics) -> Result<Self, String> {
        let (mut anchors, mut roots): (Vec<Arc<Anchor>>, Vec<_>) = Default::default();
        let own = from.anchors.iter().map(|der| (der, Rule::Own));
        let outside = from
            .outside
            .iter()
            .flat_map(|(ca, anchors)| anchors.iter().map(|der| (der, Rule::Outside(ca.clone()))));
        for (der, rule) in own.chain(outside) {
            let unusable =
                |why: &dyn std::fmt::Display| format!("trust anchor cannot be used: {why}");
            let root = anchor_from_trusted_cert(der).map_err(|error| unusable(&error))?;
            let (_, certificate) =
                X509Certificate::from_der(der).map_err(|error| unusable(&error))?;
            let digest = anchor_digest(&root);
            if anchors.iter().any(|known| known.digest == digest && !known.rule.same(&rule)) {
                return Err(unusable(&"it stands under two identity rules"));
            }
            let validity = Validity::of(&certificate);
            anchors.push(Arc::new(Anchor { digest, rule, validity }));
            roots.push(root.to_owned());
        }
        let hint = |root: &TrustAnchor<'_>| DistinguishedName::in_sequence(root.subject.as_ref());
        let counter = |result| metrics.trust.chain_cache.with_label_values(&[result]);
        Ok(Self {
            generation: from.generation,
            anchors,
            hints: roots.iter().map(hint).collect(),
            roots,
            rules: from.rules,
            algorithms: from.algorithms,
            verified: Cache::new(from.verified_chains_max),
            hits: counter("hit"),
            misses: counter("miss"),
        })
    }

    /// Tells this bundle from the one before.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the first of the anchors expires, Unix seconds.
    pub fn first_not_after(&self) -> i64 {
        let ends = self.anchors.iter().map(|anchor| anchor.validity.until());
        ends.min().and_then(|first| first.try_into().ok()).unwrap_or(0)
    }

    /// The names that clients choose a certificate by.
    pub fn hints(&self) -> &[DistinguishedName] {
        &self.hints
    }

    /// Whether the chain leads to an anchor and the leaf names a holder, at `now` (Unix seconds).
    ///
    /// # Errors
    /// [`Refused`], with what the leaf says of itself.
    pub(crate) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: u64,
    ) -> Result<Candidate, Refused> {
        let known = self.verified.get(&sha256(end_entity));
        let counter = if known.is_some() { &self.hits } else { &self.misses };
        counter.inc();
        let leaf = match known {
            Some(leaf) => leaf,
            None => Arc::new(self.verify(end_entity, intermediates, now)?),
        };
        leaf.said.validity.check(now).map_err(|reason| leaf.refused(reason))?;
        Ok(Candidate { leaf, generation: self.generation })
    }

    /// Remembers a chain whose leaf this bundle checked, of a client that proved to hold its key.
    pub(crate) fn remember(&self, leaf: &Arc<Leaf>) {
        if self.verified.peek(&leaf.said.digest).is_none() {
            self.verified.insert(leaf.said.digest, leaf.clone());
        }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: u64,
    ) -> Result<Leaf, Refused> {
        match self.chain(end_entity, intermediates, now) {
            Ok(above) => {
                let said = self.read(&above, end_entity, now)?;
                let said = Said { validity: said.validity.and(above.validity), ..said };
                Ok(Leaf { said, anchor: above.anchor })
            }
            Err(error) => {
                let reason = chain_reason(&error, end_entity);
                Err(match self.rules.read(end_entity, now) {
                    Ok(said) => said.refused(reason),
                    // What a stranger's certificate says of its holder does not matter.
                    Err(refused) if refused.reason.is_about_holder() => {
                        Refused { reason, ..refused }
                    }
                    Err(refused) => refused,
                })
            }
        }
    }

    /// Reads the leaf by the rule of the anchor that its chain led to.
    fn read(
        &self,
        Above { anchor, direct, .. }: &Above,
        end_entity: &CertificateDer<'_>,
        now: u64,
    ) -> Result<Said, Refused> {
        match &anchor.rule {
            Rule::Own => self.rules.read(end_entity, now),
            Rule::Outside(ca) => {
                let said = match ca.identity() {
                    IdentityRule::KokuhoSubject => read_kokuho(end_entity, &anchor.digest, now)?,
                };
                // Lists are asked for by anchor: they say nothing of what a CA below it issued.
                if *direct {
                    return Ok(said);
                }
                let why = "the CA that issued it is none of the outside CA's anchors";
                Err(said.refused(Reason::Chain(why.to_owned())))
            }
        }
    }

    /// Whether the CA that this client's chain led to is still trusted.
    pub fn trusts(&self, client: &VerifiedClient) -> bool {
        let its = client.anchor();
        let same = |it: &Arc<Anchor>| it.digest == its.digest && it.rule.same(&its.rule);
        self.anchors.iter().any(same)
    }

    fn chain(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: u64,
    ) -> Result<Above, webpki::Error> {
        let end_entity = EndEntityCert::try_from(end_entity)?;
        // INVARIANT: no CRLs here. webpki verifies a CRL's signature again in every handshake, and
        // a resumed session asks nobody; revocation is a fact, looked at in memory instead.
        let path = end_entity.verify_for_usage(
            self.algorithms.all,
            &self.roots,
            intermediates,
            UnixTime::since_unix_epoch(std::time::Duration::from_secs(now)),
            KeyUsage::client_auth(),
            None,
            None,
        )?;
        let anchor = self.anchor(&path).ok_or(webpki::Error::UnknownIssuer)?;
        let above = |validity: Validity, certificate: &webpki::Cert<'_>| {
            let der = certificate.der();
            let (_, certificate) =
                X509Certificate::from_der(&der).map_err(|_| webpki::Error::BadDer)?;
            Ok(validity.and(Validity::of(&certificate)))
        };
        let validity = path.intermediate_certificates().try_fold(anchor.validity, above)?;
        let direct = path.intermediate_certificates().next().is_none();
        Ok(Above { anchor, validity, direct })
    }

    fn anchor(&self, path: &VerifiedPath<'_>) -> Option<Arc<Anchor>> {
        let at = self.roots.iter().position(|root| root == path.anchor())?;
        self.anchors.get(at).cloned()
    }
}

/// What is above a leaf.
struct Above {
    anchor: Arc<Anchor>,
    /// Of the anchor and everything between it and the leaf.
    validity: Validity,
    /// Whether there is nothing between.
    direct: bool,
}

fn chain_reason(error: &webpki::Error, end_entity: &CertificateDer<'_>) -> Reason {
    if *error == webpki::Error::UnknownIssuer {
        let issuer = X509Certificate::from_der(end_entity)
            .map(|(_, certificate)| certificate.issuer().to_string())
            .unwrap_or_default();
        return Reason::UnknownIssuer(issuer.chars().take(120).collect());
    }
    Reason::Chain(error.to_string())
}
