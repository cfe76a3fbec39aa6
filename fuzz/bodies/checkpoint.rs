//! A checkpoint's `state.json`, of any content.

use std::path::Path;

use silkie::train::checkpoint::State;

/// A run at its start and a run on its way.
pub fn seeds() -> Vec<Vec<u8>> {
    let start = State::start("00ff".into(), "ee11".into());
    let later = State { step: 20, epoch: 1, epoch_step: 3, updates: 19, ..start.clone() };
    [start, later].map(|state| serde_json::to_vec(&state).expect("JSON")).to_vec()
}

/// A state that is accepted is written as it was read.
pub fn run(input: &[u8]) {
    let path = Path::new("state.json");
    let Ok(state) = State::parse(path, &String::from_utf8_lossy(input)) else { return };
    let text = serde_json::to_string(&state).expect("JSON");
    assert_eq!(State::parse(path, &text).expect("what was written"), state);
}
