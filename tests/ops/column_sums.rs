//! Column sums against their equation in f64, on the CPU and on CUDA.

use proptest::prelude::*;
use silkie::device::Device;
use silkie::ops::column_sums;
use silkie::tensor::DType;

use crate::support::*;

fn naive(a: &[f64], c: &[f64]) -> Vec<f64> {
    let mut sums = c.to_vec();
    a.chunks(c.len()).for_each(|row| sums.iter_mut().zip(row).for_each(|(s, a)| *s += a));
    sums
}

/// Adds the sums of `a` to `c`.
fn add(place: Place, a: &Matrix, c: &mut Matrix, [rows, cols]: [usize; 2]) {
    let mut partials = place.scratch(column_sums::partials([rows, cols]));
    column_sums::add(a.view(), c.view_mut(), partials.view_mut()).unwrap();
    partials.values(); // nothing around it was written
}

fn judge(place: Place, [rows, cols]: [usize; 2], lay: Lay) {
    let a = place.random(rows, cols, lay, 1);
    let mut c = place.of(DType::F32).random(1, cols, Lay::Strided, 2);
    let (terms, first) = (a.f64(), c.f64());
    let absolute = |x: &[f64]| x.iter().map(|x| x.abs()).collect::<Vec<_>>();
    let (expected, sizes) = (naive(&terms, &first), naive(&absolute(&terms), &absolute(&first)));
    add(place, &a, &mut c, [rows, cols]);
    // an f32 sum of n terms in any order: n - 1 roundings of 2^-24 of what is summed
    let bound = (rows + 1) as f64 * 2f64.powi(-24);
    let case = format!("column_sums [{rows}, {cols}] {lay:?} {place:?}");
    assert_sums_close(case, &c.values(), &expected, &sizes, bound);
}

/// Odd ones; a row, a column; around the rows of a warp's turn and of a chunk, and the columns of a
/// block in f32 and in bf16; the sums of more chunks than one; a production width.
const SHAPES: [[usize; 2]; 20] = [
    [0, 8],
    [1, 1],
    [1, 8],
    [7, 65],
    [100, 300],
    [7, 120],
    [8, 128],
    [9, 136],
    [31, 248],
    [32, 256],
    [33, 264],
    [255, 16],
    [256, 8],
    [257, 16],
    [511, 24],
    [512, 16],
    [513, 136],
    [2100, 264],
    [300, 4096],
    [3, 12288],
];

#[test]
fn agrees_with_the_equation() {
    for place in places() {
        for shape in SHAPES {
            for lay in LAYS {
                if place == Place::CPU || shape[1].is_multiple_of(place.pack()) {
                    judge(place, shape, lay);
                }
            }
        }
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    let shape = [1025, 520];
    for place in places() {
        let a = place.random(shape[0], shape[1], Lay::Strided, 1);
        same_on_any_threads(format!("column_sums {place:?}"), || {
            let mut c = place.of(DType::F32).random(1, shape[1], Lay::Dense, 2);
            add(place, &a, &mut c, shape);
            c.values()
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let a = Matrix::random(3, 4, Lay::Dense, 1);
    let mut c = Matrix::poisoned(1, 3, Lay::Dense);
    let mut none = Place::CPU.scratch(0);
    assert_eq!(
        refusal(column_sums::add(a.view(), c.view_mut(), none.view_mut())),
        "column_sums::add: c has shape [1, 3], expected [1, 4] (1, cols)"
    );
    let ids = silkie::tensor::Tensor::vector(&[1u32, 2, 3]);
    assert_eq!(
        refusal(column_sums::add(ids, c.view_mut(), none.view_mut())),
        "column_sums::add: a has type U32, expected F32"
    );
}

#[test]
fn a_gpu_refuses_what_its_kernel_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let refuse = |rows, cols, scratch| {
        let a = place.random(rows, cols, Lay::Dense, 1);
        let mut c = place.of(DType::F32).poisoned(1, cols, Lay::Dense);
        let mut partials = place.scratch(scratch);
        refusal(column_sums::add(a.view(), c.view_mut(), partials.view_mut()))
    };
    assert_eq!(
        refuse(2, 12, 0),
        "column_sums::add: a has 12 columns, expected a multiple of 8: kernels read 16 bytes at a time"
    );
    assert_eq!(
        refuse(257, 16, 31),
        "column_sums::add: partials has 31 elements, expected 32 or more"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_shape_agrees(rows in 0usize..300, cols in 1usize..200, strided: bool) {
        judge(Place::CPU, [rows, cols], if strided { Lay::Strided } else { Lay::Dense });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn any_shape_agrees_on_cuda(rows in 0usize..900, packs in 1usize..80, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        for place in places().into_iter().filter(|place| *place != Place::CPU) {
            judge(place, [rows, packs * place.pack()], lay);
        }
    }
}
