//! Runs a micro-kernel in the emulator.

use emucuda::exec::{Launch, Module, Options, launch};
use emucuda::memory::{BASE, INITIALISED, Memory};

use crate::cases::Case;

/// What the kernel leaves in its output, whose bytes are 0xFF before.
pub fn run(case: &Case, options: &Options) -> Result<Vec<u8>, String> {
    let memory = Memory::new(1 << 22).map_err(|e| e.to_string())?;
    let module = Module::load(&case.module(), &memory).map_err(|e| e.to_string())?;
    let kernel = module.kernel(&case.entry()).ok_or("the kernel is missing")?;
    let input = upload(&memory, &case.input)?;
    let output = upload(&memory, &vec![0xFF; case.output])?;
    let mut params = [input.to_le_bytes(), output.to_le_bytes()].concat();
    params.extend(&case.extra);
    let Case { grid, block, dynamic_shared, .. } = *case;
    launch(&memory, &Launch { kernel, grid, block, dynamic_shared, params: &params }, options)
        .map_err(|fault| fault.to_string())?;
    let read = |i: usize| {
        let mut byte = [0];
        memory.region().load(output - BASE + i as u64, true, &mut byte).map(|()| byte[0])
    };
    let bytes: Result<Vec<u8>, _> = (0..case.output).map(read).collect();
    bytes.map_err(|kind| format!("the output: {kind}"))
}

fn upload(memory: &Memory, bytes: &[u8]) -> Result<u64, String> {
    let address = memory.allocate(bytes.len(), "allocation").ok_or("device memory is exhausted")?;
    let region = memory.region();
    for (i, &byte) in bytes.iter().enumerate() {
        let stored = region.store(address - BASE + i as u64, [byte], true);
        stored.map_err(|kind| format!("the upload: {kind}"))?;
    }
    region.mark(address - BASE, bytes.len(), INITIALISED, 0);
    Ok(address)
}
