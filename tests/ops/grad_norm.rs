//! The gradient's norm against a plain sum, the verdict on a step, and the search for what is not
//! finite. CUDA gives the CPU's bits.

use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::grad_norm::{self, Step, Verdict, all_finite, first_non_finite};
use silkie::tensor::{DType, Tensor};

use crate::support::*;

/// Elements whose squares a block sums, and those that one of its warps sums.
const CHUNK: usize = 64 * 1024;
const PIECE: usize = 8 * 1024;

const STEP: Step = Step { lr: 1e-3, scale: 0.25, loss: 1.5 };

/// The verdict on the gradient `g`, which starts `offset` elements into a buffer of NaN.
fn judge(device: Device, g: &[f32], offset: usize, step: Step, most: f64) -> Verdict {
    let before = Verdict { updates: 4.0, skipped: 2.0, ..Verdict::default() };
    let n = g.len();
    let guarded = [&vec![f32::NAN; offset], g, &[f32::NAN; 3]].concat();
    let row = |dtype, cols| Buffer::on(device, dtype, 1, cols).unwrap();
    let mut buffer = row(DType::F32, guarded.len());
    buffer.upload(Tensor::vector(&guarded)).unwrap();
    let (mut steps, mut verdicts) = (row(DType::F64, 3), row(DType::F64, 5));
    let mut partials = row(DType::F64, grad_norm::partials(n));
    partials.upload(Tensor::vector(&vec![f64::NAN; partials.cols()])).unwrap();
    steps.upload(step.view()).unwrap();
    verdicts.upload(before.view()).unwrap();
    let g = buffer.view().slice_cols(offset..offset + n);
    let (partials, verdict) = (partials.view_mut(), verdicts.view_mut());
    grad_norm::forward(g, steps.view(), partials, verdict, most).unwrap();
    let mut verdict = Verdict::default();
    verdicts.download(verdict.view_mut()).unwrap();
    verdict
}

fn sum_of_squares(g: &[f32]) -> f64 {
    let Verdict { norm, .. } = judge(Device::Cpu, g, 0, Step { scale: 1.0, ..STEP }, 0.0);
    norm * norm
}

fn bits(v: Verdict) -> [u64; 5] {
    [v.norm, v.scale, v.finite, v.updates, v.skipped].map(f64::to_bits)
}

#[test]
fn agrees_with_a_plain_sum() {
    let tiles = [128, PIECE, CHUNK].into_iter().flat_map(|tile| [tile - 1, tile, tile + 1]);
    for n in [0, 1, 3, 4, 5, 1000, 2 * CHUNK + 5].into_iter().chain(tiles) {
        let g = random(n, 1);
        let want: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>().sqrt() / 4.0;
        let got = judge(Device::Cpu, &g, 8, STEP, 0.0);
        assert!((got.norm - want).abs() <= 1e-12 * want, "{n} elements: {got:?}, expected {want}");
        assert_eq!([got.scale, got.finite, got.updates, got.skipped], [0.25, 1.0, 5.0, 2.0]);
        for Place { device, .. } in places() {
            for _ in 0..2 {
                assert_eq!(bits(judge(device, &g, 8, STEP, 0.0)), bits(got), "{n} on {device}");
            }
        }
    }
}

#[test]
fn huge_and_tiny_values_neither_overflow_nor_vanish() {
    for x in [1e30, f32::MAX, 1e-30, f32::MIN_POSITIVE / 1024.0] {
        let want = 2.0 * f64::from(x) * STEP.scale;
        let got = judge(Device::Cpu, &[x; 4], 0, STEP, 0.0);
        assert!((got.norm - want).abs() <= 1e-15 * want, "{x:e}: {got:?}, expected {want:e}");
        for Place { device, .. } in places() {
            assert_eq!(bits(judge(device, &[x; 4], 0, STEP, 0.0)), bits(got), "{x:e} on {device}");
        }
    }
}

#[test]
fn the_gradient_is_clipped_as_torch_does() {
    let g = [3.0, 4.0];
    for Place { device, .. } in places() {
        let scale = |most: f64| judge(device, &g, 0, STEP, most).scale;
        assert_eq!(scale(0.0), 0.25);
        assert_eq!(scale(1.25001), 0.25, "the norm is 1.25");
        assert_eq!(scale(0.5), 0.25 * (0.5 / (1.25 + 1e-6)));
        assert_eq!(judge(device, &g, 0, STEP, 0.5).norm, 1.25, "before it is clipped");
    }
}

#[test]
fn a_step_that_is_not_finite_counts_as_skipped() {
    let skipped = |verdict: Verdict| {
        assert_eq!([verdict.scale, verdict.finite], [0.0, 0.0]);
        assert_eq!([verdict.updates, verdict.skipped], [4.0, 3.0]);
    };
    let infinite = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    for Place { device, .. } in places() {
        for (at, value) in [0, 700, CHUNK, CHUNK + 4].into_iter().zip(infinite.into_iter().cycle())
        {
            let mut g = random(CHUNK + 5, 1);
            g[at] = value;
            let verdict = judge(device, &g, 0, STEP, 1.0);
            assert!(!verdict.norm.is_finite());
            skipped(verdict);
        }
        for loss in [f64::NAN, f64::INFINITY] {
            let verdict = judge(device, &[3.0, 4.0], 0, Step { loss, ..STEP }, 1.0);
            assert_eq!(verdict.norm, 1.25);
            skipped(verdict);
        }
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let g: Vec<f32> = random(5 * CHUNK + 3, 1).iter().map(|x| x.powi(9)).collect();
    same_on_any_threads("grad_norm", || {
        let bits = sum_of_squares(&g).to_bits();
        [bits as u32, (bits >> 32) as u32].map(f32::from_bits).to_vec()
    });
}

#[test]
fn the_first_non_finite_element_is_named() {
    let mut g = random(3 * CHUNK, 1);
    assert!(all_finite(&g) && all_finite(&[]) && all_finite(&[f32::MAX, f32::MIN]));
    for (at, value) in [
        (3 * CHUNK - 1, f32::NAN),
        (2 * CHUNK, f32::INFINITY),
        (CHUNK + 77, f32::NEG_INFINITY),
        (0, f32::NAN),
    ] {
        g[at] = value;
        assert_eq!(first_non_finite(&g), Some(at));
        assert!(!all_finite(&g));
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let (g, mut verdict) = (random(CHUNK + 1, 1), Verdict::default());
    let mut partials = Buffer::host(DType::F64, 1, 1);
    let (g, step, p) = (Tensor::vector(&g), STEP, partials.view_mut());
    let error = grad_norm::forward(g, step.view(), p, verdict.view_mut(), 0.0);
    let expected = "grad_norm::forward: partials has shape [1, 1], expected [1, 2] (1, \
                    partials(elements))";
    assert_eq!(refusal(error), expected);
    let mut partials = Buffer::host(DType::F64, 1, 2);
    let p = partials.view_mut();
    let error = grad_norm::forward(g, g.slice_cols(0..3), p, verdict.view_mut(), 0.0);
    assert_eq!(refusal(error), "grad_norm::forward: step has type F32, expected F64");
    let Some(cuda) = cuda() else { return };
    let device = Device::Cuda(cuda);
    let buffer = |dtype, cols| Buffer::on(device, dtype, 1, cols).unwrap();
    let [mut partials, mut verdict] = [1, 5].map(|cols| buffer(DType::F64, cols));
    let (g, step) = (buffer(DType::F32, 9), buffer(DType::F64, 3));
    let g = g.view().slice_cols(1..9);
    let error = grad_norm::forward(g, step.view(), partials.view_mut(), verdict.view_mut(), 0.0);
    assert_eq!(
        refusal(error),
        "grad_norm::forward: g has rows that do not start at multiples of 16 bytes"
    );
}

proptest! {
    #[test]
    fn any_place_is_found(n in 1usize..2000, seed: usize, value in prop::sample::select(
        vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY]))
    {
        let mut g = random(n, 1);
        g[seed % n] = value;
        prop_assert_eq!(first_non_finite(&g), Some(seed % n));
    }
}
