//! Checkpoints: whole, complete, recognised when they are not one's own.

use std::fs;
use std::path::{Path, PathBuf};

use silkie::model::params::ParamInfo;
use silkie::train::checkpoint::{self, Moments, State};
use silkie::train::metrics::Position;

const LEN: usize = 48;

fn layout() -> Vec<ParamInfo> {
    let info = |name: &str, rows, cols, offset| ParamInfo {
        name: name.into(),
        rows,
        cols,
        offset,
        decay: true,
    };
    vec![info("a.lora_A.weight", 3, 5, 0), info("a.lora_B.weight", 4, 7, 16)]
}

fn flat(seed: f32) -> Vec<f32> {
    (0..LEN).map(|i| i as f32 * seed).collect()
}

fn save(out: &Path, step: u64, keep: usize) -> (State, PathBuf) {
    let mut state = State::start("d".into(), "b".into());
    (state.step, state.epoch, state.epoch_step) = (step, 2, 5);
    state.metrics = Position { metrics: 10, events: 20 };
    let (p, m, v) = (flat(0.1), flat(0.2), flat(0.3));
    let moments = Moments { params: &p[..], exp_avg: &m[..], exp_avg_sq: &v[..] };
    let path = checkpoint::save(out, &state, &layout(), &moments, keep).unwrap();
    (state, path)
}

fn load(path: &Path, layout: &[ParamInfo]) -> Result<(State, [Vec<f32>; 3]), String> {
    let mut all = [vec![f32::NAN; LEN], vec![f32::NAN; LEN], vec![f32::NAN; LEN]];
    let [p, m, v] = &mut all;
    let mut moments = Moments { params: &mut p[..], exp_avg: &mut m[..], exp_avg_sq: &mut v[..] };
    let state = checkpoint::load(path, layout, &mut moments).map_err(|e| e.to_string())?;
    Ok((state, all))
}

#[test]
fn what_is_saved_comes_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(checkpoint::latest(dir.path()).unwrap(), None);
    let (state, path) = save(dir.path(), 7, 2);
    let (loaded, all) = load(&path, &layout()).unwrap();
    assert_eq!(State { tensors: String::new(), ..loaded }, state);
    for (got, seed) in all.iter().zip([0.1, 0.2, 0.3]) {
        for info in layout() {
            assert_eq!(got[info.range()], flat(seed)[info.range()], "{}", info.name);
        }
        assert!(got[15].is_nan(), "padding between tensors is nobody's");
    }
}

#[test]
fn the_newest_stay() {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 9, 10, 100] {
        save(dir.path(), step, 2);
    }
    let mut names: Vec<_> = fs::read_dir(dir.path().join("checkpoints"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["step-00000010", "step-00000100"]);
    let latest = checkpoint::latest(dir.path()).unwrap().unwrap();
    assert!(latest.ends_with("step-00000100"));
    // A crash while writing leaves a folder that is no checkpoint.
    fs::create_dir(dir.path().join("checkpoints/.step-00000200.1-0.partial")).unwrap();
    assert_eq!(checkpoint::latest(dir.path()).unwrap().unwrap(), latest);
}

#[test]
fn another_runs_checkpoint_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = save(dir.path(), 1, 1);
    let message = load(&path, &layout()[..1]).unwrap_err();
    assert!(message.contains("expected 3 tensors, got 6"), "{message}");
    let mut other = layout();
    other[1].cols = 6;
    assert!(load(&path, &other).unwrap_err().contains("expected [4, 6] F32, got [4, 7] F32"));
    other[1].name = "b".into();
    assert!(load(&path, &other).unwrap_err().contains("tensor param.b: missing"));
}

#[test]
fn damage_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = save(dir.path(), 1, 1);
    let file = path.join("tensors.safetensors");
    let mut bytes = fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&file, &bytes).unwrap();
    assert!(load(&path, &layout()).unwrap_err().contains("altered or damaged"));
    fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert!(load(&path, &layout()).unwrap_err().contains("altered or damaged"));
    fs::write(path.join("state.json"), "{\"version\": 1").unwrap();
    assert!(load(&path, &layout()).unwrap_err().contains("no state of a run"));
    fs::remove_file(path.join("state.json")).unwrap();
    assert!(load(&path, &layout()).unwrap_err().contains("state.json: cannot read"));
}
