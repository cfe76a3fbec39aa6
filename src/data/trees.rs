//! The bridge between a data set and its packs: sizes for the planner, slices for the builder.

use crate::data::pack::{BranchView, Layout, Pack, TreeView};
use crate::data::plan::{RecordSize, Tree};
use crate::data::shard::{Dataset, Record};
use crate::error::Result;

/// What planning needs to know of every record.
pub fn sizes(data: &Dataset) -> Vec<RecordSize> {
    data.records().map(|record| size(&record)).collect()
}

/// Lays out `trees` of `data`.
pub fn pack(data: &Dataset, trees: &[Tree], layout: Layout) -> Result<Pack> {
    let views: Vec<TreeView<'_>> = trees.iter().map(|tree| view(data, tree)).collect();
    Pack::build(&views, data.n_image_slots(), layout)
}

fn size(record: &Record<'_>) -> RecordSize {
    let branches = record.branches.iter();
    let scored = |marks: &[u8]| marks.iter().filter(|&&mark| mark != 0).count() as u32;
    let mut best = 0;
    for (i, branch) in record.branches.iter().enumerate() {
        let score = record.branches[best].score;
        if branch.score > score || (score.is_nan() && !branch.score.is_nan()) {
            best = i;
        }
    }
    RecordSize {
        trunk: record.trunk.len() as u32,
        images: record.images.len() as u32,
        branches: branches.map(|b| [b.tokens.len() as u32, scored(b.scored)]).collect(),
        pairs: record.pairs.iter().map(|p| [u32::from(p.chosen), u32::from(p.rejected)]).collect(),
        best: best as u32,
    }
}

fn view<'a>(data: &'a Dataset, tree: &Tree) -> TreeView<'a> {
    let record = data.record(tree.record as usize);
    let branch = |&branch: &u32| {
        let b = record.branches[branch as usize];
        BranchView { branch, tokens: b.tokens, scored: b.scored }
    };
    // Every pair's branches are among the tree's, which are sorted: the planner's promise.
    let place = |b: u32| tree.branches.partition_point(|&other| other < b) as u32;
    TreeView {
        record: tree.record,
        trunk: record.trunk,
        images: record.images.iter().map(|slot| (slot.offset, slot.image)).collect(),
        branches: tree.branches.iter().map(branch).collect(),
        pairs: tree.pairs.iter().map(|pair| pair.map(place)).collect(),
    }
}
