//! Tails against the scaled B of their pairs, rounded once, on the CPU and on CUDA; `products` has
//! the algebra that they are for.

mod products;

use half::bf16;
use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::lora::{self, Pair, Table};
use silkie::tensor::{DType, Tensor, TensorMut};

use crate::support::*;

fn devices() -> Vec<Device> {
    [Device::Cpu].into_iter().chain(cuda().map(Device::Cuda)).collect()
}

fn narrow(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}

/// A weight with a tail of `groups` groups of `rank` columns behind `base`, and the pair of its `group`.
#[derive(Clone, Copy, Debug)]
struct Case {
    rows: usize,
    base: usize,
    rank: usize,
    groups: usize,
    group: usize,
    lay: Lay,
}

impl Case {
    fn cols(&self) -> usize {
        self.base + self.groups * self.rank
    }

    fn weight(&self, device: Device) -> Matrix {
        let place = Place { device, dtype: DType::Bf16 };
        place.random(self.rows, self.cols(), self.lay, 1)
    }
}

/// Writes the tails of all `cases` at once; every weight afterwards.
fn write(device: Device, cases: &[Case], masters: &[f32], scale: f32) -> Vec<Vec<f32>> {
    let mut weights: Vec<Matrix> = cases.iter().map(|case| case.weight(device)).collect();
    let place = Place { device, dtype: DType::F32 };
    let masters = place.buffer(masters, 1, masters.len());
    let tail =
        |(weight, case): (_, &Case)| Matrix::view_mut(weight).slice_cols(case.base..case.cols());
    let mut tails: Vec<_> = weights.iter_mut().zip(cases).map(tail).collect();
    let mut first = 0;
    let pair = |case: &Case| {
        let pair = Pair { first, rank: case.rank, group: case.group, scale };
        first += (case.rows * case.rank).next_multiple_of(16);
        pair
    };
    let pairs: Vec<Pair> = cases.iter().map(pair).collect();
    let table = Table::new(device, &pairs, &mut tails).unwrap();
    lora::write_tails(masters.view(), &table, &mut tails).unwrap();
    weights.iter().map(Matrix::values).collect()
}

fn judge(device: Device, cases: &[Case]) {
    let scale = 0.3;
    let count = |case: &Case| (case.rows * case.rank).next_multiple_of(16);
    let masters = random(cases.iter().map(count).sum(), 2);
    let got = write(device, cases, &masters, scale);
    let mut first = 0;
    for (case, got) in cases.iter().zip(got) {
        let mut want = case.weight(Device::Cpu).values();
        for (i, row) in want.chunks_mut(case.cols()).enumerate() {
            let (tail, r) = (&mut row[case.base..], case.rank);
            tail.fill(0.0);
            let b = &masters[first + i * r..][..r];
            let own = tail[case.group * r..].iter_mut().zip(b);
            own.for_each(|(tail, b)| *tail = narrow(b * scale));
        }
        first += count(case);
        assert_same_bits(format!("{case:?} on {device}"), &got, &want);
    }
}

/// Around the rows that a block takes, 16384 / columns of the tail, and the elements that its 256
/// threads do, 4 each; one pair, two of one input, any group.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (rank, groups, group) in [(8, 1, 0), (8, 3, 1), (24, 2, 1), (64, 1, 0), (64, 2, 0)] {
        let block = 16 * 1024 / (rank * groups);
        for rows in [0, 1, 3, 15, 16, 17, block - 1, block, block + 1, 2 * block + 1] {
            for lay in LAYS {
                cases.push(Case { rows, base: 16, rank, groups, group, lay });
            }
        }
    }
    cases
}

#[test]
fn tails_are_the_scaled_b_rounded_once() {
    for device in devices() {
        judge(device, &[]);
        judge(device, &cases());
        cases().iter().filter(|case| case.rows < 20).for_each(|case| judge(device, &[*case]));
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    let cases: Vec<Case> = cases().into_iter().filter(|case| case.lay == Lay::Strided).collect();
    let masters = random(2_000_000, 2);
    for device in devices() {
        same_on_any_threads(device, || write(device, &cases, &masters, 0.3).concat());
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let pair = Pair { first: 0, rank: 8, group: 0, scale: 1.0 };
    let place = Place { device: Device::Cpu, dtype: DType::Bf16 };
    let table = |pair: Pair, cols: usize| {
        let mut tail = place.random(3, cols, Lay::Dense, 1);
        refusal(Table::new(Device::Cpu, &[pair], &mut [tail.view_mut()]))
    };
    for rank in [0, 4, 12] {
        assert_eq!(
            table(Pair { rank, ..pair }, 16),
            format!(
                "lora::Table::new: pairs[0] has rank {rank}, expected a multiple of 8: products \
                 read 16 bytes at a time; choose another lora-r"
            )
        );
    }
    assert_eq!(
        table(Pair { first: 6, ..pair }, 16),
        "lora::Table::new: pairs[0] starts at 6, expected a multiple of 4"
    );
    for (group, cols) in [(0, 12), (2, 16), (0, 0)] {
        assert_eq!(
            table(Pair { group, ..pair }, cols),
            format!(
                "lora::Table::new: tails[0] has {cols} columns, expected a multiple of 8 beyond \
                 group {group}"
            )
        );
    }
    assert_eq!(
        refusal(Table::new(Device::Cpu, &[pair], &mut [])),
        "lora::Table::new: tails has 0 elements, expected 1, one per pair"
    );
    let mut wide = Matrix::random(3, 8, Lay::Dense, 1);
    assert_eq!(
        refusal(Table::new(Device::Cpu, &[pair], &mut [wide.view_mut()])),
        "lora::Table::new: tails[0] has type F32, expected Bf16"
    );

    let [mut tail, mut other] = [1, 2].map(|seed| place.random(3, 8, Lay::Dense, seed));
    let table = Table::new(Device::Cpu, &[pair], &mut [tail.view_mut()]).unwrap();
    let write = |masters: &[f32], tails: &mut [TensorMut<'_>]| {
        refusal(lora::write_tails(Tensor::vector(masters), &table, tails))
    };
    assert_eq!(
        write(&[0.0; 23], &mut [tail.view_mut()]),
        "lora::write_tails: table reaches to element 24 of masters, expected at most 23"
    );
    assert_eq!(
        write(&[0.0; 24], &mut [other.view_mut()]),
        "lora::write_tails: tails[0] is not where the table says; make a new table when weights move"
    );
    assert_eq!(
        write(&[0.0; 24], &mut [tail.view_mut().slice_rows(0..2)]),
        "lora::write_tails: tails[0] has shape [2, 8], expected [3, 8] (rows, columns)"
    );
    assert_eq!(
        write(&[0.0; 24], &mut []),
        "lora::write_tails: tails has 0 elements, expected 1, one per pair"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_shape_agrees(
        shapes in proptest::collection::vec((0usize..50, 0usize..4, 1usize..5, 1usize..4), 0..4),
        strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        let case = |(rows, base, rank, groups)| {
            Case { rows, base: 8 * base, rank: 8 * rank, groups, group: rows % groups, lay }
        };
        let cases: Vec<Case> = shapes.into_iter().map(case).collect();
        devices().into_iter().for_each(|device| judge(device, &cases));
    }
}
