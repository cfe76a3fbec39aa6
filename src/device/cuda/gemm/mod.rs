//! Matrix products by cuBLASLt: bf16 operands, f32 sums, one rounding into bf16 or f32.
//!
//! Our views are row-major with a row stride, cuBLASLt's column-major with a leading dimension: the
//! same memory read the other way is the transpose, so `C = A B` is asked for as `Cᵀ = Bᵀ Aᵀ`, and
//! the bias of a column of `C` is that of a row of `Cᵀ`, as the library adds it.
//!
//! What is asked of the library for a product is its plan, made once per [`Shape`]. Its own
//! heuristics choose the algorithm and nothing is timed, so that the same machine chooses the same;
//! [`Algorithms`] carries the choice through a checkpoint, so that a resumed run gives the same bits.

mod plan;

use std::sync::PoisonError;

use serde::{Deserialize, Serialize};

use super::Cuda;
use super::library::Found;
use crate::device::gemm::{Operand, Store};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor, TensorMut};
pub(super) use plan::Blas;

/// `C (+)= alpha · A B + bias` on the compute stream. `a`, `b` bf16; `c` bf16 or f32, and so `bias`.
///
/// Errors: no cuBLASLt, or a product it cannot do.
pub(crate) fn gemm(
    cuda: Cuda,
    a: Operand<'_>,
    b: Operand<'_>,
    mut c: TensorMut<'_>,
    store: Store<'_>,
) -> Result<()> {
    let shape = Shape::of(a, b, &c, store);
    if shape.rows == 0 || shape.columns == 0 {
        return Ok(());
    }
    if shape.depth == 0 {
        return cuda.store_empty_sum(c, store);
    }
    cuda.blas()?.multiply(cuda, &shape, a, b, c.as_mut_ptr(), store)
}

/// All that the library needs to know of a product to choose an algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Shape {
    rows: usize,
    columns: usize,
    depth: usize,
    a: Place,
    b: Place,
    c: Place,
    bias: bool,
    accumulate: bool,
}

/// How a matrix lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct Place {
    transposed: bool,
    /// f32, else bf16.
    wide: bool,
    stride: usize,
    /// Of its address, in bytes: the largest power of two, 256 at most.
    alignment: u32,
}

/// The algorithms chosen so far, and by whom: part of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Algorithms {
    library: String,
    gpu: String,
    chosen: Vec<(Shape, [u64; 8])>,
}

impl Cuda {
    /// The algorithms of all products so far. Empty without cuBLASLt.
    pub fn algorithms(self) -> Algorithms {
        let library = self.cublas_lt().map_or(String::new(), |found| found.version.clone());
        let chosen = self.blas().map_or(Vec::new(), |blas| {
            let chosen = blas.chosen.lock().unwrap_or_else(PoisonError::into_inner);
            chosen.iter().map(|(shape, algorithm)| (*shape, *algorithm)).collect()
        });
        Algorithms { library, gpu: self.gpu().name.clone(), chosen }
    }

    /// Uses these algorithms from now on; a product that was asked for before keeps its own.
    ///
    /// Errors: those of another GPU or another cuBLASLt, which would give other bits.
    pub fn restore_algorithms(self, algorithms: &Algorithms) -> Result<()> {
        let Algorithms { library, gpu, chosen } = algorithms;
        if chosen.is_empty() {
            return Ok(());
        }
        let (blas, now) = (self.blas()?, self.algorithms());
        if (&now.library, &now.gpu) != (library, gpu) {
            return Err(Error::Device(format!(
                "{self}: is {} with cuBLASLt {}, expected {gpu} with {library} as before: the bits \
                 of matrix products differ; use the same, or start a new run",
                now.gpu, now.library
            )));
        }
        let mut known = blas.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        known.extend(chosen.iter().map(|(shape, algorithm)| (*shape, *algorithm)));
        Ok(())
    }

    /// The cuBLASLt in use.
    pub fn cublas_lt(self) -> Option<&'static Found> {
        self.blas().ok().map(|blas| &blas.found)
    }

    fn blas(self) -> Result<&'static Blas> {
        let blas = self.0.blas.get().expect("a GPU is opened with its library");
        blas.as_ref().map_err(|message| Error::Device(message.clone()))
    }

    /// A sum of nothing is 0: `c` becomes that or stays.
    fn store_empty_sum(self, mut c: TensorMut<'_>, store: Store<'_>) -> Result<()> {
        if store.bias.is_some() {
            let message = "a bias without inputs has no kernel";
            return Err(Error::argument("device::gemm", message));
        }
        match store.accumulate {
            true => Ok(()),
            false => self.zero(&mut c),
        }
    }
}

impl Shape {
    /// Panics when the operands do not fit: ops have checked them.
    fn of(a: Operand<'_>, b: Operand<'_>, c: &TensorMut<'_>, store: Store<'_>) -> Shape {
        let (rows, columns, depth) = (a.rows(), b.cols(), a.cols());
        assert!(b.rows() == depth && c.shape() == [rows, columns], "gemm of unequal shapes");
        assert!(
            [a.data().dtype(), b.data().dtype()] == [DType::Bf16; 2]
                && matches!(c.dtype(), DType::Bf16 | DType::F32)
                && store.bias.is_none_or(|bias| bias.dtype() == c.dtype()),
            "gemm of types that CUDA has none for"
        );
        let all = [Some(a.data()), Some(b.data()), store.bias].into_iter().flatten();
        assert!(all.map(|t| t.device()).all(|d| d == c.device()), "gemm on several devices");
        Shape {
            rows,
            columns,
            depth,
            a: Place::of(a.data(), a.is_transposed()),
            b: Place::of(b.data(), b.is_transposed()),
            c: Place::of(c.as_ref(), false),
            bias: store.bias.is_some(),
            accumulate: store.accumulate,
        }
    }
}

impl Place {
    fn of(data: Tensor<'_>, transposed: bool) -> Place {
        // Of one row the stride is never used, and may be less than the library allows.
        let stride = data.row_stride().max(data.cols());
        let alignment = 1 << data.as_ptr().addr().trailing_zeros().min(8);
        Place { transposed, wide: data.dtype() == DType::F32, stride, alignment }
    }
}
