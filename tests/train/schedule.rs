//! Learning rates against the recorded ones and at the ends.

use std::fs;

use serde_json::Value;
use silkie::train::schedule::{Schedule, Shape, warmup_steps};

use crate::support;

#[test]
fn the_recorded_runs_have_these_learning_rates() {
    let Some(goldens) = support::goldens() else { return };
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(goldens.join("adamw.json")).unwrap()).unwrap();
    for run in ["lora", "full"] {
        let run = &golden[run];
        let total = run["total_steps"].as_u64().unwrap();
        let warmup = run["warmup_steps"].as_u64().unwrap();
        assert_eq!(warmup_steps(0.1, total), warmup);
        let peak = run["peak_lr"].as_f64().unwrap();
        let schedule = Schedule { shape: Shape::Cosine, peak, warmup, total, min_ratio: 0.0 };
        for step in run["steps"].as_array().unwrap() {
            let (k, lr) = (step["step"].as_u64().unwrap() - 1, step["lr"].as_f64().unwrap());
            assert!((schedule.lr(k) - lr).abs() <= 1e-15 * peak.max(lr), "step {k}: {lr}");
        }
    }
}

#[test]
fn warm_up_starts_at_zero_and_the_cosine_ends_at_its_floor() {
    let schedule =
        Schedule { shape: Shape::Cosine, peak: 2.0, warmup: 4, total: 10, min_ratio: 0.2 };
    let rates: Vec<f64> = (0..5).map(|k| schedule.lr(k)).collect();
    assert_eq!(rates, [0.0, 0.5, 1.0, 1.5, 2.0]);
    assert!((schedule.lr(7) - 1.2).abs() < 1e-12);
    assert!((schedule.lr(10) - 0.4).abs() < 1e-12 && schedule.lr(99) == schedule.lr(10));
    let constant = Schedule { shape: Shape::Constant, warmup: 0, ..schedule };
    assert_eq!((constant.lr(0), constant.lr(9)), (2.0, 2.0));
    assert_eq!([warmup_steps(0.1, 30), warmup_steps(0.1, 31), warmup_steps(0.0, 9)], [3, 4, 0]);
}
