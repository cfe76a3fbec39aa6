//! Activations on CUDA: `kernels/activation.cu`.

use crate::device::cuda::{Arguments, Cuda, Grid, KernelName};
use crate::error::Result;
use crate::tensor::{DType, Tensor, TensorMut};

/// In f32 and in bf16.
type Kernels = [KernelName; 2];

const GELU: Kernels =
    [KernelName("activation_forward_gelu_f32"), KernelName("activation_forward_gelu_bf16")];
const GELU_BACKWARD: Kernels =
    [KernelName("activation_backward_gelu_f32"), KernelName("activation_backward_gelu_bf16")];
const GELU_BACKWARD_BIAS: Kernels = [
    KernelName("activation_backward_gelu_bias_f32"),
    KernelName("activation_backward_gelu_bias_bf16"),
];
const SWIGLU: Kernels =
    [KernelName("activation_forward_swiglu_f32"), KernelName("activation_forward_swiglu_bf16")];
const SWIGLU_BACKWARD: Kernels =
    [KernelName("activation_backward_swiglu_f32"), KernelName("activation_backward_swiglu_bf16")];

/// Threads of a block, each with one pack of 16 bytes of [`ROWS`] rows.
const THREADS: u32 = 128;
const ROWS: usize = 2;
/// Threads of a block that sums columns, and the packs that it is wide.
const SUM_THREADS: u32 = 256;
const WIDE: usize = 4;

#[repr(C)]
#[derive(Clone, Copy)]
struct Map<const IN: usize, const OUT: usize> {
    inputs: [*const u8; IN],
    outputs: [*mut u8; OUT], // null: not wanted
    input_strides: [i64; IN],
    output_strides: [i64; OUT],
    rows: i32,
    cols: i32,
}
const _: () = assert!(size_of::<Map<1, 1>>() == 40);
const _: () = assert!(size_of::<Map<2, 1>>() == 56);
const _: () = assert!(size_of::<Map<3, 3>>() == 104);
// SAFETY: field by field `Map` of the kernel file.
unsafe impl<const IN: usize, const OUT: usize> Arguments for Map<IN, OUT> {}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapAndSum {
    map: Map<2, 1>,
    sums: *mut u8,
}
const _: () = assert!(size_of::<MapAndSum>() == 64);
// SAFETY: field by field `MapAndSum` of the kernel file.
unsafe impl Arguments for MapAndSum {}

pub(super) fn gelu(cuda: Cuda, x: Tensor<'_>, y: TensorMut<'_>) -> Result<()> {
    map(cuda, &GELU, [x], [Some(y)])
}

pub(super) fn gelu_backward(
    cuda: Cuda,
    x: Tensor<'_>,
    dy: Tensor<'_>,
    dx: TensorMut<'_>,
    dbias: Option<TensorMut<'_>>,
) -> Result<()> {
    let Some(mut dbias) = dbias else { return map(cuda, &GELU_BACKWARD, [x, dy], [Some(dx)]) };
    let arguments = MapAndSum { map: arguments([x, dy], [Some(dx)]), sums: dbias.as_mut_ptr() };
    let blocks = x.cols().div_ceil(WIDE * 16 / x.dtype().size());
    let grid = Grid::new([blocks as u32, 1, 1], SUM_THREADS);
    // SAFETY: as in `map`; `dbias` has a number for each column.
    unsafe { cuda.launch(of(x.dtype(), &GELU_BACKWARD_BIAS), grid, &arguments) }
}

pub(super) fn swiglu(cuda: Cuda, a: Tensor<'_>, b: Tensor<'_>, s: TensorMut<'_>) -> Result<()> {
    map(cuda, &SWIGLU, [a, b], [Some(s)])
}

pub(super) fn swiglu_backward(
    cuda: Cuda,
    a: Tensor<'_>,
    b: Tensor<'_>,
    ds: Tensor<'_>,
    da: TensorMut<'_>,
    db: TensorMut<'_>,
    s: Option<TensorMut<'_>>,
) -> Result<()> {
    map(cuda, &SWIGLU_BACKWARD, [a, b, ds], [Some(da), Some(db), s])
}

fn map<const IN: usize, const OUT: usize>(
    cuda: Cuda,
    kernels: &Kernels,
    inputs: [Tensor<'_>; IN],
    outputs: [Option<TensorMut<'_>>; OUT],
) -> Result<()> {
    let x = inputs[0];
    let strips = x.cols().div_ceil(THREADS as usize * 16 / x.dtype().size());
    let grid = Grid::new([x.rows().div_ceil(ROWS) as u32, strips as u32, 1], THREADS);
    // SAFETY: the public functions checked that every pointer covers the same rows and columns on
    // this device, in whole packs of this dtype; the views borrow them.
    unsafe { cuda.launch(of(x.dtype(), kernels), grid, &arguments(inputs, outputs)) }
}

fn arguments<const IN: usize, const OUT: usize>(
    inputs: [Tensor<'_>; IN],
    outputs: [Option<TensorMut<'_>>; OUT],
) -> Map<IN, OUT> {
    let [rows, cols] = inputs[0].shape();
    let stride = |out: &Option<TensorMut<'_>>| out.as_ref().map_or(0, |t| t.row_stride() as i64);
    let output_strides = std::array::from_fn(|k| stride(&outputs[k]));
    Map {
        inputs: inputs.map(|t| t.as_ptr()),
        outputs: outputs.map(|out| out.map_or(std::ptr::null_mut(), |mut t| t.as_mut_ptr())),
        input_strides: inputs.map(|t| t.row_stride() as i64),
        output_strides,
        rows: rows as i32,
        cols: cols as i32,
    }
}

fn of(dtype: DType, [f32, bf16]: &Kernels) -> &KernelName {
    if dtype == DType::Bf16 { bf16 } else { f32 }
}
