//! Packs: several trees, one after another, in one flat token stream. Pure host data.
//!
//! A tree is a trunk (system, image slots, prompt) followed by its branches (the responses). A
//! trunk token attends to the trunk before it; a branch token to the whole trunk and to its own
//! branch before it; never to a sibling or to another tree. Position ids of a branch continue the
//! trunk, so every path trunk + branch reads exactly like the sequence it stands for.
//!
//! ```text
//! stream    t0 t1 t2 t3 | a0 a1 a2 | b0 b1      one tree, trunk t, branches a and b
//! position   0  1  2  3    4  5  6    4  5
//! predicts                a0 ← t3, a1 ← a0, a2 ← a1;  b0 ← t3, b1 ← b0
//! ```

use crate::error::{Error, Result};

/// An image of the data set.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    bytemuck::Pod,
    bytemuck::Zeroable,
)]
#[repr(transparent)]
pub struct ImageRef(pub u32);

/// How trees are laid out.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// The trunk once, followed by all branches.
    Tree,
    /// The trunk again before every branch of every pair, as pair-wise trainers do: the same loss
    /// and gradients, several times the tokens. Without pairs: again before every branch.
    Pairs,
}

/// One branch of a [`TreeView`].
#[derive(Clone, Copy, Debug)]
pub struct BranchView<'a> {
    /// Number of the branch in its record.
    pub branch: u32,
    /// `[len]` token ids.
    pub tokens: &'a [u32],
    /// `[len]`: 1 where the token's log-probability counts, else 0.
    pub scored: &'a [u8],
}

/// What a tree is built from, borrowed from a shard or from any vectors.
#[derive(Clone, Debug)]
pub struct TreeView<'a> {
    /// Number of the record in its data set.
    pub record: u32,
    /// `[len]` token ids; at least one.
    pub trunk: &'a [u32],
    /// Index in `trunk` of the first slot, and the image; `n_slots` slots each.
    pub images: Vec<(u32, ImageRef)>,
    /// The branches that take part.
    pub branches: Vec<BranchView<'a>>,
    /// (chosen, rejected), indices into `branches`.
    pub pairs: Vec<[u32; 2]>,
}

/// Rows `start..start + len` of the stream see the prefix rows and, causally, themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First row.
    pub start: u32,
    /// Rows.
    pub len: u32,
    /// First row of the trunk that a branch continues; for a trunk its own start.
    pub prefix_start: u32,
    /// Rows of that trunk; 0 for a trunk.
    pub prefix_len: u32,
}

/// Which response a branch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId {
    /// Number of the record in its data set.
    pub record: u32,
    /// Number of the branch in its record.
    pub branch: u32,
}

/// A micro-batch: everything the model needs but pixels. `T` rows, `R` scored rows, `B` branches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pack {
    /// `[T]` token ids.
    pub tokens: Vec<u32>,
    /// `[T]` position ids.
    pub positions: Vec<u32>,
    /// Trunks and branches, in stream order; they partition the rows.
    pub segments: Vec<Segment>,
    /// Images, in stream order; one that several trees show stands here several times.
    pub images: Vec<ImageRef>,
    /// `[images * n_slots]` rows that image vectors replace, image by image.
    pub image_rows: Vec<u32>,
    /// `[R]` row whose hidden state predicts the scored token. A trunk's last row occurs once for
    /// every branch of it.
    pub head_rows: Vec<u32>,
    /// `[R]` the scored tokens.
    pub targets: Vec<u32>,
    /// `[B + 1]`: scored rows of branch `b` are `branch_offsets[b]..branch_offsets[b + 1]`.
    pub branch_offsets: Vec<u32>,
    /// `[B]` whose responses these are. With [`Layout::Pairs`] one may occur several times.
    pub branches: Vec<BranchId>,
    /// (chosen, rejected), indices into `branches`.
    pub pairs: Vec<[u32; 2]>,
}

impl Pack {
    /// Lays `trees` out one after another; each image fills `n_slots` rows.
    ///
    /// Errors: a tree with an empty trunk, image slots outside it, masks of another length than
    /// their tokens, pairs that name no branch, 2³² rows or more.
    pub fn build(trees: &[TreeView<'_>], n_slots: usize, layout: Layout) -> Result<Pack> {
        let mut pack = Pack { branch_offsets: vec![0], ..Pack::default() };
        for tree in trees {
            check(tree, n_slots)?;
            let first = pack.branches.len() as u32;
            match layout {
                Layout::Tree => {
                    pack.push_tree(tree, tree.branches.iter(), n_slots);
                    pack.pairs.extend(tree.pairs.iter().map(|[c, r]| [first + c, first + r]));
                }
                Layout::Pairs if tree.pairs.is_empty() => {
                    for branch in &tree.branches {
                        pack.push_tree(tree, std::iter::once(branch), n_slots);
                    }
                }
                Layout::Pairs => {
                    for (i, pair) in tree.pairs.iter().enumerate() {
                        for &branch in pair {
                            let branch = std::iter::once(&tree.branches[branch as usize]);
                            pack.push_tree(tree, branch, n_slots);
                        }
                        pack.pairs.push([first + 2 * i as u32, first + 2 * i as u32 + 1]);
                    }
                }
            }
            if u32::try_from(pack.tokens.len()).is_err() {
                return Err(Error::argument("pack::build", "more than 2^32 rows in one pack"));
            }
        }
        Ok(pack)
    }

    /// Rows of the stream.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Scored tokens of branch `b`.
    pub fn scored(&self, b: usize) -> usize {
        (self.branch_offsets[b + 1] - self.branch_offsets[b]) as usize
    }

    fn push_tree<'v, 'a: 'v>(
        &mut self,
        tree: &TreeView<'_>,
        branches: impl Iterator<Item = &'v BranchView<'a>>,
        n_slots: usize,
    ) {
        let trunk = self.push_segment(tree.trunk, None);
        for &(offset, image) in &tree.images {
            self.images.push(image);
            self.image_rows.extend((0..n_slots as u32).map(|i| trunk.start + offset + i));
        }
        for branch in branches {
            let own = self.push_segment(branch.tokens, Some(trunk));
            for (i, _) in branch.scored.iter().enumerate().filter(|(_, s)| **s != 0) {
                // The token before it: in the branch, or the last one of the trunk.
                let before = if i == 0 { trunk.start + trunk.len } else { own.start + i as u32 };
                self.head_rows.push(before - 1);
                self.targets.push(branch.tokens[i]);
            }
            self.branch_offsets.push(self.head_rows.len() as u32);
            self.branches.push(BranchId { record: tree.record, branch: branch.branch });
        }
    }

    fn push_segment(&mut self, tokens: &[u32], trunk: Option<Segment>) -> Segment {
        let start = self.tokens.len() as u32;
        let (prefix_start, prefix_len) = trunk.map_or((start, 0), |t| (t.start, t.len));
        let segment = Segment { start, len: tokens.len() as u32, prefix_start, prefix_len };
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(prefix_len..prefix_len + segment.len);
        self.segments.push(segment);
        segment
    }
}

fn check(tree: &TreeView<'_>, n_slots: usize) -> Result<()> {
    let fail = |what: String| {
        Err(Error::argument("pack::build", format!("record {}: {what}", tree.record)))
    };
    let trunk = tree.trunk.len();
    if trunk == 0 {
        return fail("the trunk is empty, nothing predicts a first token".into());
    }
    if let Some((at, _)) = tree.images.iter().find(|(at, _)| *at as usize + n_slots > trunk) {
        return fail(format!("{n_slots} image slots at {at} of a trunk of {trunk} tokens"));
    }
    if let Some(b) = tree.branches.iter().find(|b| b.tokens.len() != b.scored.len()) {
        let (tokens, scored) = (b.tokens.len(), b.scored.len());
        return fail(format!("branch {} has {tokens} tokens and {scored} marks", b.branch));
    }
    let n = tree.branches.len();
    if let Some(pair) = tree.pairs.iter().find(|p| p.iter().any(|&b| b as usize >= n)) {
        return fail(format!("pair {pair:?} of {n} branches"));
    }
    Ok(())
}
