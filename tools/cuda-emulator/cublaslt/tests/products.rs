//! Products against the same in f64: every transpose, order, type, stride, batch, bias, alpha and
//! beta.

use cudarc::cublaslt::sys::cublasComputeType_t::*;
use cudarc::cublaslt::sys::cublasLtEpilogue_t::*;
use cudarc::cublaslt::sys::cudaDataType_t::{self, *};
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::{bf16, f16};
use std::sync::Arc;

use crate::library::{Call, Layout, stream};

/// Between the lines and batches of a matrix; a product must not touch it.
const GAP: f32 = 123.0;

/// A matrix on the device and, rounded to its type, on the host.
struct Matrix {
    layout: Layout,
    values: Vec<f32>,
    device: CudaSlice<u8>,
}

fn bytes_of(element: cudaDataType_t) -> usize {
    if element == CUDA_R_32F { 4 } else { 2 }
}

fn encode(element: cudaDataType_t, value: f32) -> Vec<u8> {
    match element {
        CUDA_R_16BF => bf16::from_f32(value).to_le_bytes().to_vec(),
        CUDA_R_16F => f16::from_f32(value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

fn decode(element: cudaDataType_t, bytes: &[u8]) -> f32 {
    match element {
        CUDA_R_16BF => bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        CUDA_R_16F => f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
        _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
    }
}

/// Numbers between -1 and 1 that look random.
struct Random(u32);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }
}

impl Matrix {
    fn random(stream: &Arc<CudaStream>, random: &mut Random, layout: Layout) -> Self {
        let lines = if layout.row_major { layout.rows } else { layout.columns };
        let line = if layout.row_major { layout.columns } else { layout.rows };
        let count = layout.batch_stride * (layout.batches - 1) + layout.ld * lines;
        let mut values = vec![GAP; count];
        for batch in 0..layout.batches {
            for i in 0..lines {
                let start = batch * layout.batch_stride + i * layout.ld;
                values[start..start + line].fill_with(|| random.next());
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|&v| encode(layout.element, v)).collect();
        let size = bytes_of(layout.element);
        let values = bytes.chunks(size).map(|bytes| decode(layout.element, bytes)).collect();
        Matrix { layout, values, device: stream.clone_htod(&bytes).unwrap() }
    }

    fn address(&self, stream: &CudaStream) -> u64 {
        self.device.device_ptr(stream).0
    }

    fn index(&self, batch: usize, row: usize, column: usize) -> usize {
        let Layout { ld, row_major, batch_stride, .. } = self.layout;
        batch * batch_stride + if row_major { row * ld + column } else { column * ld + row }
    }

    fn at(&self, batch: usize, row: usize, column: usize) -> f64 {
        self.values[self.index(batch, row, column)].into()
    }

    fn read(&self, stream: &Arc<CudaStream>) -> Vec<f32> {
        let bytes = stream.clone_dtoh(&self.device).unwrap();
        let element = self.layout.element;
        bytes.chunks(bytes_of(element)).map(|bytes| decode(element, bytes)).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    m: usize,
    n: usize,
    k: usize,
    transposed: [bool; 2],
    /// Of A and B, and of C and D.
    elements: [cudaDataType_t; 2],
    /// Extra elements of a line.
    padding: usize,
    /// Of A, B, and of C and D.
    row_major: [bool; 3],
    batches: usize,
    alpha: f32,
    beta: f32,
    bias: bool,
    /// C and D are the same matrix.
    in_place: bool,
}

impl Default for Case {
    fn default() -> Self {
        Case {
            m: 7,
            n: 17,
            k: 33,
            transposed: [false; 2],
            elements: [CUDA_R_16BF; 2],
            padding: 0,
            row_major: [false; 3],
            batches: 1,
            alpha: 1.0,
            beta: 0.0,
            bias: false,
            in_place: false,
        }
    }
}

impl Case {
    fn layout(&self, element: cudaDataType_t, rows: usize, columns: usize, row: bool) -> Layout {
        let line = if row { columns } else { rows };
        let lines = if row { rows } else { columns };
        let ld = line + self.padding;
        let (batches, batch_stride) = (self.batches, ld * lines + self.padding);
        Layout { element, rows, columns, ld, row_major: row, batches, batch_stride }
    }

    fn check(self) {
        let stream = stream();
        let mut random = Random((self.m * 31 + self.n * 7 + self.k) as u32);
        let Case { m, n, k, transposed: [ta, tb], elements: [input, output], .. } = self;
        let turned =
            |turn: bool, rows, columns| if turn { (columns, rows) } else { (rows, columns) };
        let ((a_rows, a_columns), (b_rows, b_columns)) = (turned(ta, m, k), turned(tb, k, n));
        let mut matrix = |element, rows, columns, row| {
            Matrix::random(&stream, &mut random, self.layout(element, rows, columns, row))
        };
        let a = matrix(input, a_rows, a_columns, self.row_major[0]);
        let b = matrix(input, b_rows, b_columns, self.row_major[1]);
        let c = matrix(output, m, n, self.row_major[2]);
        let d = matrix(output, m, n, self.row_major[2]);
        let bias = Matrix::random(&stream, &mut random, Layout::new(output, m, 1));
        let (before, target) = if self.in_place { (&c, &c) } else { (&c, &d) };
        let call = Call {
            layouts: [a.layout, b.layout, before.layout, target.layout],
            addresses: [&a, &b, before, target].map(|matrix| matrix.address(&stream)),
            transposed: self.transposed,
            alpha: self.alpha,
            beta: self.beta,
            scalars: None,
            epilogue: if self.bias { CUBLASLT_EPILOGUE_BIAS } else { CUBLASLT_EPILOGUE_DEFAULT },
            bias: if self.bias { bias.address(&stream) } else { 0 },
            compute: CUBLAS_COMPUTE_32F,
            alignment: 16,
            workspace: (0, 0),
        };
        call.run(&stream).unwrap_or_else(|error| panic!("{self:?}: {error}"));
        let got = target.read(&stream);
        let mut expected_gaps = target.values.clone();
        for batch in 0..self.batches {
            for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                let terms = (0..k).map(|step| {
                    let a = if ta { a.at(batch, step, i) } else { a.at(batch, i, step) };
                    let b = if tb { b.at(batch, j, step) } else { b.at(batch, step, j) };
                    a * b
                });
                let (mut sum, mut size) = (0.0, 0.0);
                for term in terms {
                    sum += term;
                    size += term.abs();
                }
                let parts = [
                    f64::from(self.alpha) * sum,
                    f64::from(self.beta) * before.at(batch, i, j),
                    if self.bias { bias.at(0, i, 0) } else { 0.0 },
                ];
                let expected: f64 = parts.iter().sum();
                let index = target.index(batch, i, j);
                // k fused additions in f32 round by 2^-24 of at most `size` each; so do the last
                // three operations of their parts; the output is rounded once.
                let parts: f64 = parts.iter().map(|part| part.abs()).sum();
                let rounding = f64::from(self.alpha.abs()) * k as f64 * size + 3.0 * parts;
                let unit = match output {
                    CUDA_R_16BF => 2f64.powi(-8),
                    CUDA_R_16F => 2f64.powi(-11),
                    _ => 2f64.powi(-24),
                };
                // f16 numbers below 2^-14 are 2^-24 apart.
                let bound = 2f64.powi(-24) * rounding + unit * expected.abs() + 2f64.powi(-25);
                let error = (f64::from(got[index]) - expected).abs();
                assert!(
                    error <= bound,
                    "{self:?}: [{batch}, {i}, {j}] is {}, expected {expected} within {bound:e}",
                    got[index]
                );
                expected_gaps[index] = got[index];
            }
        }
        assert_eq!(got, expected_gaps, "{self:?}: nothing but D is written");
    }
}

const SIZES: [(usize, usize, usize); 7] =
    [(1, 1, 1), (5, 7, 3), (6, 16, 8), (7, 17, 33), (64, 48, 40), (131, 70, 97), (12, 32, 513)];

const TRANSPOSES: [[bool; 2]; 4] = [[false, false], [false, true], [true, false], [true, true]];

#[test]
fn sizes_transposes_and_types() {
    let types = [
        [CUDA_R_16BF, CUDA_R_16BF],
        [CUDA_R_16BF, CUDA_R_32F],
        [CUDA_R_16F, CUDA_R_16F],
        [CUDA_R_16F, CUDA_R_32F],
        [CUDA_R_32F, CUDA_R_32F],
    ];
    for (m, n, k) in SIZES {
        for transposed in TRANSPOSES {
            for elements in types {
                Case { m, n, k, transposed, elements, ..Case::default() }.check();
            }
        }
    }
}

#[test]
fn strides_orders_and_batches() {
    for transposed in TRANSPOSES {
        for orders in 0..8 {
            let row_major = [orders & 1 != 0, orders & 2 != 0, orders & 4 != 0];
            for (padding, batches) in [(3, 1), (0, 3), (5, 2)] {
                let beta = 1.0;
                let case =
                    Case { transposed, row_major, padding, batches, beta, ..Case::default() };
                case.check();
            }
        }
    }
}

#[test]
fn alpha_beta_bias_and_a_product_in_place() {
    for elements in [[CUDA_R_16BF, CUDA_R_16BF], [CUDA_R_32F, CUDA_R_32F]] {
        for (alpha, beta) in [(1.0, 0.0), (0.5, 1.0), (-1.5, -0.25), (0.0, 2.0)] {
            for (bias, in_place) in [(false, true), (true, false), (true, true)] {
                let padding = 2;
                let case =
                    Case { elements, alpha, beta, bias, in_place, padding, ..Case::default() };
                case.check();
            }
        }
    }
}

/// C = A B of [2, 2] f32 matrices, column by column: A = [1 2; 3 4], B = 2.
pub fn small(stream: &Arc<CudaStream>) -> (Call, [CudaSlice<f32>; 3]) {
    let matrices = [[1.0f32, 3.0, 2.0, 4.0], [2.0, 0.0, 0.0, 2.0], [0.0; 4]]
        .map(|values| stream.clone_htod(&values).unwrap());
    let [a, b, c] = matrices.each_ref().map(|matrix| matrix.device_ptr(stream).0);
    let call = Call {
        layouts: [Layout::new(CUDA_R_32F, 2, 2); 4],
        addresses: [a, b, c, c],
        transposed: [false; 2],
        alpha: 1.0,
        beta: 0.0,
        scalars: None,
        epilogue: CUBLASLT_EPILOGUE_DEFAULT,
        bias: 0,
        compute: CUBLAS_COMPUTE_32F_FAST_TF32,
        alignment: 256,
        workspace: (0, 0),
    };
    (call, matrices)
}

#[test]
fn a_product_is_captured_and_replayed() {
    let stream = stream();
    let (call, [mut a, _b, c]) = small(&stream);
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    stream.begin_capture(mode).unwrap();
    call.run(&stream).unwrap();
    let graph = stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [0.0; 4]);
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [2.0, 6.0, 4.0, 8.0]);
    stream.memcpy_htod(&[10.0f32; 4], &mut a).unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [20.0; 4]);
}

#[test]
fn scalars_may_lie_on_the_device() {
    let stream = stream();
    let (call, [_a, _b, c]) = small(&stream);
    let scalars = stream.clone_htod(&[0.5f32, 0.0]).unwrap();
    let (at, _read) = scalars.device_ptr(&stream);
    let call = Call { scalars: Some([at, at + 4]), ..call };
    call.run(&stream).unwrap();
    assert_eq!(stream.clone_dtoh(&c).unwrap(), [1.0, 3.0, 2.0, 4.0]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let stream = stream();
    let (m, n, k) = (200, 190, 180);
    let mut random = Random(1);
    let mut matrix = |rows, columns| {
        Matrix::random(&stream, &mut random, Layout::new(CUDA_R_32F, rows, columns))
    };
    let (a, b, c, c_again) = (matrix(m, k), matrix(k, n), matrix(m, n), matrix(m, n));
    let multiply = |b_at: u64, target: &Matrix, from: usize, columns: usize| {
        let at = target.address(&stream) + (4 * m * from) as u64;
        let [of_b, of_c] = [(k, columns), (m, columns)]
            .map(|(rows, columns)| Layout::new(CUDA_R_32F, rows, columns));
        let call = Call {
            layouts: [a.layout, of_b, of_c, of_c],
            addresses: [a.address(&stream), b_at, at, at],
            alignment: 4,
            ..small(&stream).0
        };
        call.run(&stream).unwrap();
    };
    multiply(b.address(&stream), &c, 0, n);
    for column in 0..n {
        multiply(b.address(&stream) + (4 * k * column) as u64, &c_again, column, 1);
    }
    assert!(c.read(&stream) == c_again.read(&stream), "one column needs one thread only");
}
