//! The part of a record that a pack holds, and how much room it takes.

use crate::data::pack::Layout;

/// What planning needs to know of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordSize {
    /// Tokens of the trunk.
    pub trunk: u32,
    /// Images in it.
    pub images: u32,
    /// (tokens, scored tokens) of each branch.
    pub branches: Vec<[u32; 2]>,
    /// (chosen, rejected), numbers of branches.
    pub pairs: Vec<[u32; 2]>,
    /// The branch with the highest score; the first one where nothing is rated.
    pub best: u32,
}

/// The part of a record that a pack holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tree {
    /// Number of the record.
    pub record: u32,
    /// Numbers of its branches that take part, ascending.
    pub branches: Vec<u32>,
    /// (chosen, rejected), numbers of branches.
    pub pairs: Vec<[u32; 2]>,
}

impl Tree {
    /// A record's `pairs` and the branches they name.
    pub fn of_pairs(record: u32, pairs: Vec<[u32; 2]>) -> Tree {
        let mut branches = pairs.concat();
        branches.sort_unstable();
        branches.dedup();
        Tree { record, branches, pairs }
    }

    /// All answers of a record, without pairs.
    pub fn of_answers(record: u32, size: &RecordSize) -> Tree {
        let branches = (0..size.branches.len() as u32).collect();
        Tree { record, branches, pairs: Vec::new() }
    }

    /// Pairs, or answers where there are no pairs.
    pub fn items(&self) -> usize {
        if self.pairs.is_empty() { self.branches.len() } else { self.pairs.len() }
    }

    /// One tree per pair, or per answer where there are no pairs.
    pub fn singles(&self) -> Vec<Tree> {
        let record = self.record;
        let pairs = self.pairs.iter().map(|&pair| Tree::of_pairs(record, vec![pair]));
        let answers = self.branches.iter().filter(|_| self.pairs.is_empty());
        let answers = answers.map(|&b| Tree { record, branches: vec![b], pairs: Vec::new() });
        pairs.chain(answers).collect()
    }

    /// Both parts of the same record.
    pub fn join(&self, other: &Tree) -> Tree {
        let mut branches = [self.branches.as_slice(), &other.branches].concat();
        branches.sort_unstable();
        branches.dedup();
        Tree { record: self.record, branches, pairs: [&self.pairs[..], &other.pairs].concat() }
    }

    /// Rows of the stream.
    pub fn tokens(&self, size: &RecordSize, layout: Layout) -> usize {
        let (trunks, branches) = self.copies(layout);
        let branches = branches.iter().map(|&b| size.branches[b as usize][0] as usize);
        trunks * size.trunk as usize + branches.sum::<usize>()
    }

    /// Images, counted as often as they are laid out.
    pub fn images(&self, size: &RecordSize, layout: Layout) -> usize {
        self.copies(layout).0 * size.images as usize
    }

    /// Scored rows.
    pub fn head_rows(&self, size: &RecordSize, layout: Layout) -> usize {
        self.copies(layout).1.iter().map(|&b| size.branches[b as usize][1] as usize).sum()
    }

    /// How often the trunk is laid out, and its branches as often as each is.
    fn copies(&self, layout: Layout) -> (usize, Vec<u32>) {
        match layout {
            Layout::Tree => (1, self.branches.clone()),
            Layout::Pairs if self.pairs.is_empty() => (self.branches.len(), self.branches.clone()),
            Layout::Pairs => (2 * self.pairs.len(), self.pairs.concat()),
        }
    }
}
