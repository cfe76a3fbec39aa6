//! The argument checks ops share. Each error names the op, the argument, what was expected and
//! what came.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// Bytes that a thread of a kernel reads at a time.
const PACK: usize = 16;

/// Checks the arguments of one op: `check.f32("x", x, [rows, cols], "rows, cols")?`.
#[derive(Clone, Copy)]
pub(crate) struct Check {
    op: &'static str,
    device: Device,
    has_kernel: bool,
}

impl Check {
    /// For an op without a CUDA kernel: its tensors are on the CPU.
    pub fn on_cpu(op: &'static str) -> Check {
        Check { op, device: Device::Cpu, has_kernel: false }
    }

    /// For an op with a CUDA kernel: its tensors are all on `device`.
    pub fn on(device: Device, op: &'static str) -> Check {
        Check { op, device, has_kernel: true }
    }

    /// An error of this op.
    pub fn error(self, message: String) -> Error {
        Error::argument(self.op, message)
    }

    /// `tensor` lies where this op runs.
    fn device(self, name: &str, tensor: Tensor<'_>) -> Result<()> {
        let (got, expected) = (tensor.device(), self.device);
        if got == expected {
            return Ok(());
        }
        Err(self.error(match self.has_kernel {
            true => format!("{name} is on {got}, expected {expected} like the others"),
            false => {
                format!("{name} is on {got}, where this op has no kernel yet; pass --device cpu")
            }
        }))
    }

    /// `tensor` is f32 of `shape`; `meaning` names the two sizes, as in "tokens, width".
    pub fn f32(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::F32], shape, meaning)
    }

    /// `tensor` is f64 of `shape`.
    pub fn f64(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::F64], shape, meaning)
    }

    /// `tensor` is u32 of `shape`.
    pub fn u32(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::U32], shape, meaning)
    }

    /// `tensor` is a weight of `shape` in any float type.
    pub fn weight(
        self,
        name: &str,
        tensor: Tensor<'_>,
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, &[DType::F32, DType::Bf16, DType::F16], shape, meaning)
    }

    /// `tensor` has one of `dtypes` and `shape`, and lies where the op runs.
    pub fn typed(
        self,
        name: &str,
        tensor: Tensor<'_>,
        dtypes: &[DType],
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.device(name, tensor)?;
        if !dtypes.contains(&tensor.dtype()) {
            let expected: Vec<String> = dtypes.iter().map(|d| format!("{d:?}")).collect();
            let (expected, got) = (expected.join(" or "), tensor.dtype());
            return Err(self.error(format!("{name} has type {got:?}, expected {expected}")));
        }
        if tensor.shape() != shape {
            let got = tensor.shape();
            return Err(
                self.error(format!("{name} has shape {got:?}, expected {shape:?} ({meaning})"))
            );
        }
        Ok(())
    }

    /// The types of activations: f32, on a GPU also bf16.
    pub fn activations(self) -> &'static [DType] {
        match self.device {
            Device::Cpu => &[DType::F32],
            Device::Cuda(_) => &[DType::F32, DType::Bf16],
        }
    }

    /// `tensor` is [`typed`](Self::typed), and a kernel can read its rows 16 bytes at a time.
    pub fn packed(
        self,
        name: &str,
        tensor: Tensor<'_>,
        dtypes: &[DType],
        shape: [usize; 2],
        meaning: &str,
    ) -> Result<()> {
        self.typed(name, tensor, dtypes, shape, meaning)?;
        let Device::Cuda(_) = self.device else { return Ok(()) };
        let ([rows, cols], pack) = (shape, PACK / tensor.dtype().size());
        if rows.max(cols) > i32::MAX as usize {
            let message = format!("{name} has shape {shape:?}, expected less than 2^31 of each");
            return Err(self.error(message));
        }
        if !cols.is_multiple_of(pack) {
            return Err(self.error(format!(
                "{name} has {cols} columns, expected a multiple of {pack}: kernels read {PACK} bytes \
                 at a time"
            )));
        }
        self.aligned(name, tensor)
    }

    /// `tensor` is one row of `n` elements of `dtype`, and a kernel can read it 16 bytes at a time.
    pub fn flat(self, name: &str, tensor: Tensor<'_>, dtype: DType, n: usize) -> Result<()> {
        self.typed(name, tensor, &[dtype], [1, n], "1, elements")?;
        self.aligned(name, tensor)
    }

    /// On a GPU `tensor` is one row of `n` f32 or more, aligned to 16 bytes; the CPU has no use for it.
    pub fn scratch(self, name: &str, tensor: Tensor<'_>, n: usize) -> Result<()> {
        let Device::Cuda(_) = self.device else { return Ok(()) };
        if n == 0 {
            return Ok(());
        }
        let got = tensor.cols();
        if got < n {
            return Err(self.error(format!("{name} has {got} elements, expected {n} or more")));
        }
        self.flat(name, tensor, DType::F32, got)
    }

    /// On a GPU the rows of `tensor` start at multiples of 16 bytes.
    fn aligned(self, name: &str, tensor: Tensor<'_>) -> Result<()> {
        let Device::Cuda(_) = self.device else { return Ok(()) };
        let stride = if tensor.rows() > 1 { tensor.row_stride() } else { 0 };
        let steps = [tensor.as_ptr().addr(), stride * tensor.dtype().size()];
        if tensor.rows() == 0 || steps.iter().all(|step| step.is_multiple_of(PACK)) {
            return Ok(());
        }
        Err(self.error(format!("{name} has rows that do not start at multiples of {PACK} bytes")))
    }

    /// Every element of the u32 column `index` is below `limit`; on a GPU, whose memory the host
    /// does not see, the kernel looks.
    pub fn below(self, name: &str, index: Tensor<'_>, limit: usize, what: &str) -> Result<()> {
        let Device::Cpu = self.device else { return Ok(()) };
        let row = (0..index.rows()).find(|&i| index.row::<u32>(i)[0] as usize >= limit);
        row.map_or(Ok(()), |i| {
            let got = index.row::<u32>(i)[0];
            Err(self.error(format!("{name}[{i}] is {got}, expected less than {limit} ({what})")))
        })
    }
}
