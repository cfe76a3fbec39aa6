//! An index turned round: for every row that it names, which of its entries do.
//!
//! An index says where each source row goes; whoever sums what arrives at a row needs the reverse,
//! and a kernel cannot sort. So the host inverts an index when it plans the pack. One u32 row of
//! `3·room + 1` elements,
//!
//! ```text
//! rows [room] | starts [room + 1] | sources [room]
//! ```
//!
//! holds an index of up to `room` entries: segment `s` says that row `rows[s]` gets the sources
//! `sources[starts[s]..starts[s + 1]]`. Rows rise, and so do the sources of a segment; segments
//! behind the last are empty, so that one launch of `room` blocks serves any such index.

use crate::device::Device;
use crate::error::{Error, Result};
use crate::ops::check::Check;
use crate::tensor::Tensor;

/// Elements of the inverse of an index of up to `room` entries.
pub fn inverse_len(room: usize) -> usize {
    3 * room + 1
}

/// Overwrites `inverse` by that of `index`, whose entry `i` is where source `i` goes.
///
/// Sorts in place. Errors: an `inverse` of another length than [`inverse_len`] of some room, or one
/// whose room is smaller than the index.
pub fn invert(index: &[u32], inverse: &mut [u32]) -> Result<()> {
    let (len, room) = (inverse.len(), inverse.len() / 3);
    if len != inverse_len(room) || index.len() > room {
        let message = format!(
            "inverse has {len} elements, expected 3 · room + 1 with room for {} entries",
            index.len()
        );
        return Err(Error::argument("rows::invert", message));
    }
    let (rows, rest) = inverse.split_at_mut(room);
    let (starts, sources) = rest.split_at_mut(room + 1);
    let (named, unused) = sources.split_at_mut(index.len());
    named.iter_mut().zip(0..).for_each(|(source, i)| *source = i);
    named.sort_unstable_by_key(|&i| (index[i as usize], i));
    unused.fill(0);
    rows.fill(0);
    starts.fill(index.len() as u32);
    let segments = named.chunk_by(|&a, &b| index[a as usize] == index[b as usize]);
    let mut end = 0;
    for ((same, row), start) in segments.zip(rows).zip(starts) {
        *row = index[same[0] as usize];
        *start = end;
        end += same.len() as u32;
    }
    Ok(())
}

/// Segments an inverse has room for.
pub(crate) fn room(inverse: Tensor<'_>) -> usize {
    inverse.cols() / 3
}

/// The rows that an inverse on the CPU names, in order, and the sources of each.
#[inline(always)]
pub(crate) fn segments<'a>(inverse: Tensor<'a>) -> impl Iterator<Item = (usize, &'a [u32])> {
    let (rows, rest) = inverse.row::<u32>(0).split_at(room(inverse));
    let (starts, sources) = rest.split_at(room(inverse) + 1);
    let segment = |(&row, range): (&u32, &[u32])| {
        (row as usize, &sources[range[0] as usize..range[1] as usize])
    };
    rows.iter().zip(starts.windows(2)).map(segment).filter(|(_, sources)| !sources.is_empty())
}

/// `inverse` is one; on the CPU, where it can be read, its sources are below `sources`, and its rows
/// rise below `rows`.
pub(crate) fn check(check: Check, inverse: Tensor<'_>, sources: usize, rows: usize) -> Result<()> {
    let (len, room) = (inverse.cols(), room(inverse));
    check.u32("inverse", inverse, [1, inverse_len(room)], "1, 3 · room + 1")?;
    if inverse.device() != Device::Cpu {
        return Ok(());
    }
    let starts = &inverse.row::<u32>(0)[room..len - room];
    if starts[room] as usize > room || !starts.is_sorted() {
        return Err(check.error(format!(
            "inverse has segments that fall or end beyond its room of {room}; make it by rows::invert"
        )));
    }
    let mut least = 0;
    for (row, named) in segments(inverse) {
        if !(least..rows).contains(&row) {
            let message = format!("inverse names row {row}, expected rising rows below {rows}");
            return Err(check.error(message));
        }
        least = row + 1;
        if let Some(source) = named.iter().find(|&&source| source as usize >= sources) {
            let message = format!("inverse names source {source}, expected less than {sources}");
            return Err(check.error(message));
        }
    }
    Ok(())
}
