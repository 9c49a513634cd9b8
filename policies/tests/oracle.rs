//! A second opinion: the sharing table written by hand in Cedar must agree with the program on
//! every operation × principal × combination of facts, in both profiles. A policy that errors is as
//! bad as one that disagrees.
//!
//! A list is compared twice: whether it is allowed by itself (Cedar), and whether it holds exactly
//! the kinds that Cedar would let the same request view.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

mod world;

use std::collections::{HashMap, HashSet};
use std::str::FromStr;

use cedar_policy::{
    ActionConstraint, Authorizer, Context, Decision as Verdict, Entities, Entity, EntityUid,
    Policy, PolicySet, PrincipalConstraint, Request, RestrictedExpression, Schema, ValidationMode,
    Validator,
};
use policies::decide::{Decision, Grant, visible};
use policies::document::{DocumentKind, DocumentSet};
use policies::identity::Identity;
use policies::matrix::{Matrix, Profile};
use policies::operations::{Action, Operation};
use world::{Case, OpinionRequest, Subject};

struct Oracle {
    schema: Schema,
    /// The policies whose scope fits an action and a type of principal: the others could not match.
    slices: HashMap<(Action, String), PolicySet>,
    authorizer: Authorizer,
    actions: HashMap<Action, EntityUid>,
}

impl Oracle {
    fn new() -> Self {
        let (schema, warnings) =
            Schema::from_cedarschema_str(include_str!("oracle/schema.cedarschema")).unwrap();
        assert_eq!(warnings.count(), 0);
        let policies = PolicySet::from_str(include_str!("oracle/policies.cedar")).unwrap();
        let checked = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        let problems: Vec<String> = checked.validation_errors().map(ToString::to_string).collect();
        assert!(problems.is_empty(), "{problems:#?}");
        let uid = |action: &Action| (*action, uid("Action", action.as_str()));
        let actions: HashMap<Action, EntityUid> = Action::ALL.iter().map(uid).collect();
        let mut slices = HashMap::new();
        for (action, action_uid) in &actions {
            for kind in ["Office", "Municipality", "System", "Operator"] {
                slices.insert((*action, kind.to_owned()), slice(&policies, action_uid, kind));
            }
        }
        Self { schema, slices, authorizer: Authorizer::new(), actions }
    }

    fn allows(&self, action: Action, asked: &Asked<'_>, context: &Context) -> bool {
        let request = Request::new(
            asked.principal.clone(),
            self.actions[&action].clone(),
            asked.thing.clone(),
            context.clone(),
            Some(&self.schema),
        );
        let policies = &self.slices[&(action, asked.principal.type_name().to_string())];
        let response = self.authorizer.is_authorized(&request.unwrap(), policies, asked.entities);
        let errors: Vec<String> =
            response.diagnostics().errors().map(ToString::to_string).collect();
        assert!(errors.is_empty(), "{errors:#?}");
        response.decision() == Verdict::Allow
    }
}

fn slice(policies: &PolicySet, action: &EntityUid, principal: &str) -> PolicySet {
    let fits = |policy: &&Policy| {
        let of_action = match policy.action_constraint() {
            ActionConstraint::Any => true,
            ActionConstraint::Eq(only) => only == *action,
            ActionConstraint::In(list) => list.contains(action),
        };
        let of_principal = match policy.principal_constraint() {
            PrincipalConstraint::Is(kind) => kind.to_string() == principal,
            _ => true,
        };
        of_action && of_principal
    };
    PolicySet::from_policies(policies.policies().filter(fits).cloned()).unwrap()
}

struct Asked<'a> {
    principal: EntityUid,
    thing: EntityUid,
    entities: &'a Entities,
}

fn uid(kind: &str, id: &str) -> EntityUid {
    EntityUid::from_str(&format!("{kind}::\"{id}\"")).unwrap()
}

fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn principal(subject: &Subject) -> Entity {
    let entity = |kind, id: &str, attributes: Vec<(&str, RestrictedExpression)>| {
        let attributes =
            attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        Entity::new(uid(kind, id), attributes, HashSet::new()).unwrap()
    };
    match &subject.principal {
        Identity::Office { number, .. } => {
            let types = subject.service_types.iter().map(|code| text(code));
            let types = RestrictedExpression::new_set(types);
            let medical = RestrictedExpression::new_bool(subject.medical);
            entity("Office", number.as_str(), vec![("types", types), ("medical", medical)])
        }
        Identity::Municipality { insurer, .. } => {
            entity("Municipality", insurer.as_str(), vec![("insurer", text(insurer.as_str()))])
        }
        Identity::System { name, .. } => {
            entity("System", name.as_str(), vec![("name", text(name.as_str()))])
        }
        Identity::Operator { name } => entity("Operator", name.as_str(), vec![]),
    }
}

fn thing(document: Option<DocumentKind>) -> (EntityUid, Entity) {
    let kind = document.map_or("none", |document| document.as_str());
    let id = uid("Thing", kind);
    let attributes =
        [("kind".to_owned(), text(kind)), ("insurer".to_owned(), text("131016"))].into();
    (id.clone(), Entity::new(id, attributes, HashSet::new()).unwrap())
}

fn context(subject: &Subject, case: Case, profile: Profile, own: bool) -> Context {
    let fact = RestrictedExpression::new_bool;
    let job = subject.job.map_or("none", |job| job.as_str());
    Context::from_pairs([
        ("later".to_owned(), fact(profile == Profile::Impl2027)),
        ("own".to_owned(), fact(own)),
        ("live".to_owned(), fact(case.live)),
        ("registered".to_owned(), fact(case.registered)),
        ("consent".to_owned(), fact(case.consent)),
        ("plans".to_owned(), fact(case.plans)),
        ("asked".to_owned(), fact(case.request != OpinionRequest::Absent)),
        ("open".to_owned(), fact(case.request == OpinionRequest::Open)),
        ("job".to_owned(), text(job)),
    ])
    .unwrap()
}

/// Whether the grant opens a document of this kind that the principal wrote, or that another wrote.
fn opens(grant: &Grant, document: DocumentKind, own: bool) -> bool {
    grant.kinds().any(|kind| kind.document == document && (own || !kind.own_only))
}

#[test]
fn a_hand_written_cedar_table_agrees_on_every_combination() {
    let oracle = Oracle::new();
    let compared: usize = std::thread::scope(|scope| {
        let one = |profile: &'static Profile| {
            let oracle = &oracle;
            scope.spawn(move || compare_profile(oracle, &Matrix::builtin(*profile).unwrap()))
        };
        let all: Vec<_> = Profile::ALL.iter().map(one).collect();
        all.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(compared > 200_000, "only {compared} combinations were compared");
}

/// Compares every combination under one profile; returns how many verdicts were compared.
fn compare_profile(oracle: &Oracle, matrix: &Matrix) -> usize {
    let operations: Vec<(Operation, EntityUid)> = world::all_operations(&world::operations())
        .into_iter()
        .map(|operation| (operation.clone(), thing(operation.document).0))
        .collect();
    let mut compared = 0;
    for subject in world::subjects() {
        let things = operations.iter().map(|(operation, _)| thing(operation.document).1);
        let entities: HashMap<EntityUid, Entity> =
            things.chain([principal(&subject)]).map(|entity| (entity.uid(), entity)).collect();
        let entities = Entities::from_entities(entities.into_values(), None).unwrap();
        for case in world::cases() {
            compared += compare(oracle, matrix, &subject, &entities, case, &operations);
        }
    }
    compared
}

/// Compares one subject with one case over all operations; returns how many verdicts were compared.
fn compare(
    oracle: &Oracle,
    matrix: &Matrix,
    subject: &Subject,
    entities: &Entities,
    case: Case,
    operations: &[(Operation, EntityUid)],
) -> usize {
    let facts = world::facts(subject, case);
    let principal = principal(subject).uid();
    let contexts = [false, true].map(|own| context(subject, case, matrix.profile(), own));
    let mut compared = 0;
    let mut seen = DocumentSet::EMPTY;
    let mut check = |operation: &Operation, thing: &EntityUid, own: bool, ours: bool| {
        let asked = Asked { principal: principal.clone(), thing: thing.clone(), entities };
        let theirs = oracle.allows(operation.action, &asked, &contexts[usize::from(own)]);
        compared += 1;
        let (name, profile) = (subject.name, matrix.profile());
        assert_eq!(
            ours, theirs,
            "{profile}: {name}, {} {:?}, own {own}, {case:?}: program {ours}, Cedar {theirs}",
            operation.action, operation.document
        );
        theirs
    };
    let is_list =
        |(operation, _): &&(Operation, EntityUid)| operation.action == Action::ListDocuments;
    for (operation, thing) in operations.iter().filter(|operation| !is_list(operation)) {
        let decision = world::decided(matrix, subject, &facts, operation);
        match (operation.action, operation.document, &decision) {
            (Action::ViewDocument, Some(document), decision) => {
                for own in [false, true].into_iter().filter(|own| !own || case.author) {
                    let ours =
                        matches!(decision, Decision::Allow(grant) if opens(grant, document, own));
                    if check(operation, thing, own, ours) {
                        seen.insert(document);
                    }
                }
            }
            (_, _, decision) => {
                check(operation, thing, false, decision.is_allow());
            }
        }
    }
    let (list, list_thing) = operations.iter().find(is_list).unwrap();
    let staff = world::staff(subject);
    let query = world::query(subject, staff.as_ref(), list);
    assert_eq!(visible(matrix, &facts, &query), seen, "{}: {case:?}", subject.name);
    match world::decided(matrix, subject, &facts, list) {
        Decision::Allow(grant) => assert_eq!(grant.documents(), seen),
        Decision::Deny(_) => assert!(seen.is_empty(), "{}: {case:?}", subject.name),
    }
    if seen.is_empty() {
        let ours = world::decided(matrix, subject, &facts, list).is_allow();
        check(list, list_thing, false, ours);
    }
    compared
}
