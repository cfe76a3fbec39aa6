//! Runs the blocks of a grid on several threads of the host.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::block::{Runner, local_bytes};
use super::fault::{self, Location};
use super::footprint::Footprint;
use super::lanes::LANES;
use super::problem::Problem;
use super::race::{LaunchWatch, SharedCells, Watch};
use super::schedule::{BlockOrder, Schedule};
use super::warp::Block;
use super::{Counters, Launch, Options};
use crate::memory::{ADDRESSABLE, INITIALISED, Memory, READ_ONLY, Region};
use crate::report::{Fault, Kind};

/// Runs every block. Of the faults of several blocks, that of the block that was the first to start is reported, so
/// that it is the same every time; but of two blocks that race with each other, either may be the later.
pub fn run(
    memory: &Memory,
    launch: &Launch<'_>,
    options: &Options,
    limit: u64,
) -> Result<Counters, Fault> {
    if launch.grid.contains(&0) || launch.block.contains(&0) {
        return Ok(Counters::default());
    }
    let blocks = launch.grid.iter().map(|&size| size as u64).product::<u64>();
    let workers = (options.threads.max(1) as u64).min(blocks);
    let footprint = options.counts_first.then(|| Footprint::new(memory)).transpose();
    let shared = Shared {
        memory,
        launch,
        params: parameters(launch).map_err(|e| no_memory(launch, &e))?,
        footprint: footprint.map_err(|e| no_memory(launch, &e))?,
        watch: options.checked.then(|| LaunchWatch::new(memory, launch.grid, workers > 1)),
        order: BlockOrder::new(options.schedule, blocks),
        next: AtomicU64::new(0),
        first_fault: Mutex::new((u64::MAX, None)),
        counters: Mutex::default(),
    };
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
    footprint: Option<Footprint>,
    /// Finds races.
    watch: Option<LaunchWatch<'a>>,
    order: BlockOrder,
    /// The position of the next block that nobody has taken.
    next: AtomicU64,
    /// The position of a block and its fault.
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
        let warps = threads.div_ceil(LANES);
        let reserve = || {
            let local = Region::reserve(own_bytes as usize * threads)?;
            Ok((SharedCells::reserve(shared, warps)?, Region::reserve(shared)?, local))
        };
        let (cells, shared, local) = match reserve() {
            Ok(regions) => regions,
            Err(e) => return self.fail(0, no_memory(self.launch, &e)),
        };
        let watch = self.watch.as_ref().map(|launch| Watch::new(launch, &cells, warps));
        let surroundings = Block {
            program: &kernel.program,
            constants: &kernel.program.constants,
            memory: self.memory,
            shared: &shared,
            local: &local,
            local_bytes: own_bytes,
            params: &self.params,
            is_checked: options.checked,
            watch: watch.as_ref(),
            footprint: self.footprint.as_ref(),
        };
        let schedule = options.schedule;
        let mut runner = Runner::new(kernel, self.launch, surroundings, schedule, limit);
        loop {
            let position = self.next.fetch_add(1, Ordering::Relaxed);
            if position >= blocks || position > self.first_fault().0 {
                break;
            }
            let number = self.order.number(position);
            let [x, y] = [grid[0] as u64, grid[1] as u64];
            let index = [number % x, number / x % y, number / x / y].map(|i| i as u32);
            if let Err(fault) = runner.run(index) {
                self.fail(position, fault);
                break;
            }
        }
        let mut counters = self.counters.lock().unwrap_or_else(|e| e.into_inner());
        *counters += runner.counters;
        runner.warps.iter().for_each(|scheduled| *counters += scheduled.warp.counters);
    }

    fn first_fault(&self) -> std::sync::MutexGuard<'_, (u64, Option<Fault>)> {
        self.first_fault.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn fail(&self, position: u64, fault: Fault) {
        let mut first = self.first_fault();
        if position < first.0 {
            *first = (position, Some(fault));
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
    let (block_size, schedule) = (launch.block, Schedule::Order);
    let location = Location { block: [0; 3], block_size, warp: 0, at: 0, schedule };
    fault::report(launch.kernel, location, *problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::Module;

    const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

    fn run_text(body: &str, block: u32, limit: u64) -> Result<Counters, Fault> {
        let memory = Memory::new(1 << 16).unwrap();
        let text = format!("{HEAD}.entry k() {{ {body} }}");
        let module = Module::load(&text, &memory).unwrap_or_else(|e| panic!("{e}"));
        let kernel = module.kernel("k").unwrap();
        let block = [block, 1, 1];
        let launch = Launch { kernel, grid: [5, 1, 1], block, dynamic_shared: 0, params: &[] };
        let options =
            Options { checked: true, counts_first: false, threads: 2, schedule: Schedule::Order };
        run(&memory, &launch, &options, limit)
    }

    #[test]
    fn instructions_are_counted() {
        let body = ".reg .pred p; .reg .b32 r; mov.u32 r, %tid.x; setp.lt.u32 p, r, 8; @p add.u32 r, r, 1; ret;";
        let counters = run_text(body, 40, 1000).unwrap();
        assert_eq!(counters.warp_instructions, 5 * 2 * 4);
        assert_eq!(counters.lane_instructions, 5 * (3 * 40 + 8));
    }

    #[test]
    fn endless_kernels_end() {
        let fault = run_text("L: bra L;", 64, 10_000).unwrap_err();
        assert_eq!((fault.kind, fault.block, fault.ptx_line), (Kind::Endless, [0, 0, 0], 4));
    }

    /// A lane spins until another lane of its warp, behind the loop, has written.
    #[test]
    fn lanes_of_a_warp_may_wait_for_each_other() {
        let body = "
            .shared .align 4 .b32 flag; .reg .pred p, q; .reg .b32 r, lane;
            st.volatile.shared.u32 [flag], 0; bar.warp.sync -1;
            mov.u32 lane, %laneid; setp.eq.u32 p, lane, 0; @p bra WRITE;
        SPIN: ld.volatile.shared.u32 r, [flag]; setp.eq.u32 q, r, 0; @q bra SPIN; bra END;
        WRITE: st.volatile.shared.u32 [flag], 1;
        END: ret;";
        assert!(run_text(body, 32, 1_000_000).is_ok());
    }

    /// Odd lanes write words where, lane by lane, even lanes still hold double words.
    #[test]
    fn diverged_lanes_keep_their_registers() {
        let body = "
            .reg .pred p; .reg .b32 a, b, lane; .reg .b64 w, v;
            bra START;
        ODD: mov.u32 a, 7; mov.u32 b, 9; add.u32 a, a, b; ret;
        START: mul.wide.u32 w, %laneid, 0x10001;
            mov.u32 lane, %laneid; and.b32 lane, lane, 1; setp.ne.u32 p, lane, 0; @p bra ODD;
            mul.wide.u32 v, %laneid, 0x10001; setp.ne.u64 p, v, w; @p trap;
            ret;";
        assert!(run_text(body, 32, 1000).is_ok());
    }

    /// A mask may name lanes that the block does not have.
    #[test]
    fn the_last_warp_may_be_partial() {
        let body = "
            .reg .pred p, q; .reg .b32 r, s; mov.u32 r, %laneid; setp.ge.u32 p, r, 0;
            vote.sync.all.pred q, p, -1; @!q trap;
            vote.sync.ballot.b32 s, p, -1; bar.warp.sync -1;
            match.all.sync.b32 r|q, s, -1; @!q trap; setp.ne.u32 p, r, s; @p trap;
            redux.sync.max.u32 r, %laneid, -1; shr.u32 s, s, r; setp.ne.u32 p, s, 1; @p trap;
            bar.sync 0; ret;";
        for threads in [1, 31, 32, 40, 63] {
            run_text(body, threads, 1000).unwrap_or_else(|fault| panic!("{threads}: {fault}"));
        }
        let fault = run_text(".reg .b32 r; shfl.sync.down.b32 r, r, 1, 31, -1; ret;", 40, 100);
        let fault = fault.unwrap_err();
        assert_eq!((fault.kind, fault.warp, fault.lane), (Kind::MissingLanes, 1, Some(7)));
    }

    #[test]
    fn nothing_to_run() {
        assert_eq!(run_text("ret;", 0, 10).unwrap(), Counters::default());
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let memory = Memory::new(1 << 16).unwrap();
        for (body, wanted) in [
            (".reg .b32 r; frob.u32 r, r, r;", "PTX line 5: `frob.u32`: not supported"),
            (".reg .b32 r; add.rz.u32 r, r, r;", "`add.rz.u32`: `.rz` is not supported here"),
            (".reg .b64 r; add.u32 r, r, r;", "expected a register of B32, r is B64"),
            (".reg .b32 r; mov.u32 r, %frob;", "%frob is not supported"),
            (".reg .b32 r; add.u32 r, r;", "expected 3 operands, found 2"),
            (".reg .b32 r; ld.global.u32 r, [r];", "the address has an unfit width"),
        ] {
            let text = format!("{HEAD}.entry k() {{\n {body} }}");
            let Err(error) = Module::load(&text, &memory) else { panic!("{body} is accepted") };
            assert!(error.to_string().contains(wanted), "{error}");
        }
    }
}
