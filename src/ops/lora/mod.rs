//! The tail columns of adapted weights, by which an adapter costs no product of its own.
//!
//! ```text
//! forward    u = x Aᵀ          y = [x | u] [W | s·B]ᵀ = x Wᵀ + s · (x Aᵀ) Bᵀ
//! backward   [dx | du] = dy [W | s·B]       dx += du A       dA += duᵀ x       dB += s · dyᵀ u
//! ```
//!
//! An input is stored with slack columns for `u`, a weight with as many tail columns. Where two maps
//! read one input, the slack is `u₁ | u₂`, the tails are `s·B₁ | 0` and `0 | s·B₂`, and the two
//! weights, one over the other, make one product. All of it is [`matmul`](super::matmul); what is left
//! is to write the tails anew after each step. A is read as AdamW rounds it: its rows lie dense in
//! the copy of the flat buffer. Source: Hu et al., arXiv 2106.09685.

mod cpu;
mod cuda;

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::tensor::{DType, Tensor, TensorMut};

/// B of a pair, `[rows, r]`, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Its first element in the flat buffer of masters, a multiple of 4.
    pub first: usize,
    /// r, a multiple of 8.
    pub rank: usize,
    /// Which group of r columns of the tail it fills; the others become 0.
    pub group: usize,
    /// s, alpha / r.
    pub scale: f32,
}

/// All pairs of a model and where their tails lie, cut into chunks, on the device.
pub struct Table {
    pairs: Vec<Pair>,
    tails: Vec<Place>,
    chunks: Buffer, // bytes, [chunks, size of a Chunk]
    /// Elements that the masters have at least.
    end: usize,
}

/// Where a tail lies.
#[derive(Clone, Copy, PartialEq)]
struct Place {
    address: usize,
    shape: [usize; 2],
    stride: usize,
}

/// Rows of one tail.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Chunk {
    tail: u64,
    first: u64,
    stride: u64,
    rows: u32,
    cols: u32,
    start: u32,
    rank: u32,
    scale: f32,
    reserved: u32,
}

/// Elements of the tail of a [`Chunk`], or a row: many for each multiprocessor of a GPU.
const CHUNK: usize = 16 * 1024;

impl Table {
    /// The table of `pairs` on `device`, each with its tail, bf16 `[rows, groups · r]`: the last
    /// columns of a weight that stays where it is.
    ///
    /// Errors: another rank or shape than these; not as many tails as pairs; no memory.
    pub fn new(device: Device, pairs: &[Pair], tails: &mut [TensorMut<'_>]) -> Result<Table> {
        let check = Check::on(device, "lora::Table::new");
        counted(check, tails.len(), pairs.len())?;
        let (mut places, mut chunks, mut end) = (Vec::new(), Vec::new(), 0);
        for (i, (pair, tail)) in pairs.iter().zip(tails).enumerate() {
            let error = |what: String| Error::argument("lora::Table::new", what);
            let (Pair { first, rank, group, scale }, [rows, cols]) = (*pair, tail.shape());
            if rank == 0 || !rank.is_multiple_of(8) {
                return Err(error(format!(
                    "pairs[{i}] has rank {rank}, expected a multiple of 8: products read 16 bytes \
                     at a time; choose another lora-r"
                )));
            }
            if !first.is_multiple_of(4) {
                return Err(error(format!(
                    "pairs[{i}] starts at {first}, expected a multiple of 4"
                )));
            }
            let (name, meaning) = (format!("tails[{i}]"), "rows, groups of r columns");
            check.packed(&name, tail.as_ref(), &[DType::Bf16], [rows, cols], meaning)?;
            if !cols.is_multiple_of(rank) || group >= cols / rank {
                return Err(error(format!(
                    "{name} has {cols} columns, expected a multiple of {rank} beyond group {group}"
                )));
            }
            let place = Place::of(tail);
            let step = (CHUNK / cols).max(1);
            chunks.extend((0..rows).step_by(step).map(|row| Chunk {
                tail: (place.address + 2 * row * place.stride) as u64,
                first: (first + row * rank) as u64,
                stride: place.stride as u64,
                rows: step.min(rows - row) as u32,
                cols: cols as u32,
                start: (group * rank) as u32,
                rank: rank as u32,
                scale,
                reserved: 0,
            }));
            places.push(place);
            end = end.max(first + rows * rank);
        }
        let bytes: &[u8] = bytemuck::cast_slice(&chunks);
        let mut table = Buffer::on(device, DType::U8, chunks.len(), size_of::<Chunk>())?;
        table.upload(Tensor::new(bytes, chunks.len(), size_of::<Chunk>()))?;
        Ok(Table { pairs: pairs.to_vec(), tails: places, chunks: table, end })
    }
}

/// Overwrites `tails`, those that `table` was made of, by the scaled B of their pairs and by zeros.
/// `masters`: `[1, n]` f32.
///
/// One FLOP and one rounding, to nearest even, per element of B; reads 4 and writes 2 bytes of it, and
/// 2 of a zero. Errors: a shape or dtype that differs, a table of other tails or beyond `n`.
pub fn write_tails(masters: Tensor<'_>, table: &Table, tails: &mut [TensorMut<'_>]) -> Result<()> {
    let check = Check::on(masters.device(), "lora::write_tails");
    let n = masters.cols();
    check.flat("masters", masters, DType::F32, n)?;
    let chunks = table.chunks.view();
    check.typed("table", chunks, &[DType::U8], chunks.shape(), "chunks, bytes")?;
    if table.end > n {
        let end = table.end;
        let message = format!("table reaches to element {end} of masters, expected at most {n}");
        return Err(check.error(message));
    }
    counted(check, tails.len(), table.tails.len())?;
    for (i, (tail, place)) in tails.iter_mut().zip(&table.tails).enumerate() {
        let shape = place.shape;
        check.typed(
            &format!("tails[{i}]"),
            tail.as_ref(),
            &[DType::Bf16],
            shape,
            "rows, columns",
        )?;
        if Place::of(tail) != *place {
            return Err(check.error(format!(
                "tails[{i}] is not where the table says; make a new table when weights move"
            )));
        }
    }
    match masters.device() {
        Device::Cpu => cpu::write_tails(masters, table, tails),
        Device::Cuda(cuda) => cuda::write_tails(cuda, masters, table)?,
    }
    Ok(())
}

fn counted(check: Check, tails: usize, pairs: usize) -> Result<()> {
    if tails == pairs {
        return Ok(());
    }
    Err(check.error(format!("tails has {tails} elements, expected {pairs}, one per pair")))
}

impl Place {
    fn of(tail: &mut TensorMut<'_>) -> Place {
        let address = tail.as_mut_ptr().addr();
        Place { address, shape: tail.shape(), stride: tail.row_stride() }
    }
}
