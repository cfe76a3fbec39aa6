//! The pass over logits, which are given: any number, any length of a row.

use half::bf16;
use silkie::device::Device;
use silkie::ops::log_ratio;
use silkie::tensor::DType;

use crate::support::*;

/// Of a log-probability, before it is rounded: an exponential by 2 ulp and its argument by half a one times its size,
/// 32 terms at a time and their sums.
const BOUND: f64 = 2.5e-6;

/// Below this an exponential is 0: e^-87.3.
const SMALLEST: f64 = 1.3e-38;

/// Which NaN an operation gives is the compiler's to choose.
fn assert_same(what: &str, got: &[f32], expected: &[f32]) {
    let [got, expected] = [got, expected]
        .map(|x| x.iter().map(|x| if x.is_nan() { NAN } else { *x }).collect::<Vec<_>>());
    assert_same_bits(what, &got, &expected);
}

/// The CPU, and CUDA where there is one.
fn devices() -> Vec<Place> {
    places().into_iter().filter(|place| place.dtype == DType::F32).collect()
}

struct Judged {
    log_probs: Vec<f32>,
    unit: Vec<f32>,
}

/// Rows of logits, and their targets.
struct Pass<'l> {
    place: Place,
    logits: &'l [f32],
    targets: &'l [u32],
    lay: Lay,
}

impl Pass<'_> {
    fn vocabulary(&self) -> usize {
        self.logits.len() / self.targets.len()
    }

    fn logits(&self) -> Matrix {
        self.place.matrix(self.logits, self.targets.len(), self.vocabulary(), self.lay)
    }

    /// What lies in place of the logits: on CUDA in the first half of their bytes, the other as it was.
    fn gradients(&self, logits: &Matrix) -> Vec<f32> {
        let values = logits.values();
        if self.place.device == Device::Cpu {
            return values;
        }
        let v = self.vocabulary();
        let rows = values.chunks(v).zip(self.logits.chunks(v));
        let row = |(now, before): (&[f32], &[f32])| {
            assert_same_bits("the other half", &now[v / 2..], &before[v / 2..]);
            let halves = now[..v / 2].iter().map(|x| x.to_bits());
            let halves = halves.flat_map(|bits| [bits as u16, (bits >> 16) as u16]);
            halves.map(|half| bf16::from_bits(half).to_f32()).collect::<Vec<_>>()
        };
        rows.flat_map(row).collect()
    }

    /// Log-probabilities and unit gradients; the same again from every other form of the pass.
    fn run(&self) -> Judged {
        let rows = self.targets.len();
        let targets = self.place.buffer(self.targets, rows, 1);
        let log_probs = || self.place.poisoned(rows, 1, self.lay);
        let (mut z, mut p) = (self.logits(), log_probs());
        log_ratio::gradients(z.view_mut(), targets.view(), None, Some(p.view_mut())).unwrap();
        let (log_probs, mut alone, unit) = (p.values(), log_probs(), self.gradients(&z));

        z = self.logits();
        log_ratio::log_probs(z.view_mut(), targets.view(), alone.view_mut()).unwrap();
        assert_same("log_probs alone", &alone.values(), &log_probs);

        let ones = self.place.matrix(&vec![1.0; rows], rows, 1, self.lay);
        z = self.logits();
        log_ratio::gradients(z.view_mut(), targets.view(), Some(ones.view()), None).unwrap();
        assert_same("factors of 1", &self.gradients(&z), &unit);
        Judged { log_probs, unit }
    }

    /// Gradients times random factors.
    fn scaled(&self, factors: &[f32]) -> Vec<f32> {
        let rows = self.targets.len();
        let targets = self.place.buffer(self.targets, rows, 1);
        let factors = self.place.matrix(factors, rows, 1, self.lay);
        let mut z = self.logits();
        log_ratio::gradients(z.view_mut(), targets.view(), Some(factors.view()), None).unwrap();
        self.gradients(&z)
    }

    fn judge(&self) {
        let rows = self.targets.len();
        let Judged { log_probs, unit } = self.run();
        let factors = random(rows, 9);
        let scaled = self.scaled(&factors);
        let v = self.vocabulary();
        for (r, (z, &target)) in self.logits.chunks(v).zip(self.targets).enumerate() {
            let what = format!("row {r} of [{rows}, {v}], target {target}, {:?}", self.place);
            let (log_prob, gradient) = oracle(z, target as usize);
            let error = (f64::from(log_probs[r]) - log_prob).abs();
            let bound = BOUND + 6e-8 * log_prob.abs();
            assert!(error <= bound, "{what}: log_prob {} instead of {log_prob}", log_probs[r]);
            self.judge_row(&what, &unit[r * v..][..v], z, &gradient, 1.0);
            self.judge_row(&what, &scaled[r * v..][..v], z, &gradient, f64::from(factors[r]));
        }
    }

    /// Each by itself: half an ulp of what is stored, and what the exponential is off.
    fn judge_row(&self, what: &str, got: &[f32], z: &[f32], gradient: &[f64], factor: f64) {
        let half_ulp = if self.place.device == Device::Cpu { 6e-8 } else { 1.0 / 256.0 };
        let max = z.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x.into()));
        for (v, (&got, want)) in got.iter().zip(gradient).enumerate() {
            let want = factor * want;
            let below = (max - f64::from(z[v])).min(90.0);
            let relative = half_ulp * 1.01 + 2.0 * BOUND + 2e-7 * below;
            let bound = relative * want.abs() + SMALLEST * factor.abs();
            let error = (f64::from(got) - want).abs();
            assert!(error <= bound, "{what}: gradient {v} is {got:e} instead of {want:e}");
        }
    }
}

/// log p and the unit gradient of a row.
fn oracle(z: &[f32], target: usize) -> (f64, Vec<f64>) {
    let max = z.iter().fold(f64::NEG_INFINITY, |m, &x| m.max(x.into()));
    let e: Vec<f64> = z.iter().map(|&x| (f64::from(x) - max).exp()).collect();
    let others: f64 = (0..z.len()).filter(|&v| v != target).map(|v| e[v]).sum();
    let total = others + e[target];
    let mut gradient: Vec<f64> = e.iter().map(|e| -e / total).collect();
    gradient[target] = others / total;
    (f64::from(z[target]) - max - total.ln(), gradient)
}

/// Around a pack, those of a warp, of a block, 8 of each thread, what shared memory holds of a row, twice that, which
/// is written before a barrier, and four times, before the next; a row of Qwen.
fn vocabularies() -> Vec<usize> {
    let mut all = vec![4, 8, 124, 128, 132, 2044, 2048, 2052, 16_380, 16_384, 16_388, 18_436];
    if let Some(cuda) = cuda() {
        let held = (cuda.gpu().shared as usize - 1024) / 16 * 4;
        for v in [held, 2 * held, 4 * held] {
            all.extend([v - 4, v, v + 4]);
        }
        all.push(held + 16_388);
    }
    all.extend([151_936, 151_944]);
    all
}

#[test]
fn any_length_of_a_row_matches_f64() {
    for place in devices() {
        for (i, v) in vocabularies().into_iter().enumerate() {
            let last = v as u32 - 1;
            let targets = [0, last, last / 2, random_indices(1, v, i as u64)[0]];
            let logits: Vec<f32> = random(4 * v, v as u64).iter().map(|x| 9.0 * x).collect();
            let (logits, targets) = (&logits, &targets);
            Pass { place, logits, targets, lay: LAYS[i % 2] }.judge();
        }
    }
}

#[test]
fn any_size_of_a_logit_matches_f64() {
    for place in devices() {
        for (i, size) in [1e-30f32, 1e-3, 1.0, 30.0, 100.0, 1e4].into_iter().enumerate() {
            for shift in [0.0f32, -1e4, 1e4] {
                let logits = random(5 * 2100, 7 + i as u64);
                let logits: Vec<f32> = logits.iter().map(|x| x * size + shift).collect();
                let targets = random_indices(5, 2100, i as u64);
                Pass { place, logits: &logits, targets: &targets, lay: Lay::Dense }.judge();
            }
        }
    }
}

/// A row, its target, log p, and the target's entry of the gradient.
type Special = (&'static str, [f32; 8], u32, f64, f64);

const INF: f32 = f32::INFINITY;
const NAN: f32 = f32::NAN;

fn specials() -> Vec<Special> {
    let huge = [3e38, -3e38, -INF, 3e38, -INF, -INF, 0.0, 1.0];
    let ten_thousand = [1e4, -1e4, 0.0, 9999.0, -1e4, 0.0, 1.0, -INF];
    let one_hot = [0.0, 0.0, 0.0, 0.0, 0.0, 1e30, 0.0, 0.0];
    let certain = |top: f32| [0.0, 0.0, top, 0.0, 0.0, 0.0, 0.0, 0.0];
    let (ln2, never) = (2f64.ln(), f64::NEG_INFINITY);
    let likely = 1.0 / (1.0 + (-1f64).exp());
    vec![
        ("equals", [1.0; 8], 3, -(8f64.ln()), 7.0 / 8.0),
        ("huge", huge, 0, -ln2, 0.5),
        ("hugely less", huge, 1, never, 1.0), // -6e38 is beyond f32
        ("never", huge, 2, never, 1.0),
        ("in the middle of huge", huge, 6, -3e38f32 as f64, 1.0),
        ("ten thousand", ten_thousand, 0, likely.ln(), 1.0 - likely),
        ("minus ten thousand", ten_thousand, 1, -2e4 + likely.ln(), 1.0),
        ("never among ten thousands", ten_thousand, 7, never, 1.0),
        ("one hot", one_hot, 5, 0.0, 0.0),
        ("not the hot one", one_hot, 0, -1e30f32 as f64, 1.0),
        (
            "certain to the last digit",
            certain(20.0),
            2,
            -7.0 * (-20f64).exp(),
            7.0 * (-20f64).exp(),
        ),
        ("certain beyond it", certain(40.0), 2, 0.0, 7.0 * (-40f64).exp()),
        ("certain by far", certain(80.0), 2, 0.0, 7.0 * (-80f64).exp()),
        ("certain beyond f32", certain(120.0), 2, 0.0, 0.0),
        ("the only one", [-INF, -INF, 5.0, -INF, -INF, -INF, -INF, -INF], 2, 0.0, 0.0),
        ("not the only one", [-INF, -INF, 5.0, -INF, -INF, -INF, -INF, -INF], 3, never, 1.0),
        ("nothing", [-INF; 8], 1, f64::NAN, f64::NAN),
        ("NaN", [0.0, 1.0, NAN, 0.0, 0.0, 0.0, 0.0, 0.0], 1, f64::NAN, f64::NAN),
        ("NaN and nothing", [-INF, NAN, -INF, -INF, -INF, -INF, -INF, -INF], 0, f64::NAN, f64::NAN),
        ("a target that is NaN", [0.0, 1.0, NAN, 0.0, 0.0, 0.0, 0.0, 0.0], 2, f64::NAN, f64::NAN),
        ("infinite", [0.0, 1.0, INF, 0.0, 0.0, 0.0, 0.0, 0.0], 1, f64::NAN, f64::NAN),
        ("an infinite target", [0.0, 1.0, INF, 0.0, 0.0, 0.0, 0.0, 0.0], 2, f64::NAN, f64::NAN),
        ("two infinite", [INF, INF, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1, f64::NAN, f64::NAN),
    ]
}

/// As they are, and far apart among -inf.
#[test]
fn special_logits_give_what_they_should() {
    for place in devices() {
        let apart = vocabularies().into_iter().max().unwrap();
        for v in [8, 4104, apart] {
            for (what, row, target, log_prob, own) in specials() {
                let step = v / 8;
                let mut logits = vec![-INF; v];
                // the first column of an eighth for one, the last for the next
                let at = |i: usize| i * step + if i % 2 == 1 { step - 1 } else { 0 };
                row.iter().enumerate().for_each(|(i, &z)| logits[at(i)] = z);
                let target = at(target as usize);
                let targets = [target as u32];
                let pass = Pass { place, logits: &logits, targets: &targets, lay: Lay::Strided };
                let Judged { log_probs, unit } = pass.run();
                let what = format!("{what} in {v} {place:?}");
                if log_prob.is_nan() {
                    assert!(log_probs[0].is_nan(), "{what}: {}", log_probs[0]);
                    assert!(unit.iter().all(|g| g.is_nan()), "{what}: gradients");
                    continue;
                }
                let got = f64::from(log_probs[0]);
                let bound = BOUND + 6e-8 * log_prob.abs();
                assert!(got == log_prob || (got - log_prob).abs() <= bound, "{what}: {got}");
                let (got, half_ulp) = (f64::from(unit[target]), 1.01 / 256.0);
                assert!((got - own).abs() <= half_ulp * own + SMALLEST, "{what}: {got:e}");
                pass.judge_row(&what, &unit, &logits, &oracle(&logits, target).1, 1.0);
            }
        }
    }
}

/// On the CPU an error; the host does not see what a GPU holds.
#[test]
fn a_target_beyond_the_vocabulary_is_nan_on_cuda() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::F32 };
    let targets = [3, 20, 24, u32::MAX, 19];
    let logits = random(5 * 20, 1);
    for lay in LAYS {
        let Judged { log_probs, unit } =
            Pass { place, logits: &logits, targets: &targets, lay }.run();
        for (r, &target) in targets.iter().enumerate() {
            let is_beyond = target >= 20;
            assert_eq!(log_probs[r].is_nan(), is_beyond, "log_prob of target {target}");
            let mut gradients = unit[r * 20..][..20].iter();
            assert!(gradients.all(|g| g.is_nan() == is_beyond), "gradients of target {target}");
        }
    }
}

#[test]
fn factors_that_are_zero_or_not_finite_scale_as_they_are() {
    for place in devices() {
        let logits = random(3 * 64, 2);
        let pass = Pass { place, logits: &logits, targets: &[5, 6, 7], lay: Lay::Strided };
        let scaled = pass.scaled(&[0.0, NAN, -2.0]);
        assert!(scaled[..64].iter().all(|&g| g == 0.0));
        assert!(scaled[64..128].iter().all(|g| g.is_nan()));
        let twice: Vec<f32> = pass.run().unit[128..].iter().map(|g| -2.0 * g).collect();
        assert_same_bits("twice", &scaled[128..], &twice);
    }
}
