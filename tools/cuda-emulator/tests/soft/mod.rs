//! Floating-point arithmetic by the book: exact numbers, then one rounding.

mod natural;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

pub use natural::Natural;

/// `.rn`, `.rz`, `.rm`, `.rp`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

pub const MODES: [(&str, Mode); 4] =
    [("rn", Mode::Nearest), ("rz", Mode::Zero), ("rm", Mode::Down), ("rp", Mode::Up)];

/// A binary interchange format of IEEE 754, or bfloat16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    pub name: &'static str,
    pub bits: u32,
    /// Bits stored after the leading one.
    pub fraction: u32,
}

pub const F16: Format = Format { name: "f16", bits: 16, fraction: 10 };
pub const BF16: Format = Format { name: "bf16", bits: 16, fraction: 7 };
pub const F32: Format = Format { name: "f32", bits: 32, fraction: 23 };
pub const F64: Format = Format { name: "f64", bits: 64, fraction: 52 };

#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Nan,
    Infinite { negative: bool },
    Finite(Exact),
}

/// `± mantissa · 2^exponent`; zero has a sign.
#[derive(Clone, Debug, PartialEq)]
pub struct Exact {
    pub negative: bool,
    pub mantissa: Natural,
    pub exponent: i32,
}

impl Format {
    pub fn sign(self) -> u64 {
        1 << (self.bits - 1)
    }

    pub fn infinity(self) -> u64 {
        self.sign() - (1 << self.fraction)
    }

    /// The NaN that PTX instructions produce.
    pub fn nan(self) -> u64 {
        self.sign() - 1
    }

    pub fn one(self) -> u64 {
        self.encode(&integer(1), Mode::Nearest)
    }

    /// Exponent of the last bit of a subnormal.
    fn least_exponent(self) -> i32 {
        2 - (1 << (self.bits - 2 - self.fraction)) - self.fraction as i32
    }

    pub fn decode(self, bits: u64) -> Value {
        let negative = bits & self.sign() != 0;
        let magnitude = bits & (self.sign() - 1);
        if magnitude > self.infinity() {
            return Value::Nan;
        }
        if magnitude == self.infinity() {
            return Value::Infinite { negative };
        }
        let biased = (magnitude >> self.fraction) as i32;
        let fraction = magnitude & ((1 << self.fraction) - 1);
        let hidden = if biased == 0 { 0 } else { 1 << self.fraction };
        Value::Finite(Exact {
            negative,
            mantissa: Natural::from(u128::from(fraction | hidden)),
            exponent: self.least_exponent() + biased.max(1) - 1,
        })
    }

    pub fn encode(self, value: &Value, mode: Mode) -> u64 {
        let exact = match value {
            Value::Nan => return self.nan(),
            Value::Infinite { negative } => {
                return self.infinity() | if *negative { self.sign() } else { 0 };
            }
            Value::Finite(exact) => exact,
        };
        let sign = if exact.negative { self.sign() } else { 0 };
        if exact.mantissa.is_zero() {
            return sign;
        }
        let top = exact.exponent + exact.mantissa.length() as i32 - 1;
        let last = (top - self.fraction as i32).max(self.least_exponent());
        let mantissa = exact.rounded_to(last, mode).to_u128() as u64;
        let magnitude = (((last - self.least_exponent()) as u64) << self.fraction) + mantissa;
        if magnitude < self.infinity() {
            return sign | magnitude;
        }
        let to_infinity = match mode {
            Mode::Nearest => true,
            Mode::Zero => false,
            Mode::Down => exact.negative,
            Mode::Up => !exact.negative,
        };
        sign | if to_infinity { self.infinity() } else { self.infinity() - 1 }
    }

    pub fn is_nan(self, bits: u64) -> bool {
        bits & (self.sign() - 1) > self.infinity()
    }

    pub fn is_subnormal(self, bits: u64) -> bool {
        let magnitude = bits & (self.sign() - 1);
        magnitude != 0 && magnitude < 1 << self.fraction
    }

    /// `.ftz`: a subnormal becomes a zero of its sign.
    pub fn flushed(self, bits: u64) -> u64 {
        if self.is_subnormal(bits) { bits & self.sign() } else { bits }
    }

    /// `.sat`: to 0 .. 1, NaN to 0.
    pub fn saturated(self, bits: u64) -> u64 {
        if self.is_nan(bits) || bits & self.sign() != 0 { 0 } else { bits.min(self.one()) }
    }

    /// Exactly, for the formats up to f64.
    pub fn to_f64(self, bits: u64) -> f64 {
        match self.decode(bits) {
            Value::Nan => f64::NAN,
            value => f64::from_bits(F64.encode(&value, Mode::Nearest)),
        }
    }

    /// Distance between the neighbours of a finite number.
    pub fn ulp(self, x: f64) -> f64 {
        let top = if x == 0.0 { i32::MIN / 2 } else { x.abs().log2().floor() as i32 };
        2f64.powi((top - self.fraction as i32).max(self.least_exponent()))
    }
}

pub fn integer(value: i128) -> Value {
    let mantissa = Natural::from(value.unsigned_abs());
    Value::Finite(Exact { negative: value < 0, mantissa, exponent: 0 })
}

impl Exact {
    /// The magnitude in units of `2^last`, rounded.
    pub fn rounded_to(&self, last: i32, mode: Mode) -> Natural {
        let shift = last - self.exponent;
        if shift <= 0 {
            return self.mantissa.shifted_left(-shift as u32);
        }
        let shift = shift as u32;
        let whole = self.mantissa.shifted_right(shift);
        let rest = self.mantissa.minus(&whole.shifted_left(shift));
        let half = Natural::from(1).shifted_left(shift - 1);
        let up = match mode {
            Mode::Nearest => match rest.cmp(&half) {
                Ordering::Less => false,
                Ordering::Equal => whole.is_odd(),
                Ordering::Greater => true,
            },
            Mode::Zero => false,
            Mode::Down => self.negative && !rest.is_zero(),
            Mode::Up => !self.negative && !rest.is_zero(),
        };
        if up { whole.plus(&Natural::from(1)) } else { whole }
    }
}

/// `a + b`; the rounding decides the sign of an exact zero.
pub fn add(a: &Value, b: &Value, mode: Mode) -> Value {
    let (a, b) = match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => return Value::Nan,
        (Value::Infinite { negative: a }, Value::Infinite { negative: b }) if a != b => {
            return Value::Nan;
        }
        (Value::Infinite { .. }, _) => return a.clone(),
        (_, Value::Infinite { .. }) => return b.clone(),
        (Value::Finite(a), Value::Finite(b)) => (a, b),
    };
    let exponent = a.exponent.min(b.exponent);
    let x = a.mantissa.shifted_left((a.exponent - exponent) as u32);
    let y = b.mantissa.shifted_left((b.exponent - exponent) as u32);
    let (negative, mantissa) = if a.negative == b.negative {
        (a.negative, x.plus(&y))
    } else {
        match x.cmp(&y) {
            Ordering::Equal => (mode == Mode::Down, Natural::from(0)),
            Ordering::Greater => (a.negative, x.minus(&y)),
            Ordering::Less => (b.negative, y.minus(&x)),
        }
    };
    Value::Finite(Exact { negative, mantissa, exponent })
}

pub fn negated(value: &Value) -> Value {
    match value {
        Value::Nan => Value::Nan,
        Value::Infinite { negative } => Value::Infinite { negative: !negative },
        Value::Finite(exact) => Value::Finite(Exact { negative: !exact.negative, ..exact.clone() }),
    }
}

fn is_negative(value: &Value) -> bool {
    matches!(
        value,
        Value::Infinite { negative: true } | Value::Finite(Exact { negative: true, .. })
    )
}

pub fn is_zero(value: &Value) -> bool {
    matches!(value, Value::Finite(exact) if exact.mantissa.is_zero())
}

pub fn mul(a: &Value, b: &Value) -> Value {
    let negative = is_negative(a) != is_negative(b);
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => Value::Nan,
        (Value::Finite(a), Value::Finite(b)) => Value::Finite(Exact {
            negative,
            mantissa: a.mantissa.times(&b.mantissa),
            exponent: a.exponent + b.exponent,
        }),
        _ if is_zero(a) || is_zero(b) => Value::Nan,
        _ => Value::Infinite { negative },
    }
}

/// `a / b` with 75 bits or more and a last bit that says whether more would follow.
pub fn div(a: &Value, b: &Value) -> Value {
    let negative = is_negative(a) != is_negative(b);
    match (a, b) {
        (Value::Nan, _) | (_, Value::Nan) => Value::Nan,
        (Value::Infinite { .. }, Value::Infinite { .. }) => Value::Nan,
        (Value::Infinite { .. }, _) => Value::Infinite { negative },
        (_, Value::Infinite { .. }) => {
            Value::Finite(Exact { negative, mantissa: Natural::from(0), exponent: 0 })
        }
        (Value::Finite(_), Value::Finite(_)) if is_zero(a) && is_zero(b) => Value::Nan,
        (Value::Finite(_), Value::Finite(_)) if is_zero(b) => Value::Infinite { negative },
        (Value::Finite(a), Value::Finite(b)) => {
            let shift = 127 - a.mantissa.length();
            let (x, y) = (a.mantissa.to_u128() << shift, b.mantissa.to_u128());
            let mantissa = Natural::from((x / y) << 1 | u128::from(x % y != 0));
            let exponent = a.exponent - shift as i32 - b.exponent - 1;
            Value::Finite(Exact { negative, mantissa, exponent })
        }
    }
}

/// With 62 bits or more and a last bit that says whether more would follow.
pub fn sqrt(a: &Value) -> Value {
    match a {
        Value::Finite(exact) if exact.mantissa.is_zero() => a.clone(),
        Value::Infinite { negative: false } => a.clone(),
        Value::Finite(exact) if !exact.negative => {
            let mut shift = 126 - exact.mantissa.length();
            if (exact.exponent - shift as i32) % 2 != 0 {
                shift += 1;
            }
            let x = exact.mantissa.to_u128() << shift;
            let root = x.isqrt();
            let mantissa = Natural::from(root << 1 | u128::from(root * root != x));
            let exponent = (exact.exponent - shift as i32) / 2 - 1;
            Value::Finite(Exact { negative: false, mantissa, exponent })
        }
        _ => Value::Nan,
    }
}
