//! Whole numbers of any size.

use std::cmp::Ordering;

/// A natural number of any size: digits of 32 bits, the lowest first, the highest not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural(Vec<u32>);

impl From<u128> for Natural {
    fn from(value: u128) -> Self {
        Natural((0..4).map(|i| (value >> (32 * i)) as u32).collect()).trimmed()
    }
}

impl Natural {
    fn trimmed(mut self) -> Self {
        while self.0.last() == Some(&0) {
            self.0.pop();
        }
        self
    }

    pub fn is_zero(&self) -> bool {
        self.0.is_empty()
    }

    pub fn is_odd(&self) -> bool {
        self.0.first().is_some_and(|digit| digit & 1 == 1)
    }

    /// In bits.
    pub fn length(&self) -> u32 {
        self.0.last().map_or(0, |last| 32 * self.0.len() as u32 - last.leading_zeros())
    }

    /// Panics when it does not fit.
    pub fn to_u128(&self) -> u128 {
        assert!(self.0.len() <= 4, "a number of {} bits", self.length());
        self.0.iter().rev().fold(0, |value, &digit| value << 32 | u128::from(digit))
    }

    fn digit(&self, i: usize) -> u64 {
        self.0.get(i).map_or(0, |&digit| digit.into())
    }

    pub fn shifted_left(&self, bits: u32) -> Natural {
        let (digits, bits) = (bits as usize / 32, bits % 32);
        let mut shifted = vec![0; digits];
        for i in 0..=self.0.len() {
            let below = if i == 0 { 0 } else { self.digit(i - 1) };
            shifted.push(((self.digit(i) << 32 | below) >> (32 - bits)) as u32);
        }
        Natural(shifted).trimmed()
    }

    pub fn shifted_right(&self, bits: u32) -> Natural {
        let (digits, bits) = (bits as usize / 32, bits % 32);
        let shifted = (digits..self.0.len())
            .map(|i| ((self.digit(i + 1) << 32 | self.digit(i)) >> bits) as u32)
            .collect();
        Natural(shifted).trimmed()
    }

    pub fn plus(&self, other: &Natural) -> Natural {
        let mut carry = 0;
        let mut sum = Vec::new();
        for i in 0..=self.0.len().max(other.0.len()) {
            carry += self.digit(i) + other.digit(i);
            sum.push(carry as u32);
            carry >>= 32;
        }
        Natural(sum).trimmed()
    }

    /// `other` is not larger.
    pub fn minus(&self, other: &Natural) -> Natural {
        let mut borrow = 0;
        let mut difference = Vec::new();
        for i in 0..self.0.len() {
            let digit = self.digit(i) as i64 - other.digit(i) as i64 + borrow;
            difference.push(digit as u32);
            borrow = digit >> 32;
        }
        assert_eq!(borrow, 0, "a negative difference");
        Natural(difference).trimmed()
    }

    pub fn times(&self, other: &Natural) -> Natural {
        let mut product = vec![0u32; self.0.len() + other.0.len()];
        for i in 0..self.0.len() {
            let mut carry = 0;
            for j in 0..product.len() - i {
                carry += self.digit(i) * other.digit(j) + u64::from(product[i + j]);
                product[i + j] = carry as u32;
                carry >>= 32;
            }
        }
        Natural(product).trimmed()
    }
}

impl PartialOrd for Natural {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Natural {
    fn cmp(&self, other: &Self) -> Ordering {
        let by_length = self.0.len().cmp(&other.0.len());
        by_length.then_with(|| self.0.iter().rev().cmp(other.0.iter().rev()))
    }
}
