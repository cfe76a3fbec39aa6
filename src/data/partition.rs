//! Dividing lengths into groups of nearly equal sums.

/// Sum of the sizes of `group`.
pub fn load(sizes: &[usize], group: &[usize]) -> usize {
    group.iter().map(|&i| sizes[i]).sum()
}

/// Divides `0..sizes.len()` into `n` groups (some may be empty), each in ascending order.
///
/// First longest-first: each item, longest first, into the emptiest group. Then the longest group
/// gives an item away, or swaps one for a smaller one, as long as that lowers the longest sum: with
/// three items a group, as packs of a small budget have, this is worth several percent.
pub fn partition(sizes: &[usize], n: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(sizes[i])); // stable: equal sizes keep their order
    let mut groups = vec![Vec::new(); n.max(1)];
    let mut loads = vec![0; n.max(1)];
    for i in order {
        let emptiest = extreme(&loads, std::cmp::Reverse);
        loads[emptiest] += sizes[i];
        groups[emptiest].push(i);
    }
    while let Some(exchange) = best_exchange(sizes, &groups, &loads) {
        exchange.apply(sizes, &mut groups, &mut loads);
    }
    groups.iter_mut().for_each(|group| group.sort_unstable());
    groups
}

/// Item `give` of group `from` for item `take` of group `to`, or for nothing.
struct Exchange {
    from: usize,
    give: usize,
    to: usize,
    take: Option<usize>,
}

impl Exchange {
    fn apply(self, sizes: &[usize], groups: &mut [Vec<usize>], loads: &mut [usize]) {
        let given = groups[self.from].swap_remove(self.give);
        loads[self.from] -= sizes[given];
        loads[self.to] += sizes[given];
        if let Some(take) = self.take {
            let taken = groups[self.to].swap_remove(take);
            loads[self.to] -= sizes[taken];
            loads[self.from] += sizes[taken];
            groups[self.from].push(taken);
        }
        groups[self.to].push(given);
    }
}

/// The exchange with the longest group that leaves the longer of the two shortest; none when that
/// does not lower the longest sum. Each one applied lowers the sum of squared loads: it ends.
fn best_exchange(sizes: &[usize], groups: &[Vec<usize>], loads: &[usize]) -> Option<Exchange> {
    let from = extreme(loads, |load| load);
    let mut best = (loads[from], None);
    for to in (0..groups.len()).filter(|&to| to != from) {
        for (give, &given) in groups[from].iter().enumerate() {
            let swaps =
                groups[to].iter().enumerate().map(|(take, &taken)| (Some(take), sizes[taken]));
            for (take, taken) in std::iter::once((None, 0)).chain(swaps) {
                if sizes[given] > taken {
                    let moved = sizes[given] - taken;
                    let longer = (loads[from] - moved).max(loads[to] + moved);
                    if longer < best.0 {
                        best = (longer, Some(Exchange { from, give, to, take }));
                    }
                }
            }
        }
    }
    best.1
}

/// The first index whose key is largest.
fn extreme<K: Ord>(loads: &[usize], key: impl Fn(usize) -> K) -> usize {
    let mut best = 0;
    for i in 1..loads.len() {
        if key(loads[i]) > key(loads[best]) {
            best = i;
        }
    }
    best
}
