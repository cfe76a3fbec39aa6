//! Runs the blocks of a grid on several threads of the host.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{Runner, local_bytes};
use super::fault::{self, Location};
use super::problem::Problem;
use super::warp::Block;
use super::{Counters, Launch, Options};
use crate::memory::{ADDRESSABLE, INITIALISED, Memory, READ_ONLY, Region};
use crate::report::{Fault, Kind};

/// Runs every block. Of the faults of several blocks, that of the first block is reported, so that it is the
/// same every time.
pub fn run(
    memory: &Memory,
    launch: &Launch<'_>,
    options: &Options,
    limit: u64,
) -> Result<Counters, Fault> {
    if launch.grid.contains(&0) || launch.block.contains(&0) {
        return Ok(Counters::default());
    }
    let shared = Shared {
        memory,
        launch,
        params: parameters(launch).map_err(|e| no_memory(launch, &e))?,
        next: AtomicU64::new(0),
        first_fault: Mutex::new((u64::MAX, None)),
        counters: Mutex::default(),
    };
    let blocks = launch.grid.iter().map(|&size| size as u64).product::<u64>();
    let workers = (options.threads.max(1) as u64).min(blocks);
    if workers == 1 {
        shared.work(blocks, options, limit);
    } else {
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| shared.work(blocks, options, limit));
            }
        });
    }
    let (_, fault) = shared.first_fault.into_inner().unwrap_or_else(|e| e.into_inner());
    match fault {
        Some(fault) => Err(fault),
        None => Ok(shared.counters.into_inner().unwrap_or_else(|e| e.into_inner())),
    }
}

/// What the workers of a launch share.
struct Shared<'a> {
    memory: &'a Memory,
    launch: &'a Launch<'a>,
    params: Region,
    /// The next block that nobody has taken.
    next: AtomicU64,
    /// The number of a block and its fault.
    first_fault: Mutex<(u64, Option<Fault>)>,
    counters: Mutex<Counters>,
}

impl Shared<'_> {
    /// Runs blocks until there are none, or one has failed.
    fn work(&self, blocks: u64, options: &Options, limit: u64) {
        let Launch { kernel, grid, block, dynamic_shared, .. } = *self.launch;
        let threads = block.iter().map(|&size| size as usize).product::<usize>();
        let own_bytes = local_bytes(kernel);
        let shared = kernel.layout.dynamic_shared as usize + dynamic_shared as usize;
        let reserve =
            || Ok((Region::reserve(shared)?, Region::reserve(own_bytes as usize * threads)?));
        let (shared, local) = match reserve() {
            Ok(regions) => regions,
            Err(e) => return self.fail(0, no_memory(self.launch, &e)),
        };
        let surroundings = Block {
            constants: &kernel.program.constants,
            memory: self.memory,
            shared: &shared,
            local: &local,
            local_bytes: own_bytes,
            params: &self.params,
            is_checked: options.checked,
        };
        let mut runner = Runner::new(kernel, self.launch, surroundings, limit);
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= blocks || number > self.first_fault().0 {
                break;
            }
            let [x, y] = [grid[0] as u64, grid[1] as u64];
            let index = [number % x, number / x % y, number / x / y].map(|i| i as u32);
            if let Err(fault) = runner.run(index) {
                self.fail(number, fault);
                break;
            }
        }
        let mut counters = self.counters.lock().unwrap_or_else(|e| e.into_inner());
        counters.warp_instructions += runner.counters.warp_instructions;
        counters.lane_instructions += runner.counters.lane_instructions;
    }

    fn first_fault(&self) -> std::sync::MutexGuard<'_, (u64, Option<Fault>)> {
        self.first_fault.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn fail(&self, number: u64, fault: Fault) {
        let mut first = self.first_fault();
        if number < first.0 {
            *first = (number, Some(fault));
        }
    }
}

/// The bytes of the parameters, which kernels may read.
fn parameters(launch: &Launch<'_>) -> io::Result<Region> {
    let region = Region::reserve(launch.params.len())?;
    for (at, &byte) in launch.params.iter().enumerate() {
        region.fill(at as u64, 1, byte);
    }
    region.mark(0, launch.params.len(), ADDRESSABLE | INITIALISED | READ_ONLY, 0);
    Ok(region)
}

#[cold]
fn no_memory(launch: &Launch<'_>, error: &io::Error) -> Fault {
    let problem =
        Problem::of_lanes(Kind::Trap, 0, format!("The host has no memory for it: {error}."));
    let location = Location { block: [0; 3], block_size: launch.block, warp: 0, at: 0 };
    fault::report(launch.kernel, location, *problem)
}
