//! Row movements against plain indexing.

use proptest::prelude::*;
use silkie::ops::rows;
use silkie::tensor::Tensor;

use crate::support::*;

/// Distinct indices below `n`, in a scattered order.
fn distinct(count: usize, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_by_key(|&i| i.wrapping_mul(2_654_435_761));
    order.truncate(count);
    order
}

fn judge(count: usize, n: usize, width: usize, lay: Lay) {
    let what = |part: &str| format!("rows::{part} {count} of [{n}, {width}] {lay:?}");
    let (few, many) = (Matrix::random(count, width, lay, 1), Matrix::random(n, width, lay, 2));
    let (few_values, many_values) = (few.values(), many.values());

    let index = random_indices(count, n, 3);
    let mut out = Matrix::poisoned(count, width, lay);
    rows::gather(many.view(), Tensor::column(&index), out.view_mut()).unwrap();
    let row = |i: u32| many_values[i as usize * width..][..width].to_vec();
    let want: Vec<f32> = index.iter().flat_map(|&i| row(i)).collect();
    assert_same_bits(what("gather"), &out.values(), &want);

    let mut out = many.clone();
    let mut want = many_values.clone();
    rows::scatter_add(few.view(), Tensor::column(&index), out.view_mut()).unwrap();
    for (k, &i) in index.iter().enumerate() {
        (0..width).for_each(|j| want[i as usize * width + j] += few_values[k * width + j]);
    }
    assert_same_bits(what("scatter_add"), &out.values(), &want);

    let index = distinct(count.min(n), n);
    let some = few.view().slice_rows(0..index.len());
    let (mut out, mut want) = (many.clone(), many_values.clone());
    rows::scatter(some, Tensor::column(&index), out.view_mut()).unwrap();
    for (k, &i) in index.iter().enumerate() {
        want[i as usize * width..][..width].copy_from_slice(&few_values[k * width..][..width]);
    }
    assert_same_bits(what("scatter"), &out.values(), &want);

    let factors = random(count, 4);
    let mut out = few.clone();
    rows::scale(out.view_mut(), Tensor::column(&factors)).unwrap();
    let want = few_values.iter().enumerate().map(|(i, x)| x * factors[i / width]);
    assert_same_bits(what("scale"), &out.values(), &want.collect::<Vec<_>>());

    let other = Matrix::random(count, width, lay, 5);
    let mut out = few.clone();
    rows::add(other.view(), out.view_mut()).unwrap();
    let want = few_values.iter().zip(other.values()).map(|(x, y)| x + y);
    assert_same_bits(what("add"), &out.values(), &want.collect::<Vec<_>>());
}

fn judge_cycled(images: usize, period: usize, width: usize, lay: Lay) {
    let what = format!("add_cycled {images} x [{period}, {width}] {lay:?}");
    let x = Matrix::random(period, width, lay, 1);
    let start = Matrix::random(images * period, width, lay, 2);
    let mut y = start.clone();
    rows::add_cycled(x.view(), y.view_mut()).unwrap();
    let (x_values, n) = (x.values(), period * width);
    let want = start.values().into_iter().enumerate().map(|(i, y)| y + x_values[i % n]);
    assert_same_bits(&what, &y.values(), &want.collect::<Vec<_>>());

    let mut dx = x.clone();
    rows::add_cycled_backward(start.view(), dx.view_mut()).unwrap();
    let mut want = x_values;
    start.values().iter().enumerate().for_each(|(i, dy)| want[i % n] += dy);
    assert_same_bits(format!("{what} backward"), &dx.values(), &want);
}

#[test]
fn agree_with_plain_indexing() {
    for (count, n, width) in [(0, 3, 5), (1, 1, 1), (7, 3, 33), (40, 110, 64), (9, 5, 700)] {
        for lay in LAYS {
            judge(count, n, width, lay);
        }
    }
}

#[test]
fn cycles_agree_with_plain_indexing() {
    for (images, period, width) in [(0, 4, 3), (1, 1, 1), (3, 7, 65), (2, 300, 300)] {
        for lay in LAYS {
            judge_cycled(images, period, width, lay);
        }
    }
}

#[test]
fn of_equal_indices_the_last_wins() {
    let src = Matrix::random(300, 515, Lay::Dense, 1);
    let index = vec![1u32; 300];
    let got = same_on_any_threads("scatter", || {
        let mut dst = Matrix::of(&[0.0; 2 * 515], 2, 515, Lay::Dense);
        rows::scatter(src.view(), Tensor::column(&index), dst.view_mut()).unwrap();
        dst.values()
    });
    assert_same_bits("last row", &got[515..], &src.values()[299 * 515..]);
}

#[test]
fn refuse_what_does_not_fit() {
    let [src, mut dst] = [(4, 2), (3, 2)].map(|(r, c)| Matrix::random(r, c, Lay::Dense, 1));
    let index = [0u32, 4, 1];
    let error = refusal(rows::gather(src.view(), Tensor::column(&index), dst.view_mut()));
    assert_eq!(error, "rows::gather: index[1] is 4, expected less than 4 (rows of src)");
    let error = refusal(rows::scatter(src.view(), Tensor::column(&index), dst.view_mut()));
    let expected = "rows::scatter: src has shape [4, 2], expected [3, 2] (scattered rows, width)";
    assert_eq!(error, expected);
    let error = refusal(rows::add_cycled(dst.clone().view(), src.clone().view_mut()));
    let expected = "rows::add_cycled: y has 4 rows, expected a multiple of the 3 rows of x";
    assert_eq!(error, expected);
    let factors = [1.0f32; 2];
    let error = refusal(rows::scale(dst.view_mut(), Tensor::column(&factors)));
    assert_eq!(error, "rows::scale: factors has shape [2, 1], expected [3, 1] (rows, 1)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(count in 0usize..20, n in 1usize..20, width in 1usize..70, strided: bool) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        judge(count, n, width, lay);
        judge_cycled(count % 4, n, width, lay);
    }
}
