//! In which order tables are filled: a table after those that it refers to; tables that refer to each other together.

/// Groups of `0..nodes`, each after all groups that it needs; a group of several is a cycle. `needs` are (who, whom). Where the
/// needs leave a choice, the lower number goes first.
pub fn order(nodes: usize, needs: &[(usize, usize)]) -> Vec<Vec<usize>> {
    let reach = reachable(nodes, needs);
    let mut placed = vec![false; nodes];
    let mut groups = Vec::new();
    while let Some(next) = (0..nodes).find(|n| !placed[*n] && ready(*n, &placed, &reach)) {
        let group: Vec<usize> = (0..nodes).filter(|n| *n == next || (reach[next][*n] && reach[*n][next])).collect();
        group.iter().for_each(|n| placed[*n] = true);
        groups.push(group);
    }
    groups
}

/// Whether all that it needs is placed, but for what needs it in turn.
fn ready(node: usize, placed: &[bool], reach: &[Vec<bool>]) -> bool {
    (0..placed.len()).all(|n| !reach[node][n] || placed[n] || reach[n][node])
}

fn reachable(nodes: usize, needs: &[(usize, usize)]) -> Vec<Vec<bool>> {
    let mut reach = vec![vec![false; nodes]; nodes];
    for (who, whom) in needs {
        reach[*who][*whom] |= who != whom;
    }
    for via in 0..nodes {
        let further = reach[via].clone();
        for from in reach.iter_mut().filter(|from| from[via]) {
            from.iter_mut().zip(&further).for_each(|(reached, more)| *reached |= more);
        }
    }
    reach
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parents_come_first_and_cycles_together() {
        for (nodes, needs, expected) in [
            (0, &[][..], vec![]),
            (2, &[], vec![vec![0], vec![1]]),
            (3, &[(0, 1), (1, 2)], vec![vec![2], vec![1], vec![0]]),
            (2, &[(0, 0), (0, 1)], vec![vec![1], vec![0]]),
            (4, &[(0, 1), (1, 0), (2, 0), (0, 3)], vec![vec![3], vec![0, 1], vec![2]]),
        ] {
            assert_eq!(order(nodes, needs), expected, "{needs:?}");
        }
    }

    proptest! {
        #[test]
        fn everything_is_placed_once_and_never_before_what_it_needs(needs in prop::collection::vec((0usize..8, 0usize..8), 0..20)) {
            let groups = order(8, &needs);
            let place = |n: usize| groups.iter().position(|group| group.contains(&n));
            prop_assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 8);
            for (who, whom) in needs {
                prop_assert!(place(whom) <= place(who));
            }
        }
    }
}
