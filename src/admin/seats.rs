//! How many connections there may be, and whose.
//!
//! Guarantees: never more than `max_connections` that do as they like, half of them from one address at most, and beside them a
//! few [`Kind::Spare`] ones, so that whoever only asks whether the process is alive is answered while somebody holds all others.
//! Does not choose among those that are there: who came first stays.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Spare ones, and how many of them one address gets.
const SPARE: usize = 32;
const SPARE_EACH: usize = 8;

/// What may be done on a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Everything.
    Usual,
    /// A single request, to see whether the process is alive and ready.
    Spare,
}

/// Counts them; clones are the same.
#[derive(Debug, Clone)]
pub(super) struct Seats {
    usual: usize,
    taken: Arc<Mutex<Taken>>,
}

#[derive(Debug, Default)]
struct Taken {
    usual: usize,
    spare: usize,
    // As many entries as there are connections, at most.
    by_peer: HashMap<(Kind, IpAddr), usize>,
}

/// A connection's place, until it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) kind: Kind,
    group: IpAddr,
    taken: Arc<Mutex<Taken>>,
}

impl Seats {
    pub(super) fn new(max_connections: usize) -> Seats {
        Seats { usual: max_connections.max(1), taken: Arc::default() }
    }

    /// A place for a connection from there; `None`: there is none.
    pub(super) fn take(&self, peer: IpAddr) -> Option<Seat> {
        let group = group(peer);
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = |kind| taken.by_peer.get(&(kind, group)).copied().unwrap_or_default();
        let kind = if taken.usual < self.usual && of_peer(Kind::Usual) < self.usual.div_ceil(2) {
            Kind::Usual
        } else if taken.spare < SPARE && of_peer(Kind::Spare) < SPARE_EACH {
            Kind::Spare
        } else {
            return None;
        };
        *taken.of(kind) += 1;
        *taken.by_peer.entry((kind, group)).or_default() += 1;
        Some(Seat { kind, group, taken: self.taken.clone() })
    }
}

impl Taken {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Usual => &mut self.usual,
            Kind::Spare => &mut self.spare,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken.of(self.kind) -= 1;
        let key = (self.kind, self.group);
        if let Some(n) = taken.by_peer.get_mut(&key) {
            *n -= 1;
            if *n == 0 {
                taken.by_peer.remove(&key);
            }
        }
    }
}

/// Addresses that count as one: of IPv6 a whole /64, which anybody has to themselves.
pub(super) fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(peer: &str) -> IpAddr {
        peer.parse().unwrap_or_else(|_| unreachable!())
    }

    #[test]
    fn one_address_gets_half_and_then_a_few_spare_ones_and_then_none() {
        let seats = Seats::new(10);
        let mut held: Vec<Seat> = (0..5 + SPARE_EACH).filter_map(|_| seats.take(of("10.0.0.1"))).collect();
        let kinds = |held: &[Seat]| held.iter().filter(|seat| seat.kind == Kind::Usual).count();
        assert_eq!((held.len(), kinds(&held)), (5 + SPARE_EACH, 5));
        assert!(seats.take(of("10.0.0.1")).is_none());
        let others: Vec<Seat> = (2..8).filter_map(|n| seats.take(of(&format!("10.0.0.{n}")))).collect();
        assert_eq!((others.len(), kinds(&others)), (6, 5), "somebody else gets the other half");
        held.remove(0);
        assert_eq!(seats.take(of("10.0.0.1")).map(|seat| seat.kind), Some(Kind::Usual));
        drop((held, others));
        let empty = seats.taken.lock().unwrap_or_else(PoisonError::into_inner);
        assert_eq!((empty.usual, empty.spare, empty.by_peer.len()), (0, 0, 0));
    }

    #[test]
    fn there_are_never_more_than_the_limit_and_the_spare_ones() {
        let seats = Seats::new(3);
        let held: Vec<Seat> = (0..200).filter_map(|n: u8| seats.take(IpAddr::from([10, 0, 0, n]))).collect();
        assert_eq!(held.len(), 3 + SPARE);
        assert_eq!(Seats::new(1).take(of("::1")).map(|seat| seat.kind), Some(Kind::Usual));
    }

    #[test]
    fn a_network_that_somebody_has_to_themselves_counts_as_one() {
        assert_eq!(group(of("2001:db8::1")), group(of("2001:db8::ffff:2")));
        assert_ne!(group(of("2001:db8::1")), group(of("2001:db8:0:1::1")));
        assert_eq!(group(of("::ffff:10.0.0.1")), of("10.0.0.1"));
        assert_ne!(group(of("10.0.0.1")), group(of("10.0.0.2")));
    }
}
