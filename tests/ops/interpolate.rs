//! Bicubic resize against its equation in f64 and PyTorch's recorded numbers.

use proptest::prelude::*;
use silkie::model::config::ModelConfig;
use silkie::model::weights::Weights;
use silkie::ops::interpolate;
use silkie::tensor::Tensor;

use crate::support::*;

/// Sixteen products in f32.
const BOUND: f64 = 5e-7;

/// Keys' kernel with a = -0.75, written by powers.
fn cubic(x: f64) -> f64 {
    let (x, a) = (x.abs(), -0.75);
    match x {
        x if x <= 1.0 => (a + 2.0) * x.powi(3) - (a + 3.0) * x.powi(2) + 1.0,
        x if x < 2.0 => a * x.powi(3) - 5.0 * a * x.powi(2) + 8.0 * a * x - 4.0 * a,
        _ => 0.0,
    }
}

/// `[t·t, g·g]`: the whole resize as one matrix, from every neighbour's distance.
fn matrix(g: usize, t: usize) -> Vec<f64> {
    let axis = |i: usize| {
        let mut weights = vec![0.0; g];
        let centre = (i as f64 + 0.5) * g as f64 / t as f64 - 0.5;
        for place in centre.floor() as i64 - 1..=centre.floor() as i64 + 2 {
            weights[place.clamp(0, g as i64 - 1) as usize] += cubic(centre - place as f64);
        }
        weights
    };
    let rows: Vec<Vec<f64>> = (0..t).map(axis).collect();
    let mut all = vec![];
    for (y, x) in (0..t * t).map(|i| (i / t, i % t)) {
        all.extend((0..g * g).map(|k| rows[y][k / g] * rows[x][k % g]));
    }
    all
}

fn judge(g: usize, t: usize, width: usize, lay: Lay) {
    let what = |part: &str| format!("interpolate {part} {g}² to {t}² x {width} {lay:?}");
    let weights = matrix(g, t);
    let src = Matrix::random(g * g, width, lay, 1);
    let mut dst = Matrix::poisoned(t * t, width, lay);
    interpolate::forward(src.view(), dst.view_mut()).unwrap();
    let (mut want, values) = (vec![0.0; t * t * width], src.f64());
    let mut sizes = want.clone();
    for (i, row) in weights.chunks(g * g).enumerate() {
        for (k, w) in row.iter().enumerate() {
            for j in 0..width {
                let term = w * values[k * width + j];
                want[i * width + j] += term;
                sizes[i * width + j] += term.abs();
            }
        }
    }
    assert_sums_close(what("forward"), &dst.values(), &want, &sizes, BOUND);
    if g == t {
        assert_same_bits(what("copy"), &dst.values(), &src.values());
    }

    let ddst = Matrix::random(t * t, width, lay, 2);
    let (mut want, values) = (src.f64(), ddst.f64());
    let mut sizes: Vec<f64> = want.iter().map(|x| x.abs()).collect();
    for (i, row) in weights.chunks(g * g).enumerate() {
        for (k, w) in row.iter().enumerate() {
            for j in 0..width {
                let term = w * values[i * width + j];
                want[k * width + j] += term;
                sizes[k * width + j] += term.abs();
            }
        }
    }
    let mut dsrc = src.clone();
    interpolate::backward(ddst.view(), dsrc.view_mut()).unwrap();
    // a source cell adds up the (t / g)² rows it reached, one rounding each
    let bound = BOUND * (2.0 + t as f64 / g as f64);
    assert_close(what("backward"), &dsrc.values(), &want, bound);
}

#[test]
fn agrees_with_the_equation() {
    for (g, t) in [(1, 1), (1, 3), (3, 1), (4, 4), (16, 8), (5, 7), (7, 5), (16, 32)] {
        for lay in LAYS {
            judge(g, t, 13, lay);
        }
    }
    judge(4, 6, 300, Lay::Dense);
}

#[test]
fn a_constant_stays_constant() {
    for t in [1, 3, 8, 31] {
        let src = Matrix::of(&[2.5e8; 36], 36, 1, Lay::Dense);
        let mut dst = Matrix::poisoned(t * t, 1, Lay::Dense);
        interpolate::forward(src.view(), dst.view_mut()).unwrap();
        assert_close(format!("to {t}"), &dst.values(), &vec![2.5e8; t * t], BOUND);
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let ddst = Matrix::random(31 * 31, 517, Lay::Dense, 1);
    same_on_any_threads("interpolate", || {
        let mut dsrc = Matrix::of(&vec![0.0; 256 * 517], 256, 517, Lay::Dense);
        interpolate::backward(ddst.view(), dsrc.view_mut()).unwrap();
        let mut back = Matrix::poisoned(9, 517, Lay::Dense);
        interpolate::forward(dsrc.view(), back.view_mut()).unwrap();
        [dsrc.values(), back.values()].concat()
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let (src, mut dst) = (Matrix::random(4, 2, Lay::Dense, 1), Matrix::poisoned(5, 2, Lay::Dense));
    let error = refusal(interpolate::forward(src.view(), dst.view_mut()));
    let expected = "interpolate::forward: dst has 5 rows, expected a square number of at least 1";
    assert_eq!(error, expected);
    let mut dst = Matrix::poisoned(0, 2, Lay::Dense);
    let error = refusal(interpolate::backward(src.view(), dst.view_mut()));
    assert!(error.starts_with("interpolate::backward: dsrc has 0 rows"), "{error}");
    let mut dst = Matrix::poisoned(4, 3, Lay::Dense);
    let error = refusal(interpolate::forward(src.view(), dst.view_mut()));
    let expected =
        "interpolate::forward: dst has shape [4, 3], expected [4, 2] (grid · grid, width)";
    assert_eq!(error, expected);
}

#[test]
fn goldens_of_pytorch() {
    let Some(goldens) = goldens() else { return };
    let model = goldens.join("tiny-qwen-vl");
    let config = ModelConfig::read(&model).unwrap();
    let weights = Weights::open(&model, &config).unwrap();
    let recorded = Golden::open(goldens.join("forward.safetensors"));
    let compare = |source: &str, name: &str| {
        let source = weights.get(&format!("transformer.visual.{source}"));
        let (rows, width) = (source.shape()[0], source.shape()[1]);
        let (values, want) = (source.to_f32(), recorded.f64(name));
        let mut dst = vec![f32::NAN; want.len()];
        let dst_view = silkie::tensor::TensorMut::new(&mut dst, want.len() / width, width);
        interpolate::forward(Tensor::new(&values, rows, width), dst_view).unwrap();
        assert_within(name, &dst, &want, 1e-5);
    };
    for name in recorded.names().iter().filter(|name| name.starts_with("posinterp.to_")) {
        compare("positional_embedding", name);
    }
    compare("positional_embedding", "vision.pos_interp");
    compare("attn_pool.pos_embed", "vision.resampler_pos_kv");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_grids_agree(g in 1usize..12, t in 1usize..12, width in 1usize..20, strided: bool) {
        judge(g, t, width, if strided { Lay::Strided } else { Lay::Dense });
    }
}
