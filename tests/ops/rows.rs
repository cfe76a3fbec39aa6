//! Row movements against plain indexing, on the CPU and on CUDA: the same bits everywhere, because a
//! result is rounded once.

use half::bf16;
use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::rows::{self, inverse_len, invert};
use silkie::tensor::{DType, Tensor};

use crate::support::*;

/// `x` as `dtype` holds it.
fn round(x: f32, dtype: DType) -> f32 {
    if dtype == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x }
}

/// The inverse of `index` with `room`, at `place`.
fn inverse(place: Place, index: &[u32], room: usize) -> Buffer {
    let mut inverse = vec![u32::MAX; inverse_len(room)];
    invert(index, &mut inverse).unwrap();
    place.buffer(&inverse, 1, inverse.len())
}

/// Sums of rows in the order of `index`, rounded to `dtype` at the end.
fn scattered(dst: &[f32], src: &[f32], index: &[u32], width: usize, dtype: DType) -> Vec<f32> {
    let mut sums = dst.to_vec();
    for (&to, src) in index.iter().zip(src.chunks(width)) {
        let sums = &mut sums[to as usize * width..][..width];
        sums.iter_mut().zip(src).for_each(|(sum, x)| *sum += x);
    }
    sums.into_iter().map(|x| round(x, dtype)).collect()
}

fn judge(place: Place, count: usize, n: usize, width: usize, lay: Lay) {
    let what = |op: &str| format!("rows::{op} {count} of [{n}, {width}] {lay:?} {place:?}");
    let (few, many) = (place.random(count, width, lay, 1), place.random(n, width, lay, 2));
    let (few_values, many_values) = (few.values(), many.values());

    let index = random_indices(count, n, 3);
    let column = place.buffer(&index, count, 1);
    let mut out = place.poisoned(count, width, lay);
    rows::gather(many.view(), column.view(), out.view_mut()).unwrap();
    let row = |i: u32| many_values[i as usize * width..][..width].to_vec();
    let want: Vec<f32> = index.iter().flat_map(|&i| row(i)).collect();
    assert_same_bits(what("gather"), &out.values(), &want);

    for room in [count, count + 3] {
        let inverse = inverse(place, &index, room);
        let mut out = many.clone();
        rows::scatter_add(few.view(), inverse.view(), out.view_mut()).unwrap();
        let want = scattered(&many_values, &few_values, &index, width, place.dtype);
        assert_same_bits(what("scatter_add"), &out.values(), &want);

        let (mut out, mut want) = (many.clone(), many_values.clone());
        rows::scatter(few.view(), inverse.view(), out.view_mut()).unwrap();
        for (&i, row) in index.iter().zip(few_values.chunks(width)) {
            want[i as usize * width..][..width].copy_from_slice(row);
        }
        assert_same_bits(what("scatter"), &out.values(), &want);
    }

    let factors = random(count, 4);
    let factor = place.of(DType::F32).matrix(&factors, count, 1, lay);
    let mut out = few.clone();
    rows::scale(out.view_mut(), factor.view()).unwrap();
    let scaled = |(i, x): (usize, &f32)| round(x * factors[i / width], place.dtype);
    let want: Vec<f32> = few_values.iter().enumerate().map(scaled).collect();
    assert_same_bits(what("scale"), &out.values(), &want);
}

/// Places to read at, each with a type to write.
fn pairs() -> Vec<(Place, DType)> {
    let of = |place: Place| match place.device {
        Device::Cpu => vec![(place, DType::F32)],
        Device::Cuda(_) => vec![(place, DType::F32), (place, DType::Bf16)],
    };
    places().into_iter().flat_map(of).collect()
}

fn judge_copy(place: Place, to: DType, count: usize, width: usize, lay: Lay) {
    let x = place.random(count, width, lay, 1);
    let mut y = place.of(to).poisoned(count, width, lay);
    rows::copy(x.view(), y.view_mut()).unwrap();
    let want: Vec<f32> = x.values().iter().map(|&x| round(x, to)).collect();
    let what = format!("rows::copy {place:?} to {to:?} [{count}, {width}] {lay:?}");
    assert_same_bits(what, &y.values(), &want);
}

fn judge_add(place: Place, to: DType, count: usize, width: usize, lay: Lay) {
    let x = place.random(count, width, lay, 1);
    let mut y = place.of(to).random(count, width, lay, 5);
    let sums = y.values().into_iter().zip(x.values()).map(|(y, x)| round(y + x, to));
    let want: Vec<f32> = sums.collect();
    rows::add(x.view(), y.view_mut()).unwrap();
    let what = format!("rows::add {place:?} to {to:?} [{count}, {width}] {lay:?}");
    assert_same_bits(what, &y.values(), &want);
}

fn judge_cycled(place: Place, to: DType, images: usize, period: usize, width: usize, lay: Lay) {
    let what =
        |op: &str| format!("rows::{op} {place:?} to {to:?} {images} x [{period}, {width}] {lay:?}");
    let (x, n) = (place.random(period, width, lay, 1), period * width);
    let start = place.random(images * period, width, lay, 2);
    let (x_values, values) = (x.values(), start.values());
    let mut y = start.clone();
    rows::add_cycled(x.view(), y.view_mut()).unwrap();
    let sum = |(i, y): (usize, &f32)| round(y + x_values[i % n], place.dtype);
    let want: Vec<f32> = values.iter().enumerate().map(sum).collect();
    assert_same_bits(what("add_cycled"), &y.values(), &want);

    let mut dx = place.of(to).random(period, width, lay, 3);
    let mut sums = dx.values();
    values.iter().enumerate().for_each(|(i, dy)| sums[i % n] += dy);
    rows::add_cycled_backward(start.view(), dx.view_mut()).unwrap();
    let want: Vec<f32> = sums.into_iter().map(|x| round(x, to)).collect();
    assert_same_bits(what("add_cycled_backward"), &dx.values(), &want);
}

/// Whether `x` of one type may be added to `y` of the other.
fn adds(from: DType, to: DType) -> bool {
    from == to || from == DType::Bf16
}

/// Widths around one pack and the columns that a block takes of a row: 128 threads, 4 packs each
/// where the row is one, and 4 or 8 elements a pack; odd ones on the CPU.
fn widths(place: Place) -> Vec<usize> {
    if place.device == Device::Cpu {
        return vec![1, 5, 33, 64, 700];
    }
    let around = |tile: usize| [tile - 8, tile, tile + 8];
    let mut widths = vec![8];
    widths.extend([512, 1024, 2048, 4096].into_iter().flat_map(around));
    if place.dtype == DType::F32 {
        widths.extend([4, 508, 516, 2044, 2052]);
    }
    widths
}

#[test]
fn agree_with_plain_indexing() {
    for place in places() {
        for width in widths(place) {
            for lay in LAYS {
                for (count, n) in [(0, 3), (1, 1), (7, 3), (9, 5)] {
                    judge(place, count, n, width, lay);
                }
            }
        }
        judge(place, 40, 110, 64, Lay::Strided);
    }
}

#[test]
fn casts_and_sums_of_two_types_agree_with_plain_ones() {
    for (place, to) in pairs() {
        for width in widths(place).into_iter().filter(|&width| {
            place.device == Device::Cpu || width.is_multiple_of(place.of(to).pack())
        }) {
            for lay in LAYS {
                for count in [0, 1, 3] {
                    judge_copy(place, to, count, width, lay);
                    if adds(place.dtype, to) {
                        judge_add(place, to, count, width, lay);
                    }
                }
            }
        }
    }
}

/// Up to four rows of `y` are on their way at a time.
#[test]
fn cycles_agree_with_plain_indexing() {
    for (place, to) in pairs().into_iter().filter(|(place, to)| adds(place.dtype, *to)) {
        for lay in LAYS {
            for images in 0..10 {
                judge_cycled(place, to, images, 3, 16, lay);
            }
            for width in [504, 512, 520, 1016, 1024, 1032] {
                judge_cycled(place, to, 3, 7, width, lay);
            }
        }
        judge_cycled(place, to, 2, 300, 304, Lay::Dense);
    }
    for width in [1, 65] {
        judge_cycled(Place::CPU, DType::F32, 3, 7, width, Lay::Strided);
    }
}

#[test]
fn of_equal_indices_the_last_wins() {
    for place in places() {
        let src = place.random(300, 520, Lay::Dense, 1);
        let inverse = inverse(place, &[1; 300], 300);
        let got = same_on_any_threads(format!("scatter {place:?}"), || {
            let mut dst = place.matrix(&[0.0; 2 * 520], 2, 520, Lay::Dense);
            rows::scatter(src.view(), inverse.view(), dst.view_mut()).unwrap();
            dst.values()
        });
        assert_same_bits("last row", &got[520..], &src.values()[299 * 520..]);
        assert_same_bits("another row", &got[..520], &[0.0; 520]);
    }
}

/// In the order of the sources: any other rounds differently, as the values have many sizes.
#[test]
fn equal_indices_add_in_their_order_in_every_run() {
    let (count, width) = (203, 536);
    let index = random_indices(count, 3, 1);
    let values: Vec<f32> = random(count * width, 2).iter().map(|x| x.powi(9) * 1e6).collect();
    for place in places() {
        let src = place.matrix(&values, count, width, Lay::Dense);
        let inverse = inverse(place, &index, count);
        let got = same_on_any_threads(format!("scatter_add {place:?}"), || {
            let mut dst = place.matrix(&[0.0; 3 * 536], 3, width, Lay::Dense);
            rows::scatter_add(src.view(), inverse.view(), dst.view_mut()).unwrap();
            dst.values()
        });
        let want = scattered(&[0.0; 3 * 536], &src.values(), &index, width, place.dtype);
        assert_same_bits("source order", &got, &want);
    }
}

#[test]
fn an_inverse_lists_the_sources_of_each_row() {
    let mut inverse = [u32::MAX; 3 * 6 + 1];
    invert(&[7, 2, 7, 0, 2], &mut inverse).unwrap();
    let (rows, rest) = inverse.split_at(6);
    let (starts, sources) = rest.split_at(7);
    assert_eq!(rows, [0, 2, 7, 0, 0, 0]);
    assert_eq!(starts, [0, 1, 3, 5, 5, 5, 5]);
    assert_eq!(sources, [3, 1, 4, 0, 2, 0]);
    invert(&[], &mut inverse).unwrap();
    assert_eq!(inverse, [0; 19]);
    for len in [13, 18, 20] {
        assert_eq!(
            refusal(invert(&[0; 5], &mut vec![0; len])),
            format!(
                "rows::invert: inverse has {len} elements, expected 3 · room + 1 with room for 5 \
                 entries"
            )
        );
    }
}

/// Not even a NaN is written anew, which in bf16 would change its bits.
#[test]
fn an_empty_segment_leaves_its_row_alone() {
    for place in places() {
        let src = place.random(1, 8, Lay::Dense, 1);
        let inverse = inverse(place, &[], 2);
        let mut dst = place.poisoned(1, 8, Lay::Strided);
        let before = dst.values();
        rows::scatter(src.view(), inverse.view(), dst.view_mut()).unwrap();
        rows::scatter_add(src.view(), inverse.view(), dst.view_mut()).unwrap();
        assert_same_bits(place, &dst.values(), &before);
    }
}

/// A row that is one too far, and one far away.
#[test]
fn a_gpu_reads_nan_and_writes_nothing_beyond_the_rows() {
    let Some(cuda) = cuda() else { return };
    for place in [DType::F32, DType::Bf16].map(|dtype| Place { device: Device::Cuda(cuda), dtype })
    {
        let (width, nan) = (16, [f32::NAN; 16]);
        let src = place.random(3, width, Lay::Strided, 1);
        let start = place.random(4, width, Lay::Strided, 2);
        let (rows_of, before) = (src.values(), start.values());
        let row = |i: usize| rows_of[i * width..][..width].to_vec();
        let same = |got: &[f32], want: &[f32]| {
            let bits = |x: &f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
            assert!(got.iter().map(bits).eq(want.iter().map(bits)), "{got:?}, expected {want:?}");
        };

        let index = place.buffer(&[2u32, 3, 0, u32::MAX], 4, 1);
        let mut out = start.clone();
        rows::gather(src.view(), index.view(), out.view_mut()).unwrap();
        same(&out.values(), &[row(2), nan.to_vec(), row(0), nan.to_vec()].concat());

        // rows 1, 4 and the last get sources 2; 0; 1
        let inverse = inverse(place, &[4, u32::MAX, 1], 3);
        let mut want = before.clone();
        want[width..2 * width].copy_from_slice(&row(2));
        let mut out = start.clone();
        rows::scatter(src.view(), inverse.view(), out.view_mut()).unwrap();
        same(&out.values(), &want);
        let mut out = start.clone();
        rows::scatter_add(src.view(), inverse.view(), out.view_mut()).unwrap();
        let sum = |(i, y): (usize, &f32)| match i / width {
            1 => round(y + row(2)[i % width], place.dtype),
            _ => *y,
        };
        let want: Vec<f32> = before.iter().enumerate().map(sum).collect();
        same(&out.values(), &want);

        // row 0 gets source 3, row 1 source 0 and, by a start beyond the room, what lies up to it
        let bad = place.buffer(&[0u32, 1, 0, 1, u32::MAX, 3, 0], 1, 7);
        let [mut moved, mut added] = [(); 2].map(|()| start.clone());
        rows::scatter(src.view(), bad.view(), moved.view_mut()).unwrap();
        rows::scatter_add(src.view(), bad.view(), added.view_mut()).unwrap();
        same(&moved.values(), &[&nan[..], &row(0), &before[2 * width..]].concat());
        let sum = |j| round(before[width + j] + rows_of[j], place.dtype);
        let sums: Vec<f32> = (0..width).map(sum).collect();
        same(&added.values(), &[&nan[..], &sums, &before[2 * width..]].concat());
    }
}

#[test]
fn refuse_what_does_not_fit() {
    let [src, mut dst] = [(4, 2), (3, 2)].map(|(r, c)| Matrix::random(r, c, Lay::Dense, 1));
    let index = [0u32, 4, 1];
    let error = refusal(rows::gather(src.view(), Tensor::column(&index), dst.view_mut()));
    assert_eq!(error, "rows::gather: index[1] is 4, expected less than 4 (rows of src)");
    let mut scatter = |inverse: &[u32]| {
        refusal(rows::scatter(src.view(), Tensor::vector(inverse), dst.view_mut()))
    };
    assert_eq!(
        scatter(&[0; 6]),
        "rows::scatter: inverse has shape [1, 6], expected [1, 7] (1, 3 · room + 1)"
    );
    let rows = |rows: [u32; 2], starts: [u32; 3], sources: [u32; 2]| {
        [&rows[..], &starts, &sources].concat()
    };
    let falls = "rows::scatter: inverse has segments that fall or end beyond its room of 2; make it \
                 by rows::invert";
    assert_eq!(scatter(&rows([0, 1], [0, 1, 3], [0, 1])), falls);
    assert_eq!(scatter(&rows([0, 1], [1, 0, 2], [0, 1])), falls);
    for (bad, row) in [([0, 3], 3), ([1, 1], 1), ([2, 1], 1)] {
        let expected =
            format!("rows::scatter: inverse names row {row}, expected rising rows below 3");
        assert_eq!(scatter(&rows(bad, [0, 1, 2], [0, 1])), expected);
    }
    assert_eq!(
        scatter(&rows([0, 1], [0, 1, 2], [0, 4])),
        "rows::scatter: inverse names source 4, expected less than 4"
    );
    let error = refusal(rows::add_cycled(dst.clone().view(), src.clone().view_mut()));
    let expected = "rows::add_cycled: y has 4 rows, expected a multiple of the 3 rows of x";
    assert_eq!(error, expected);
    let factors = [1.0f32; 2];
    let error = refusal(rows::scale(dst.view_mut(), Tensor::column(&factors)));
    assert_eq!(error, "rows::scale: factors has shape [2, 1], expected [3, 1] (rows, 1)");
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let (x, mut y) = (place.random(2, 12, Lay::Dense, 1), place.poisoned(2, 12, Lay::Dense));
    assert_eq!(
        refusal(rows::copy(x.view(), y.view_mut())),
        "rows::copy: x has 12 columns, expected a multiple of 8: kernels read 16 bytes at a time"
    );
    let x = place.of(DType::F32).random(2, 16, Lay::Dense, 1);
    let mut y = place.poisoned(2, 16, Lay::Dense);
    assert_eq!(
        refusal(rows::add(x.view(), y.view_mut())),
        "rows::add: y has type Bf16, expected F32"
    );
    let host = Matrix::random(2, 16, Lay::Dense, 1);
    assert_eq!(
        refusal(rows::add(x.view(), host.clone().view_mut())),
        format!("rows::add: y is on cpu, expected cuda:{} like the others", cuda.ordinal())
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(count in 0usize..20, n in 1usize..20, width in 1usize..70, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        judge(Place::CPU, count, n, width, lay);
        judge_copy(Place::CPU, DType::F32, count, width, lay);
        judge_add(Place::CPU, DType::F32, count, width, lay);
        judge_cycled(Place::CPU, DType::F32, count % 4, n, width, lay);
    }
}

#[test]
fn any_shape_agrees_on_a_gpu() {
    let shapes = (0usize..20, 1usize..20, 1usize..40, any::<bool>());
    let judge = |(count, n, packs, strided)| {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        for (place, to) in pairs().into_iter().filter(|(place, _)| place.device != Device::Cpu) {
            let width = 8 * packs;
            judge(place, count, n, width, lay);
            judge_copy(place, to, count, width, lay);
            if adds(place.dtype, to) {
                judge_add(place, to, count, width, lay);
                judge_cycled(place, to, count % 4, n, width, lay);
            }
        }
        Ok(())
    };
    runner(8).run(&shapes, judge).unwrap();
}
