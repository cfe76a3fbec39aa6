//! Operands: the edges of every type, and random ones.

use crate::random::Random;
use crate::soft::Format;

/// Rows of random values beside those of edges.
const RANDOM: usize = 120;

pub fn mask(width: u32) -> u64 {
    if width == 64 { u64::MAX } else { (1 << width) - 1 }
}

/// Two's complement of `width` bits.
pub fn signed(bits: u64, width: u32) -> i64 {
    (bits << (64 - width)) as i64 >> (64 - width)
}

/// The value of an integer type.
pub fn value(bits: u64, width: u32, is_signed: bool) -> i128 {
    if is_signed { signed(bits, width).into() } else { (bits & mask(width)).into() }
}

/// Integers around 0, the sign bit and the ends.
pub fn integers(width: u32) -> Vec<u64> {
    let top = 1u64 << (width - 1);
    [
        0,
        1,
        2,
        3,
        7,
        31,
        32,
        33,
        top - 1,
        top,
        top + 1,
        u64::MAX,
        u64::MAX - 1,
        u64::MAX - 6,
        0x5555_5555_5555_5555,
    ]
    .map(|bits| bits & mask(width))
    .to_vec()
}

/// Every class of a format and what rounds in every direction, both signs.
pub fn floats(format: Format) -> Vec<u64> {
    let one = format.one();
    let normal = 1 << format.fraction;
    let infinity = format.infinity();
    let magnitudes = [
        0,
        1,
        normal - 1,
        normal,
        normal + 1,
        one,
        one + 1,
        one - 1,
        one + normal / 2,
        one + normal + 3,
        infinity - normal,
        infinity - 1,
        infinity,
        infinity + normal / 2,
    ];
    magnitudes.iter().flat_map(|&magnitude| [magnitude, magnitude | format.sign()]).collect()
}

/// A random number whose exponent lies near that of 1, or anywhere.
pub fn random_float(random: &mut Random, format: Format) -> u64 {
    let bits = random.next() & mask(format.bits);
    if random.below(4) == 0 {
        return bits;
    }
    let normal = 1u64 << format.fraction;
    let exponent = (format.one() >> format.fraction) + random.below(9) as u64 - 4;
    bits & (format.sign() | (normal - 1)) | exponent << format.fraction
}

/// A random integer with a random number of significant bits.
pub fn random_integer(random: &mut Random, width: u32) -> u64 {
    let bits = random.next() >> random.below(width as usize) & mask(width);
    if random.below(2) == 0 { bits } else { !bits & mask(width) }
}

/// What an operand is.
#[derive(Clone, Copy)]
pub enum Kind {
    Integer(u32),
    Float(Format),
    /// Two of a 16-bit format.
    Pair(Format),
    /// An amount of shifting, a position or a length.
    Amount,
    /// 0 or 1.
    Bool,
}

impl Kind {
    pub fn width(self) -> u32 {
        match self {
            Kind::Integer(width) => width,
            Kind::Float(format) => format.bits,
            Kind::Pair(_) | Kind::Amount | Kind::Bool => 32,
        }
    }

    fn edges(self) -> Vec<u64> {
        match self {
            Kind::Integer(width) => integers(width),
            Kind::Float(format) => floats(format),
            Kind::Pair(format) => {
                let halves = floats(format);
                (0..halves.len())
                    .map(|i| halves[i] << 16 | halves[(i * 5 + 3) % halves.len()])
                    .collect()
            }
            Kind::Amount => {
                vec![0, 1, 7, 8, 15, 16, 31, 32, 33, 63, 64, 65, 255, 256, 0x8000_0000, 0xFFFF_FFFF]
            }
            Kind::Bool => vec![0, 1],
        }
    }

    fn random(self, random: &mut Random) -> u64 {
        match self {
            Kind::Integer(width) => random_integer(random, width),
            Kind::Float(format) => random_float(random, format),
            Kind::Pair(format) => random_float(random, format) << 16 | random_float(random, format),
            Kind::Amount => random.below(70) as u64,
            Kind::Bool => random.below(2) as u64,
        }
    }
}

/// Rows of operands: all combinations of edges (of three and more operands some), then random ones.
pub fn rows(kinds: &[Kind]) -> Vec<Vec<u64>> {
    let mut random = Random::new(kinds.len() as u64);
    let edges: Vec<Vec<u64>> = kinds.iter().map(|kind| kind.edges()).collect();
    let mut rows: Vec<Vec<u64>> = Vec::new();
    match &edges[..] {
        [a] => rows.extend(a.iter().map(|&a| vec![a])),
        [a, b] => a.iter().for_each(|&a| rows.extend(b.iter().map(|&b| vec![a, b]))),
        _ => {
            for _ in 0..300 {
                rows.push(edges.iter().map(|edges| edges[random.below(edges.len())]).collect());
            }
        }
    }
    for _ in 0..RANDOM {
        rows.push(kinds.iter().map(|kind| kind.random(&mut random)).collect());
    }
    rows
}
