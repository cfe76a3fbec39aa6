//! `ldmatrix`, `movmatrix` and `mma.sync`.
//!
//! A fragment of 8 rows of 16 bytes is one register: lane `4g + t` holds word t of row g, so that the 32 lanes
//! of a register are the matrix in row order. A of m16n8k16 is four such matrices (rows 0 to 7 and 8 to
//! 15 of the low k, then of the high k), B two of them with its columns as rows, C and D pairs of
//! elements of rows g and g + 8.

use super::Opcode;
use super::float::Single;
use super::memory::read;
use crate::exec::Counters;
use crate::exec::address::addresses;
use crate::exec::half::{Bf16, F16, Half};
use crate::exec::lanes::{Lane, Run, compile, each};
use crate::exec::program::{Instruction, Operand};
use crate::exec::warp::{Block, Warp};
use crate::ptx::ast::Type::{self, B16, F32};

/// `ldmatrix` of `count` matrices: operand 0 is the address, the results follow.
pub fn load(is_transposed: bool, count: usize) -> Option<Run> {
    Some(match (count, is_transposed) {
        (1, false) => load_of::<1, false>(),
        (2, false) => load_of::<2, false>(),
        (4, false) => load_of::<4, false>(),
        (1, true) => load_of::<1, true>(),
        (2, true) => load_of::<2, true>(),
        (4, true) => load_of::<4, true>(),
        _ => return None,
    })
}

/// Lane 8j + i points to row i of matrix j.
fn load_of<const COUNT: usize, const IS_TRANSPOSED: bool>() -> Run {
    compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let Instruction { access, immediate, operands, .. } = *instruction;
            let addresses = addresses(warp, block, operands[0], access.width, immediate);
            let pointing = !0u32 >> (32 - 8 * COUNT as u32);
            let mut rows = [[0; 16]; 32];
            let before = warp.counters;
            read(warp, block, access.space, &addresses, mask & pointing, &mut rows)?;
            let Counters { shared_wavefronts, ideal_wavefronts, .. } = before;
            let counters = &mut warp.counters;
            counters.matrix_wavefronts += counters.shared_wavefronts - shared_wavefronts;
            counters.ideal_matrix_wavefronts += counters.ideal_wavefronts - ideal_wavefronts;
            for matrix in 0..COUNT {
                let words = each(
                    #[inline(always)]
                    |lane| {
                        let row = &rows[8 * matrix + lane / 4];
                        let at = lane % 4 * 4;
                        u32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
                    },
                );
                let words = if IS_TRANSPOSED { transpose(words) } else { words };
                u32::store(warp, operands[1 + matrix], words, mask);
            }
            Ok(())
        },
    )
}

/// The matrix of 8 x 8 halves with rows and columns exchanged.
#[inline(always)]
fn transpose(words: [u32; 32]) -> [u32; 32] {
    let element = |row: usize, column: usize| {
        let word = words[4 * row + column / 2];
        word >> (column % 2 * 16) & 0xffff
    };
    each(
        #[inline(always)]
        |lane| {
            let (row, column) = (lane / 4, lane % 4 * 2);
            element(column, row) | element(column + 1, row) << 16
        },
    )
}

/// `movmatrix.sync.aligned.m8n8.trans.b16`: operands d, a.
pub fn transposition(code: &mut Opcode<'_>) -> Option<Run> {
    let is_known = code.flag("m8n8") && code.flag("trans") && code.types == [B16];
    is_known.then(|| {
        compile(
            #[inline(always)]
            |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
                let [d, a, ..] = instruction.operands;
                let words = transpose(u32::load(warp, block, a));
                u32::store(warp, d, words, mask);
                Ok(())
            },
        )
    })
}

/// A multiplication of fragments: how many registers D, A, B and C have; the operands in this order.
pub struct Product {
    pub run: Run,
    pub registers: [usize; 4],
}

/// `mma.sync.aligned`
pub fn product(code: &mut Opcode<'_>) -> Option<Product> {
    if !(code.flag("row") && code.flag("col")) {
        return None;
    }
    let depth = code.pick(&[("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)])?;
    if code.flag("tf32") {
        // The text names it twice, for A and for B.
        let is_known = code.flag("tf32") && code.types == [F32, F32];
        return match depth {
            _ if !is_known => None,
            4 => Some(multiply::<Tf32, f32, 1>()),
            8 => Some(multiply::<Tf32, f32, 2>()),
            _ => None,
        };
    }
    Some(match (depth, code.types.as_slice()) {
        (8, [F32, Type::Bf16, Type::Bf16, F32]) => multiply::<Bf16, f32, 1>(),
        (16, [F32, Type::Bf16, Type::Bf16, F32]) => multiply::<Bf16, f32, 2>(),
        (8, [F32, Type::F16, Type::F16, F32]) => multiply::<F16, f32, 1>(),
        (16, [F32, Type::F16, Type::F16, F32]) => multiply::<F16, f32, 2>(),
        (8, [Type::F16, Type::F16, Type::F16, Type::F16]) => multiply::<F16, F16, 1>(),
        (16, [Type::F16, Type::F16, Type::F16, Type::F16]) => multiply::<F16, F16, 2>(),
        _ => return None,
    })
}

/// An element of A and B; rows of a fragment are 16 bytes, unless it has but 4 elements.
trait Factor {
    const PER_WORD: usize;
    /// Element `i` of a word.
    fn element(word: u32, i: usize) -> f32;
}

impl Factor for Bf16 {
    const PER_WORD: usize = 2;
    #[inline(always)]
    fn element(word: u32, i: usize) -> f32 {
        f32::from_bits(if i == 0 { word << 16 } else { word & 0xffff_0000 })
    }
}

impl Factor for F16 {
    const PER_WORD: usize = 2;
    #[inline(always)]
    fn element(word: u32, i: usize) -> f32 {
        F16((word >> (16 * i)) as u16).widen()
    }
}

/// The high 19 bits of an f32.
struct Tf32;

impl Factor for Tf32 {
    const PER_WORD: usize = 1;
    #[inline(always)]
    fn element(word: u32, _: usize) -> f32 {
        f32::from_bits(word & 0xffff_e000)
    }
}

/// Sums of 8 rows. The even columns come before the odd ones: so the two registers that hold them lie one after
/// the other, and nothing has to change places.
type Rows = [[f32; 8]; 8];

/// The type of C and D: how two halves of 8 rows lie in registers.
trait Sums {
    /// Of a half.
    const REGISTERS: usize;
    fn load(warp: &Warp, block: &Block<'_>, operands: &[Operand]) -> Rows;
    fn store(warp: &mut Warp, operands: &[Operand], sums: &Rows, mask: u32);
}

impl Sums for f32 {
    const REGISTERS: usize = 2;

    #[inline(always)]
    fn load(warp: &Warp, block: &Block<'_>, operands: &[Operand]) -> Rows {
        let mut sums = [[0.0; 8]; 8];
        for i in 0..2 {
            let values = <f32 as Lane>::load(warp, block, operands[i]);
            for row in 0..8 {
                sums[row][4 * i..4 * i + 4].copy_from_slice(&values[4 * row..4 * row + 4]);
            }
        }
        sums
    }

    #[inline(always)]
    fn store(warp: &mut Warp, operands: &[Operand], sums: &Rows, mask: u32) {
        for i in 0..2 {
            let values = each(
                #[inline(always)]
                |lane| f32::new(sums[lane / 4][4 * i + lane % 4]),
            );
            <f32 as Lane>::store(warp, operands[i], values, mask);
        }
    }
}

impl Sums for F16 {
    const REGISTERS: usize = 1;

    #[inline(always)]
    fn load(warp: &Warp, block: &Block<'_>, operands: &[Operand]) -> Rows {
        let values = <[F16; 2]>::load(warp, block, operands[0]);
        let mut sums = [[0.0; 8]; 8];
        for lane in 0..32 {
            for i in 0..2 {
                sums[lane / 4][4 * i + lane % 4] = values[lane][i].widen();
            }
        }
        sums
    }

    #[inline(always)]
    fn store(warp: &mut Warp, operands: &[Operand], sums: &Rows, mask: u32) {
        let values = each(
            #[inline(always)]
            |lane| [0, 4].map(|i| F16::narrow(sums[lane / 4][i + lane % 4])),
        );
        <[F16; 2]>::store(warp, operands[0], values, mask);
    }
}

/// D = A B + C, with rows of PARTS matrices of 4 words: every sum in the order of k, in fused multiply-adds of
/// f32.
fn multiply<T: Factor, S: Sums, const PARTS: usize>() -> Product {
    let run = compile(
        #[inline(always)]
        |warp: &mut Warp, block: &Block<'_>, instruction: &Instruction, mask| {
            let (results, sources) = instruction.operands.split_at(2 * S::REGISTERS);
            let (a_registers, sources) = sources.split_at(2 * PARTS);
            let (b_registers, c_registers) = sources.split_at(PARTS);
            // By part, word of a row and element of the word: the columns of B, the even ones first.
            let mut b = [[[[0.0; 8]; 2]; 4]; PARTS];
            for part in 0..PARTS {
                let words = u32::load(warp, block, b_registers[part]);
                for i in 0..T::PER_WORD {
                    let values = each(
                        #[inline(always)]
                        |lane| T::element(words[lane], i),
                    );
                    for word in 0..4 {
                        for column in 0..8 {
                            b[part][word][i][column] =
                                values[column % 4 * 8 + column / 4 * 4 + word];
                        }
                    }
                }
            }
            let mut products = [[[0.0; 8]; 8]; 2];
            for half in 0..2 {
                let registers = &c_registers[half * S::REGISTERS..(half + 1) * S::REGISTERS];
                let mut sums = S::load(warp, block, registers);
                for part in 0..PARTS {
                    let words = u32::load(warp, block, a_registers[2 * part + half]);
                    let mut a = [[0.0; 32]; 2];
                    for i in 0..T::PER_WORD {
                        a[i] = each(
                            #[inline(always)]
                            |lane| T::element(words[lane], i),
                        );
                    }
                    for word in 0..4 {
                        for i in 0..T::PER_WORD {
                            let columns = b[part][word][i];
                            for row in 0..8 {
                                let factor = a[i][4 * row + word];
                                for column in 0..8 {
                                    let sum = sums[row][column];
                                    sums[row][column] = factor.mul_add(columns[column], sum);
                                }
                            }
                        }
                    }
                }
                products[half] = sums;
            }
            for half in 0..2 {
                let registers = &results[half * S::REGISTERS..(half + 1) * S::REGISTERS];
                S::store(warp, registers, &products[half], mask);
            }
            warp.counters.mma += 1;
            warp.counters.mma_macs += (16 * 8 * PARTS * 4 * T::PER_WORD) as u64;
            Ok(())
        },
    );
    let sums = 2 * S::REGISTERS;
    Product { run, registers: [sums, 2 * PARTS, PARTS, sums] }
}
