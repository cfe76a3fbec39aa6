//! Types of matrix elements.

use half::{bf16, f16};

use crate::status::{Status, refuse};

/// A type that matrices may have here: its number in `cudaDataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    F32 = 0,
    F16 = 2,
    Bf16 = 14,
}

impl Element {
    pub fn of(number: u64, what: &str) -> Result<Self, Status> {
        match number {
            0 => Ok(Element::F32),
            2 => Ok(Element::F16),
            14 => Ok(Element::Bf16),
            _ => {
                let sentence =
                    format!("{what} has cudaDataType {number}; bf16, f16 and f32 are emulated");
                refuse(Status::NOT_SUPPORTED, &sentence)
            }
        }
    }

    pub fn bytes(self) -> usize {
        if self == Element::F32 { 4 } else { 2 }
    }

    /// The value at an address.
    ///
    /// # Safety
    /// The bytes of an element can be read there.
    #[inline(always)]
    pub unsafe fn read(self, at: *const u8) -> f32 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Element::F32 => at.cast::<f32>().read_unaligned(),
                Element::F16 => f16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
                Element::Bf16 => bf16::from_bits(at.cast::<u16>().read_unaligned()).to_f32(),
            }
        }
    }

    /// Rounds a value to an address.
    ///
    /// # Safety
    /// The bytes of an element can be written there.
    #[inline(always)]
    pub unsafe fn write(self, at: *mut u8, value: f32) {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Element::F32 => at.cast::<f32>().write_unaligned(value),
                Element::F16 => at.cast::<u16>().write_unaligned(f16::from_f32(value).to_bits()),
                Element::Bf16 => at.cast::<u16>().write_unaligned(bf16::from_f32(value).to_bits()),
            }
        }
    }
}
