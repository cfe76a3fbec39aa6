//! Losses against the recorded float64 values, and against central differences.

use std::fs;

use proptest::prelude::*;
use serde_json::Value;
use silkie::data::pack::{BranchView, Layout, Pack, TreeView};
use silkie::train::loss::{Answer, Kind, Loss};

use crate::support;

const SIGMOID: Loss = Loss {
    kind: Kind::Sigmoid,
    beta: 0.1,
    label_smoothing: 0.0,
    gamma: 0.0,
    reference_free: false,
    length_normalised: false,
    rpo_alpha: 0.0,
};

/// The loss a golden's name and parameters stand for.
fn named(name: &str, params: &Value) -> Loss {
    let get = |key: &str| params[key].as_f64().unwrap_or(0.0);
    let kind = match name {
        n if n.starts_with("hinge") => Kind::Hinge,
        n if n.starts_with("ipo") => Kind::Ipo,
        n if n.starts_with("cdpo") => Kind::Robust,
        n if n.starts_with("simpo") => Kind::Simpo,
        _ => Kind::Sigmoid,
    };
    Loss {
        kind,
        beta: get("beta"),
        label_smoothing: get("eps"),
        gamma: get("gamma"),
        reference_free: name.contains("reference_free"),
        length_normalised: name.contains("ipo_mean"),
        rpo_alpha: 0.0,
    }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
}

fn close(got: f64, expected: f64, what: &str) {
    // a loss of e^-700 carries the rounding of its exponent, 700 times over: below 1e-6 absolute
    let bound = 1e-9 * expected.abs().max(1e-6);
    assert!((got - expected).abs() <= bound, "{what}: {got} instead of {expected}");
}

fn check_variants(inputs: &Value, variants: &Value) {
    let logps = |key: &str| numbers(&inputs[key]);
    let (policy_c, policy_r) = (logps("policy_chosen"), logps("policy_rejected"));
    let (reference_c, reference_r) = (logps("reference_chosen"), logps("reference_rejected"));
    let (n_c, n_r) = (numbers(&variants["n_chosen"]), numbers(&variants["n_rejected"]));
    for (name, values) in variants["values"].as_object().unwrap() {
        let loss = named(name, &values["params"]);
        for i in 0..policy_c.len() {
            let answer =
                |policy, reference, n: f64| Answer { policy, reference, tokens: n as usize };
            let pair = loss.pair(
                answer(policy_c[i], reference_c[i], n_c[i]),
                answer(policy_r[i], reference_r[i], n_r[i]),
            );
            let expected = |key: &str| values[key][i].as_f64().unwrap();
            let what = |part: &str| format!("{name}, pair {i}, {part}");
            close(pair.loss, expected("loss"), &what("loss"));
            close(pair.d_chosen, expected("d_policy_chosen"), &what("d_policy_chosen"));
            close(pair.d_rejected, expected("d_policy_rejected"), &what("d_policy_rejected"));
            let reference = if loss.needs_reference() { -1.0 } else { 0.0 };
            close(reference * pair.d_chosen, expected("d_reference_chosen"), &what("d_reference"));
        }
    }
}

#[test]
fn every_variant_equals_the_recorded_values() {
    let Some(goldens) = support::goldens() else { return };
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(goldens.join("dpo.json")).unwrap()).unwrap();
    let lora = &golden["lora_dpo"];
    let model = serde_json::json!({
        "policy_chosen": lora["policy_chosen_logps"], "policy_rejected": lora["policy_rejected_logps"],
        "reference_chosen": lora["reference_chosen_logps"],
        "reference_rejected": lora["reference_rejected_logps"],
    });
    check_variants(&model, &golden["variants_model_pairs"]);
    check_variants(&golden["variants_synthetic"], &golden["variants_synthetic"]);
}

#[test]
fn records_give_the_recorded_loss_and_coefficients() {
    let Some(goldens) = support::goldens() else { return };
    let golden: Value =
        serde_json::from_str(&fs::read_to_string(goldens.join("records.json")).unwrap()).unwrap();
    let policy: Vec<Vec<f64>> =
        golden["policy_logps"].as_array().unwrap().iter().map(numbers).collect();
    let reference: Vec<Vec<f64>> =
        golden["reference_logps"].as_array().unwrap().iter().map(numbers).collect();
    let trees: Vec<TreeView> = (0..policy.len() as u32)
        .map(|record| TreeView {
            record,
            trunk: &[1],
            images: vec![],
            branches: (0..policy[record as usize].len() as u32)
                .map(|branch| BranchView { branch, tokens: &[2], scored: &[1] })
                .collect(),
            pairs: golden["pairs_record_chosen_rejected"]
                .as_array()
                .unwrap()
                .iter()
                .map(|p| numbers(p).iter().map(|v| *v as u32).collect::<Vec<_>>())
                .filter(|p| p[0] == record)
                .map(|p| [p[1], p[2]])
                .collect(),
        })
        .collect();
    let pack = Pack::build(&trees, 1, Layout::Tree).unwrap();
    let mut coefficients = Vec::new();
    let loss = Loss { beta: golden["beta"].as_f64().unwrap(), ..SIGMOID };
    let totals = loss.pack(&pack, &policy.concat(), &reference.concat(), &mut coefficients);
    let mean = totals.mean();
    let expected = golden["loss_mean_over_pairs"].as_f64().unwrap();
    // The recorded numbers are float32: a few units in the last place of log-probs near 340.
    assert!((mean.loss - expected).abs() < 1e-5, "{} instead of {expected}", mean.loss);
    let expected: Vec<f64> =
        golden["dloss_dpolicy_logp"].as_array().unwrap().iter().flat_map(numbers).collect();
    assert_eq!(expected.len(), coefficients.len());
    for (got, expected) in coefficients.iter().zip(expected) {
        let got = got / totals.count as f64;
        assert!((got - expected).abs() < 1e-6, "{got} instead of {expected}");
    }
}

#[test]
fn ties_count_one_half_and_likelihood_is_length_normalised() {
    let branch = |branch| BranchView { branch, tokens: &[4, 5], scored: &[1, 1] };
    let tree = TreeView {
        record: 0,
        trunk: &[1],
        images: vec![],
        branches: vec![branch(0), branch(1), branch(2)],
        pairs: vec![[0, 1], [0, 2]],
    };
    let pack = Pack::build(&[tree], 1, Layout::Tree).unwrap();
    let mut c = Vec::new();
    let reference = [0.0; 3];
    let totals = SIGMOID.pack(&pack, &[-3.0, -3.0, -9.0], &reference, &mut c);
    assert_eq!((totals.count, totals.right), (2, 1.5));
    let plain = totals.loss;
    let with = Loss { rpo_alpha: 0.5, ..SIGMOID };
    let totals = with.pack(&pack, &[-3.0, -3.0, -9.0], &reference, &mut c);
    assert!((totals.loss - plain - 2.0 * 0.5 * 1.5).abs() < 1e-12);
    let sft = Loss { kind: Kind::Sft, ..SIGMOID };
    let totals = sft.pack(&pack, &[-3.0, -3.0, -9.0], &[], &mut c);
    assert_eq!((totals.mean().loss, c.as_slice()), (2.5, &[-0.5; 3][..]));
}

#[test]
fn what_is_not_finite_stays_visible() {
    for kind in [Kind::Sigmoid, Kind::Hinge, Kind::Ipo, Kind::Robust, Kind::Simpo] {
        let loss = Loss { kind, label_smoothing: 0.1, ..SIGMOID };
        let answer = |policy| Answer { policy, reference: 0.0, tokens: 3 };
        assert!(loss.pair(answer(f64::NAN), answer(-1.0)).loss.is_nan(), "{kind:?}");
    }
}

proptest! {
    #[test]
    fn derivatives_are_central_differences(
        kind in prop::sample::select(vec![Kind::Sigmoid, Kind::Ipo, Kind::Robust, Kind::Simpo]),
        policy in (-40.0..0.0, -40.0..0.0),
        reference in (-40.0..0.0, -40.0..0.0),
        tokens in (1usize..30, 1usize..30),
        length_normalised: bool,
        rpo_alpha in 0.0..2.0,
    ) {
        let loss = Loss {
            kind, beta: 0.3, label_smoothing: 0.2, gamma: 0.7,
            reference_free: false, length_normalised, rpo_alpha,
        };
        let at = |dc: f64, dr: f64| loss.pair(
            Answer { policy: policy.0 + dc, reference: reference.0, tokens: tokens.0 },
            Answer { policy: policy.1 + dr, reference: reference.1, tokens: tokens.1 },
        );
        let h = 1e-4;
        let d_chosen = (at(h, 0.0).loss - at(-h, 0.0).loss) / (2.0 * h);
        let d_rejected = (at(0.0, h).loss - at(0.0, -h).loss) / (2.0 * h);
        let pair = at(0.0, 0.0);
        prop_assert!((pair.d_chosen - d_chosen).abs() < 1e-6 * (1.0 + d_chosen.abs()));
        prop_assert!((pair.d_rejected - d_rejected).abs() < 1e-6 * (1.0 + d_rejected.abs()));
    }
}
