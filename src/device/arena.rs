//! All memory of a run in one allocation, planned up front: its addresses never change, and nothing
//! is allocated once the run goes on.
//!
//! A [`Plan`] is a list of named spans; whoever needs memory adds its own. [`Arena::new`] allocates
//! the sum, and each [`Slot`] of the plan is then taken once, as a [`Buffer`]. The arena knows no
//! model; a plan can be made and printed without a GPU.

use std::fmt;
use std::sync::Arc;

use crate::device::cuda::Cuda;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::tensor::DType;

/// Spans start at multiples of this many bytes: what `cuMemAlloc` gives, what cuBLASLt's best
/// algorithms and tensor maps ask for.
pub const ALIGNMENT: usize = 256;

/// A list of named spans, one after another.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    spans: Vec<Span>,
    total: usize,
}

/// `[rows, cols]` elements under a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// What they are, as "block 3 qkv".
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// `[rows, cols]`.
    pub shape: [usize; 2],
    /// First byte.
    pub offset: usize,
    /// Without what is lost to the alignment of the next span.
    pub bytes: usize,
}

/// A span of the plan it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(usize);

impl Plan {
    /// Adds a span. Sizes beyond all memory make a plan that no arena can be made of.
    pub fn add(&mut self, name: impl Into<String>, dtype: DType, rows: usize, cols: usize) -> Slot {
        let bytes = rows.saturating_mul(cols).saturating_mul(dtype.size());
        let (offset, shape) = (self.total, [rows, cols]);
        self.spans.push(Span { name: name.into(), dtype, shape, offset, bytes });
        let end = offset.saturating_add(bytes);
        self.total = end.checked_next_multiple_of(ALIGNMENT).unwrap_or(usize::MAX);
        Slot(self.spans.len() - 1)
    }

    /// Adds every span of `other`, its name after `prefix`.
    pub fn append(&mut self, prefix: &str, other: &Plan) -> Vec<Slot> {
        let add = |span: &Span| {
            let [rows, cols] = span.shape;
            self.add(format!("{prefix}{}", span.name), span.dtype, rows, cols)
        };
        other.spans.iter().map(add).collect()
    }

    /// The spans, by rising offset.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }

    /// Bytes of all spans.
    pub fn total(&self) -> usize {
        self.total
    }
}

/// The map: offset, bytes, type, shape and name of each span, then the sums of those whose names
/// start with the same word.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>15} {:>15}  {:<5} {:>18}  name", "offset", "bytes", "type", "shape")?;
        let mut groups: Vec<(&str, usize)> = Vec::new();
        for Span { name, dtype, shape: [rows, cols], offset, bytes } in &self.spans {
            let (dtype, shape) = (format!("{dtype:?}").to_lowercase(), format!("{rows} x {cols}"));
            writeln!(f, "{offset:>15} {bytes:>15}  {dtype:<5} {shape:>18}  {name}")?;
            let word = name.split(' ').next().unwrap_or_default();
            match groups.iter_mut().find(|(group, _)| *group == word) {
                Some((_, sum)) => *sum += bytes,
                None => groups.push((word, *bytes)),
            }
        }
        writeln!(f)?;
        for (group, bytes) in groups.into_iter().chain([("in all", self.total)]) {
            let gibibytes = bytes as f64 / (1u64 << 30) as f64;
            writeln!(f, "{group:<15} {bytes:>15}  {gibibytes:>8.3} GiB")?;
        }
        Ok(())
    }
}

/// One allocation for all spans of a plan.
pub struct Arena {
    memory: Arc<Buffer>,
    /// None where it was taken.
    spans: Vec<Option<Span>>,
}

impl Arena {
    /// Allocates on `device`, zeroed. Errors: not enough memory.
    pub fn new(device: Device, plan: &Plan) -> Result<Arena> {
        // One alignment more, because host memory starts anywhere.
        let memory = Buffer::on(device, DType::U8, 1, plan.total.saturating_add(ALIGNMENT))?;
        Ok(Arena::over(memory, plan))
    }

    /// Allocates host memory that `cuda` copies from while the CPU does something else.
    pub fn pinned(cuda: Cuda, plan: &Plan) -> Result<Arena> {
        let memory = Buffer::pinned(cuda, DType::U8, 1, plan.total.saturating_add(ALIGNMENT))?;
        Ok(Arena::over(memory, plan))
    }

    fn over(memory: Buffer, plan: &Plan) -> Arena {
        let base = memory.view().as_ptr().addr();
        let shift = base.next_multiple_of(ALIGNMENT) - base;
        let moved = |span: &Span| Some(Span { offset: span.offset + shift, ..span.clone() });
        let spans = plan.spans.iter().map(moved).collect();
        Arena { memory: Arc::new(memory), spans }
    }

    /// The memory of `slot`, zero at first. It stays where it is, and keeps the arena's allocation alive.
    ///
    /// Panics when it was taken before, or belongs to a longer plan.
    pub fn take(&mut self, slot: Slot) -> Buffer {
        let span = self.spans.get_mut(slot.0).and_then(Option::take);
        let Span { offset, dtype, shape, .. } = span.expect("a slot of this plan, taken once");
        // SAFETY: the plan lays spans out aligned and side by side within the allocation, and no span
        // is given away twice.
        unsafe { Buffer::part(&self.memory, offset, dtype, shape) }
    }

    /// What is left, by rising offset.
    pub fn take_all(mut self) -> Vec<Buffer> {
        let left = (0..self.spans.len()).filter(|&i| self.spans[i].is_some());
        let left: Vec<Slot> = left.map(Slot).collect();
        left.into_iter().map(|slot| self.take(slot)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> (Plan, [Slot; 3]) {
        let mut plan = Plan::default();
        let slots = [
            plan.add("ids", DType::U32, 3, 1),
            plan.add("nothing", DType::F32, 0, 7),
            plan.add("h", DType::Bf16, 65, 3),
        ];
        (plan, slots)
    }

    #[test]
    fn spans_lie_aligned_one_after_another() {
        let (plan, _) = plan();
        let spans: Vec<_> = plan.spans().iter().map(|span| (span.offset, span.bytes)).collect();
        assert_eq!(spans, [(0, 12), (256, 0), (256, 390)]);
        assert_eq!(plan.total(), 256 + 512);
        let text = plan.to_string();
        assert!(text.contains("  bf16              65 x 3  h\n"), "{text}");
        assert!(text.ends_with("in all                      768     0.000 GiB\n"), "{text}");
    }

    #[test]
    fn slots_are_disjoint_memory() {
        let (plan, [ids, nothing, h]) = plan();
        let mut arena = Arena::new(Device::Cpu, &plan).unwrap();
        let (mut h, mut ids, nothing) = (arena.take(h), arena.take(ids), arena.take(nothing));
        drop(arena);
        assert_eq!(h.view().as_ptr().addr() % ALIGNMENT, 0);
        assert_eq!((h.view().shape(), nothing.view().shape()), ([65, 3], [0, 7]));
        ids.view_mut().fill(u32::MAX);
        assert!(h.view().elements::<half::bf16>().iter().all(|x| x.to_bits() == 0));
        h.view_mut().fill(half::bf16::ONE);
        assert_eq!(ids.view().elements::<u32>(), [u32::MAX; 3]);
    }

    #[test]
    #[should_panic(expected = "taken once")]
    fn a_slot_is_taken_once() {
        let (plan, [ids, ..]) = plan();
        let mut arena = Arena::new(Device::Cpu, &plan).unwrap();
        arena.take(ids);
        arena.take(ids);
    }

    #[test]
    fn a_plan_beyond_all_memory_is_an_error() {
        let mut plan = Plan::default();
        plan.add("one", DType::U8, isize::MAX as usize, 2);
        plan.add("two", DType::F32, usize::MAX, 2);
        let error = Arena::new(Device::Cpu, &plan).err().unwrap().to_string();
        assert!(error.ends_with("overflows memory"), "{error}");
    }
}
