//! The protocol of `docs/protocol.md`, checked in all its states; and with each rule broken on its own.
//!
//! What is checked is a model of what the relay does, statement by statement, where anybody else can come in between: not the
//! relay itself. The page says which function each rule stands for.

mod actions;
mod heal;
mod mutants;
mod others;
mod properties;
mod rules;
mod state;
mod visit;
mod world;
mod worlds;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use mutants::{MUTANTS, Mutant, SECOND_LINES};
use properties::{DRAINS, drained};
use world::World;
use worlds::{ALL, LARGE};

/// `OUTBOX_RELAY_MODEL`: `small`, what every change is checked with; `large`, for hours and with much memory; or the name of a
/// world of either, `large:failovers` say.
fn worlds() -> Vec<&'static World> {
    let size = std::env::var("OUTBOX_RELAY_MODEL").unwrap_or_else(|_| "small".to_owned());
    match size.as_str() {
        "small" => ALL.iter().collect(),
        "large" => LARGE.iter().collect(),
        name => match name.strip_prefix("large:") {
            Some(name) => LARGE.iter().filter(|world| world.name == name).collect(),
            None => ALL.iter().filter(|world| world.name == name).collect(),
        },
    }
}

/// `OUTBOX_RELAY_MODEL_SECONDS`: for all worlds together. A world that is not through by then was checked in all its states up to
/// some number of steps.
fn share_of_time(worlds: usize) -> Option<Duration> {
    let seconds: u32 = std::env::var("OUTBOX_RELAY_MODEL_SECONDS").ok()?.parse().expect("a number of seconds");
    Some(Duration::from_secs(seconds.into()) / u32::try_from(worlds).expect("a few"))
}

#[test]
fn the_protocol_keeps_its_promises_in_every_state() {
    let worlds = worlds();
    assert!(!worlds.is_empty(), "no world has this name");
    let share = share_of_time(worlds.len());
    for world in worlds {
        let started = Instant::now();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let checker = world.clone().checker().threads(threads);
        let checker = match share {
            Some(share) => checker.timeout(share),
            None => checker,
        };
        let checker = checker.spawn_bfs().join();
        let cut_short = share.is_some_and(|share| started.elapsed() >= share);
        let found = checker.discoveries();
        for property in properties::promises() {
            if let Some(path) = found.get(property.name) {
                panic!("{}: not true that {}:\n{path}", world.name, property.name);
            }
        }
        for situation in world.reaches {
            assert!(cut_short || found.contains_key(situation), "{}: never comes to where {situation}", world.name);
        }
        assert!(checker.is_done());
        let (states, depth) = (checker.unique_state_count(), checker.max_depth());
        let how_far = if cut_short { "so far, up to" } else { "all of them, up to" };
        println!("{}: {states} states, {how_far} {depth} steps, {:.1?}", world.name, started.elapsed());
    }
}

/// What the checker finds: properties, and the shortest way to where they do not hold.
fn refute(world: World) -> Vec<(&'static str, usize)> {
    let mutant = world.clone();
    let checker = world.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let mut found = Vec::new();
    for property in properties::promises() {
        let Some(path) = checker.discoveries().remove(property.name) else { continue };
        let path = path.into_vec();
        let why = match path.last() {
            Some((last, _)) if property.name == DRAINS => drained(&mutant, last).expect_err("it was not kept"),
            _ => property.name,
        };
        found.push((why, path.len() - 1));
    }
    found
}

fn in_parallel<T: Sync>(all: &[T], each: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    each(one);
                }
            });
        }
    });
}

#[test]
fn every_mutant_is_refuted() {
    in_parallel(MUTANTS, |mutant: &Mutant| {
        let found = refute(World { broken: mutant.broken, reaches: &[], ..mutant.world.clone() });
        println!("{}: {found:?}", mutant.name);
        let expected = (mutant.violates, mutant.steps);
        assert!(found.contains(&expected), "{}: {expected:?} was expected, but {found:?}", mutant.name);
    });
}

/// They are not in the table of mutants, because the checker does not refute them: should it, they belong there.
#[test]
fn what_is_a_second_line_only_is_so_in_every_state() {
    in_parallel(SECOND_LINES, |(rules, world)| {
        let found = refute(World { broken: rules, reaches: &[], ..world.clone() });
        assert!(found.is_empty(), "{rules:?} is refuted: {found:?}");
    });
}

#[test]
fn the_documentation_tells_what_is_checked() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/protocol.md")).unwrap();
    let rows: Vec<Vec<&str>> = page
        .lines()
        .filter(|line| line.starts_with("| "))
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let mut code = String::new();
    read_all(&root.join("src"), &mut code);
    for mutant in MUTANTS {
        let row = rows.iter().find(|row| row.get(1) == Some(&mutant.name));
        let row = row.unwrap_or_else(|| panic!("docs/protocol.md has no row for the mutant: {}", mutant.name));
        let (told, steps) = (row[3], mutant.steps.to_string());
        assert_eq!((told, row[4]), (mutant.violates, steps.as_str()), "{}", mutant.name);
        let functions: Vec<&str> = row[2].split('`').skip(1).step_by(2).filter(|name| name.contains("::")).collect();
        assert!(!functions.is_empty(), "{}: no function", mutant.name);
        for function in functions {
            let name = function.rsplit("::").next().unwrap_or_default();
            assert!(code.contains(&format!("fn {name}")), "{}: {function} is not there", mutant.name);
        }
    }
}

fn read_all(folder: &Path, into: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_all(&path, into);
        } else {
            into.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}
