//! AdamW against its textbook form in f64, and bit by bit against PyTorch's order in f32; CUDA gives
//! the CPU's bits.

use half::bf16;
use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::adamw::{self, AdamW, Part, Table};
use silkie::ops::grad_norm::{Step, Verdict};
use silkie::tensor::{DType, Tensor};

use crate::support::*;

const CONFIG: AdamW = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
const WEIGHT_DECAY: f64 = 0.05;

/// Most elements that are updated as one piece.
const CHUNK: usize = 16 * 1024;

/// p, m and v.
type State<T> = [Vec<T>; 3];

fn start(n: usize) -> State<f32> {
    let v = random(n, 3).iter().map(|x| x * x).collect();
    [random(n, 1), random(n, 2), v]
}

/// A finite step of rate 1e-3, the `t`-th.
fn scalars(t: u64, scale: f64) -> (Step, Verdict) {
    let verdict = Verdict { norm: 1.0, scale, finite: 1.0, updates: t as f64, skipped: 0.0 };
    (Step { lr: 1e-3, scale: 1.0, loss: 0.0 }, verdict)
}

fn whole(n: usize) -> Vec<Part> {
    vec![Part { range: 0..n, lr_scale: 1.0, weight_decay: WEIGHT_DECAY }]
}

/// One step on `device`, between guards; gives the copy in bf16, which is asked for.
fn step(
    device: Device,
    state: &mut State<f32>,
    g: &[f32],
    parts: &[Part],
    (step, verdict): (Step, Verdict),
) -> Vec<f32> {
    let (n, place) = (g.len(), Place { device, dtype: DType::F32 });
    let flat = |values: &[f32]| place.matrix(values, 1, n, Lay::Strided);
    let [mut p, mut m, mut v] = state.each_ref().map(|values| flat(values));
    let mut copy = place.of(DType::Bf16).poisoned(1, n, Lay::Strided);
    let record = |row: Tensor<'_>| {
        let mut buffer = silkie::device::Buffer::on(device, DType::F64, 1, row.cols()).unwrap();
        buffer.upload(row).unwrap();
        buffer
    };
    let (step, verdict) = (record(step.view()), record(verdict.view()));
    let (g, table) = (flat(g), Table::new(device, parts).unwrap());
    let copied = Some(copy.view_mut());
    let [p_view, m_view, v_view] = [&mut p, &mut m, &mut v].map(Matrix::view_mut);
    let (step, verdict) = (step.view(), verdict.view());
    adamw::step(g.view(), step, verdict, &table, p_view, m_view, v_view, copied, &CONFIG).unwrap();
    *state = [p, m, v].map(|matrix| matrix.values());
    copy.values()
}

fn naive(state: &mut State<f64>, g: &[f64], t: u64, scale: f64) {
    let ([p, m, v], c, lr) = (state, CONFIG, 1e-3);
    for i in 0..p.len() {
        let g = g[i] * scale;
        m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * g;
        v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * g * g;
        let m_hat = m[i] / (1.0 - c.beta1.powf(t as f64));
        let v_hat = v[i] / (1.0 - c.beta2.powf(t as f64));
        p[i] = p[i] * (1.0 - lr * WEIGHT_DECAY) - lr * m_hat / (v_hat.sqrt() + c.eps);
    }
}

/// Ten steps from zero moments.
fn judge(device: Device, n: usize, scale: f32) {
    let mut state = [random(n, 1), vec![0.0; n], vec![0.0; n]];
    let mut want = state.clone().map(|x| x.into_iter().map(f64::from).collect::<Vec<_>>());
    for t in 1..=10 {
        let g: Vec<f32> = random(n, 10 + t).iter().map(|x| x * scale).collect();
        let g64: Vec<f64> = g.iter().map(|&x| x.into()).collect();
        let copy = step(device, &mut state, &g, &whole(n), scalars(t, 0.5));
        let rounded: Vec<f32> = state[0].iter().map(|&p| bf16::from_f32(p).to_f32()).collect();
        assert_same_bits(format!("copy [{n}] on {device}"), &copy, &rounded);
        naive(&mut want, &g64, t, 0.5);
    }
    for (name, (got, want)) in ["p", "m", "v"].iter().zip(state.iter().zip(&want)) {
        assert_close(format!("adamw {name} [{n}] x {scale:e} on {device}"), got, want, 1e-6);
    }
}

#[test]
fn ten_steps_agree_with_the_textbook() {
    for Place { device, .. } in places() {
        for n in [0, 1, 3, 4, 7, 64, 1001, 1024, 1025] {
            judge(device, n, 1.0);
        }
        for scale in [1e15, 1e-6] {
            judge(device, 50, scale);
        }
    }
}

/// The scalars by f64, each element operation rounded to f32, one after the other.
#[test]
fn follows_the_order_of_torch_bit_by_bit() {
    let (n, c, lr) = (3000, CONFIG, 1e-3);
    let (start, g) = (start(n), random(n, 4));
    let (b1, b2) = (1.0 - c.beta1.powf(7.0), 1.0 - c.beta2.powf(7.0));
    let mut want: State<f32> = Default::default();
    for i in 0..n {
        let [p, m, v] = start.each_ref().map(|x| x[i]);
        let new_m = m + (1.0 - c.beta1) as f32 * (g[i] - m); // lerp
        let new_v = v * c.beta2 as f32 + ((1.0 - c.beta2) as f32 * g[i]) * g[i]; // addcmul
        let denominator = new_v.sqrt() / b2.sqrt() as f32 + c.eps as f32;
        let kept = p * (1.0 - lr * WEIGHT_DECAY) as f32;
        want[0].push(kept + (-(lr / b1) as f32 * new_m) / denominator); // addcdiv
        want[1].push(new_m);
        want[2].push(new_v);
    }
    for Place { device, .. } in places() {
        let mut state = start.clone();
        step(device, &mut state, &g, &whole(n), scalars(7, 1.0));
        for (name, (got, want)) in ["p", "m", "v"].iter().zip(state.iter().zip(&want)) {
            assert_same_bits(format!("{name} on {device}"), got, want);
        }
    }
}

/// Tensors around the size of a chunk, with gaps, each with its own rate and decay.
fn several() -> (usize, Vec<Part>) {
    let (mut parts, mut first) = (Vec::new(), 0);
    for (i, n) in [5, 0, CHUNK - 1, CHUNK, CHUNK + 1, 1, 3000].into_iter().enumerate() {
        let (lr_scale, weight_decay) = (1.0 / (1 + i) as f64, 0.01 * i as f64);
        parts.push(Part { range: first..first + n, lr_scale, weight_decay });
        first += n.next_multiple_of(16);
    }
    (first, parts)
}

/// From the smallest numbers to the largest, over many steps.
#[test]
fn a_gpu_gives_the_bits_of_the_cpu() {
    let Some(cuda) = cuda() else { return };
    let (n, parts) = several();
    let [mut on_cpu, mut on_gpu] = [(); 2].map(|()| start(n));
    for t in [1, 2, 3, 1000, 123_456_789] {
        let powers = random(n, 20 + t);
        let g: Vec<f32> =
            random(n, 10 + t).iter().zip(&powers).map(|(g, e)| g * 10f32.powf(e * 18.0)).collect();
        let [a, b] = [(Device::Cpu, &mut on_cpu), (Device::Cuda(cuda), &mut on_gpu)]
            .map(|(device, state)| step(device, state, &g, &parts, scalars(t, 0.3)));
        assert_same_bits(format!("copy after t = {t}"), &b, &a);
        for (name, (gpu, cpu)) in ["p", "m", "v"].iter().zip(on_gpu.iter().zip(&on_cpu)) {
            assert_same_bits(format!("{name} after t = {t}"), gpu, cpu);
        }
    }
}

#[test]
fn each_tensor_has_its_rate_and_decay_and_gaps_stay() {
    let (n, parts) = several();
    for Place { device, .. } in places() {
        let (mut together, mut apart, g) = (start(n), start(n), random(n, 4));
        step(device, &mut together, &g, &parts, scalars(3, 1.0));
        for part in &parts {
            step(device, &mut apart, &g, std::slice::from_ref(part), scalars(3, 1.0));
        }
        for (together, (apart, before)) in together.iter().zip(apart.iter().zip(&start(n))) {
            assert_same_bits(device, together, apart);
            assert_same_bits(device, &together[5..16], &before[5..16]);
            assert!((0..5).all(|i| together[i] != before[i]));
        }
    }
}

#[test]
fn at_lr_zero_only_the_moments_move() {
    for Place { device, .. } in places() {
        let (mut state, g) = (start(100), random(100, 4));
        let before = state.clone();
        let (mut rates, verdict) = scalars(1, 1.0);
        rates.lr = 0.0;
        step(device, &mut state, &g, &whole(100), (rates, verdict));
        assert_same_bits("p", &state[0], &before[0]);
        assert!(state[1] != before[1] && state[2] != before[2]);
    }
}

#[test]
fn nothing_changes_where_the_gradient_is_not_finite() {
    for Place { device, .. } in places() {
        let mut state = start(100);
        let before = state.clone();
        let (rates, verdict) = scalars(1, 0.0);
        let verdict = Verdict { finite: 0.0, norm: f64::NAN, ..verdict };
        let copy = step(device, &mut state, &[f32::NAN; 100], &whole(100), (rates, verdict));
        for (got, want) in state.iter().zip(&before) {
            assert_same_bits(device, got, want);
        }
        assert!(copy.iter().all(|x| x.is_nan()));
    }
}

#[test]
fn threads_do_not_change_a_bit() {
    let (n, g) = (200_001, random(200_001, 4));
    same_on_any_threads("adamw", || {
        let mut state = start(n);
        step(Device::Cpu, &mut state, &g, &whole(n), scalars(1, 0.3));
        state.concat()
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let part = |range| Part { range, lr_scale: 1.0, weight_decay: 0.0 };
    let table = |parts: &[Part]| refusal(Table::new(Device::Cpu, parts));
    assert_eq!(
        table(&[part(0..3), part(2..8)]),
        "adamw::Table::new: parts[1] is 2..8, expected to rise from 3 on"
    );
    assert_eq!(
        table(&[part(0..3), part(6..8)]),
        "adamw::Table::new: parts[1] starts at 6, expected a multiple of 4"
    );
    let (rates, verdict) = scalars(1, 1.0);
    let [mut p, mut m, mut v] = [3, 3, 2].map(|n| Matrix::random(1, n, Lay::Dense, 1));
    let g = Matrix::random(1, 3, Lay::Dense, 1);
    let mut run = |v: &mut Matrix, end| {
        let table = Table::new(Device::Cpu, &whole(end)).unwrap();
        let [p, m, v] = [&mut p, &mut m, v].map(Matrix::view_mut);
        let (step, verdict) = (rates.view(), verdict.view());
        refusal(adamw::step(g.view(), step, verdict, &table, p, m, v, None, &CONFIG))
    };
    assert_eq!(run(&mut v, 3), "adamw::step: v has shape [1, 2], expected [1, 3] (1, elements)");
    let mut v = Matrix::random(1, 3, Lay::Dense, 1);
    assert_eq!(run(&mut v, 4), "adamw::step: table reaches to element 4, expected at most 3");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_length_agrees(n in 0usize..300) {
        judge(Device::Cpu, n, 1.0);
    }
}
