//! Backward by itself: of what the CPU's forward leaves, whatever the one of the same device does.

use super::*;

impl Case {
    fn width(&self) -> usize {
        self.heads * self.hd
    }

    /// `[o, lse]` as the CPU makes them of the same inputs.
    fn outputs(&self, inputs: &[Matrix; 4]) -> [Matrix; 2] {
        let (cpu, width) = (self.on(Place::CPU), self.width());
        let on_cpu = inputs.each_ref().map(|x| {
            let values = x.values();
            cpu.place.matrix(&values, values.len() / width, width, self.lay)
        });
        let [o, lse] = cpu.forward(&on_cpu).unwrap().map(|x| x.values());
        [
            self.place.matrix(&o, self.queries, width, self.lay),
            self.place.of(DType::F32).matrix(&lse, self.heads, self.queries, self.lay),
        ]
    }

    fn gradients(&self, inputs: &[Matrix; 4]) -> [Vec<f32>; 3] {
        self.backward(inputs, &self.outputs(inputs)).unwrap().map(|x| x.values())
    }

    /// Judged by the definition.
    fn check_gradients(&self, name: &str, inputs: &[Matrix; 4], bound: f64) {
        self.judge_gradients(name, inputs, &self.outputs(inputs), bound);
    }

    /// Row by row, head by head, what the three hold of it.
    fn weave(&self, three: &[Vec<f32>; 3]) -> Vec<f32> {
        let mut woven = Vec::new();
        for at in (0..three[0].len()).step_by(self.hd) {
            three.iter().for_each(|x| woven.extend(&x[at..at + self.hd]));
        }
        woven
    }

    /// Rows of a one in a column that differs between neighbours and heads.
    fn ones(&self, rows: usize) -> Vec<f32> {
        let mut x = vec![0.0; rows * self.width()];
        for (row, head) in (0..rows).flat_map(|row| (0..self.heads).map(move |head| (row, head))) {
            x[row * self.width() + head * self.hd + (row + head) % self.hd] = 1.0;
        }
        x
    }

    /// Scores and delta are 0, the log-sum-exp is given as 0 and dP is 1: then P and dS are 1 of every pair seen,
    /// and a gradient counts, by columns, the rows that a row sees or is seen by. One pair too many or too
    /// few is off by one.
    fn count_pairs(&self, name: &str) {
        let width = self.width();
        let case = (name, self.queries, self.keys, self.heads, self.hd, self.place);
        let seen: Vec<Vec<usize>> = (0..self.queries).map(|i| keys(&self.segments, i)).collect();
        let [queries, others] = [self.queries, self.keys].map(|rows| self.ones(rows));
        let (mut of_query, mut of_key) = (vec![0.0; queries.len()], vec![0.0; others.len()]);
        for (i, seen) in seen.iter().enumerate() {
            for (&j, c) in seen.iter().flat_map(|j| (0..width).map(move |c| (j, c))) {
                of_query[i * width + c] += f64::from(others[j * width + c]);
                of_key[j * width + c] += f64::from(queries[i * width + c]);
            }
        }
        let place = self.place;
        let matrix = |x: &[f32], rows: usize| place.matrix(x, rows, width, self.lay);
        let lse: Vec<f32> =
            seen.iter().map(|s| if s.is_empty() { f32::NEG_INFINITY } else { 0.0 }).collect();
        let outputs = [
            matrix(&vec![0.0; queries.len()], self.queries),
            place.of(DType::F32).matrix(
                &lse.repeat(self.heads),
                self.heads,
                self.queries,
                self.lay,
            ),
        ];
        let scale = f64::from(self.scale());
        let times = |x: &[f64], by: f64| x.iter().map(|x| x * by).collect::<Vec<_>>();
        for (q, k, of_q, of_k) in [(0.0, 1.0, scale, 0.0), (1.0, 0.0, 0.0, scale)] {
            let scaled = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<_>>();
            let inputs = [
                matrix(&scaled(&queries, q), self.queries),
                matrix(&scaled(&others, k), self.keys),
                matrix(&vec![1.0; others.len()], self.keys),
                matrix(&queries, self.queries),
            ];
            let [dq, dk, dv] = self.backward(&inputs, &outputs).unwrap().map(|x| x.values());
            assert_within(("dq", case), &dq, &times(&of_query, of_q), 0.25 * scale);
            assert_within(("dk", case), &dk, &times(&of_key, of_k), 0.25 * scale);
            assert_within(("dv", case), &dv, &of_key, 0.25);
        }
    }
}

/// One run of tokens that see each other, causally or not.
fn run(len: u32, causal: bool) -> Case {
    let segments = vec![segment([0, len], [0, 0], [0, len], causal)];
    of(segments, len as usize, len as usize)
}

fn of(segments: Vec<Segment>, queries: usize, keys: usize) -> Case {
    Case { place: Place::CPU, segments, queries, keys, heads: 2, hd: 16, lay: Lay::Strided }
}

/// Masks that end within strips, units and tiles.
fn masks() -> Vec<(&'static str, Case)> {
    let tree = |shape: &[(u32, &[u32])]| tree_case(shape, 2, 16, Lay::Strided);
    let gaps = [
        segment([2, 3], [0, 0], [4, 3], true),
        segment([5, 2], [0, 0], [0, 0], false),
        segment([9, 0], [0, 0], [9, 0], true),
        segment([90, 70], [11, 20], [100, 70], true),
    ];
    let shared = [
        segment([0, 4], [10, 5], [0, 4], true),
        segment([4, 4], [0, 4], [4, 6], false),
        segment([8, 3], [12, 3], [0, 2], false),
        segment([11, 90], [3, 70], [80, 90], true),
    ];
    vec![
        ("group", tree(&[(85, &[25, 25, 25, 25])])),
        ("tiles", tree(&[(130, &[63, 64, 65]), (64, &[64])])),
        ("cross", of(vec![segment([0, 65], [0, 129], [0, 0], false)], 65, 129)),
        ("few keys", of(vec![segment([0, 200], [0, 0], [0, 3], false)], 200, 3)),
        ("gaps", of(gaps.to_vec(), 170, 180)),
        ("shared", of(shared.to_vec(), 101, 180)),
        ("no segment", of(vec![], 70, 130)),
        ("no query", of(vec![], 0, 3)),
    ]
}

#[test]
fn every_pair_that_is_seen_counts_once() {
    for place in attention_places() {
        for (name, case) in masks().into_iter().chain(cases()) {
            Case { hd: 16, ..case.on(place) }.count_pairs(name);
        }
        for len in [1, 7, 8, 9, 15, 16, 17, 63, 64, 65, 127, 128, 129, 193] {
            run(len, true).on(place).count_pairs("causal");
            run(len, false).on(place).count_pairs("bidirectional");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn every_pair_of_any_pack_counts_once(
        shape in prop::collection::vec((1u32..150, prop::collection::vec(1u32..80, 0..4)), 1..4),
        hd in prop::sample::select(vec![8, 16, 64, 104, 128]),
    ) {
        let shape: Vec<(u32, &[u32])> = shape.iter().map(|(t, b)| (*t, b.as_slice())).collect();
        for place in attention_places() {
            tree_case(&shape, 1, hd, Lay::Dense).on(place).count_pairs("any");
        }
    }
}

/// Every instance, whole and with columns to spare: with and without masks, more items than blocks.
#[test]
fn any_head_dim() {
    for place in attention_places() {
        for hd in [8, 24, 32, 40, 64, 72, 104, 112, 128] {
            for lay in LAYS {
                let case = tree_case(&[(70, &[9, 81])], 2, hd, lay).on(place);
                case.check_gradients("tree", &case.inputs(), BOUND);
            }
        }
    }
}

#[test]
fn masks_of_every_kind() {
    for place in attention_places() {
        for (name, case) in masks() {
            let case = Case { hd: 24, ..case.on(place) };
            case.check_gradients(name, &case.inputs(), BOUND);
        }
    }
}

/// Scores so far below zero that e^-lse is beyond f32: neither rows that are not there nor keys that are not seen
/// may take part with that.
#[test]
fn scores_far_below_zero() {
    for place in attention_places() {
        for (name, case) in [("causal", run(100, true)), ("image", run(150, false))] {
            let case = case.on(place);
            let mut inputs = case.inputs();
            for (which, by) in [(0, -6.0), (1, 6.0)] {
                let rows = inputs[which].values();
                let far: Vec<f32> = rows.iter().map(|x| 0.5 * x + by).collect();
                inputs[which] = place.matrix(&far, case.queries, case.width(), case.lay);
            }
            // Scores of some -150 carry 1e-5 of rounding into the exponent, gradients cancel on top.
            case.check_gradients(name, &inputs, 1e-3);
        }
    }
}

/// What is not finite reaches the gradients of its own row and of those that see it.
#[test]
fn nan_is_passed_on() {
    for place in attention_places() {
        let case = run(150, true).on(place);
        for (which, row) in [(0, 70), (3, 149), (1, 3)] {
            let mut inputs = case.inputs();
            let mut values = inputs[which].values();
            values[row * case.width()] = f32::NAN;
            inputs[which] = place.matrix(&values, case.queries, case.width(), case.lay);
            let [dq, dk, dv] = case.gradients(&inputs);
            let is_nan = |x: &[f32], row: usize| {
                x[row * case.width()..][..case.hd].iter().all(|x| x.is_nan())
            };
            assert!(is_nan(&dq, row) || which == 1, "{which} {place:?}");
            assert!(is_nan(&dq, 149) || which != 1, "{which} {place:?}");
            assert!(is_nan(&dk, 2) && (is_nan(&dv, 2) || which == 3), "{which} {place:?}");
        }
    }
}

/// A tower's product holds q, k and v head by head, and its gradient likewise.
#[test]
fn heads_that_are_interleaved() {
    for place in attention_places() {
        let case = Case { hd: 104, ..run(75, false).on(place) };
        let (inputs, hd, rows) = (case.inputs(), case.hd, case.queries);
        let outputs = case.outputs(&inputs);
        let apart = case.backward(&inputs, &outputs).unwrap().map(|x| x.values());
        let [q, k, v, d_o] = &inputs;
        let woven = case.weave(&[q, k, v].map(Matrix::values));
        let qkv = place.matrix(&woven, rows, 3 * case.width(), case.lay);
        let mut d_qkv = place.poisoned(rows, 3 * case.width(), case.lay);
        let (mut delta, plan) = (case.statistics(), case.plan());
        let [q, k, v] = Heads::interleaved(qkv.view(), hd);
        let [dq, dk, dv] = HeadsMut::interleaved(d_qkv.view_mut(), hd);
        let [o, d_o] = [&outputs[0], d_o].map(|x| Heads::dense(x.view(), hd));
        let (lse, delta, mask) = (outputs[1].view(), delta.view_mut(), case.mask(&plan));
        attention::backward(q, k, v, o, lse, d_o, mask, dq, dk, dv, delta, case.scale()).unwrap();
        assert_same_bits(place, &d_qkv.values(), &case.weave(&apart));
    }
}

#[test]
fn same_bits_on_another_run() {
    for place in attention_places() {
        for case in [tree_case(&[(200, &[60, 50]), (30, &[9])], 2, 64, Lay::Dense), run(193, false)]
        {
            let case = case.on(place);
            let inputs = case.inputs();
            let outputs = case.outputs(&inputs);
            let once = || case.backward(&inputs, &outputs).unwrap().map(|x| x.values()).concat();
            let first = once();
            for _ in 0..3 {
                assert_same_bits((place, case.queries), &once(), &first);
            }
        }
    }
}

/// A plan for other numbers of rows stops the launch. (A GPU would not go on after that.)
#[test]
fn a_plan_of_another_pack_is_refused() {
    let on_gpu = attention_places().find(|place| *place != Place::CPU);
    let Some(place) = on_gpu.filter(|_| is_emulated()) else { return };
    let (case, other) = (run(100, true).on(place), run(99, true));
    let inputs = case.inputs();
    let mut words = vec![0; attention::plan_len(100, 100)];
    attention::plan(&other.segments, 99, 99, &mut words).unwrap();
    let plan = Some(place.buffer(&words, 1, words.len()));
    let [q, k, v, d_o] = inputs.each_ref().map(|x| Heads::dense(x.view(), case.hd));
    let [o, lse] = &case.outputs(&inputs);
    let mut out = [0; 3].map(|_| place.poisoned(100, case.width(), case.lay));
    let [dq, dk, dv] = out.each_mut().map(|x| HeadsMut::dense(x.view_mut(), case.hd));
    let (mut delta, o, mask) =
        (case.statistics(), Heads::dense(o.view(), case.hd), case.mask(&plan));
    let message = refusal(attention::backward(
        q,
        k,
        v,
        o,
        lse.view(),
        d_o,
        mask,
        dq,
        dk,
        dv,
        delta.view_mut(),
        1.0,
    ));
    assert!(message.contains("attention_backward_d32_bf16"), "{message}");
}
