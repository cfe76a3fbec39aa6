//! Checkpoints: everything a run needs to go on bit for bit.
//!
//! ```text
//! OUT/checkpoints/step-00000100/
//!     state.json            where the run stands (State), checksum of the tensors
//!     tensors.safetensors   param.NAME, exp_avg.NAME, exp_avg_sq.NAME of every trained tensor, f32
//! ```
//!
//! A checkpoint appears whole or not at all (temporary folder, fsync, rename). Random numbers are
//! pure functions of seed and epoch, so the position in the data is all of their state.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

use crate::data::atomic;
use crate::error::{Error, Result};
use crate::model::params::ParamInfo;
use crate::model::weights::write::{self, Output};
use crate::model::weights::{MappedTensor, safetensors};
use crate::tensor::DType;
use crate::train::metrics::Position;

/// Format of `state.json`.
const VERSION: u32 = 1;
/// Prefixes of the three tensors of a parameter, in the order of [`Moments`].
const KINDS: [&str; 3] = ["param", "exp_avg", "exp_avg_sq"];
/// Bytes read at a time while checking.
const CHUNK: usize = 1 << 20;

/// Where a run stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Format.
    pub version: u32,
    /// Optimiser steps done, skipped ones included.
    pub step: u64,
    /// Epoch that the next step belongs to.
    pub epoch: u64,
    /// Steps of that epoch that are done.
    pub epoch_step: u64,
    /// Steps that changed the parameters: AdamW's t.
    pub updates: u64,
    /// Steps done before the last evaluation, if there was one.
    pub evaluated: Option<u64>,
    /// Skipped steps at the end of what is done.
    pub skipped_in_a_row: u32,
    /// Fingerprint of the shards.
    pub data: String,
    /// Fingerprint of the base model.
    pub base: String,
    /// Where the metrics files end.
    pub metrics: Position,
    /// xxh3-64 of `tensors.safetensors`.
    pub tensors: String,
}

impl State {
    /// The state before the first step.
    pub fn start(data: String, base: String) -> State {
        State {
            version: VERSION,
            step: 0,
            epoch: 0,
            epoch_step: 0,
            updates: 0,
            evaluated: None,
            skipped_in_a_row: 0,
            data,
            base,
            metrics: Position::default(),
            tensors: String::new(),
        }
    }

    /// Parses `state.json`; `path` is only named in errors.
    pub fn parse(path: &Path, text: &str) -> Result<State> {
        let state: State = serde_json::from_str(text)
            .map_err(|e| Error::file(path, "", format!("no state of a run: {e}")))?;
        if state.version != VERSION {
            let got = state.version;
            let message = format!("expected version {VERSION}, got {got}; resume with that silkie");
            return Err(Error::file(path, "", message));
        }
        Ok(state)
    }
}

/// Flat buffers that make up a run: values and both moments of AdamW, `[layout.len()]` each.
pub struct Moments<T> {
    /// Values of what is trained.
    pub params: T,
    /// First moments.
    pub exp_avg: T,
    /// Second moments.
    pub exp_avg_sq: T,
}

/// Saves a checkpoint of the run in `out` and removes all but the newest `keep`. Gives its folder.
pub fn save(
    out: &Path,
    state: &State,
    layout: &[ParamInfo],
    moments: &Moments<&[f32]>,
    keep: usize,
) -> Result<PathBuf> {
    let root = out.join("checkpoints");
    fs::create_dir_all(&root).map_err(|e| Error::io(&root, "create the folder", e))?;
    let target = root.join(format!("step-{:08}", state.step));
    if !target.exists() {
        let folder = atomic::Folder::create(&target)?;
        let path = folder.path().join("tensors.safetensors");
        write_tensors(&path, layout, moments)?;
        let state = State { tensors: checksum(&path)?, ..state.clone() };
        let path = folder.path().join("state.json");
        let text = serde_json::to_string_pretty(&state)
            .map_err(|e| Error::io(&path, "write", e.into()))?;
        fs::write(&path, text + "\n").map_err(|e| Error::io(&path, "write", e))?;
        folder.commit()?;
    }
    let mut all = list(out)?;
    all.truncate(all.len().saturating_sub(keep.max(1)));
    all.iter().try_for_each(|(_, old)| remove(old))?;
    Ok(target)
}

/// The newest checkpoint of the run in `out`.
pub fn latest(out: &Path) -> Result<Option<PathBuf>> {
    Ok(list(out)?.pop().map(|(_, path)| path))
}

/// Reads a checkpoint into `moments`. Errors name file and tensor: missing, altered, or of another
/// layout than the run that wants to resume.
pub fn load(path: &Path, layout: &[ParamInfo], moments: &mut Moments<&mut [f32]>) -> Result<State> {
    let file = path.join("state.json");
    let text = fs::read_to_string(&file).map_err(|e| Error::io(&file, "read", e))?;
    let state = State::parse(&file, &text)?;
    let file = path.join("tensors.safetensors");
    if checksum(&file)? != state.tensors {
        let message = format!(
            "altered or damaged since it was saved; remove {} to resume from the checkpoint before",
            path.display()
        );
        return Err(Error::file(&file, "", message));
    }
    let tensors = safetensors::open(&file)?;
    let expected = layout.len() * KINDS.len();
    if tensors.len() != expected {
        let message = format!("expected {expected} tensors, got {}; another run's?", tensors.len());
        return Err(Error::file(&file, "", message));
    }
    let all = [&mut moments.params, &mut moments.exp_avg, &mut moments.exp_avg_sq];
    for (kind, flat) in KINDS.iter().zip(all) {
        for info in layout {
            let name = format!("{kind}.{}", info.name);
            let tensor = find(&file, &tensors, &name, [info.rows, info.cols])?;
            tensor.widen_into(&mut flat[info.range()]);
        }
    }
    Ok(state)
}

fn find<'a>(
    file: &Path,
    tensors: &'a [MappedTensor],
    name: &str,
    shape: [usize; 2],
) -> Result<&'a MappedTensor> {
    let fail = |m: String| Err(Error::file(file, format!("tensor {name}"), m));
    match tensors.iter().find(|t| t.name() == name) {
        Some(tensor) if tensor.shape() == shape && tensor.dtype() == DType::F32 => Ok(tensor),
        Some(tensor) => {
            let (dtype, got) = (tensor.dtype(), tensor.shape());
            fail(format!("expected {shape:?} F32, got {got:?} {dtype:?}; another run's?"))
        }
        None => fail("missing; the checkpoint is another run's?".into()),
    }
}

fn write_tensors(path: &Path, layout: &[ParamInfo], moments: &Moments<&[f32]>) -> Result<()> {
    let output = |kind: &str, info: &ParamInfo| Output {
        name: format!("{kind}.{}", info.name),
        shape: vec![info.rows, info.cols],
        dtype: DType::F32,
    };
    let outputs: Vec<Output> =
        KINDS.iter().flat_map(|kind| layout.iter().map(move |info| output(kind, info))).collect();
    let all = [moments.params, moments.exp_avg, moments.exp_avg_sq];
    let mut data = all.iter().flat_map(|flat| layout.iter().map(|info| &flat[info.range()]));
    write::file(path, &outputs, |_, sink| data.next().map_or(Ok(()), |values| sink.floats(values)))
}

/// Checkpoints of the run in `out` by step, oldest first.
fn list(out: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let root = out.join("checkpoints");
    if !root.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(&root).map_err(|e| Error::io(&root, "list the folder", e))? {
        let path = entry.map_err(|e| Error::io(&root, "list the folder", e))?.path();
        let name = path.file_name().and_then(|n| n.to_str());
        if let Some(step) = name.and_then(|n| n.strip_prefix("step-")?.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// Takes the name away first: half a checkpoint never looks like one.
fn remove(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let doomed = path.with_file_name(format!(".{name}.partial"));
    let io = |e| Error::io(path, "remove the old checkpoint", e);
    fs::rename(path, &doomed).map_err(io)?;
    fs::remove_dir_all(&doomed).map_err(io)
}

fn checksum(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let (mut hash, mut buffer) = (Xxh3::new(), vec![0; CHUNK]);
    loop {
        match file.read(&mut buffer).map_err(|e| Error::io(path, "read", e))? {
            0 => return Ok(format!("{:016x}", hash.digest())),
            n => hash.update(&buffer[..n]),
        }
    }
}
