//! AdamW against its textbook form in f64, and bit by bit against PyTorch's order in f32.

use proptest::prelude::*;
use silkie::ops::adamw::{self, AdamW};

use crate::support::*;

const CONFIG: AdamW =
    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.98, eps: 1e-8, weight_decay: 0.05, step: 1 };

/// p, m and v.
type State<T> = [Vec<T>; 3];

fn start(n: usize) -> State<f32> {
    let v = random(n, 3).iter().map(|x| x * x).collect();
    [random(n, 1), random(n, 2), v]
}

fn step(state: &mut State<f32>, g: &[f32], grad_scale: f32, config: &AdamW) {
    let [p, m, v] = state;
    adamw::step(p, g, m, v, grad_scale, config).unwrap();
}

fn naive(state: &mut State<f64>, g: &[f64], grad_scale: f64, c: &AdamW) {
    let [p, m, v] = state;
    for i in 0..p.len() {
        let g = g[i] * grad_scale;
        m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * g;
        v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * g * g;
        let m_hat = m[i] / (1.0 - c.beta1.powf(c.step as f64));
        let v_hat = v[i] / (1.0 - c.beta2.powf(c.step as f64));
        p[i] = p[i] * (1.0 - c.lr * c.weight_decay) - c.lr * m_hat / (v_hat.sqrt() + c.eps);
    }
}

/// Ten steps from zero moments.
fn judge(n: usize, scale: f32) {
    let mut state = [random(n, 1), vec![0.0; n], vec![0.0; n]];
    let mut want = state.clone().map(|x| x.into_iter().map(f64::from).collect::<Vec<_>>());
    for t in 1..=10 {
        let g: Vec<f32> = random(n, 10 + t).iter().map(|x| x * scale).collect();
        let g64: Vec<f64> = g.iter().map(|&x| x.into()).collect();
        let config = AdamW { step: t, ..CONFIG };
        step(&mut state, &g, 0.5, &config);
        naive(&mut want, &g64, 0.5, &config);
    }
    for (name, (got, want)) in ["p", "m", "v"].iter().zip(state.iter().zip(&want)) {
        assert_close(format!("adamw {name} [{n}] x {scale:e}"), got, want, 1e-6);
    }
}

#[test]
fn ten_steps_agree_with_the_textbook() {
    for n in [0, 1, 7, 64, 1001] {
        judge(n, 1.0);
    }
    for scale in [1e15, 1e-6] {
        judge(50, scale);
    }
}

/// The scalars by f64, each element operation rounded to f32, one after the other.
#[test]
fn follows_the_order_of_torch_bit_by_bit() {
    let (n, c) = (3000, AdamW { step: 7, ..CONFIG });
    let (mut state, g) = (start(n), random(n, 4));
    let [p, m, v] = state.clone();
    step(&mut state, &g, 1.0, &c);
    let (b1, b2) = (1.0 - c.beta1.powf(7.0), 1.0 - c.beta2.powf(7.0));
    let mut want: State<f32> = Default::default();
    for i in 0..n {
        let new_m = m[i] + (1.0 - c.beta1) as f32 * (g[i] - m[i]); // lerp
        let new_v = v[i] * c.beta2 as f32 + ((1.0 - c.beta2) as f32 * g[i]) * g[i]; // addcmul
        let denominator = new_v.sqrt() / b2.sqrt() as f32 + c.eps as f32;
        let kept = p[i] * (1.0 - c.lr * c.weight_decay) as f32;
        want[0].push(kept + (-(c.lr / b1) as f32 * new_m) / denominator); // addcdiv
        want[1].push(new_m);
        want[2].push(new_v);
    }
    for (name, (got, want)) in ["p", "m", "v"].iter().zip(state.iter().zip(&want)) {
        assert_same_bits(name, got, want);
    }
}

#[test]
fn at_lr_zero_only_the_moments_move() {
    let (mut state, g) = (start(100), random(100, 4));
    let before = state.clone();
    step(&mut state, &g, 1.0, &AdamW { lr: 0.0, ..CONFIG });
    assert_same_bits("p", &state[0], &before[0]);
    assert!(state[1] != before[1] && state[2] != before[2]);
}

#[test]
fn threads_do_not_change_a_bit() {
    let (n, g) = (200_001, random(200_001, 4));
    same_on_any_threads("adamw", || {
        let mut state = start(n);
        step(&mut state, &g, 0.3, &CONFIG);
        state.concat()
    });
}

#[test]
fn refuses_what_does_not_fit() {
    let [mut p, mut m, mut v] = [vec![0.0f32; 3], vec![0.0; 3], vec![0.0; 2]];
    let error = refusal(adamw::step(&mut p, &[0.0; 3], &mut m, &mut v, 1.0, &CONFIG));
    assert_eq!(error, "adamw::step: v has 2 elements, expected 3 like p");
    v.push(0.0);
    let config = AdamW { step: 0, ..CONFIG };
    let error = refusal(adamw::step(&mut p, &[0.0; 3], &mut m, &mut v, 1.0, &config));
    assert_eq!(error, "adamw::step: step is 0, expected 1 or more; steps count from 1");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_length_agrees(n in 0usize..300) {
        judge(n, 1.0);
    }
}
