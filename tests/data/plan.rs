//! Batches and packs: everything exactly once, nothing over the budget, always the same.

use std::collections::BTreeMap;

use proptest::prelude::*;
use silkie::data::pack::Layout;
use silkie::data::plan::{Batch, Objective, Plan, RecordSize, Shuffle, Spec, Tree};

const SPEC: Spec = Spec {
    objective: Objective::Pairs,
    batch: Batch::Items(256),
    token_budget: 4096,
    layout: Layout::Tree,
    shuffle: Shuffle::Records,
    seed: 7,
    held_out: 0.0,
    rank: 0,
    world: 1,
};

/// Four answers, up to six pairs, as a VLFeedback record.
fn record(trunk: u32, answers: [u32; 4], ties: usize) -> RecordSize {
    let all = [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]];
    RecordSize {
        trunk,
        images: 1,
        branches: answers.iter().map(|&n| [n, n.saturating_sub(2)]).collect(),
        pairs: all[ties.min(6)..].to_vec(),
        best: 2,
    }
}

fn any_records() -> impl Strategy<Value = Vec<RecordSize>> {
    let one = (1u32..400, prop::array::uniform4(1u32..200), 0usize..7);
    prop::collection::vec(one.prop_map(|(t, a, ties)| record(t, a, ties)), 1..60)
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let layout = prop::sample::select(vec![Layout::Tree, Layout::Pairs]);
    let shuffle = prop::sample::select(vec![Shuffle::Records, Shuffle::Pairs, Shuffle::None]);
    let batch =
        prop_oneof![(1usize..40).prop_map(Batch::Items), (1usize..9).prop_map(Batch::Records)];
    // The longest pair: 400 + 2 * 200 as a tree, 2 * 400 + 2 * 200 as two sequences.
    (layout, shuffle, batch, 1200usize..5000, any::<u64>(), 0.0..0.3).prop_map(
        |(layout, shuffle, batch, token_budget, seed, held_out)| Spec {
            layout,
            shuffle,
            batch,
            token_budget,
            seed,
            held_out,
            ..SPEC
        },
    )
}

/// (record, pair) of trees, sorted.
fn pairs<'a>(trees: impl IntoIterator<Item = &'a Tree>) -> Vec<(u32, [u32; 2])> {
    let of = |t: &'a Tree| t.pairs.iter().map(move |&p| (t.record, p));
    let mut pairs: Vec<_> = trees.into_iter().flat_map(of).collect();
    pairs.sort_unstable();
    pairs
}

/// Rows that a tree fills, counted independently of the planner.
fn rows(records: &[RecordSize], tree: &Tree, layout: Layout) -> usize {
    let size = &records[tree.record as usize];
    let branch = |b: u32| size.branches[b as usize][0];
    (match layout {
        Layout::Tree => size.trunk + tree.branches.iter().map(|&b| branch(b)).sum::<u32>(),
        Layout::Pairs => {
            tree.pairs.iter().map(|&[c, r]| 2 * size.trunk + branch(c) + branch(r)).sum()
        }
    }) as usize
}

proptest! {
    #[test]
    fn every_pair_is_seen_once_an_epoch_and_packs_fit(
        records in any_records(), spec in any_spec(), epoch in 0u64..4,
    ) {
        let Ok(plan) = Plan::new(records.clone(), spec) else {
            prop_assert!(records.iter().all(|r| r.pairs.is_empty()));
            return Ok(());
        };
        let steps = plan.epoch(epoch);
        let expected: Vec<(u32, [u32; 2])> = plan.train().iter()
            .flat_map(|&r| records[r as usize].pairs.iter().map(move |&p| (r, p))).collect();
        prop_assert_eq!(pairs(steps.iter().flatten()), expected);
        for step in &steps {
            let packs = plan.packs(step);
            prop_assert_eq!(pairs(packs.iter().flatten()), pairs(step));
            for pack in &packs {
                let total: usize = pack.iter().map(|t| rows(&records, t, spec.layout)).sum();
                prop_assert!(total <= spec.token_budget && total > 0);
                for tree in pack {
                    prop_assert!(tree.pairs.iter().flatten().all(|b| tree.branches.contains(b)));
                }
            }
        }
        if let (Batch::Items(n), Shuffle::Records | Shuffle::None) = (spec.batch, spec.shuffle) {
            let counts: Vec<usize> =
                steps.iter().map(|s| s.iter().map(|t| t.pairs.len()).sum()).collect();
            prop_assert!(counts[..counts.len() - 1].iter().all(|&c| (n..n + 6).contains(&c)));
        }
        let held: Vec<u32> = plan.held_out().to_vec();
        prop_assert!(held.iter().all(|r| !plan.train().contains(r)));
    }

    #[test]
    fn the_same_seed_gives_the_same_plan_and_ranks_share_it(
        records in any_records(), spec in any_spec(), world in 1usize..5,
    ) {
        let Ok(plan) = Plan::new(records.clone(), Spec { world, ..spec }) else { return Ok(()) };
        let again = Plan::new(records.clone(), Spec { world, ..spec }).unwrap();
        prop_assert_eq!(plan.held_out(), again.held_out());
        let step = plan.epoch(1).swap_remove(0);
        prop_assert_eq!(&again.epoch(1)[0], &step);
        let mut dealt = Vec::new();
        for rank in 0..world {
            let spec = Spec { rank, world, ..spec };
            dealt.extend(Plan::new(records.clone(), spec).unwrap().packs(&step));
        }
        prop_assert_eq!(pairs(dealt.iter().flatten()), pairs(&step));
    }

    #[test]
    fn the_dry_pass_counts_what_the_run_does(
        records in any_records(), spec in any_spec(), epochs in 1u64..4,
    ) {
        let Ok(plan) = Plan::new(records.clone(), spec) else { return Ok(()) };
        let extent = plan.extent(epochs, None);
        let steps: Vec<Vec<Tree>> = (0..epochs).flat_map(|e| plan.epoch(e)).collect();
        prop_assert_eq!(extent.steps, steps.len() as u64);
        prop_assert_eq!(extent.items as usize, pairs(steps.iter().flatten()).len());
        let packs: Vec<usize> = steps.iter().flat_map(|s| plan.packs(s))
            .map(|p| p.iter().map(|t| rows(&records, t, spec.layout)).sum()).collect();
        prop_assert_eq!(extent.tokens as usize, packs.iter().sum::<usize>());
        prop_assert_eq!(extent.max_tokens as usize, *packs.iter().max().unwrap());
        prop_assert_eq!(plan.extent(1, Some(extent.steps + 3)).steps, extent.steps + 3);
    }
}

#[test]
fn a_step_of_256_pairs_wastes_less_than_one_row_in_twenty() {
    // Lengths as in VLFeedback: 256 image slots, prompts of 20-200 tokens, answers of 5-400.
    let records: Vec<RecordSize> = (0..2000u32)
        .map(|i| {
            let h =
                |k: u32| (i.wrapping_mul(2654435761) ^ k.wrapping_mul(40503)).rotate_left(k) >> 7;
            let answers = [1, 2, 3, 4].map(|k| 5 + h(k) % 400);
            record(290 + h(9) % 180, answers, (h(11) % 4) as usize)
        })
        .collect();
    for token_budget in [4096, 8192, 16384] {
        let plan = Plan::new(records.clone(), Spec { token_budget, ..SPEC }).unwrap();
        let extent = plan.extent(1, None);
        let useful = extent.tokens as f64 / extent.padded_tokens as f64;
        println!("budget {token_budget}: {:.1} % useful, {} packs", 100.0 * useful, extent.packs);
        assert!(useful >= 0.95, "budget {token_budget}: {useful}");
    }
}

#[test]
fn a_tree_over_the_budget_is_split_by_pairs_and_counted() {
    let records = vec![record(100, [50; 4], 0)];
    let plan = Plan::new(records, Spec { token_budget: 250, ..SPEC }).unwrap();
    let step = plan.epoch(0).swap_remove(0);
    let packs = plan.packs(&step);
    assert!(packs.len() >= 2 && packs.iter().flatten().all(|t| t.branches.len() <= 3));
    assert_eq!(pairs(packs.iter().flatten()), pairs(&step));
    assert_eq!(plan.extent(1, None).split_trees, 1);
    let error = Plan::new(vec![record(100, [50; 4], 0)], Spec { token_budget: 199, ..SPEC });
    let error = error.err().unwrap().to_string();
    assert!(error.contains("record 0 needs 200 tokens") && error.contains("--token-budget 200"));
}

#[test]
fn answers_of_a_record_are_chosen_by_the_objective() {
    let records: Vec<RecordSize> = (0..64).map(|_| record(10, [5; 4], 6)).collect();
    let of = |objective, epoch| {
        let spec = Spec { objective, batch: Batch::Records(8), ..SPEC };
        let plan = Plan::new(records.clone(), spec).unwrap();
        plan.epoch(epoch).concat()
    };
    assert!(of(Objective::Best, 0).iter().all(|t| t.branches == [2]));
    assert!(of(Objective::All, 0).iter().all(|t| t.branches == [0, 1, 2, 3]));
    let drawn = of(Objective::Random, 0);
    assert_eq!(drawn, of(Objective::Random, 0));
    let mut counts = BTreeMap::new();
    drawn.iter().for_each(|t| *counts.entry(t.branches[0]).or_insert(0) += 1);
    assert!(counts.len() == 4 && counts.values().all(|&n| n > 4), "{counts:?}");
    let by_record = |mut trees: Vec<Tree>| {
        trees.sort_by_key(|t| t.record);
        trees
    };
    assert_ne!(by_record(drawn), by_record(of(Objective::Random, 1)), "drawn anew each epoch");
}

#[test]
fn records_are_held_out_whole_and_at_least_one() {
    let records: Vec<RecordSize> = (0..100).map(|i| record(10 + i, [5; 4], 0)).collect();
    let held = |held_out| Plan::new(records.clone(), Spec { held_out, ..SPEC }).unwrap();
    assert_eq!(held(0.0).held_out().len(), 0);
    assert_eq!(held(0.005).held_out().len(), 1);
    assert_eq!((held(0.2).held_out().len(), held(0.2).train().len()), (20, 80));
    let error = Plan::new(vec![record(10, [5; 4], 6)], SPEC).err().unwrap().to_string();
    assert!(error.contains("none of 1 records has a pair"), "{error}");
}
