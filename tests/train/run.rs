//! Whole runs in this process: they learn, and every way of running them agrees.

use std::fs;

use silkie::data::pack::BranchId;
use silkie::data::trees;
use silkie::model::adapter::Adapter;
use silkie::model::config::ModelConfig;
use silkie::train::fingerprint::Base;
use silkie::train::reference::{Key, Sidecar};
use silkie::train::score::{self, Options};

use super::fixture::Fixture;

/// Small, quick, and strong enough to learn.
const QUICK: &str =
    "lora-r = 4\nbatch-pairs = 12\ntoken-budget = 200\nlr = 5e-3\nwarmup-steps = 2\n";

fn quick(more: &str) -> String {
    format!("{QUICK}{more}")
}

fn options(fixture: &Fixture, model: &str, adapter: Option<&str>) -> Options {
    Options {
        model: fixture.path(model),
        adapter: adapter.map(|name| fixture.path(name)),
        data: fixture.path("data"),
        beta: 0.1,
        token_budget: 300,
    }
}

fn ranking(fixture: &Fixture, model: &str, adapter: Option<&str>) -> f64 {
    let options = options(fixture, model, adapter);
    score::run(&options, &|| false, |_, _| Ok(())).unwrap().ranking_accuracy
}

#[test]
fn preferences_are_learned_and_held_out_records_agree() {
    let fixture = Fixture::new(20);
    let summary =
        fixture.train("run", &quick("steps = 60\neval-every = 20\nheld-out = 0.2\n")).unwrap();
    assert_eq!((summary.steps, summary.records, summary.held_out_records), (60, 16, 4));
    assert_eq!(summary.skipped, 0);
    let (before, after) = (summary.before.unwrap(), summary.after.unwrap());
    assert!((before.loss - 2f64.ln()).abs() < 1e-4 && before.pairs == 12, "{before:?}");
    assert!(after.accuracy > 0.9 && after.loss < 0.6, "{after:?}");
    let steps = fixture.metrics("run", "train");
    assert_eq!(steps.len(), 60);
    assert_eq!(steps[0]["lr"], 0.0);
    assert_eq!(fixture.metrics("run", "evaluation").len(), 4);
    // The saved adapter is the policy that was evaluated.
    let config = ModelConfig::read(fixture.path("model")).unwrap();
    Adapter::open(fixture.path("run/adapter"), &config).unwrap();
    let scored = options(&fixture, "model", Some("run/adapter"));
    let mut responses = 0;
    let scored = score::run(&scored, &|| false, |record, total| {
        assert_eq!((total, record.responses.len(), record.pairs.len()), (20, 3, 3));
        assert_eq!(record.id, format!("id-{}", record.record));
        responses += record.responses.len() as u64;
        Ok(())
    });
    let scored = scored.unwrap();
    assert_eq!((scored.records, scored.responses, scored.pairs), (20, responses, 60));
    assert!(scored.reward_accuracy.unwrap() > 0.95 && scored.margin.unwrap() > 0.1, "{scored:?}");
    let base = score::run(&options(&fixture, "model", None), &|| false, |_, _| Ok(())).unwrap();
    assert!(base.reward_accuracy.is_none() && base.ranking_accuracy < 0.9, "{base:?}");
}

#[test]
fn both_layouts_and_both_sources_of_constants_take_the_same_first_steps() {
    let fixture = Fixture::new(6);
    let run = |out: &str, more: &str| {
        fixture.train(out, &quick(&format!("steps = 3\nheld-out = 0.0\n{more}"))).unwrap();
        fixture.metrics(out, "train")
    };
    let tree = run("tree", "");
    for (out, more) in [
        ("pairs", "layout = 'pairs'\n"),
        ("online", "reference = 'online'\n"),
        ("cached", "vision = 'cached'\n"),
    ] {
        let other = run(out, more);
        for (a, b) in tree.iter().zip(&other) {
            for key in ["loss", "grad_norm", "margin"] {
                let (a, b) = (a[key].as_f64().unwrap(), b[key].as_f64().unwrap());
                // f32 rounding of log-probs near 50, times beta: 1e-5.
                assert!((a - b).abs() <= 2e-4 * a.abs() + 2e-5, "{out}: {key}: {a} and {b}");
            }
        }
        if out == "cached" {
            assert_eq!(
                fixture.adapter("tree"),
                fixture.adapter(out),
                "cached features are the same bits"
            );
        }
    }
}

#[test]
fn every_loss_and_every_set_of_weights_trains() {
    let fixture = Fixture::new(8);
    for loss in ["hinge", "ipo", "robust", "simpo"] {
        let toml = quick(&format!("steps = 12\nloss = '{loss}'\nrpo-alpha = 0.1\n"));
        fixture.train(loss, &toml).unwrap();
        let rows = fixture.metrics(loss, "train");
        let loss_of = |i: usize| rows[i]["loss"].as_f64().unwrap();
        assert!(loss_of(11) < loss_of(0), "{loss}: {} to {}", loss_of(0), loss_of(11));
    }
    let before = ranking(&fixture, "model", None);
    for (set, target, steps) in [("full", "random", 12), ("all", "all", 12), ("lora", "best", 80)] {
        let toml = quick(&format!(
            "steps = {steps}\nloss = 'sft'\nsft-target = '{target}'\ntrainable = '{set}'\n\
             batch-records = 4\nmax-grad-norm = 1.0\nlr-scale = ['conv1=0.3']\n"
        ));
        let summary = fixture.train(&format!("sft-{set}"), &toml).unwrap();
        let (first, last) = (summary.before.unwrap().loss, summary.after.unwrap().loss);
        assert!(last < 0.9 * first, "sft {set} {target}: {first} to {last}");
        if set != "lora" {
            assert!(summary.output.join("README.txt").exists());
            ranking(&fixture, &format!("sft-{set}/model"), None); // it opens and runs
        }
    }
    let after = ranking(&fixture, "model", Some("sft-lora/adapter"));
    assert!(after > before, "the best answers became likelier: {before} to {after}");
}

#[test]
fn an_adapter_is_continued_where_it_was() {
    let fixture = Fixture::new(6);
    let first = fixture.train("first", &quick("steps = 8\n")).unwrap();
    let adapter = fixture.path("first/adapter").display().to_string();
    let more = format!("steps = 2\nlr = 0.0\ninit-adapter = '{adapter}'\n");
    let second = fixture.train("second", &more).unwrap();
    let close = (first.after.unwrap().loss - second.before.unwrap().loss).abs();
    assert!(close < 1e-4, "{close}");
    assert_eq!(fixture.adapter("first"), fixture.adapter("second"), "lr 0 changes nothing");
}

/// The sidecar of the fixture's model.
fn sidecar(fixture: &Fixture) -> Sidecar {
    let (data, model) = (fixture.dataset(), fixture.path("model"));
    let config = ModelConfig::read(&model).unwrap();
    let base = Base::of(&model, &config, data.folder()).unwrap().model;
    Sidecar::open(&data, Key::new(&data, &base)).unwrap()
}

/// Adds `offset` to the stored reference of branch `branch` of every record that `which` picks.
pub fn falsify(fixture: &Fixture, branch: u32, offset: f64, which: impl Fn(u32) -> bool) {
    let data = fixture.dataset();
    let mut sidecar = sidecar(fixture);
    for record in (0..data.len() as u32).filter(|&r| which(r)) {
        let plan = silkie::data::plan::Tree { record, branches: vec![branch], pairs: vec![] };
        let pack = trees::pack(&data, &[plan], silkie::data::pack::Layout::Tree).unwrap();
        let value = sidecar.get(BranchId { record, branch }) + offset;
        sidecar.set(&pack, &[value]);
    }
    sidecar.save().unwrap();
}

#[test]
fn a_stale_reference_is_noticed_before_the_first_update() {
    let fixture = Fixture::new(6);
    fixture.train("first", &quick("steps = 1\n")).unwrap();
    falsify(&fixture, 1, 2.0, |_| true);
    let message = fixture.train("second", &quick("steps = 1\n")).unwrap_err().to_string();
    assert!(message.contains("the reference does not match the model"), "{message}");
    // Other shards of the same name, another template, a damaged file.
    let key = Key { template: "0".into(), ..key_of(&fixture) };
    let message = Sidecar::open(&fixture.dataset(), key).err().unwrap().to_string();
    assert!(message.contains("belongs to another chat template"), "{message}");
    let path = fixture.path("data").join(format!("reference-{}.sidecar", key_of(&fixture).base));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let message = fixture.train("third", &quick("steps = 1\n")).unwrap_err().to_string();
    assert!(message.contains("truncated"), "{message}");
    fs::remove_file(&path).unwrap();
    fixture.train("fourth", &quick("steps = 1\n")).unwrap();
}

fn key_of(fixture: &Fixture) -> Key {
    let (data, model) = (fixture.dataset(), fixture.path("model"));
    let config = ModelConfig::read(&model).unwrap();
    Key::new(&data, &Base::of(&model, &config, data.folder()).unwrap().model)
}

#[test]
fn a_step_that_is_not_finite_is_skipped_and_named() {
    let fixture = Fixture::new(6);
    let toml = "lora-r = 4\nbatch-records = 1\nshuffle = 'none'\nheld-out = 0.0\nepochs = 1\n\
                lr = 1e-3\nwarmup-steps = 0\n";
    fixture.train("first", toml).unwrap();
    falsify(&fixture, 1, f64::INFINITY, |record| record == 2);
    let config = fixture.settings("second", toml).resolve().unwrap();
    let mut notes = String::new();
    let mut listen = |p: silkie::train::Progress<'_>| {
        if let silkie::train::Progress::Note(text) = p {
            notes += text;
        }
    };
    let summary = silkie::train::run(&config, false, &|| false, &mut listen).unwrap();
    assert_eq!((summary.skipped, summary.steps), (1, 6));
    assert!(notes.contains("step 3: loss or gradient is not finite"), "{notes}");
    assert!(notes.contains("records.jsonl:3 (id-2)"), "{notes}");
    let skipped: Vec<bool> =
        fixture.metrics("second", "train").iter().map(|r| r["skipped"] == true).collect();
    assert_eq!(skipped, [false, false, true, false, false, false]);
    falsify(&fixture, 1, f64::INFINITY, |record| record > 0);
    let message = fixture.train("third", toml).unwrap_err().to_string();
    assert!(message.contains("3 steps in a row were not finite"), "{message}");
    assert!(fixture.path("third/checkpoints/step-00000004/state.json").exists());
}

#[test]
fn what_does_not_fit_is_refused_before_training() {
    let fixture = Fixture::new(3);
    let refused = |out: &str, toml: &str| fixture.train(out, toml).unwrap_err().to_string();
    assert!(refused("a", "token-budget = 30").contains("needs"));
    fixture.train("b", &quick("steps = 1\n")).unwrap();
    let message = refused("b", &quick("steps = 1\n"));
    assert!(message.contains("holds a run already; pass --resume"), "{message}");
    let _lock = silkie::data::lock::Lock::acquire(&fixture.path("c")).unwrap();
    let message = refused("c", &quick("steps = 1\n"));
    assert!(message.contains("another run is writing to this folder"), "{message}");
    let config = fixture.path("model/config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("\"image_size\": 56", "\"image_size\": 112")).unwrap();
    let message = refused("d", &quick("steps = 1\n"));
    assert!(message.contains("pictures of side: expected 112"), "{message}");
}
