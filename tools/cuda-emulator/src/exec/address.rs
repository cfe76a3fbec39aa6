//! Where the addresses of a warp's lanes point: windows, regions, alignment.

use super::lanes::{ALL, Lane, Width, each};
use super::problem::Problem;
use super::program::Operand;
use super::warp::{Block, Warp};
use crate::memory::{BASE, LOCAL_WINDOW, Region, SHARED_WINDOW, WINDOW};
use crate::ptx::ast::Space;
use crate::report::Kind;

/// Start of the window through which generic addresses reach the parameters of the kernel.
pub const PARAM_WINDOW: u64 = LOCAL_WINDOW + WINDOW;

/// The generic address of address 0 of a space; global and constant addresses are generic ones.
pub fn window(space: Space) -> u64 {
    match space {
        Space::Shared => SHARED_WINDOW,
        Space::Local => LOCAL_WINDOW,
        Space::Param => PARAM_WINDOW,
        Space::Generic | Space::Global | Space::Const => 0,
    }
}

/// The space that a generic address lies in.
pub fn space_of(address: u64) -> Space {
    const WINDOWS: [Space; 4] = [Space::Global, Space::Shared, Space::Local, Space::Param];
    let number = (address / WINDOW).wrapping_sub(BASE / WINDOW);
    WINDOWS.get(number as usize).copied().unwrap_or(Space::Global)
}

/// Some lanes whose addresses lie in one space.
pub struct Target<'b> {
    pub space: Space,
    pub region: &'b Region,
    /// In the region; of a lane that points out of its window, far outside.
    pub offsets: [u64; 32],
    /// What generic addresses are more than addresses of the space.
    pub window: u64,
    pub mask: u32,
}

impl Target<'_> {
    /// The distance from each lane's offset to the next one's, where all 32 lanes take part and it is the same.
    #[inline(always)]
    pub fn step(&self) -> Option<u64> {
        let step = self.offsets[1].wrapping_sub(self.offsets[0]);
        let mut strays = 0;
        for lane in 1..32 {
            strays |= self.offsets[lane].wrapping_sub(self.offsets[lane - 1]) ^ step;
        }
        (self.mask == ALL && strays == 0).then_some(step)
    }

    /// What is wrong with the access of `lane` to `address`.
    #[cold]
    pub fn problem(
        &self,
        kind: Kind,
        lane: usize,
        address: u64,
        bytes: usize,
        block: &Block<'_>,
    ) -> Box<Problem> {
        let address = address.wrapping_sub(self.window);
        let (number, length) = (lane as u32, bytes as u32);
        let mut problem =
            Problem::of_access(kind, number, self.space, address, length, block.memory);
        if let (Kind::PendingCopy, Space::Shared, Some(watch)) = (kind, self.space, block.watch) {
            let issuer = watch.issuer(block, self.offsets[lane], bytes);
            problem.detail.push_str(&issuer.unwrap_or_default());
        }
        problem
    }
}

/// The address of each lane: an operand of 32 or 64 bits plus an offset.
#[inline(always)]
pub fn addresses(
    warp: &Warp,
    block: &Block<'_>,
    operand: Operand,
    width: Width,
    offset: i64,
) -> [u64; 32] {
    if width == Width::B64 {
        let base = u64::load(warp, block, operand);
        each(
            #[inline(always)]
            |lane| base[lane].wrapping_add(offset as u64),
        )
    } else {
        let base = u32::load(warp, block, operand);
        each(
            #[inline(always)]
            |lane| base[lane].wrapping_add(offset as u32) as u64,
        )
    }
}

/// The lanes of `mask` that point to the same space as the first of them.
#[inline(always)]
pub fn target<'b>(
    warp: &Warp,
    block: &Block<'b>,
    space: Space,
    addresses: &[u64; 32],
    mask: u32,
) -> Target<'b> {
    let (space, window, mask) = match space {
        Space::Generic => same_window(addresses, mask),
        space => (space, 0, mask),
    };
    let (region, start) = match space {
        Space::Shared => (block.shared, window),
        Space::Param => (block.params, window),
        Space::Local => return local(warp, block, addresses, window, mask),
        Space::Generic | Space::Global | Space::Const => (block.memory.region(), BASE),
    };
    let offsets = each(
        #[inline(always)]
        |lane| addresses[lane].wrapping_sub(start),
    );
    Target { space, region, offsets, window, mask }
}

/// The space, its window, and those lanes of `mask` that point there.
fn same_window(addresses: &[u64; 32], mask: u32) -> (Space, u64, u32) {
    let space = space_of(addresses[(mask.trailing_zeros() & 31) as usize]);
    let mut same = 0;
    for lane in 0..32 {
        same |= ((space_of(addresses[lane]) == space) as u32) << lane;
    }
    (space, window(space), same & mask)
}

/// Every thread has its own part of the region.
#[inline(never)]
fn local<'b>(
    warp: &Warp,
    block: &Block<'b>,
    addresses: &[u64; 32],
    window: u64,
    mask: u32,
) -> Target<'b> {
    let own = block.local_bytes as u64;
    let offsets = each(|lane| {
        let address = addresses[lane].wrapping_sub(window);
        let thread = warp.first_thread() as u64 + lane as u64;
        // 16 bytes are the widest access, and the part ends with as many that nobody may touch.
        if address < own { thread * own + address } else { !15 }
    });
    Target { space: Space::Local, region: block.local, offsets, window, mask }
}
