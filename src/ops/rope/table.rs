//! The tables rope reads: cosines and sines by position, logn factors, the NTK alpha.

use crate::device::Buffer;
use crate::tensor::Tensor;

/// Cosines and sines of every position: `[positions, head_dim]`, a row is `cos | sin`, each
/// `head_dim / 2` long.
pub struct Table {
    buffer: Buffer,
}

impl Table {
    /// Positions `0..positions` at `base' = base · ntk_alpha^(head_dim / (head_dim − 2))`.
    ///
    /// Rounds to f32 where PyTorch does (exponent, power, reciprocal, angle), because at position
    /// 8000 one rounding of a frequency moves the angle by 5e-4. Powers, cosines and sines are
    /// computed in f64, so that they are the same on every machine.
    pub fn new(head_dim: usize, positions: usize, base: f64, ntk_alpha: f64) -> Self {
        let (d, half) = (head_dim as f64, head_dim / 2);
        let base = f64::from((base * ntk_alpha.powf(d / (d - 2.0))) as f32);
        let frequency = |i: usize| {
            let exponent = (2 * i) as f32 / head_dim as f32;
            1.0 / base.powf(f64::from(exponent)) as f32
        };
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let mut buffer = Buffer::f32(positions, 2 * half);
        let mut view = buffer.view_mut();
        for p in 0..positions {
            let (cos, sin) = view.row::<f32>(p).split_at_mut(half);
            for ((c, s), frequency) in cos.iter_mut().zip(sin).zip(&frequencies) {
                let angle = f64::from(p as f32 * frequency);
                (*c, *s) = (angle.cos() as f32, angle.sin() as f32);
            }
        }
        Table { buffer }
    }

    /// `[positions, head_dim]`.
    pub fn view(&self) -> Tensor<'_> {
        self.buffer.view()
    }
}

/// Factors of q by 0-based position `p`: `ln(p + 1) / ln(seq_length)` beyond `seq_length`, else 1.
pub fn logn(seq_length: usize, positions: usize) -> Vec<f32> {
    let factor = |n: usize| (n as f64).ln() / (seq_length as f64).ln();
    (1..=positions).map(|n| if n > seq_length { factor(n) as f32 } else { 1.0 }).collect()
}

/// Dynamic NTK: `max(2^ceil(log2(n / seq_length) + 1) − 1, 1)` for a sequence of `n` tokens.
pub fn ntk_alpha(n: usize, seq_length: usize) -> f64 {
    let doublings = (n as f64 / seq_length as f64).log2() + 1.0;
    (doublings.ceil().exp2() - 1.0).max(1.0)
}
