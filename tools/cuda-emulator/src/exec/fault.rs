//! From what an instruction found wrong to a report that names kernel, line, block and thread.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::module::Kernel;
use super::problem::Problem;
use super::program::Program;
use super::schedule::Schedule;
use crate::ptx::ast::Place;
use crate::report::Fault;

/// Where a launch is.
#[derive(Clone, Copy)]
pub struct Location {
    pub block: [u32; 3],
    pub block_size: [u32; 3],
    pub warp: u32,
    /// Index of the instruction.
    pub at: u32,
    pub schedule: Schedule,
}

pub fn report(kernel: &Kernel, location: Location, problem: Problem) -> Fault {
    let program = &kernel.program;
    let Problem { kind, lane, access, detail } = problem;
    let origin = program.origins[location.at as usize];
    let thread = lane.map(|lane| {
        let [x, y, _] = location.block_size;
        let index = location.warp * 32 + lane;
        [index % x, index / x % y, index / x / y]
    });
    Fault {
        kind,
        kernel: kernel.name.clone(),
        instruction: program.opcodes[origin.opcode as usize].clone(),
        ptx_line: origin.line,
        source: source(program, location.at),
        block: location.block,
        warp: location.warp,
        lane,
        thread,
        access,
        detail,
        schedule: location.schedule,
    }
}

/// `rms_norm.cu:57` of an instruction, with the lines it was inlined at, or its line of the PTX text.
pub fn line(program: &Program, at: u32) -> String {
    let lines = source(program, at);
    match lines.is_empty() {
        true => format!("PTX line {}", program.origins[at as usize].line),
        false => lines.join(", inlined at "),
    }
}

/// The lines of the source, innermost first.
fn source(program: &Program, at: u32) -> Vec<String> {
    let mut lines = Vec::new();
    let mut next = program.origins[at as usize].place;
    // Places refer to earlier ones or to callers; the limit guards against a text where they do not.
    while let Some(number) = next.filter(|_| lines.len() < 64) {
        lines.extend(place_name(&program.places, &program.files, next));
        next = program.places.get(number as usize).and_then(|place| place.inlined_at);
    }
    lines
}

/// `kernels/rms_norm.cu:57`, relative to the current folder where it lies in it.
pub fn place_name(
    places: &[Place],
    files: &BTreeMap<u32, String>,
    place: Option<u32>,
) -> Option<String> {
    let place = places.get(place? as usize)?;
    let file = normal(Path::new(files.get(&place.file)?));
    let current = std::env::current_dir().unwrap_or_default();
    let path = file.strip_prefix(current).unwrap_or(&file);
    Some(format!("{}:{}", path.display(), place.line))
}

/// Without `.` and, where the folder is known, without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match (component, normal.components().next_back()) {
            (Component::CurDir, _) => {}
            (Component::ParentDir, Some(Component::Normal(_))) => {
                normal.pop();
            }
            _ => normal.push(component),
        }
    }
    normal
}
