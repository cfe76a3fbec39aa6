//! Sampling against sorted probabilities in f64, on the CPU and on CUDA, which choose alike.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use silkie::device::{Buffer, Device};
use silkie::model::generate;
use silkie::ops::sampling::{self, Nucleus};
use silkie::tensor::{DType, Tensor};

use crate::support::*;

/// The largest number below 1.
const LAST: f64 = 1.0 - f64::EPSILON / 2.0;

/// The token and a share of its weight that rounding may take or give.
struct Weighted {
    token: u32,
    weight: f64,
    error: f64,
}

/// The tokens of a row by falling probability, ids rising among equals.
fn sorted(logits: &[f32], temperature: f64) -> Vec<Weighted> {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(f64::from(x)));
    let weigh = |(&x, token): (&f32, u32)| {
        let below = (f64::from(x) - largest) / temperature;
        let weight = if below.is_nan() { 0.0 } else { below.exp() };
        // exp by 2 ulp; a difference and a quotient by half a one; W by a unit
        let share = 3e-7 + 1.2e-7 * below.abs().min(100.0);
        Weighted { token, weight, error: weight * share + 2f64.powi(-44) }
    };
    let mut order: Vec<Weighted> = logits.iter().zip(0..).map(weigh).collect();
    order.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.token.cmp(&b.token)));
    order
}

/// Fails unless `got` is the token at `uniform` of those kept, or a boundary is within rounding.
fn judge(what: &str, order: &[Weighted], top_p: f64, uniform: f64, got: u32) {
    let (total, slack) = order.iter().fold((0.0, 0.0), |(w, e), t| (w + t.weight, e + t.error));
    let kept = |least: f64| {
        let mut mass = 0.0;
        for token in order {
            mass += token.weight;
            if mass >= least {
                break;
            }
        }
        mass
    };
    let (least, most) = (kept(top_p * total - 2.0 * slack), kept(top_p * total + 2.0 * slack));
    let chosen = order.iter().find(|t| t.token == got).expect("a token of the row");
    // equals may be in another order
    let above = chosen.weight + 2.0 * chosen.error;
    let below = chosen.weight - 2.0 * chosen.error;
    let sum = |of: &dyn Fn(&Weighted) -> bool| -> f64 {
        order.iter().filter(|t| of(t)).map(|t| t.weight).sum()
    };
    let before = sum(&|t| t.weight > above);
    let with = sum(&|t| t.weight >= below);
    assert!(
        before - slack <= uniform * most && uniform * least <= with + slack,
        "{what}: token {got} holds {before} to {with}, asked for {uniform} of {least} to {most}"
    );
}

/// Rows of logits, how to choose, and the uniform number of each row.
struct Case {
    logits: Vec<f32>,
    vocab: usize,
    nucleus: Nucleus,
    uniform: Vec<f64>,
    lay: Lay,
}

impl Case {
    /// Random rows, spread by `scale`; the first uniform numbers are the ends of their range.
    fn random(vocab: usize, rows: usize, scale: f32, nucleus: Nucleus, lay: Lay) -> Case {
        let logits = random(rows * vocab, vocab as u64).iter().map(|x| x * scale).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let uniform = [0.0, LAST].into_iter().chain((2..rows).map(|_| rng.random()));
        Case { logits, vocab, nucleus, uniform: uniform.collect(), lay }
    }

    /// Tokens of every row, greedy and nucleus, and the weights.
    fn run(&self, device: Device) -> silkie::Result<[Vec<u32>; 3]> {
        let (rows, place) = (self.uniform.len(), Place { device, dtype: DType::F32 });
        let logits = place.matrix(&self.logits, rows, self.vocab, self.lay);
        let mut weights = place.poisoned(rows, self.vocab, self.lay);
        let on = |view: Tensor<'_>| {
            let mut buffer = Buffer::on(device, view.dtype(), view.rows(), view.cols()).unwrap();
            buffer.upload(view).unwrap();
            buffer
        };
        let nucleus = on(self.nucleus.view());
        // the first column of two
        let spaced: Vec<f64> = self.uniform.iter().flat_map(|&u| [u, f64::NAN]).collect();
        let uniform = on(Tensor::new(&spaced, rows, 2));
        // a guard on both sides
        let guards = vec![u32::MAX - 1; 3 * rows];
        let [mut greedy, mut chosen] = [(); 2].map(|()| on(Tensor::new(&guards, rows, 3)));
        sampling::greedy(logits.view(), greedy.view_mut().slice_cols(1..2))?;
        sampling::nucleus(
            logits.view(),
            nucleus.view(),
            uniform.view().slice_cols(0..1),
            weights.view_mut(),
            chosen.view_mut().slice_cols(1..2),
        )?;
        let tokens = |buffer: &Buffer| {
            let mut host = Buffer::host(DType::U32, rows, 3);
            buffer.download(host.view_mut()).unwrap();
            let row = |row: &[u32]| {
                assert_eq!([row[0], row[2]], [u32::MAX - 1; 2], "outside");
                row[1]
            };
            host.view().elements::<u32>().chunks(3).map(row).collect::<Vec<_>>()
        };
        let weights = weights.values().into_iter().map(f32::to_bits).collect();
        Ok([tokens(&greedy), tokens(&chosen), weights])
    }

    /// The tokens that every device chooses.
    fn tokens(&self, what: &str) -> [Vec<u32>; 2] {
        let [greedy, chosen, weights] = self.run(Device::Cpu).unwrap();
        if let Some(cuda) = cuda().filter(|_| self.vocab.is_multiple_of(4)) {
            let got = self.run(Device::Cuda(cuda)).unwrap();
            let [same_greedy, same_chosen, same_weights] = &got;
            assert_eq!(same_greedy, &greedy, "{what} greedy");
            assert_eq!(same_chosen, &chosen, "{what} nucleus");
            assert!(same_weights == &weights, "{what} weights");
            assert!(self.run(Device::Cuda(cuda)).unwrap() == got, "{what}: another run");
        }
        [greedy, chosen]
    }

    fn judge(&self) {
        let what =
            format!("[{}, {}] {:?} {:?}", self.uniform.len(), self.vocab, self.nucleus, self.lay);
        let [greedy, chosen] = self.tokens(&what);
        let Nucleus { temperature, top_p } = self.nucleus;
        for (i, logits) in self.logits.chunks(self.vocab).enumerate() {
            let order = sorted(logits, f64::from(temperature));
            judge(&what, &order, f64::from(top_p), self.uniform[i], chosen[i]);
            let largest = logits.iter().fold(f32::NEG_INFINITY, |m, &x| m.max(x));
            let first = logits.iter().position(|&x| x == largest);
            assert_eq!(Some(greedy[i] as usize), first, "{what} greedy row {i}");
        }
    }
}

fn nucleus(temperature: f32, top_p: f32) -> Nucleus {
    Nucleus { temperature, top_p }
}

/// Few; around a pack, a pack of every thread of a block, four of them, and more than once that.
const VOCABS: [usize; 16] =
    [1, 2, 3, 5, 127, 4, 8, 128, 2044, 2048, 2052, 8188, 8192, 8196, 10_240, 16_388];

#[test]
fn agrees_with_sorted_probabilities() {
    for vocab in VOCABS {
        for lay in LAYS {
            Case::random(vocab, 5, 8.0, nucleus(0.7, 0.9), lay).judge();
        }
    }
    for temperature in [1e-30, 0.05, 1.0, 100.0, 1e30] {
        for top_p in [1e-9, 0.5, 0.999, 1.0] {
            Case::random(132, 7, 8.0, nucleus(temperature, top_p), Lay::Dense).judge();
        }
    }
}

#[test]
fn a_row_of_qwen_agrees() {
    for top_p in [0.8, 1.0] {
        Case::random(151_936, 3, 12.0, nucleus(1.0, top_p), Lay::Dense).judge();
    }
}

/// A row, top_p, the most likely token, and those at uniform 0, 0.3, 0.6 and the last number below 1.
type Special = (&'static str, [f32; 8], f32, u32, [u32; 4]);

#[test]
fn special_logits_weigh_what_they_should() {
    const INF: f32 = f32::INFINITY;
    const NAN: f32 = f32::NAN;
    let cases: [Special; 13] = [
        ("equals", [1.0; 8], 1.0, 0, [0, 2, 4, 7]),
        ("half of equals", [1.0; 8], 0.5, 0, [0, 1, 2, 3]),
        ("half of equals and one more", [1.0; 8], 0.501, 0, [0, 1, 3, 4]),
        ("tiny top_p", [1.0, 3.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0], 1e-9, 1, [1; 4]),
        ("no top_p", [1.0, 3.0, 3.0, 2.0, 0.0, 0.0, 0.0, 0.0], NAN, 1, [1; 4]),
        ("one hot", [0.0, 0.0, 0.0, 0.0, 0.0, 1e30, 0.0, 0.0], 1.0, 5, [5; 4]),
        ("huge", [-3e38, 3e38, -3e38, 3e38, -3e38, 0.0, 0.0, 0.0], 1.0, 1, [1, 1, 3, 3]),
        ("NaN", [NAN, NAN, 1.0, NAN, -NAN, 1.0, NAN, NAN], 1.0, 2, [2, 2, 5, 5]),
        ("one finite", [-INF, NAN, -INF, NAN, NAN, -INF, -1e30, NAN], 1.0, 6, [6; 4]),
        ("infinite", [1.0, INF, NAN, -INF, 0.0, INF, 0.0, 3e38], 1.0, 1, [1, 1, 5, 5]),
        ("nothing", [-INF; 8], 1.0, 0, [0; 4]),
        ("no number", [NAN, -INF, NAN, NAN, -INF, NAN, NAN, NAN], 1.0, 0, [0; 4]),
        ("zeros", [-1.0, -0.0, 0.0, -0.0, 0.0, -1e30, -1e30, -1e30], 0.8, 1, [1, 2, 3, 4]),
    ];
    for (what, row, top_p, best, tokens) in cases {
        let uniform = vec![0.0, 0.3, 0.6, LAST];
        let logits = row.repeat(uniform.len());
        let case =
            Case { logits, vocab: 8, nucleus: nucleus(1.0, top_p), uniform, lay: Lay::Strided };
        assert_eq!(case.tokens(what), [vec![best; 4], tokens.to_vec()], "{what}");
    }
}

#[test]
fn a_temperature_or_uniform_out_of_range_does_no_harm() {
    let row = [2.0f32, 1.0, 2.0, 1.5];
    for temperature in [0.0, -1.0, f32::NAN] {
        let (logits, uniform) = (row.repeat(2), vec![0.0, LAST]);
        let case =
            Case { logits, vocab: 4, nucleus: nucleus(temperature, 1.0), uniform, lay: Lay::Dense };
        assert_eq!(case.tokens("temperature")[1], [0, 2], "{temperature}");
    }
    let (logits, uniform) = (row.repeat(3), vec![0.0, 0.3, LAST]);
    let nucleus = nucleus(f32::INFINITY, 1.0);
    let case = Case { logits, vocab: 4, nucleus, uniform, lay: Lay::Dense };
    assert_eq!(case.tokens("infinite temperature")[1], [0, 1, 3]);
    let uniform = vec![-1.0, f64::NAN, 1.0, 7.0, f64::INFINITY];
    let logits = row.repeat(uniform.len());
    let nucleus = Nucleus { temperature: 1.0, top_p: 1.0 };
    let case = Case { logits, vocab: 4, nucleus, uniform, lay: Lay::Dense };
    assert_eq!(case.tokens("uniform")[1], [0, 0, 1, 1, 1]);
}

/// Chi-square over the tokens that are kept, seven with ties, against its 99.9 % quantile.
#[test]
fn tokens_come_as_often_as_they_are_likely() {
    let row = [0.5f32, 2.0, -1.0, 1.0, -3.0, 1.0, 0.0, 0.2, -2.0, -9.0, -9.0, -9.0];
    let most_likely = 7;
    let settings = nucleus(1.3, 0.96);
    let order = sorted(&row, 1.3);
    let kept: f64 = order[..most_likely].iter().map(|t| t.weight).sum();
    for (device, draws) in places().iter().map(|p| p.device).zip([20_000, 400]) {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let uniform: Vec<f64> = (0..draws).map(|_| rng.random()).collect();
        let logits = row.repeat(draws);
        let case = Case { logits, vocab: row.len(), nucleus: settings, uniform, lay: Lay::Dense };
        let [_, chosen, _] = case.run(device).unwrap();
        let mut chi_square = 0.0;
        for (i, t) in order.iter().enumerate() {
            let count = chosen.iter().filter(|&&token| token == t.token).count() as f64;
            if i >= most_likely {
                assert_eq!(count, 0.0, "token {} is not kept", t.token);
                continue;
            }
            let expected = draws as f64 * t.weight / kept;
            chi_square += (count - expected).powi(2) / expected;
        }
        assert!(chi_square < 22.46, "{device}: chi-square {chi_square} of 6 degrees of freedom");
    }
}

/// What the sampler that sorted chose, before this op.
#[test]
fn seeds_choose_what_they_did() {
    let logits: Vec<f32> = random(1000, 3).iter().map(|x| 6.0 * x).collect();
    let sampling = generate::Sampling::Nucleus { temperature: 0.8, top_p: 0.9, seed: 7 };
    let mut sampler = sampling.sampler();
    let chosen: Vec<u32> = (0..16).map(|_| sampler.choose(&logits).unwrap()).collect();
    let before = [631, 631, 761, 457, 90, 52, 440, 876, 52, 596, 175, 552, 618, 450, 722, 242];
    assert_eq!(chosen, before);
}

#[test]
fn refuses_what_does_not_fit() {
    let settings = nucleus(1.0, 1.0);
    let run = |logits: Tensor<'_>, uniform: &[f64], weights: &mut Matrix| {
        let mut token = Buffer::host(DType::U32, 2, 1);
        let uniform = Tensor::column(uniform);
        refusal(sampling::nucleus(
            logits,
            settings.view(),
            uniform,
            weights.view_mut(),
            token.view_mut(),
        ))
    };
    let (logits, mut weights) =
        (Matrix::random(2, 3, Lay::Dense, 1), Matrix::poisoned(2, 3, Lay::Dense));
    assert_eq!(
        run(logits.view(), &[0.5], &mut weights),
        "sampling::nucleus: uniform has shape [1, 1], expected [2, 1] (rows, 1)"
    );
    assert_eq!(
        run(Tensor::new(&[1u32; 6], 2, 3), &[0.5; 2], &mut weights),
        "sampling::nucleus: logits has type U32, expected F32"
    );
    let mut narrow = Matrix::poisoned(2, 2, Lay::Dense);
    assert_eq!(
        run(logits.view(), &[0.5; 2], &mut narrow),
        "sampling::nucleus: weights has shape [2, 2], expected [2, 3] (rows, vocab)"
    );
    let long = vec![0.0f32; (1 << 19) + 4];
    assert_eq!(
        run(Tensor::vector(&long), &[0.5], &mut weights),
        "sampling::nucleus: logits has 524292 columns, expected at most 524288"
    );
    let mut token = Buffer::host(DType::U32, 3, 1);
    assert_eq!(
        refusal(sampling::greedy(logits.view(), token.view_mut())),
        "sampling::greedy: token has shape [3, 1], expected [2, 1] (rows, 1)"
    );
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::F32 };
    let mut token = Buffer::on(place.device, DType::U32, 2, 1).unwrap();
    let mut refused = |logits: Tensor<'_>| refusal(sampling::greedy(logits, token.view_mut()));
    assert_eq!(
        refused(place.random(2, 6, Lay::Dense, 1).view()),
        "sampling::greedy: logits has 6 columns, expected a multiple of 4: kernels read 16 bytes at \
         a time"
    );
    assert_eq!(
        refused(place.of(DType::Bf16).random(2, 8, Lay::Dense, 1).view()),
        "sampling::greedy: logits has type Bf16, expected F32"
    );
    let mut host = Buffer::host(DType::U32, 2, 1);
    assert_eq!(
        refusal(sampling::greedy(place.random(2, 8, Lay::Dense, 1).view(), host.view_mut())),
        format!(
            "sampling::greedy: token is on cpu, expected cuda:{} like the others",
            cuda.ordinal()
        )
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_row_agrees(
        quarter in 1usize..80,
        scale in 0.1f32..30.0,
        temperature in 0.1f32..5.0,
        top_p in 0.01f32..1.0,
        strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        Case::random(4 * quarter, 3, scale, nucleus(temperature, top_p), lay).judge();
    }
}
