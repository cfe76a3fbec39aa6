//! The rows: each an op, its shapes, what it has to move and to compute, and how it is run.
//!
//! One file per op lists its rows; an op without a row here is neither timed nor held to its bars.

mod activation;
mod attention;
mod column_sums;
mod embedding;
mod layer_norm;
mod log_ratio;
mod lora;
mod movements;
mod optimizer;
mod patch_embed;
mod rms_norm;
mod rope;
mod sampling;

use half::bf16;

use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// f32 and bf16.
pub const ACTIVATIONS: &[DType] = &[DType::F32, DType::Bf16];
/// bf16 alone.
pub const BF16: &[DType] = &[DType::Bf16];
/// f32 alone.
pub const F32: &[DType] = &[DType::F32];

/// Tokens and width of preset `small`, and of packs of Qwen-VL-Chat.
pub const HIDDEN: &[[usize; 2]] = &[[736, 512], [2048, 4096], [8192, 4096]];
/// Qwen-VL-Chat's 8192 tokens, scaled down in rows for the emulator.
pub const HIDDEN_COUNTED: &[[usize; 2]] = &[[256, 4096]];

/// An op at some shapes.
pub struct Row {
    /// The op's name and direction, `rms_norm forward`.
    pub name: &'static str,
    /// Of the activations.
    pub dtypes: &'static [DType],
    /// Timed on a GPU.
    pub shapes: &'static [[usize; 2]],
    /// Run by an emulator, which counts what the kernels do.
    pub counted: &'static [[usize; 2]],
    /// The floor: bytes of all inputs, read once, and of all outputs, written once.
    pub bytes: fn([usize; 2], DType) -> usize,
    pub flop: fn([usize; 2]) -> usize,
    /// Multiply-adds that the tensor cores have to do; 0 of most ops.
    pub macs: fn([usize; 2]) -> usize,
    /// How far a GPU may be off the CPU, of each output's size.
    pub bound: fn(DType) -> f64,
    /// Inputs and outputs, ready to run.
    pub new: fn(On, [usize; 2]) -> Result<Box<dyn Run>>,
}

impl Row {
    /// What most rows have in common.
    pub const USUAL: Row = Row {
        name: "",
        dtypes: ACTIVATIONS,
        shapes: HIDDEN,
        counted: HIDDEN_COUNTED,
        bytes: |_, _| 0,
        flop: |_| 0,
        macs: |_| 0,
        bound: rounding,
        new: |_, _| prepared([], 0, |[]| Ok(())),
    };
}

/// Of all ops, in the order of `src/ops`.
pub fn all() -> Vec<Row> {
    let ops = [
        column_sums::rows(),
        attention::rows(),
        rms_norm::rows(),
        layer_norm::rows(),
        rope::rows(),
        activation::rows(),
        embedding::rows(),
        movements::rows(),
        patch_embed::rows(),
        log_ratio::rows(),
        sampling::rows(),
        lora::rows(),
        optimizer::rows(),
    ];
    ops.into_iter().flatten().collect()
}

/// One rounding of what is stored, and sums in another order.
pub fn rounding(dtype: DType) -> f64 {
    if dtype == DType::Bf16 { 4e-3 } else { 1e-5 }
}

/// An op with its inputs and outputs on one device.
pub trait Run {
    fn run(&mut self) -> Result<()>;
    /// Makes `outputs` of what `run` left in another form; neither timed nor counted.
    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
    fn outputs(&self) -> Vec<&Buffer>;
}

/// Buffers, the last `outputs` of which `run` writes.
pub fn prepared<const N: usize>(
    buffers: [Buffer; N],
    outputs: usize,
    run: fn(&mut [Buffer; N]) -> Result<()>,
) -> Result<Box<dyn Run>> {
    Ok(Box::new(Prepared { buffers, outputs, run }))
}

struct Prepared<const N: usize> {
    buffers: [Buffer; N],
    outputs: usize,
    run: fn(&mut [Buffer; N]) -> Result<()>,
}

impl<const N: usize> Run for Prepared<N> {
    fn run(&mut self) -> Result<()> {
        (self.run)(&mut self.buffers)
    }

    fn outputs(&self) -> Vec<&Buffer> {
        self.buffers[N - self.outputs..].iter().collect()
    }
}

/// Where a row's buffers are, and the type of its activations. The same values on every device: on the CPU
/// f32, rounded as the GPU's are.
#[derive(Clone, Copy)]
pub struct On {
    pub device: Device,
    pub dtype: DType,
}

impl On {
    /// Activations in -1..1.
    pub fn input(self, rows: usize, cols: usize, seed: usize) -> Result<Buffer> {
        let round = |x: f32| match self.dtype {
            DType::Bf16 => bf16::from_f32(x).to_f32(),
            _ => x,
        };
        let values: Vec<f32> = (0..rows * cols).map(|i| round(value(i, seed))).collect();
        let mut buffer = self.output(rows, cols)?;
        match self.held() {
            DType::Bf16 => {
                let narrow: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
                buffer.upload(Tensor::new(&narrow, rows, cols))?;
            }
            _ => buffer.upload(Tensor::new(&values, rows, cols))?,
        }
        Ok(buffer)
    }

    /// f32 in -1..1, whatever the type of the activations.
    pub fn f32_input(self, rows: usize, cols: usize, seed: usize) -> Result<Buffer> {
        On { dtype: DType::F32, ..self }.input(rows, cols, seed)
    }

    /// A column of u32.
    pub fn indices(self, indices: &[u32]) -> Result<Buffer> {
        let mut buffer = Buffer::on(self.device, DType::U32, indices.len(), 1)?;
        buffer.upload(Tensor::column(indices))?;
        Ok(buffer)
    }

    /// A row of u32.
    pub fn table(self, values: &[u32]) -> Result<Buffer> {
        let mut buffer = Buffer::on(self.device, DType::U32, 1, values.len())?;
        buffer.upload(Tensor::vector(values))?;
        Ok(buffer)
    }

    /// Activations, to be written.
    pub fn output(self, rows: usize, cols: usize) -> Result<Buffer> {
        Buffer::on(self.device, self.held(), rows, cols)
    }

    /// f32, to be written.
    pub fn f32_output(self, rows: usize, cols: usize) -> Result<Buffer> {
        Buffer::on(self.device, DType::F32, rows, cols)
    }

    fn held(self) -> DType {
        if self.device == Device::Cpu { DType::F32 } else { self.dtype }
    }
}

/// In -1..1, without a pattern that a sum would hide.
fn value(i: usize, seed: usize) -> f32 {
    ((i + seed * 7919) as u32).wrapping_mul(2_654_435_761) as f32 / (1u64 << 31) as f32 - 1.0
}

/// Reads `elements` floats: what evicts L2.
pub fn flush(on: On, elements: usize) -> Result<impl Run> {
    optimizer::Gradient::new(on, elements)
}
