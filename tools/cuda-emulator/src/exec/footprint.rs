//! Which bytes of global memory a launch has touched: what an L2 that is cold and large enough moves, once each.
//!
//! A byte is read first when the launch had neither read nor written it, and written first when it had not
//! written it. Where a kernel has no races these are the same for any schedule: a write and another access to the
//! same byte come in one order, unless both are strong (volatile, relaxed, atomic). So a strong read does not ask
//! whether there was a strong write: it may be a read from DRAM, and counts as one.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use super::address::Target;
use super::touch::Touch;
use super::warp::{Block, Warp};
use crate::mapping::Mapping;
use crate::memory::Memory;
use crate::ptx::ast::Space;

/// A flag in each of the 8 bytes of a word: the byte was read, when nothing had written it.
const READ: u64 = 0x0101_0101_0101_0101;
/// It was written weakly.
const WRITTEN: u64 = READ << 1;
/// It was written strongly.
const STRONGLY_WRITTEN: u64 = READ << 2;

/// The flags of a launch.
pub struct Footprint {
    /// A byte for every byte of device memory.
    flags: Mapping,
}

impl Footprint {
    /// Of a launch that has touched nothing. Errors: the system's.
    pub fn new(memory: &Memory) -> io::Result<Footprint> {
        Ok(Footprint { flags: Mapping::reserve(memory.region().bytes().next_multiple_of(8))? })
    }

    /// Counts what the lanes of `target`, which are inside of their region, touch for the first time.
    #[inline(never)]
    pub fn touch(
        &self,
        warp: &mut Warp,
        block: &Block<'_>,
        target: &Target<'_>,
        bytes: usize,
        touch: Touch,
    ) {
        if target.space != Space::Global {
            return;
        }
        let access = block.program.instructions[warp.at as usize].access;
        let mut mark = |start: u64, bytes: usize| {
            let [read, written] = self.mark(start, bytes, touch, access.order.is_strong);
            warp.counters.first_bytes_read += read;
            warp.counters.first_bytes_written += written;
        };
        match target.step() {
            Some(0) => mark(target.offsets[0], bytes),
            Some(step) if step == bytes as u64 => mark(target.offsets[0], 32 * bytes),
            _ => {
                for lane in (0..32).filter(|lane| target.mask >> lane & 1 != 0) {
                    mark(target.offsets[lane], bytes);
                }
            }
        }
    }

    /// How many bytes of a range are read first, and written first.
    #[inline(always)]
    fn mark(&self, start: u64, bytes: usize, touch: Touch, is_strong: bool) -> [u64; 2] {
        let (mut at, end) = (start as usize, start as usize + bytes);
        assert!(end <= self.flags.bytes(), "an access outside of device memory");
        let mut first = [0; 2];
        while at < end {
            let (word, next) = (at / 8, (at / 8 * 8 + 8).min(end));
            let those = !0 >> (64 - 8 * (next - at)) << (at % 8 * 8);
            // SAFETY: a whole word inside of the mapping, whose start is aligned and which is only used so.
            let flags =
                unsafe { AtomicU64::from_ptr(self.flags.start().as_ptr().cast::<u64>().add(word)) };
            let [read, written] = mark_word(flags, those, touch, is_strong);
            first = [first[0] + read, first[1] + written];
            at = next;
        }
        first
    }
}

/// Of the bytes of `those`. Accesses to one byte that nothing orders only add flags, each of which one of them adds.
#[inline(always)]
fn mark_word(flags: &AtomicU64, those: u64, touch: Touch, is_strong: bool) -> [u64; 2] {
    let written = |flags: u64| (flags & WRITTEN) >> 1 | (flags & STRONGLY_WRITTEN) >> 2;
    let old = flags.load(Ordering::Relaxed);
    let mut new = 0;
    if matches!(touch, Touch::Read | Touch::CopyFrom | Touch::Update) {
        new |= READ & !if is_strong { (old & WRITTEN) >> 1 } else { written(old) };
    }
    if matches!(touch, Touch::Write | Touch::Update) {
        new |= if is_strong { STRONGLY_WRITTEN } else { WRITTEN };
    }
    new &= those;
    if new & !old == 0 {
        return [0; 2];
    }
    let old = flags.fetch_or(new, Ordering::Relaxed);
    let count = |bytes: u64| u64::from(bytes.count_ones());
    [count(new & !old & READ), count(written(new) & !written(old))]
}
