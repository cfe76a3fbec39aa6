//! Matrices for op tests: seeded values, NaN-poisoned outputs, guarded strided storage.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silkie::tensor::{Tensor, TensorMut};

/// The value around a strided matrix: a NaN nobody computes, so that reading it shows in the
/// result and writing it shows in [`Matrix::values`].
const GUARD: u32 = 0x7fc5_11c1;

/// How a [`Matrix`] lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lay {
    /// Rows follow each other.
    Dense,
    /// Some columns of a wider buffer, guards on both sides and behind.
    Strided,
}

/// Both ways to lie, for tables of cases.
pub const LAYS: [Lay; 2] = [Lay::Dense, Lay::Strided];

/// `[rows, cols]` f32 values.
#[derive(Clone)]
pub struct Matrix {
    data: Vec<f32>,
    rows: usize,
    cols: usize,
    left: usize,
    stride: usize,
}

/// `n` seeded values, uniform in -1..1 and never the same for two seeds.
pub fn random(n: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// `n` seeded indices below `bound`.
pub fn random_indices(n: usize, bound: usize, seed: u64) -> Vec<u32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n).map(|_| rng.random_range(0..bound as u32)).collect()
}

impl Matrix {
    /// These values, row by row.
    pub fn of(values: &[f32], rows: usize, cols: usize, lay: Lay) -> Self {
        assert_eq!(values.len(), rows * cols);
        let (left, right) = if lay == Lay::Dense { (0, 0) } else { (3, 2) };
        let stride = left + cols + right;
        let mut data = vec![f32::from_bits(GUARD); rows * stride];
        for i in 0..rows {
            data[i * stride + left..][..cols].copy_from_slice(&values[i * cols..][..cols]);
        }
        Matrix { data, rows, cols, left, stride }
    }

    /// Seeded values, uniform in -1..1.
    pub fn random(rows: usize, cols: usize, lay: Lay, seed: u64) -> Self {
        Self::of(&random(rows * cols, seed), rows, cols, lay)
    }

    /// An output before the op ran: NaN everywhere.
    pub fn poisoned(rows: usize, cols: usize, lay: Lay) -> Self {
        Self::of(&vec![f32::NAN; rows * cols], rows, cols, lay)
    }

    /// To read.
    pub fn view(&self) -> Tensor<'_> {
        let wide = Tensor::new(&self.data, self.rows, self.stride);
        wide.slice_cols(self.left..self.left + self.cols)
    }

    /// To write.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        let columns = self.left..self.left + self.cols;
        TensorMut::new(&mut self.data, self.rows, self.stride).slice_cols(columns)
    }

    /// The values, row by row. Fails when something was written around them.
    pub fn values(&self) -> Vec<f32> {
        let inside = self.left..self.left + self.cols;
        let mut values = Vec::with_capacity(self.rows * self.cols);
        for (i, row) in self.data.chunks_exact(self.stride.max(1)).enumerate() {
            for (j, x) in row.iter().enumerate() {
                if inside.contains(&j) {
                    values.push(*x);
                } else {
                    assert_eq!(x.to_bits(), GUARD, "row {i}: column {j} of {row:?} is outside");
                }
            }
        }
        values
    }

    /// [`Matrix::values`] in f64, for the oracle.
    pub fn f64(&self) -> Vec<f64> {
        self.values().into_iter().map(f64::from).collect()
    }
}
