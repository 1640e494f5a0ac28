//! Which statements an event goes through.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config::{Action, Entity, OnFailure};
use crate::event::Event;
use crate::mapping::{self, Mapping, MappingError};
use crate::relay::plan::Shape;
use crate::target::{Prepared, Target};

/// The entities, ready to be applied, and those that are not.
#[derive(Debug, Default)]
pub struct Router {
    routes: Vec<Route>,
    types: HashMap<String, AggregateType>,
    /// Entities whose mapping is wrong.
    pub errors: Vec<MappingError>,
    /// Whether the target has constraints that are checked at the end of a transaction.
    deferred_constraints: AtomicBool,
}

/// What an event's statements are, in the order of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) steps: Vec<Step>,
    in_runs: bool,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) entity: String,
    pub(crate) statement: Prepared,
}

#[derive(Debug)]
struct AggregateType {
    on_failure: OnFailure,
    /// By event type.
    routes: HashMap<String, usize>,
    broken: bool,
}

/// Where an event goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Destination {
    /// Through these statements.
    Shape(Shape),
    /// No entity names its aggregate type.
    UnknownAggregateType,
    /// Its aggregate type is known, its event type is not.
    UnknownEventType,
    /// The mapping of an entity that takes it is wrong.
    Broken,
}

impl Router {
    /// Prepares all entities on the target. An error is the server's absence; what is wrong with mappings is in `errors`.
    pub async fn compile(entities: &[Entity], target: &Target) -> sqlx::Result<Router> {
        let mut router = Router::default();
        let mut compiled: Vec<(&Entity, Option<Mapping>)> = Vec::new();
        for entity in entities {
            let mut transaction = target.pool.begin().await?;
            let result = mapping::compile(entity, &mut transaction, &target.settings_sql(), &target.schema).await;
            match result {
                Ok(mapping) => compiled.push((entity, Some(mapping))),
                Err(error) if error.unreachable => return Err(sqlx::Error::Protocol(error.message)),
                Err(error) => {
                    router.errors.push(error);
                    compiled.push((entity, None));
                }
            }
            // A failed PREPARE leaves the transaction broken; rolling back is all that is ever done with it.
            transaction.rollback().await?;
        }
        router.deferred_constraints = AtomicBool::new(target.has_deferrable_constraints().await?);
        router.types = aggregate_types(&compiled, &mut router.routes);
        Ok(router)
    }

    /// Whether constraints may be checked as late as the commit.
    pub(crate) fn checks_late(&self) -> bool {
        self.deferred_constraints.load(Ordering::Relaxed)
    }

    /// A commit was refused: somebody has made such a constraint since. From now on they are checked before it, where the event that breaks
    /// one can be found. Whether they were already.
    pub(crate) fn check_late(&self) -> bool {
        self.deferred_constraints.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn destination(&self, event: &Event) -> Destination {
        let Some(kind) = self.types.get(&event.aggregate.kind) else { return Destination::UnknownAggregateType };
        if kind.broken {
            return Destination::Broken;
        }
        match kind.routes.get(&event.event_type) {
            Some(route) => Destination::Shape(Shape { route: *route, in_runs: self.routes[*route].in_runs }),
            None => Destination::UnknownEventType,
        }
    }

    pub(crate) fn route(&self, route: usize) -> &Route {
        &self.routes[route]
    }

    /// Whether an event may go through a statement that the operator wrote whole.
    pub(crate) fn has_own_sql(&self) -> bool {
        self.routes.iter().any(|route| !route.in_runs)
    }

    /// Whether failed events of this aggregate type hold back later ones: they do unless every entity lets them pass.
    pub fn on_failure(&self, aggregate_type: &str) -> OnFailure {
        self.types.get(aggregate_type).map_or(OnFailure::Hold, |kind| kind.on_failure)
    }

    /// Aggregate types whose failed events hold nobody back.
    pub fn passing(&self) -> Vec<String> {
        self.types.iter().filter(|(_, k)| k.on_failure == OnFailure::Pass).map(|(name, _)| name.clone()).collect()
    }

    /// Aggregate types that an entity with a wrong mapping takes, with that error.
    pub fn broken(&self, entities: &[Entity]) -> Vec<(String, MappingError)> {
        self.errors
            .iter()
            .filter_map(|error| {
                let entity = entities.iter().find(|e| e.name == error.entity)?;
                Some((entity.aggregate_type.clone(), error.clone()))
            })
            .collect()
    }

    /// Whether some entity takes this aggregate type.
    pub fn knows(&self, aggregate_type: &str) -> bool {
        self.types.contains_key(aggregate_type)
    }

    /// All (aggregate type, event type) that are mapped.
    pub fn mapped(&self) -> Vec<(String, String)> {
        let of = |(name, kind): (&String, &AggregateType)| {
            kind.routes.keys().map(|event| (name.clone(), event.clone())).collect::<Vec<_>>()
        };
        let mut mapped: Vec<_> = self.types.iter().flat_map(of).collect();
        mapped.sort_unstable();
        mapped
    }
}

fn aggregate_types(compiled: &[(&Entity, Option<Mapping>)], routes: &mut Vec<Route>) -> HashMap<String, AggregateType> {
    let mut types: HashMap<String, AggregateType> = HashMap::new();
    for (entity, mapping) in compiled {
        let kind = types.entry(entity.aggregate_type.clone()).or_insert_with(|| AggregateType {
            on_failure: OnFailure::Pass,
            routes: HashMap::new(),
            broken: false,
        });
        kind.broken |= mapping.is_none();
        if entity.on_failure == OnFailure::Hold {
            kind.on_failure = OnFailure::Hold;
        }
    }
    for (name, kind) in &mut types {
        let of_type = || compiled.iter().filter(|(entity, _)| entity.aggregate_type == *name);
        for event_type in of_type().flat_map(|(entity, _)| entity.events.keys()) {
            let mut route = Route { steps: Vec::new(), in_runs: true };
            for (entity, mapping) in of_type() {
                let (Some(action), Some(mapping)) = (entity.events.get(event_type), mapping) else { continue };
                let statement = match action {
                    Action::Upsert => mapping.upsert.clone(),
                    Action::Delete => mapping.delete.clone(),
                    Action::Sql(_) => mapping.handlers.get(event_type).cloned(),
                    Action::Ignore => None,
                };
                route.in_runs &= !matches!(action, Action::Sql(_));
                route.steps.extend(statement.map(|statement| Step { entity: entity.name.clone(), statement }));
            }
            let at = routes.iter().position(|r| *r == route).unwrap_or_else(|| {
                routes.push(route);
                routes.len() - 1
            });
            kind.routes.insert(event_type.clone(), at);
        }
    }
    types
}
