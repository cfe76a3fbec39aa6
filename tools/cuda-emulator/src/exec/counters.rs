//! What a launch took: sums over its warp instructions, the same for any schedule and number of threads.

use std::ops::AddAssign;

use super::address::Target;
use super::lanes::ALL;
use super::touch::Touch;
use crate::ptx::ast::Space;

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        /// What a launch took. Instructions are those of warps; bytes are distinct ones within an instruction:
        /// 32 lanes that read the same 4 bytes read 4.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$meta])* pub $name: u64,)*
        }

        impl AddAssign for Counters {
            fn add_assign(&mut self, other: Counters) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counters! {
    warp_instructions,
    /// Those of the lanes that were active.
    lane_instructions,
    /// Of global memory, `cp.async` among them; atomic operations count apart.
    global_loads,
    global_stores,
    /// An atomic operation reads its bytes and writes them.
    global_bytes_read,
    global_bytes_written,
    /// Of the bytes read, those that the launch had not touched before: while launches are remembered. The rest
    /// is read again: `footprint.rs` tells what that means.
    first_bytes_read,
    /// Of the bytes written, those that the launch had not written before: likewise.
    first_bytes_written,
    /// 32-byte sectors that an instruction touches.
    global_sectors,
    /// Sectors that hold as many bytes as the instruction touches.
    ideal_sectors,
    /// `ld`, `st`, `ldmatrix`, atomic operations and what `cp.async` writes.
    shared_accesses,
    /// Passes over the 32 banks.
    shared_wavefronts,
    /// Passes without bank conflicts.
    ideal_wavefronts,
    /// Those of `ldmatrix` alone.
    matrix_wavefronts,
    ideal_matrix_wavefronts,
    /// Of all lanes, read or written: a spill, or an array with computed indices.
    local_bytes,
    mma,
    /// Multiply-adds of `mma`.
    mma_macs,
    /// And of those that wait: between two barriers at which all threads of the block wait, as many as the
    /// slowest warp has, for every warp of the block. A warp that waits has saved nothing.
    paced_macs,
    /// Arrivals of warps at barriers of their block.
    block_barriers,
    /// `bar.warp.sync`
    warp_barriers,
    /// `atom` and `red`, on global and shared memory.
    atomics,
    /// Where lanes read different numbers of bytes, those of each number count their sectors apart.
    cp_async,
}

/// Bytes of the unit in which global memory is moved. The CUDA C++ Best Practices Guide, "Coalesced Access to Global
/// Memory": a warp's accesses become as many 32-byte transactions as are needed.
const SECTOR: u32 = 32;
/// Bytes that shared memory gives in one pass: 32 banks of 4 bytes (CUDA C++ Programming Guide, "Shared Memory" of
/// compute capability 5.x, to which 8.x refers).
const PASS: usize = 128;

impl Counters {
    /// The lanes of `target` touch `bytes` bytes each, at multiples of the next power of two.
    #[inline(always)]
    pub fn touch(&mut self, target: &Target<'_>, bytes: usize, touch: Touch) {
        match target.space {
            Space::Global | Space::Generic => self.touch_global(target, bytes, touch),
            Space::Shared => self.touch_shared(target, bytes, touch),
            Space::Local => self.local_bytes += target.mask.count_ones() as u64 * bytes as u64,
            Space::Const | Space::Param => {}
        }
    }

    #[inline(always)]
    fn touch_global(&mut self, target: &Target<'_>, bytes: usize, touch: Touch) {
        let (distinct, sectors) = match target.step() {
            Some(0) => (bytes as u64, 1),
            Some(step) if step == bytes as u64 => {
                let (start, all) = (target.offsets[0] % SECTOR as u64, 32 * bytes as u64);
                (all, (start + all).div_ceil(SECTOR as u64))
            }
            _ => spread(target, bytes),
        };
        if matches!(touch, Touch::Read | Touch::CopyFrom | Touch::Update) {
            self.global_bytes_read += distinct;
        }
        if matches!(touch, Touch::Write | Touch::Update) {
            self.global_bytes_written += distinct;
        }
        self.global_loads += (touch == Touch::Read) as u64;
        self.global_stores += (touch == Touch::Write) as u64;
        self.atomics += (touch == Touch::Update) as u64;
        self.global_sectors += sectors;
        self.ideal_sectors += distinct.div_ceil(SECTOR as u64);
    }

    /// Lanes that touch the same 4 bytes of a bank share its pass, different ones of the same bank take a pass each
    /// (the guide, as above). Lanes that touch 8 bytes take their passes by halves of the warp, and those that touch
    /// 16 by quarters, a quarter of `ldmatrix` being the 8 rows of a matrix: of sm_80 that is not
    /// documented but common knowledge, seen in profiles; the guide said it of compute capability 2.x.
    #[inline(always)]
    fn touch_shared(&mut self, target: &Target<'_>, bytes: usize, touch: Touch) {
        let unit = bytes.next_power_of_two().max(4);
        // Lanes of a phase, and units of a pass.
        let lanes = PASS / unit;
        let first: u32 = ALL >> (32 - lanes);
        let mut phases = 0;
        for phase in 0..32 / lanes {
            phases += (target.mask >> (phase * lanes) & first != 0) as u64;
        }
        // Neighbouring bytes, or the same ones.
        let is_even = matches!(target.step(), Some(step) if step == 0 || step == bytes as u64);
        let is_free = is_even || is_apart(target, unit);
        self.shared_accesses += 1;
        self.shared_wavefronts += if is_free { phases } else { passes(target, unit) };
        self.ideal_wavefronts += phases;
        self.atomics += (touch == Touch::Update) as u64;
        self.cp_async += (touch == Touch::CopyTo) as u64;
        self.global_loads += (touch == Touch::CopyTo) as u64;
    }
}

/// The distinct bytes and sectors that lanes touch.
#[inline(never)]
fn spread(target: &Target<'_>, bytes: usize) -> (u64, u64) {
    let unit = bytes.next_power_of_two() as u64;
    let (mut units, mut count) = ([0; 32], 0);
    for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
        units[count] = target.offsets[lane] / unit;
        count += 1;
    }
    let units = &mut units[..count];
    units.sort_unstable();
    // A lane's bytes lie in one sector, since they are aligned.
    let per_sector = SECTOR as u64 / unit;
    let (mut distinct, mut sectors) = (1, 1);
    for pair in units.windows(2) {
        distinct += (pair[0] != pair[1]) as u64;
        sectors += (pair[0] / per_sector != pair[1] / per_sector) as u64;
    }
    (distinct * bytes as u64, sectors)
}

/// Whether each lane has a unit of the banks to itself: nothing is shared and nothing conflicts.
#[inline(always)]
fn is_apart(target: &Target<'_>, unit: usize) -> bool {
    let lanes = PASS / unit;
    let mut places = 0u32;
    for lane in 0..32 {
        let place = target.offsets[lane] as usize / unit % lanes + lane / lanes * lanes;
        places |= (target.mask >> lane & 1) << place;
    }
    places.count_ones() == target.mask.count_ones()
}

/// The passes over the banks that lanes need whose units of 4, 8 or 16 bytes are shared or conflict: in every
/// phase as many as the most distinct units in one place.
#[inline(never)]
fn passes(target: &Target<'_>, unit: usize) -> u64 {
    let lanes = PASS / unit;
    let mut all = 0;
    for phase in 0..32 / lanes {
        let of_phase = phase * lanes..(phase + 1) * lanes;
        let (mut units, mut count) = ([0; 32], 0);
        for lane in of_phase.filter(|lane| target.mask >> lane & 1 != 0) {
            units[count] = target.offsets[lane] as usize / unit;
            count += 1;
        }
        let units = &mut units[..count];
        units.sort_unstable();
        let (mut in_place, mut most) = ([0u64; 32], 0);
        for (i, &unit) in units.iter().enumerate() {
            let place = &mut in_place[unit % lanes];
            *place += (i == 0 || units[i - 1] != unit) as u64;
            most = most.max(*place);
        }
        all += most;
    }
    all
}
