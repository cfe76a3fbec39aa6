//! The kernel of benches/attention.cu: its inputs, its launch, and how far its results are from the equation.

use std::path::PathBuf;

use emucuda::exec::{Counters, Options};
use emucuda::report::Fault;

use crate::device::{Device, Params, Shape};

const DIM: usize = 64;
/// Queries of a block.
const TILE: usize = 64;
const THREADS: u32 = 128;
/// P is rounded to bf16, and so is O: |v| <= 1 bounds both errors by 2^-9.
pub const BOUND: f64 = 1.0 / 256.0;

pub fn source() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/attention.cu")
}

/// Tensors of `heads` x `tokens` x 64 on a device.
pub struct Attention {
    heads: usize,
    tokens: usize,
    /// q, k and v
    inputs: [Vec<u16>; 3],
    o: u64,
    params: Params,
}

impl Attention {
    pub fn new(device: &Device, heads: usize, tokens: usize) -> Attention {
        let elements = heads * tokens * DIM;
        let inputs = [1, 2, 3].map(|seed| numbers(elements, seed));
        let params =
            inputs.iter().fold(Params::new(), |params, input| params.with(device.upload(input)));
        let o = device.allocate(elements * 2);
        let params = params.with(o).with(tokens as i32);
        Attention { heads, tokens, inputs, o, params }
    }

    pub fn launch(&self, device: &Device, options: &Options) -> Result<Counters, Fault> {
        let grid = [self.tokens.div_ceil(TILE) as u32, self.heads as u32, 1];
        let shape = Shape { grid, block: THREADS, dynamic_shared: 0 };
        device.launch("attention", shape, &self.params, options)
    }

    /// What the latest launch left.
    pub fn output(&self, device: &Device) -> Vec<u16> {
        device.download(self.o, self.heads * self.tokens * DIM)
    }

    /// The largest difference from softmax(Q Kᵀ / 8) V in f64.
    pub fn error(&self, output: &[u16]) -> f64 {
        let [q, k, v] = &self.inputs;
        let mut worst = 0f64;
        for head in 0..self.heads {
            let rows = |of: &[u16]| -> Vec<Vec<f64>> {
                let size = self.tokens * DIM;
                of[head * size..(head + 1) * size].chunks(DIM).map(widen).collect()
            };
            let (keys, values) = (rows(k), rows(v));
            for (query, got) in rows(q).iter().zip(rows(output)) {
                let score =
                    |key: &Vec<f64>| query.iter().zip(key).map(|(q, k)| q * k).sum::<f64>() / 8.0;
                let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
                let total: f64 = weights.iter().sum();
                for (i, got) in got.into_iter().enumerate() {
                    let exact: f64 = weights.iter().zip(&values).map(|(w, v)| w * v[i]).sum();
                    worst = worst.max((got - exact / total).abs());
                }
            }
        }
        worst
    }
}

fn widen(row: &[u16]) -> Vec<f64> {
    row.iter().map(|&x| f32::from_bits((x as u32) << 16) as f64).collect()
}

/// Numbers of bf16 between -1 and 1 that look random.
fn numbers(count: usize, seed: u32) -> Vec<u16> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1664525).wrapping_add(1013904223);
        (((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_bits() >> 16) as u16
    };
    std::iter::repeat_with(next).take(count).collect()
}
