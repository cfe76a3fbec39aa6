//! Packs: rows, positions, predictors and pairs of trees laid out flat.

use silkie::data::pack::{BranchView, ImageRef, Layout, Pack, Segment, TreeView};

fn branch<'a>(branch: u32, tokens: &'a [u32], scored: &'a [u8]) -> BranchView<'a> {
    BranchView { branch, tokens, scored }
}

fn two_trees() -> Vec<TreeView<'static>> {
    let first = TreeView {
        record: 7,
        trunk: &[1, 50, 50, 2],
        images: vec![(1, ImageRef(3))],
        branches: vec![branch(0, &[10, 11, 12], &[1, 0, 1]), branch(2, &[20, 21], &[1, 1])],
        pairs: vec![[1, 0]],
    };
    let second = TreeView {
        record: 9,
        trunk: &[5],
        images: vec![],
        branches: vec![branch(1, &[30, 31], &[0, 1])],
        pairs: vec![],
    };
    vec![first, second]
}

#[test]
fn a_tree_lays_its_trunk_out_once() {
    let pack = Pack::build(&two_trees(), 2, Layout::Tree).unwrap();
    assert_eq!(pack.tokens, [1, 50, 50, 2, 10, 11, 12, 20, 21, 5, 30, 31]);
    assert_eq!(pack.positions, [0, 1, 2, 3, 4, 5, 6, 4, 5, 0, 1, 2]);
    let segment =
        |start, len, prefix_start, prefix_len| Segment { start, len, prefix_start, prefix_len };
    let expected = [
        segment(0, 4, 0, 0),
        segment(4, 3, 0, 4),
        segment(7, 2, 0, 4),
        segment(9, 1, 9, 0),
        segment(10, 2, 9, 1),
    ];
    assert_eq!(pack.segments, expected);
    assert_eq!((pack.images.as_slice(), &pack.image_rows[..]), (&[ImageRef(3)][..], &[1, 2][..]));
    assert_eq!(pack.head_rows, [3, 5, 3, 7, 10], "the trunk's last row predicts both first tokens");
    assert_eq!(pack.targets, [10, 12, 20, 21, 31]);
    assert_eq!(pack.branch_offsets, [0, 2, 4, 5]);
    assert_eq!(pack.pairs, [[1, 0]]);
    let ids: Vec<_> = pack.branches.iter().map(|b| (b.record, b.branch)).collect();
    assert_eq!(ids, [(7, 0), (7, 2), (9, 1)]);
}

#[test]
fn the_pair_layout_repeats_the_trunk_before_every_answer() {
    let pack = Pack::build(&two_trees(), 2, Layout::Pairs).unwrap();
    assert_eq!(pack.tokens, [1, 50, 50, 2, 20, 21, 1, 50, 50, 2, 10, 11, 12, 5, 30, 31]);
    assert_eq!(pack.image_rows, [1, 2, 7, 8]);
    assert_eq!(pack.targets, [20, 21, 10, 12, 31]);
    assert_eq!(pack.head_rows, [3, 4, 9, 11, 14]);
    assert_eq!(pack.pairs, [[0, 1]]);
}

#[test]
fn what_does_not_fit_is_named() {
    let error = |change: fn(&mut TreeView<'static>), slots| {
        let mut trees = two_trees();
        change(&mut trees[0]);
        Pack::build(&trees, slots, Layout::Tree).unwrap_err().to_string()
    };
    assert!(error(|t| t.trunk = &[], 2).contains("record 7: the trunk is empty"));
    assert!(error(|_| (), 4).contains("4 image slots at 1 of a trunk of 4 tokens"));
    assert!(error(|t| t.pairs.push([0, 2]), 2).contains("pair [0, 2] of 2 branches"));
    assert!(
        error(|t| t.branches[1].scored = &[1], 2).contains("branch 2 has 2 tokens and 1 marks")
    );
}
