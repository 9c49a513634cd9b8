//! Each refusal for its reason alone: one thing is missing, and exactly that is named. Then what a
//! denial and an explanation say.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

mod world;

use policies::decide::{Decision, FeedState, Leases, Needs, Query, decide, explain};
use policies::document::{DocumentKind, DocumentSet};
use policies::facts::Facts;
use policies::feed::Fact;
use policies::identity::{Identity, InsuredKey, Job, Staff};
use policies::matrix::{Matrix, Profile};
use policies::operations::{Action, Operation};
use policies::problem_document::ProblemDocument;
use policies::reason::{Reason, ReasonSet};
use world::{Case, NOW, OpinionRequest, Subject, insured, office_number};

/// A request with everything in order, to take one thing away from.
struct Request {
    profile: Profile,
    subject: Subject,
    staff: Option<Staff>,
    facts: Facts,
    operation: Operation,
    not_after: u64,
    feeds: FeedState,
}

impl Request {
    fn of(name: &str, action: Action, document: Option<DocumentKind>) -> Self {
        let subject = world::subjects().into_iter().find(|subject| subject.name == name).unwrap();
        let case = Case {
            live: true,
            author: false,
            registered: true,
            consent: true,
            plans: false,
            request: OpinionRequest::Absent,
        };
        Self {
            profile: Profile::Deck2025,
            staff: world::staff(&subject),
            facts: world::facts(&subject, case),
            operation: world::operation(&world::operations(), action, document),
            not_after: NOW,
            feeds: FeedState::fresh(),
            subject,
        }
    }

    /// A care manager of a 居宅介護支援事業所 views the 認定調査票.
    fn survey() -> Self {
        let survey = Some(DocumentKind::CertificationSurvey);
        Self::of("居宅43 care manager", Action::ViewDocument, survey)
    }

    fn with(mut self, fact: Fact) -> Self {
        self.facts.apply(fact);
        self
    }

    fn decide(&self) -> Decision {
        let matrix = Matrix::builtin(self.profile).unwrap();
        decide(&matrix, &self.facts, &self.query())
    }

    fn query(&self) -> Query<'_> {
        Query {
            principal: &self.subject.principal,
            serial: world::serial(),
            not_after: self.not_after,
            staff: self.staff.as_ref(),
            operation: &self.operation,
            now: NOW,
            feeds: self.feeds,
            circumstances: policies::overlay::Circumstances::default(),
        }
    }

    fn reasons(&self) -> Vec<Reason> {
        match self.decide() {
            Decision::Allow(_) => Vec::new(),
            Decision::Deny(denial) => denial.reasons.iter().collect(),
        }
    }
}

fn consent(scope: DocumentSet, until: Option<u64>, withdrawn: Option<u64>) -> Fact {
    Fact::Consent { id: 1, insured: insured(), scope, from: 0, until, withdrawn }
}

fn registration(from: u64, until: Option<u64>, ended: Option<u64>) -> Fact {
    Fact::Registration { office: office_number(), insured: insured(), from, until, ended }
}

fn office(suspended: bool) -> Fact {
    let service_types = vec!["43".parse().unwrap()];
    let (number, name) = (office_number(), String::new());
    Fact::Office { number, service_types, medical: false, suspended, name }
}

#[test]
fn nothing_missing_is_an_allow() {
    assert_eq!(Request::survey().reasons(), []);
}

#[test]
fn an_operator_certificate_is_refused() {
    for action in Action::ALL {
        let document = matches!(action, Action::ViewDocument | Action::SubmitDocument)
            .then_some(DocumentKind::InsuredCard);
        let request = Request::of("operator", *action, document);
        assert_eq!(request.reasons(), [Reason::CertificateKindRefused], "{action}");
    }
}

#[test]
fn a_revoked_certificate_is_refused() {
    let revoked = Fact::Revoked { serial: world::serial(), at: NOW + 5 };
    assert_eq!(Request::survey().with(revoked).reasons(), [Reason::CertificateRevoked]);
    let other = Fact::Revoked { serial: "ff".parse().unwrap(), at: 1 };
    assert_eq!(Request::survey().with(other).reasons(), []);
}

#[test]
fn an_expired_certificate_is_refused() {
    let request = Request { not_after: NOW - 1, ..Request::survey() };
    assert_eq!(request.reasons(), [Reason::CertificateExpired]);
}

#[test]
fn facts_that_are_too_old_or_absent_are_refused() {
    let stale = |ca_age_ms, hub_age_ms| {
        let feeds = FeedState { ca_age_ms, hub_age_ms, leases: Leases::default() };
        Request { feeds, ..Request::survey() }.reasons()
    };
    assert_eq!(stale(Some(60_000), Some(5_000)), []);
    for (ca, hub) in [
        (None, Some(0)),
        (Some(0), None),
        (None, None),
        (Some(60_001), Some(0)),
        (Some(0), Some(10_001)),
        (Some(0), Some(5_001)),
    ] {
        assert_eq!(stale(ca, hub), [Reason::FactsStale], "{ca:?} {hub:?}");
    }
}

#[test]
fn without_fresh_consents_only_what_needs_none_is_shared() {
    let feeds = FeedState { hub_age_ms: Some(9_000), ..FeedState::fresh() };
    let card =
        Request::of("居宅43 care manager", Action::ViewDocument, Some(DocumentKind::InsuredCard));
    assert_eq!(Request { feeds, ..card }.reasons(), []);
    let list = Request::of("居宅43 care manager", Action::ListDocuments, None);
    let Decision::Allow(grant) = (Request { feeds, ..list }).decide() else { panic!("refused") };
    let open: Vec<DocumentKind> = grant.documents().iter().collect();
    let cards = [DocumentKind::InsuredCard, DocumentKind::BurdenRatio, DocumentKind::BurdenLimit];
    assert_eq!(open, cards);
}

#[test]
fn an_unknown_office_is_refused() {
    let mut request = Request::of("居宅43 care manager", Action::Login, None);
    request.facts = Facts::new();
    assert_eq!(request.reasons(), [Reason::OfficeUnknown]);
    let registrations = Request::of("居宅43 care manager", Action::ListOwnRegistrations, None);
    let request = Request { facts: Facts::new(), ..registrations };
    assert!(request.reasons().contains(&Reason::OfficeUnknown));
}

#[test]
fn a_suspended_office_is_refused() {
    assert_eq!(Request::survey().with(office(true)).reasons(), [Reason::OfficeSuspended]);
    let login = Request::of("居宅43 care manager", Action::Login, None);
    assert_eq!(login.with(office(true)).reasons(), [Reason::OfficeSuspended]);
}

#[test]
fn staff_must_be_of_the_office_and_in_session() {
    let missing = Request { staff: None, ..Request::survey() };
    assert_eq!(missing.reasons(), [Reason::StaffTokenMissing]);
    let mut other = Request::survey();
    other.staff.as_mut().unwrap().office = "1370000002".parse().unwrap();
    assert_eq!(other.reasons(), [Reason::StaffTokenInvalid]);
    let ended = Fact::SessionEnded { session: "session-1".into(), until: NOW };
    assert_eq!(Request::survey().with(ended).reasons(), [Reason::StaffSessionEnded]);
    let login = Request::of("居宅43 care manager", Action::Login, None);
    assert_eq!(Request { staff: None, ..login }.reasons(), []);
}

#[test]
fn an_operation_that_does_not_name_its_subject_is_refused() {
    let mut request = Request::survey();
    request.operation.insured = None;
    assert_eq!(request.reasons(), [Reason::BadRequest]);
    let mut request = Request::survey();
    request.operation.insurer = Some("131024".parse().unwrap());
    assert_eq!(request.reasons(), [Reason::BadRequest]);
    let mut request = Request::survey();
    request.operation.document = None;
    assert_eq!(request.reasons(), [Reason::BadRequest]);
}

#[test]
fn claims_are_not_held() {
    for document in [DocumentKind::BenefitManagement, DocumentKind::BenefitClaims] {
        let mut request = Request::survey();
        request.operation.document = Some(document);
        assert_eq!(request.reasons(), [Reason::NotHeld]);
    }
}

#[test]
fn what_the_table_does_not_open_is_not_shared() {
    let application = Some(DocumentKind::CertificationApplication);
    let request = Request::of("居宅43 care manager", Action::ViewDocument, application);
    assert_eq!(request.reasons(), [Reason::NotShared]);
    let card = Some(DocumentKind::InsuredCard);
    for system in ["PMH", "LIFE", "連携システム"] {
        assert_eq!(Request::of(system, Action::ViewDocument, card).reasons(), [Reason::NotShared]);
    }
}

#[test]
fn the_wrong_job_is_refused() {
    let view = Request::of("居宅43 clerk", Action::ViewCertification, None);
    assert_eq!(view.reasons(), [Reason::WrongJob]);
    let survey = Some(DocumentKind::CertificationSurvey);
    let clerk = Request::of("居宅43 clerk", Action::ViewDocument, survey);
    assert_eq!(clerk.reasons(), []);
    let later = Request { profile: Profile::Impl2027, ..clerk };
    assert_eq!(later.reasons(), [Reason::WrongJob]);
    let plan = Some(DocumentKind::FacilityCarePlan);
    let nurse = Request::of("特養51 nurse", Action::SubmitDocument, plan);
    assert_eq!(nurse.reasons(), [Reason::WrongJob]);
}

#[test]
fn another_insurer_is_refused() {
    let survey = Some(DocumentKind::CertificationSurvey);
    let view = Request::of("市区町村 other", Action::ViewDocument, survey);
    assert_eq!(view.reasons(), [Reason::NotOwnInsurer]);
    for action in [Action::ReadInbox, Action::SetSharing, Action::ListDocuments] {
        let request = Request::of("市区町村 other", action, None);
        assert_eq!(request.reasons(), [Reason::NotOwnInsurer], "{action}");
    }
}

#[test]
fn a_municipality_that_does_not_share_yet_is_named() {
    for from in [None, Some(NOW + 1)] {
        let fact = Fact::Sharing { insurer: insured().insurer, from };
        assert_eq!(Request::survey().with(fact).reasons(), [Reason::NotLive], "{from:?}");
    }
    let fact = Fact::Sharing { insurer: insured().insurer, from: Some(NOW) };
    assert_eq!(Request::survey().with(fact).reasons(), []);
}

#[test]
fn a_missing_or_ended_registration_is_named() {
    let not_begun = Request::survey().with(registration(NOW + 1, None, None));
    assert_eq!(not_begun.reasons(), [Reason::NotRegistered]);
    let lapsed = Request::survey().with(registration(0, Some(NOW - 1), None));
    assert_eq!(lapsed.reasons(), [Reason::RegistrationLapsed]);
    let ended = Request::survey().with(registration(0, None, Some(NOW)));
    assert_eq!(ended.reasons(), [Reason::RegistrationLapsed]);
    let last_second = Request::survey().with(registration(0, Some(NOW), None));
    assert_eq!(last_second.reasons(), []);
}

#[test]
fn an_office_that_does_not_make_the_plan_is_refused() {
    let card = Some(DocumentKind::InsuredCard);
    let request = Request::of("包括46 clerk", Action::ViewDocument, card);
    assert_eq!(request.reasons(), [Reason::NotPlanningOffice]);
    let survey = Some(DocumentKind::CertificationSurvey);
    let request = Request::of("通所15 care manager", Action::ViewDocument, survey);
    assert_eq!(request.reasons(), [Reason::NotPlanningOffice]);
    let plans = Fact::PlansFor { office: office_number(), insured: insured(), active: true };
    assert_eq!(request.with(plans).reasons(), []);
}

#[test]
fn an_opinion_needs_an_open_request() {
    let opinion = Some(DocumentKind::PhysicianOpinion);
    let request = || Request::of("病院 physician", Action::SubmitDocument, opinion);
    assert_eq!(request().reasons(), [Reason::OpinionRequestMissing]);
    let asked = |open| Fact::OpinionRequest { office: office_number(), insured: insured(), open };
    assert_eq!(request().with(asked(false)).reasons(), [Reason::OpinionRequestMissing]);
    assert_eq!(request().with(asked(true)).reasons(), []);
    let life = Some(DocumentKind::LifeFeedback);
    let view = Request::of("病院 physician", Action::ViewDocument, life);
    let later = Request { profile: Profile::Impl2027, ..view };
    assert_eq!(later.reasons(), [Reason::OpinionRequestMissing]);
    assert_eq!(later.with(asked(false)).reasons(), []);
}

#[test]
fn consent_that_is_absent_partial_withdrawn_or_over_is_named() {
    let held = DocumentSet::held();
    let partial = DocumentSet::from_iter([DocumentKind::LifeFeedback]);
    let with = |fact| Request::survey().with(fact).reasons();
    assert_eq!(with(consent(partial, None, None)), [Reason::ConsentRequired]);
    assert_eq!(with(consent(held, None, Some(NOW))), [Reason::ConsentWithdrawn]);
    assert_eq!(with(consent(held, Some(NOW - 1), None)), [Reason::ConsentExpired]);
    assert_eq!(with(consent(held, Some(NOW), None)), []);
}

#[test]
fn a_plan_is_its_authors_alone() {
    let plan = Some(DocumentKind::HomeCarePlan);
    let request = Request::of("居宅43 clerk", Action::ViewDocument, plan);
    assert_eq!(request.reasons(), [Reason::NotAuthor]);
    let party = request.subject.principal.party();
    let document = DocumentKind::HomeCarePlan;
    let request = request.with(Fact::Author { party, insured: insured(), document });
    let Decision::Allow(grant) = request.decide() else { panic!("refused") };
    let kinds: Vec<_> = grant.kinds().collect();
    assert_eq!(kinds.len(), 1);
    assert!(kinds[0].own_only && kinds[0].needs == Needs::LIVE);
}

#[test]
fn a_denial_names_everything_that_is_missing_in_gate_order() {
    let mut request = Request::survey();
    request.staff = None;
    request.not_after = 0;
    request.facts = Facts::from_iter([office(true)]);
    let expected = [
        Reason::CertificateExpired,
        Reason::OfficeSuspended,
        Reason::StaffTokenMissing,
        Reason::NotLive,
        Reason::NotRegistered,
        Reason::ConsentRequired,
    ];
    assert_eq!(request.reasons(), expected);
    let Decision::Deny(denial) = request.decide() else { panic!("allowed") };
    assert_eq!(denial.primary(), Reason::CertificateExpired);
}

#[test]
fn grants_carry_what_the_hub_must_look_at_again() {
    let Decision::Allow(grant) = Request::survey().decide() else { panic!("refused") };
    let kinds: Vec<_> = grant.kinds().collect();
    let needs = Needs::LIVE.union(Needs::REGISTERED).union(Needs::CONSENT);
    assert_eq!((kinds.len(), kinds[0].needs, kinds[0].own_only), (1, needs, false));
    let list = Request::of("居宅43 care manager", Action::ListDocuments, None);
    let Decision::Allow(grant) = list.decide() else { panic!("refused") };
    assert_eq!(grant.needs(), Needs::LIVE.union(Needs::REGISTERED));
    assert!(!grant.documents().contains(DocumentKind::CertificationApplication));
    let file = Request::of("連携システム", Action::SubmitCarePlanFile, None);
    let Decision::Allow(grant) = file.decide() else { panic!("refused") };
    assert!(grant.documents().contains(DocumentKind::HomeCarePlan));
}

#[test]
fn a_registered_office_without_consent_gets_a_shorter_list() {
    let list = Request::of("通所15 care worker", Action::ListDocuments, None);
    let list = list.with(consent(DocumentSet::EMPTY, None, None));
    let Decision::Allow(grant) = list.decide() else { panic!("refused") };
    assert!(!grant.documents().contains(DocumentKind::LifeFeedback));
    assert!(grant.documents().contains(DocumentKind::HomeCarePlan));
}

#[test]
fn an_unregistered_office_cannot_tell_persons_apart() {
    let operations = world::all_operations(&world::operations());
    let views = || operations.iter().filter(|op| op.action == Action::ViewDocument);
    let unknown: InsuredKey = "131016/0000000999".parse().unwrap();
    for profile in Profile::ALL {
        let matrix = Matrix::builtin(*profile).unwrap();
        for subject in world::subjects().into_iter().filter(|subject| subject.job.is_some()) {
            let facts = [true, false].map(|consent| world::facts(&subject, stranger(consent)));
            for operation in views() {
                let answer = |facts: &Facts, insured: InsuredKey| {
                    let operation = Operation { insured: Some(insured), ..operation.clone() };
                    match world::decided(&matrix, &subject, facts, &operation) {
                        Decision::Allow(_) => panic!("{} {operation:?}", subject.name),
                        Decision::Deny(denial) => {
                            ProblemDocument::of(denial.reasons, 403, "r").to_json()
                        }
                    }
                };
                let known = answer(&facts[0], insured());
                assert_eq!(known, answer(&facts[1], insured()), "{}", subject.name);
                assert_eq!(known, answer(&facts[0], unknown), "{}", subject.name);
            }
        }
    }
}

/// An office that has nothing to do with the person.
fn stranger(consent: bool) -> Case {
    Case {
        live: true,
        author: false,
        registered: false,
        consent,
        plans: false,
        request: OpinionRequest::Absent,
    }
}

#[test]
fn an_explanation_names_gate_fact_cell_source_and_the_smallest_change() {
    let request = Request::survey().with(consent(DocumentSet::EMPTY, None, None));
    let matrix = Matrix::builtin(Profile::Deck2025).unwrap();
    let explanation = explain(&matrix, &request.facts, &request.query());
    assert_eq!((explanation.outcome, explanation.primary), ("deny", Some(Reason::ConsentRequired)));
    assert_eq!(explanation.changes.len(), 1);
    assert_eq!(explanation.changes[0].reason, Reason::ConsentRequired);
    assert!(explanation.ways[0].source.contains("認定調査票"));
    assert!(explanation.ways[0].cell.contains("◎"));
    let text = explanation.to_string();
    for part in [
        "deny view-document",
        "✗ consent: no consent",
        "✓ registered: registered since",
        "to allow:",
    ] {
        assert!(text.contains(part), "{part}:\n{text}");
    }
    let json: serde_json::Value = serde_json::to_value(&explanation).unwrap();
    assert_eq!(json["reasons"], serde_json::json!(["consent_required"]));
    assert_eq!(json["policy"], matrix.version());
}

#[test]
fn explanations_agree_with_decisions_and_their_changes_would_allow() {
    let operations = world::all_operations(&world::operations());
    let matrices = [Profile::Deck2025, Profile::Impl2027].map(|p| Matrix::builtin(p).unwrap());
    for subject in world::subjects() {
        for case in world::cases().into_iter().filter(|case| case.consent == case.live) {
            let facts = world::facts(&subject, case);
            for (operation, matrix) in
                operations.iter().flat_map(|op| matrices.iter().map(move |m| (op, m)))
            {
                let staff = world::staff(&subject);
                let query = world::query(&subject, staff.as_ref(), operation);
                let explanation = explain(matrix, &facts, &query);
                let reasons = match decide(matrix, &facts, &query) {
                    Decision::Allow(_) => ReasonSet::EMPTY,
                    Decision::Deny(denial) => denial.reasons,
                };
                assert_eq!(explanation.reasons, reasons);
                if !explanation.changes.is_empty() {
                    let changed = remedied(
                        matrix,
                        &subject,
                        facts.clone(),
                        operation,
                        &explanation.changes.iter().map(|change| change.reason).collect::<Vec<_>>(),
                    );
                    assert!(changed.is_allow(), "{} {case:?} {explanation}", subject.name);
                }
            }
        }
    }
}

/// The decision after everything that an explanation asks for was done.
fn remedied(
    matrix: &Matrix,
    subject: &Subject,
    mut facts: Facts,
    operation: &Operation,
    missing: &[Reason],
) -> Decision {
    let (office, insured) = (office_number(), insured());
    let mut staff = world::staff(subject);
    for reason in missing {
        match reason {
            Reason::NotLive => {
                facts.apply(Fact::Sharing { insurer: insured.insurer, from: Some(0) });
            }
            Reason::NotRegistered => facts.apply(registration(0, None, None)),
            Reason::ConsentRequired => facts.apply(consent(DocumentSet::held(), None, None)),
            Reason::NotPlanningOffice => {
                facts.apply(Fact::PlansFor { office, insured, active: true });
            }
            Reason::OpinionRequestMissing => {
                facts.apply(Fact::OpinionRequest { office, insured, open: true });
            }
            Reason::WrongJob => staff.as_mut().unwrap().job = Job::CareManager,
            other => panic!("{other} cannot be remedied here"),
        }
    }
    decide(matrix, &facts, &world::query(subject, staff.as_ref(), operation))
}

#[test]
fn the_portal_reads_for_the_person_and_only_after_go_live() {
    let plan = Some(DocumentKind::LifeFeedback);
    let request = Request::of("利用者 portal", Action::ViewDocument, plan);
    let request = request.with(consent(DocumentSet::EMPTY, None, None));
    assert_eq!(request.reasons(), [], "the person's own reading needs no consent");
    let unlaunched = request.with(Fact::Sharing { insurer: insured().insurer, from: None });
    assert_eq!(unlaunched.reasons(), [Reason::NotLive]);
    assert!(matches!(unlaunched.subject.principal, Identity::System { .. }));
}
