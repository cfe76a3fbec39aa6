//! Matrices for op tests: seeded values, NaN-poisoned outputs, guarded strided storage, on the CPU
//! or on a GPU.

use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silkie::device::{Buffer, Device};
use silkie::tensor::{DType, Element, Tensor, TensorMut};

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

/// Where a [`Matrix`] lives, and in which of f32 and bf16.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Place {
    pub device: Device,
    pub dtype: DType,
}

impl Place {
    /// Where ops without a kernel run.
    pub const CPU: Place = Place { device: Device::Cpu, dtype: DType::F32 };

    /// Elements in 16 bytes.
    pub fn pack(self) -> usize {
        16 / self.dtype.size()
    }

    /// The same place, other elements.
    pub fn of(self, dtype: DType) -> Place {
        Place { dtype, ..self }
    }

    /// `x` as it is held here.
    pub fn round(self, x: f64) -> f64 {
        match self.dtype {
            DType::Bf16 => bf16::from_f64(x).to_f64(),
            _ => f64::from(x as f32),
        }
    }

    /// These values, row by row.
    pub fn matrix(self, values: &[f32], rows: usize, cols: usize, lay: Lay) -> Matrix {
        assert_eq!(values.len(), rows * cols);
        let (left, right) = match (lay, self.device) {
            (Lay::Dense, _) => (0, 0),
            (Lay::Strided, Device::Cpu) => (3, 2),
            // Kernels read 16 bytes at a time.
            (Lay::Strided, Device::Cuda(_)) => (8, 16),
        };
        let stride = left + cols + right;
        let mut data = vec![f32::from_bits(GUARD); rows * stride];
        for i in 0..rows {
            data[i * stride + left..][..cols].copy_from_slice(&values[i * cols..][..cols]);
        }
        let mut buffer = Buffer::on(self.device, self.dtype, rows, stride).unwrap();
        let narrow: Vec<bf16>;
        let view = match self.dtype {
            DType::F32 => Tensor::new(&data, rows, stride),
            _ => {
                narrow = data.iter().map(|&x| bf16::from_f32(x)).collect();
                Tensor::new(&narrow, rows, stride)
            }
        };
        buffer.upload(view).unwrap();
        Matrix { buffer, cols, left }
    }

    /// Elements of any type, row by row: indices, tables.
    pub fn buffer<T: Element>(self, data: &[T], rows: usize, cols: usize) -> Buffer {
        let mut buffer = Buffer::on(self.device, T::DTYPE, rows, cols).unwrap();
        buffer.upload(Tensor::new(data, rows, cols)).unwrap();
        buffer
    }

    /// Seeded values, uniform in -1..1.
    pub fn random(self, rows: usize, cols: usize, lay: Lay, seed: u64) -> Matrix {
        self.matrix(&random(rows * cols, seed), rows, cols, lay)
    }

    /// Scratch of `n` f32 for a kernel, NaN everywhere, guarded; on the CPU empty.
    pub fn scratch(self, n: usize) -> Matrix {
        let n = if self.device == Device::Cpu { 0 } else { n };
        self.of(DType::F32).poisoned(1, n, Lay::Strided)
    }

    /// An output before the op ran: NaN everywhere.
    pub fn poisoned(self, rows: usize, cols: usize, lay: Lay) -> Matrix {
        self.matrix(&vec![f32::NAN; rows * cols], rows, cols, lay)
    }
}

/// Everywhere that an op with kernels runs: f32 on the CPU, and f32 and bf16 on a GPU where there is
/// one.
pub fn places() -> Vec<Place> {
    let gpu = super::cuda().map(Device::Cuda).into_iter();
    let on = |device| [DType::F32, DType::Bf16].map(|dtype| Place { device, dtype });
    std::iter::once(Place::CPU).chain(gpu.flat_map(on)).collect()
}

/// `[rows, cols]` values.
pub struct Matrix {
    buffer: Buffer,
    cols: usize,
    left: usize,
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
    /// f32 on the CPU.
    pub fn of(values: &[f32], rows: usize, cols: usize, lay: Lay) -> Self {
        Place::CPU.matrix(values, rows, cols, lay)
    }

    /// f32 on the CPU, uniform in -1..1.
    pub fn random(rows: usize, cols: usize, lay: Lay, seed: u64) -> Self {
        Place::CPU.random(rows, cols, lay, seed)
    }

    /// An output on the CPU before the op ran: NaN everywhere.
    pub fn poisoned(rows: usize, cols: usize, lay: Lay) -> Self {
        Place::CPU.poisoned(rows, cols, lay)
    }

    /// To read.
    pub fn view(&self) -> Tensor<'_> {
        self.buffer.view().slice_cols(self.left..self.left + self.cols)
    }

    /// To write.
    pub fn view_mut(&mut self) -> TensorMut<'_> {
        self.buffer.view_mut().slice_cols(self.left..self.left + self.cols)
    }

    /// The values, row by row. Fails when something was written around them.
    pub fn values(&self) -> Vec<f32> {
        let (rows, stride) = (self.buffer.rows(), self.buffer.cols());
        let dtype = self.buffer.view().dtype();
        let mut host = Buffer::host(dtype, rows, stride);
        self.buffer.download(host.view_mut()).unwrap();
        let inside = self.left..self.left + self.cols;
        let mut values = Vec::with_capacity(rows * self.cols);
        for i in 0..rows {
            let row: Vec<f32> = match dtype {
                DType::F32 => host.view().row::<f32>(i).to_vec(),
                _ => host.view().row::<bf16>(i).iter().map(|x| x.to_f32()).collect(),
            };
            for (j, x) in row.into_iter().enumerate() {
                if inside.contains(&j) {
                    values.push(x);
                } else {
                    let guard = match dtype {
                        DType::F32 => GUARD,
                        _ => GUARD & 0xffff_0000,
                    };
                    assert_eq!(x.to_bits(), guard, "row {i}: column {j} is outside");
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

impl Clone for Matrix {
    fn clone(&self) -> Self {
        let (dtype, device) = (self.buffer.view().dtype(), self.buffer.device());
        let lay = if self.left == 0 { Lay::Dense } else { Lay::Strided };
        let rows = self.buffer.rows();
        Place { device, dtype }.matrix(&self.values(), rows, self.cols, lay)
    }
}
