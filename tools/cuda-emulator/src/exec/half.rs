//! The two 16-bit floating-point types.

use super::rounding::{self, Mode, round};

/// Bits of an `.f16`.
#[derive(Clone, Copy, Default)]
pub struct F16(pub u16);

/// Bits of a `.bf16`.
#[derive(Clone, Copy, Default)]
pub struct Bf16(pub u16);

/// What both have.
pub trait Half: Copy + Default {
    const NAN: u16 = 0x7fff;
    const ONE: u16;
    const INFINITY: u16;
    const FORMAT: rounding::Format;
    fn new(bits: u16) -> Self;
    fn bits(self) -> u16;
    /// Exact.
    fn widen(self) -> f32;
    /// To nearest even.
    fn narrow(x: f32) -> Self;

    #[inline(always)]
    fn is_nan(self) -> bool {
        self.bits() & 0x7fff > Self::INFINITY
    }

    /// `x` stands for the exact value, or is rounded to odd.
    #[inline(always)]
    fn round(x: f64, mode: Mode) -> Self {
        Self::new(round(x, Self::FORMAT, mode) as u16)
    }

    #[inline(always)]
    fn unpack(pair: u32) -> [Self; 2] {
        [Self::new(pair as u16), Self::new((pair >> 16) as u16)]
    }

    #[inline(always)]
    fn pack([low, high]: [Self; 2]) -> u32 {
        low.bits() as u32 | (high.bits() as u32) << 16
    }
}

impl Half for Bf16 {
    const ONE: u16 = 0x3f80;
    const INFINITY: u16 = 0x7f80;
    const FORMAT: rounding::Format = rounding::BF16;

    #[inline(always)]
    fn new(bits: u16) -> Self {
        Bf16(bits)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits((self.0 as u32) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        Bf16(if x.is_nan() { Self::NAN } else { rounded as u16 })
    }
}

impl Half for F16 {
    const ONE: u16 = 0x3c00;
    const INFINITY: u16 = 0x7c00;
    const FORMAT: rounding::Format = rounding::F16;

    #[inline(always)]
    fn new(bits: u16) -> Self {
        F16(bits)
    }

    #[inline(always)]
    fn bits(self) -> u16 {
        self.0
    }

    #[inline(always)]
    fn widen(self) -> f32 {
        let magnitude = (self.0 as u32 & 0x7fff) << 13;
        // The exponent's bias grows by 127 - 15; a product, so that subnormal numbers become normal.
        let scaled = f32::from_bits(magnitude) * f32::from_bits((127 + 112) << 23);
        let is_finite = magnitude < 0x7c00 << 13;
        let bits = if is_finite { scaled.to_bits() } else { magnitude | 0x7f80_0000 };
        f32::from_bits(bits | (self.0 as u32 & 0x8000) << 16)
    }

    #[inline(always)]
    fn narrow(x: f32) -> Self {
        let bits = x.to_bits();
        let magnitude = bits & 0x7fff_ffff;
        let normal = (magnitude.wrapping_sub(112 << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
        // Added to 1/2, whose last bit is worth a half's smallest number, the sum's rounding is the half's.
        let subnormal = (f32::from_bits(magnitude) + 0.5).to_bits().wrapping_sub(0x3f00_0000);
        let finite = if magnitude < 113 << 23 { subnormal } else { normal };
        let rounded = if magnitude >= 0x477f_f000 { Self::INFINITY as u32 } else { finite };
        let is_nan = magnitude > 0x7f80_0000;
        F16(if is_nan { Self::NAN } else { (rounded | bits >> 16 & 0x8000) as u16 })
    }
}

/// An `.f16` that is read with `.ftz`: subnormal values are zero.
#[derive(Clone, Copy, Default)]
pub struct FlushedF16(pub F16);

impl FlushedF16 {
    #[inline(always)]
    pub fn new(bits: u16) -> Self {
        FlushedF16(F16(if bits & 0x7c00 == 0 { bits & 0x8000 } else { bits }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees<H: Half>() {
        for bits in 0..=u16::MAX {
            let half = H::new(bits);
            let back = H::narrow(half.widen()).bits();
            assert_eq!(back, if half.is_nan() { H::NAN } else { bits });
        }
        let mut state = 1u32;
        for _ in 0..1_000_000 {
            state = state.wrapping_mul(1664525).wrapping_add(1013904223);
            // All exponents, and often nothing but zeros behind the last bit kept.
            let x = f32::from_bits(if state & 4 == 0 { state & 0xffff_8000 } else { state });
            let expected = H::round(x as f64, Mode::Nearest).bits();
            assert_eq!(H::narrow(x).bits(), expected, "{x:e}");
        }
    }

    #[test]
    fn widening_and_narrowing() {
        agrees::<F16>();
        agrees::<Bf16>();
        assert_eq!(F16(0x3555).widen(), 0.33325195);
        assert_eq!(F16(0x0001).widen(), 2f32.powi(-24));
        assert_eq!(F16(0xfbff).widen(), -65504.0);
    }
}
