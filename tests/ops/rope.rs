//! Rope against complex rotation in f64; its tables against recorded numbers of PyTorch.

use proptest::prelude::*;
use silkie::ops::rope::{self, Table};
use silkie::tensor::Tensor;

use crate::support::*;

const BOUND: f64 = 3e-7;

/// Turns q (first half of the columns, scaled by `logn`) and k by `direction`.
fn naive(
    qk: &[f64],
    cols: usize,
    head_dim: usize,
    table: &Table,
    positions: &[u32],
    logn: Option<&[f32]>,
    direction: f64,
) -> Vec<f64> {
    let (mut out, half) = (qk.to_vec(), head_dim / 2);
    for (t, row) in out.chunks_mut(cols).enumerate() {
        let angles = table.view().row::<f32>(positions[t] as usize);
        for (h, head) in row.chunks_mut(head_dim).enumerate() {
            let is_q = h * head_dim < cols / 2;
            let factor = if is_q { logn.map_or(1.0, |l| l[positions[t] as usize]) } else { 1.0 };
            for i in 0..half {
                let (c, s) = (f64::from(angles[i]), direction * f64::from(angles[half + i]));
                let (x, y) = (head[i], head[half + i]);
                head[i] = f64::from(factor) * (x * c - y * s);
                head[half + i] = f64::from(factor) * (y * c + x * s);
            }
        }
    }
    out
}

fn judge(tokens: usize, heads: usize, head_dim: usize, lay: Lay, with_logn: bool) {
    let what = |part: &str| format!("rope {part} [{tokens}, 2·{heads}·{head_dim}] {lay:?}");
    let (cols, n) = (2 * heads * head_dim, 50);
    let table = Table::new(head_dim, n, 10_000.0, 1.0);
    let positions = random_indices(tokens, n, 1);
    let factors = rope::logn(16, n);
    let logn = with_logn.then_some(factors.as_slice());
    let start = Matrix::random(tokens, cols, lay, 2);
    let index = Tensor::column(&positions);
    for (part, run, direction) in
        [("forward", rope::forward as Run, 1.0), ("backward", rope::backward as Run, -1.0)]
    {
        let mut qk = start.clone();
        run(qk.view_mut(), index, table.view(), logn.map(Tensor::column), head_dim).unwrap();
        let want = naive(&start.f64(), cols, head_dim, &table, &positions, logn, direction);
        assert_close(what(part), &qk.values(), &want, BOUND);
    }
}

type Run = for<'a, 'b, 'c, 'd> fn(
    silkie::tensor::TensorMut<'a>,
    Tensor<'b>,
    Tensor<'c>,
    Option<Tensor<'d>>,
    usize,
) -> silkie::Result<()>;

#[test]
fn agrees_with_the_equation() {
    for (tokens, heads, head_dim) in
        [(0, 1, 2), (1, 1, 2), (5, 3, 6), (33, 4, 32), (7, 2, 128), (300, 2, 104)]
    {
        for lay in LAYS {
            judge(tokens, heads, head_dim, lay, false);
            judge(tokens, heads, head_dim, lay, true);
        }
    }
}

#[test]
fn the_backward_turn_is_the_derivative() {
    let (head_dim, cols, positions) = (4, 8, [3u32, 40]);
    let (table, factors) = (Table::new(head_dim, 50, 100.0, 1.0), rope::logn(16, 50));
    let [x, dy] =
        [1, 2].map(|seed| -> Vec<f64> { random(16, seed).into_iter().map(f64::from).collect() });
    let turn = |x: &[f64], way| naive(x, cols, head_dim, &table, &positions, Some(&factors), way);
    let by_differences = central_differences(&x, 1e-5, |x| inner(&turn(x, 1.0), &dy));
    assert_derivative(&turn(&dy, -1.0), &by_differences, 1e-8);
}

#[test]
fn forward_then_backward_gives_the_input_back() {
    let (tokens, head_dim) = (3000, 64);
    let table = Table::new(head_dim, tokens, 10_000.0, 1.0);
    let positions: Vec<u32> = (0..tokens as u32).collect();
    let start = Matrix::random(tokens, 2 * head_dim, Lay::Dense, 1);
    let got = same_on_any_threads("rope", || {
        let mut qk = start.clone();
        for run in [rope::forward as Run, rope::backward as Run] {
            run(qk.view_mut(), Tensor::column(&positions), table.view(), None, head_dim).unwrap();
        }
        qk.values()
    });
    assert_close("rope there and back", &got, &start.f64(), BOUND);
}

/// cos and sin of (position, dimension) as PyTorch 2.5.1 computes them in f32.
#[test]
fn tables_agree_with_recorded_numbers() {
    let plain = Table::new(128, 8192, 10_000.0, 1.0);
    let stretched = Table::new(32, 300, 10_000.0, 15.0);
    let recorded = [
        (&plain, 1, 0, 0.540302336, 0.841470957),
        (&plain, 8191, 1, 0.824230731, -0.566254079),
        (&plain, 8191, 17, 0.772136807, -0.635456324),
        (&plain, 5000, 63, 0.837889612, 0.545839727),
        (&stretched, 299, 1, -0.536396742, 0.843965948),
        (&stretched, 283, 7, 0.148104578, 0.98897171),
    ];
    for (table, position, i, cos, sin) in recorded {
        let row = table.view().row::<f32>(position);
        let got = [row[i], row[row.len() / 2 + i]];
        assert_within(format!("position {position}, {i}"), &got, &[cos, sin], 1e-6);
    }
}

#[test]
fn ntk_and_logn_follow_the_golden_table() {
    for (n, alpha) in [(1, 1.0), (64, 1.0), (65, 3.0), (149, 7.0), (284, 15.0)] {
        assert_eq!(rope::ntk_alpha(n, 64), alpha, "{n} tokens");
    }
    let factors = rope::logn(64, 128);
    assert!(factors[..64].iter().all(|&f| f == 1.0));
    assert_within("logn", &factors[127..], &[7.0 / 6.0], 1e-7);
}

#[test]
fn golden_ntk_alphas() {
    let Some(goldens) = goldens() else { return };
    let text = std::fs::read_to_string(goldens.join("forward.json")).unwrap();
    let long = &serde_json::from_str::<serde_json::Value>(&text).unwrap()["long"];
    let seq_length = long["seq_length"].as_u64().unwrap() as usize;
    for (name, case) in long["cases"].as_object().unwrap() {
        let alpha = rope::ntk_alpha(case["len"].as_u64().unwrap() as usize, seq_length);
        assert_eq!(Some(alpha), case["ntk_alpha_eval"].as_f64(), "{name}");
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let mut qk = Matrix::random(2, 8, Lay::Dense, 1);
    let table = Table::new(4, 5, 10_000.0, 1.0);
    let mut run = |positions: &[u32], logn: Option<&[f32]>, head_dim| {
        let (positions, logn) = (Tensor::column(positions), logn.map(Tensor::column));
        refusal(rope::forward(qk.view_mut(), positions, table.view(), logn, head_dim))
    };
    assert_eq!(
        run(&[4, 5], None, 4),
        "rope::forward: positions[1] is 5, expected less than 5 (the table's positions)"
    );
    assert_eq!(
        run(&[4, 3], Some(&[1.0; 4]), 4),
        "rope::forward: positions[0] is 4, expected less than 4 (the positions of logn)"
    );
    assert_eq!(
        run(&[0, 0], None, 2),
        "rope::forward: table has shape [5, 4], expected [5, 2] (positions, head_dim)"
    );
    for head_dim in [0, 3, 8] {
        let message = run(&[0, 0], None, head_dim);
        assert!(message.starts_with("rope::forward: qk has 8 columns"), "{message}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(tokens in 0usize..20, heads in 1usize..5, half in 1usize..40, strided: bool) {
        judge(tokens, heads, 2 * half, if strided { Lay::Strided } else { Lay::Dense }, true);
    }
}
