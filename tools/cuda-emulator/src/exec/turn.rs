//! The turn of a warp: one instruction of a group of lanes after the other.

use super::barrier::BARRIERS;
use super::block::{Failure, Runner, Scheduled};
use super::divergence::{Group, State};
use super::fault;
use super::lanes::{ALL, Lane};
use super::problem::Problem;
use super::program::{Action, Barrier, Instruction, Members, Op, Reduction};
use super::provided;
use super::warp::Block;
use crate::report::Kind;

impl Runner<'_> {
    /// Runs a warp until it waits, has run so many instructions, or has finished.
    pub fn turn(&mut self, number: usize, instructions: u64) -> Result<(), Failure> {
        let end = self.warps[number].warp.clock + instructions;
        while let Some(taken) = self.warps[number].groups.take() {
            let start = self.warps[number].warp.clock;
            self.run_group(number, taken.group, taken.stop, end.min(start + taken.limit))?;
            let Scheduled { warp, groups, .. } = &mut self.warps[number];
            groups.ran(&taken, warp.clock - start);
            if warp.clock >= end {
                return Ok(());
            }
        }
        let groups = &self.warps[number].groups;
        if groups.first_in(|state| matches!(state, State::AtBarrier(_))).is_some() {
            return Ok(());
        }
        match groups.first_in(|state| state == State::Parked) {
            Some(group) => Err(self.never_joined(number, group)),
            None => Ok(()),
        }
    }

    /// Runs a group until it ends, stands at `stop`, or another group may have to run; then it is back
    /// among the groups of the warp.
    fn run_group(
        &mut self,
        number: usize,
        group: Group,
        stop: u32,
        end: u64,
    ) -> Result<(), Failure> {
        let Group { mut at, mask, .. } = group;
        let scheduled = &mut self.warps[number];
        loop {
            if at == stop || scheduled.warp.clock >= end {
                scheduled.groups.push(Group { at, mask, state: State::Ready });
                return Ok(());
            }
            let instruction = &self.kernel.program.instructions[at as usize];
            let active = mask & scheduled.warp.predicate(instruction.guard);
            scheduled.warp.clock += 1;
            scheduled.warp.at = at;
            self.counters.lane_instructions += active.count_ones() as u64;
            match instruction.op {
                Op::Lanes(run) => {
                    if active != 0 {
                        // SAFETY: made by this process for this machine and this program.
                        unsafe { run(&mut scheduled.warp, &self.block, instruction, active) }
                            .map_err(|problem| Failure { at, problem })?;
                    }
                    at += 1;
                }
                Op::Sync(run, members)
                    if active == ALL && names_all(members, scheduled, &self.block) =>
                {
                    // SAFETY: as above.
                    unsafe { run(&mut scheduled.warp, &self.block, instruction, active) }
                        .map_err(|problem| Failure { at, problem })?;
                    at += 1;
                }
                Op::Branch(target) if active == mask => {
                    at = target;
                    if !scheduled.groups.is_alone() {
                        scheduled.groups.push(Group { at, mask, state: State::Ready });
                        return Ok(());
                    }
                }
                _ if active == 0 => at += 1,
                op => {
                    // The lanes that the guard turns away go on.
                    let rest = Group { at: at + 1, mask: mask & !active, state: State::Ready };
                    scheduled.groups.push(rest);
                    let group = Group { mask: active, at, state: State::Ready };
                    return self
                        .together(number, group, op, instruction)
                        .map_err(|problem| Failure { at, problem });
                }
            }
        }
    }

    /// Runs what concerns more than single lanes, and puts the group back.
    fn together(
        &mut self,
        number: usize,
        group: Group,
        op: Op,
        instruction: &Instruction,
    ) -> Result<(), Box<Problem>> {
        let Group { at, mask, .. } = group;
        let scheduled = &mut self.warps[number];
        match op {
            Op::Branch(target) => scheduled.groups.push(Group { at: target, ..group }),
            Op::BranchTable(first, count) => {
                let chosen = scheduled.warp.word(&self.block, instruction.operands[0]);
                for lane in (0..32).filter(|lane| mask >> lane & 1 != 0) {
                    if chosen[lane] >= count {
                        let detail = format!("Target {} of {count} is chosen.", chosen[lane]);
                        return Err(Problem::of_lanes(Kind::Trap, 1 << lane, detail));
                    }
                    let at = self.kernel.program.tables[(first + chosen[lane]) as usize];
                    scheduled.groups.push(Group { at, mask: 1 << lane, state: State::Ready });
                }
            }
            Op::Exit => {
                scheduled.live &= !mask;
                scheduled.groups.retry_parked();
                if let Some(watch) = self.block.watch {
                    watch.exit(number as u32, mask);
                }
                for barrier in 0..BARRIERS {
                    self.release_if_complete(barrier as u8);
                }
            }
            Op::Sync(run, members) => {
                let ready = present(members, scheduled, &self.block, mask)?;
                if ready != 0 {
                    // SAFETY: made by this process for this machine and this program.
                    unsafe { run(&mut scheduled.warp, &self.block, instruction, ready) }?;
                }
                scheduled.groups.push(Group { at: at + 1, mask: ready, ..group });
                scheduled.groups.push(Group { mask: mask & !ready, state: State::Parked, ..group });
            }
            Op::Barrier(barrier) => self.arrive(number, group, barrier, instruction)?,
            Op::Trap => {
                return Err(Problem::of_lanes(Kind::Trap, mask, String::new()));
            }
            Op::AssertFail => {
                let lane = mask.trailing_zeros();
                let detail = provided::assertion(&scheduled.warp, &self.block, instruction, lane);
                return Err(Problem::of_lanes(Kind::Assertion, mask, detail));
            }
            Op::Print => {
                provided::print(&mut scheduled.warp, &self.block, instruction, mask)?;
                scheduled.groups.push(Group { at: at + 1, ..group });
            }
            Op::Lanes(_) => scheduled.groups.push(Group { at: at + 1, ..group }),
        }
        Ok(())
    }

    /// A group arrives at a barrier of the block.
    fn arrive(
        &mut self,
        number: usize,
        group: Group,
        barrier: Barrier,
        instruction: &Instruction,
    ) -> Result<(), Box<Problem>> {
        let Group { at, mask, .. } = group;
        let scheduled = &mut self.warps[number];
        if barrier.is_aligned && mask != scheduled.live {
            scheduled.groups.push(Group { state: State::Parked, ..group });
            return Ok(());
        }
        let fault = |detail: String| Err(Problem::of_lanes(Kind::BarrierDivergence, mask, detail));
        let lane = mask.trailing_zeros() as usize & 31;
        let value = |i: usize| scheduled.warp.word(&self.block, instruction.operands[i])[lane];
        let (id, count) = (value(0), value(1));
        if id as usize >= BARRIERS {
            return fault(format!("There are {BARRIERS} barriers, and this is number {id}."));
        }
        if barrier.is_counted && (count == 0 || !count.is_multiple_of(32)) {
            return fault(format!("{count} threads are no whole number of warps."));
        }
        scheduled.warp.counters.block_barriers += 1;
        let state = &mut self.barriers[id as usize];
        let program = &self.kernel.program;
        match state.first {
            // In CUDA C++ all threads of a block come to the same `__syncthreads`.
            Some(first) if id == 0 && !barrier.is_counted && barrier.is_aligned => {
                let [first_line, line] = [first, at].map(|at| program.origins[at as usize].line);
                if first_line != line {
                    let [first, here] = [first, at].map(|at| fault::line(program, at));
                    return fault(format!(
                        "Other warps of the block wait at {first}, this one has come to {here}."
                    ));
                }
            }
            Some(_) => {}
            None => state.first = Some(at),
        }
        if let Action::Reduce(_) = barrier.action {
            state.vote(mask & scheduled.warp.predicate(instruction.operands[3]), mask);
        }
        state.expected = if barrier.is_counted { count } else { 0 };
        if let (true, Some(watch)) = (barrier.is_counted, self.block.watch) {
            watch.arrive(id as u8, number as u32, mask);
        }
        // A count is one of warps, whole or not.
        let is_whole = barrier.is_counted && barrier.is_aligned;
        state.arrived += if is_whole { 32 } else { mask.count_ones() };
        scheduled.groups.push(match barrier.action {
            Action::Arrive => Group { at: at + 1, ..group },
            _ => Group { state: State::AtBarrier(id as u8), ..group },
        });
        self.release_if_complete(id as u8);
        Ok(())
    }

    /// Lets all go on that wait at a barrier, once nobody is missing.
    fn release_if_complete(&mut self, id: u8) {
        let live = self.live();
        let state = &mut self.barriers[id as usize];
        if !state.is_complete(live) {
            return;
        }
        let complete = std::mem::take(state);
        let watch = self.block.watch;
        if let (0, Some(watch)) = (complete.expected, watch) {
            watch.meet();
        }
        let mut waited = 0;
        for Scheduled { warp, groups, .. } in &mut self.warps {
            groups.release(id, |group| {
                waited += group.mask.count_ones();
                if let (1.., Some(watch)) = (complete.expected, watch) {
                    watch.leave(id, warp.index, group.mask);
                }
                let instruction = &self.kernel.program.instructions[group.at as usize];
                let Op::Barrier(Barrier { action: Action::Reduce(reduction), .. }) = instruction.op
                else {
                    return;
                };
                let result = complete.result(reduction);
                match reduction {
                    Reduction::Count => {
                        u32::store(warp, instruction.operands[2], [result; 32], group.mask);
                    }
                    _ => {
                        let bits = if result != 0 { ALL } else { 0 };
                        warp.set_predicate(instruction.operands[2], bits, group.mask);
                    }
                }
            });
        }
        if let Some(watch) = watch {
            watch.end_meeting(id);
        }
        // Of a barrier that counts threads, others may have exited or not, as it happens.
        if complete.expected == 0 || waited == self.born() {
            self.pace();
        }
    }
}

/// Whether the mask of the instruction names all lanes in all lanes.
fn names_all(members: Members, scheduled: &Scheduled, block: &Block<'_>) -> bool {
    match members {
        Members::All => true,
        Members::Mask(operand) => *scheduled.warp.word(block, operand) == [ALL; 32],
    }
}

/// The lanes of `active` that can run an instruction together, since all are there that it names. Errors:
/// a lane names lanes that have exited, or does not name itself.
fn present(
    members: Members,
    scheduled: &Scheduled,
    block: &Block<'_>,
    active: u32,
) -> Result<u32, Box<Problem>> {
    let missing =
        |lanes: u32, detail: String| Err(Problem::of_lanes(Kind::MissingLanes, lanes, detail));
    let &Scheduled { live, born, .. } = scheduled;
    let Members::Mask(operand) = members else {
        if live != ALL {
            return missing(
                active,
                format!("All 32 lanes take part, but {:#010x} are gone.", !live),
            );
        }
        return Ok(if active == ALL { ALL } else { 0 });
    };
    let masks = scheduled.warp.word(block, operand);
    let (mut ready, mut rest) = (0, active);
    while rest != 0 {
        let mask = masks[rest.trailing_zeros() as usize];
        let mut same = 0;
        for lane in 0..32 {
            same |= ((masks[lane] == mask) as u32) << lane;
        }
        same &= rest;
        rest &= !same;
        if same & !mask != 0 {
            return missing(same & !mask, format!("The mask {mask:#010x} does not name the lane."));
        }
        // Lanes that never were, at the end of a block, count for nothing.
        let named = mask & born;
        if named & !live != 0 {
            let gone = named & !live;
            return missing(
                same,
                format!("The mask {mask:#010x} names lanes {gone:#010x}, which have exited."),
            );
        }
        if named == same {
            ready |= same;
        }
    }
    Ok(ready)
}
