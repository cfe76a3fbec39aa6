//! Rope against complex rotation in f64; on the CPU and on CUDA; its tables
//! against recorded numbers of PyTorch.

use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::rope::{self, Table};
use silkie::tensor::{DType, Tensor, TensorMut};

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

#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: usize,
    heads: usize,
    head_dim: usize,
    lay: Lay,
    with_logn: bool,
}

/// What rope reads beside q and k, where `place` is.
struct Angles {
    positions: Buffer,
    table: Matrix,
    logn: Option<Matrix>,
}

impl Angles {
    fn new(place: Place, positions: &[u32], table: &Table, logn: Option<&[f32]>, lay: Lay) -> Self {
        let mut index = Buffer::on(place.device, DType::U32, positions.len(), 1).unwrap();
        index.upload(Tensor::column(positions)).unwrap();
        let (view, place) = (table.view(), place.of(DType::F32));
        let [n, head_dim] = view.shape();
        Angles {
            positions: index,
            table: place.matrix(view.elements(), n, head_dim, lay),
            logn: logn.map(|logn| place.matrix(logn, logn.len(), 1, lay)),
        }
    }

    fn turn(&self, run: Run, qk: &mut Matrix, head_dim: usize) -> silkie::Result<()> {
        let logn = self.logn.as_ref().map(Matrix::view);
        run(qk.view_mut(), self.positions.view(), self.table.view(), logn, head_dim)
    }
}

impl Case {
    fn judge(&self, place: Place) {
        let Case { tokens, heads, head_dim, lay, with_logn } = *self;
        let (cols, n) = (2 * heads * head_dim, 50);
        let table = Table::new(head_dim, n, 10_000.0, 1.0);
        let positions = random_indices(tokens, n, 1);
        let factors = rope::logn(16, n);
        let logn = with_logn.then_some(factors.as_slice());
        let angles = Angles::new(place, &positions, &table, logn, lay);
        let start = place.random(tokens, cols, lay, 2);
        for (part, run, direction) in
            [("forward", rope::forward as Run, 1.0), ("backward", rope::backward as Run, -1.0)]
        {
            let mut qk = start.clone();
            angles.turn(run, &mut qk, head_dim).unwrap();
            let exact = naive(&start.f64(), cols, head_dim, &table, &positions, logn, direction);
            let rounded: Vec<f64> = exact.iter().map(|&x| place.round(x)).collect();
            let what = format!("rope {part} {self:?} {place:?}");
            assert_rounded(what, &qk.values(), &exact, &rounded, BOUND);
        }
    }
}

type Run = for<'a, 'b, 'c, 'd> fn(
    TensorMut<'a>,
    Tensor<'b>,
    Tensor<'c>,
    Option<Tensor<'d>>,
    usize,
) -> silkie::Result<()>;

/// Tokens, heads, head_dim. Odd ones for the CPU; around the 8 tokens of a block; heads around the
/// 4 times 2, 4 or 32 that a warp has in flight at widths 128, 64 and 8; a width whose lanes do not
/// fill a warp, and those around 256, beyond which a lane comes round again.
const SHAPES: [[usize; 3]; 21] = [
    [0, 1, 8],
    [1, 1, 2],
    [5, 3, 6],
    [1, 1, 8],
    [7, 2, 128],
    [8, 3, 128],
    [9, 4, 128],
    [2, 5, 128],
    [3, 7, 64],
    [2, 8, 64],
    [3, 9, 64],
    [2, 63, 8],
    [2, 64, 8],
    [2, 65, 8],
    [33, 4, 32],
    [15, 3, 104],
    [16, 4, 24],
    [17, 1, 248],
    [3, 2, 256],
    [3, 2, 264],
    [2, 1, 520],
];

#[test]
fn agrees_with_the_equation() {
    for place in places() {
        for [tokens, heads, head_dim] in SHAPES {
            for (lay, with_logn) in LAYS.into_iter().flat_map(|lay| [(lay, false), (lay, true)]) {
                if place.device == Device::Cpu || head_dim.is_multiple_of(8) {
                    Case { tokens, heads, head_dim, lay, with_logn }.judge(place);
                }
            }
        }
    }
    let case = Case { tokens: 300, heads: 2, head_dim: 104, lay: Lay::Strided, with_logn: true };
    places().into_iter().for_each(|place| case.judge(place));
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
    for place in places() {
        let (tokens, head_dim) = (if place.device == Device::Cpu { 3000 } else { 200 }, 64);
        let table = Table::new(head_dim, tokens, 10_000.0, 1.0);
        let positions: Vec<u32> = (0..tokens as u32).collect();
        let angles = Angles::new(place, &positions, &table, None, Lay::Dense);
        let start = place.random(tokens, 2 * head_dim, Lay::Dense, 1);
        let got = same_on_any_threads(format!("rope {place:?}"), || {
            let mut qk = start.clone();
            for run in [rope::forward as Run, rope::backward as Run] {
                angles.turn(run, &mut qk, head_dim).unwrap();
            }
            qk.values()
        });
        // bf16: two roundings of 2^-9, each of an element of the turned pair
        let bound = if place.dtype == DType::Bf16 { 2f64.powi(-8) } else { BOUND };
        assert_close(format!("rope there and back {place:?}"), &got, &start.f64(), bound);
    }
}

#[test]
fn a_position_beyond_the_table_or_logn_makes_its_row_nan_on_a_gpu() {
    let (head_dim, cols) = (16, 2 * 3 * 16);
    let table = Table::new(head_dim, 5, 10_000.0, 1.0);
    for place in places().into_iter().filter(|place| place.device != Device::Cpu) {
        for (logn, known) in [(None, 5), (Some([1.5; 4].as_slice()), 4), (Some(&[1.5; 7]), 5)] {
            let positions = [3, 4, 0, 5, u32::MAX, 2];
            let angles = Angles::new(place, &positions, &table, logn, Lay::Strided);
            let start = place.random(positions.len(), cols, Lay::Strided, 1);
            let mut qk = start.clone();
            angles.turn(rope::forward, &mut qk, head_dim).unwrap();
            for (p, row) in positions.into_iter().zip(qk.values().chunks(cols)) {
                let beyond = p >= known;
                assert!(
                    row.iter().all(|x| x.is_nan() == beyond),
                    "{place:?} position {p}: {row:?}"
                );
            }
        }
    }
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

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_turn() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let table = Table::new(12, 5, 10_000.0, 1.0);
    let angles = Angles::new(place, &[0, 1], &table, None, Lay::Dense);
    assert_eq!(
        refusal(angles.turn(rope::backward, &mut place.random(2, 24, Lay::Dense, 1), 12)),
        "rope::backward: head_dim is 12, expected a multiple of 8: kernels turn 4 elements of each \
         half of a head at a time"
    );
    let table = Table::new(16, 5, 10_000.0, 1.0);
    let angles = Angles::new(Place::CPU, &[0, 1], &table, None, Lay::Dense);
    let mut qk = place.random(2, 32, Lay::Dense, 1);
    assert_eq!(
        refusal(angles.turn(rope::forward, &mut qk, 16)),
        format!(
            "rope::forward: positions is on cpu, expected cuda:{} like the others",
            cuda.ordinal()
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(tokens in 0usize..20, heads in 1usize..5, half in 1usize..40, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        let case = Case { tokens, heads, head_dim: 2 * half, lay, with_logn: true };
        case.judge(Place::CPU);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_agrees_on_a_gpu(
        tokens in 0usize..20,
        heads in 1usize..20,
        eighths in 1usize..20,
        strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        let case = Case { tokens, heads, head_dim: 8 * eighths, lay, with_logn: true };
        for place in places().into_iter().filter(|place| place.device != Device::Cpu) {
            case.judge(place);
        }
    }
}
