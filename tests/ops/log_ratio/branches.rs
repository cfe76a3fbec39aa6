//! Sums of branches, row by row in f64: the same bits everywhere.

use silkie::device::{Buffer, Device};
use silkie::ops::log_ratio;
use silkie::tensor::{DType, Tensor};

use crate::support::*;

fn devices() -> Vec<Place> {
    places().into_iter().filter(|place| place.dtype == DType::F32).collect()
}

/// Sums between guards.
fn sums(place: Place, log_probs: &[f32], offsets: &[u32], lay: Lay) -> silkie::Result<Vec<f64>> {
    let branches = offsets.len() - 1;
    let log_probs = place.matrix(log_probs, log_probs.len(), 1, lay);
    let offsets = place.buffer(offsets, 1, offsets.len());
    let mut out = place.buffer(&vec![f64::NAN; 3 * branches], branches, 3);
    let column = out.view_mut().slice_cols(1..2);
    log_ratio::branch_sums(log_probs.view(), offsets.view(), column)?;
    let mut host = Buffer::host(DType::F64, branches, 3);
    out.download(host.view_mut()).unwrap();
    let row = |row: &[f64]| {
        assert!(row[0].is_nan() && row[2].is_nan(), "outside");
        row[1]
    };
    Ok(host.view().elements::<f64>().chunks(3).map(row).collect())
}

#[test]
fn branches_are_summed_in_f64() {
    for place in devices() {
        let rows = [-1e8f32, -1.0, -1.0, -0.5];
        let got = sums(place, &rows, &[0, 3, 3, 4], Lay::Strided).unwrap();
        assert_eq!(got, [-100_000_002.0, 0.0, -0.5]);
        assert!(sums(place, &rows, &[0], Lay::Dense).unwrap().is_empty());
        assert_eq!(sums(place, &[], &[0, 0], Lay::Dense).unwrap(), [0.0]);
    }
}

/// Around the rows that a warp reads at a time and the branches of a block, of numbers whose sum knows their order.
#[test]
fn any_branches_have_the_bits_of_a_sum_in_order() {
    for lengths in [
        vec![1, 31, 32, 33, 0, 63, 64, 65],
        vec![7; 3],
        vec![7; 4],
        vec![7; 5],
        vec![400, 1, 1000],
        vec![],
    ] {
        let mut offsets = vec![0u32];
        lengths.iter().for_each(|n| offsets.push(offsets.last().unwrap() + n));
        // a row before the first branch and one behind the last
        offsets.iter_mut().for_each(|offset| *offset += 1);
        let rows = *offsets.last().unwrap() as usize + 1;
        let scale = |(i, x): (usize, f32)| x * [1e-7, 1.0, 1e7][i % 3];
        let log_probs: Vec<f32> = random(rows, 3).into_iter().enumerate().map(scale).collect();
        let sum = |b: &[u32]| {
            let rows = log_probs[b[0] as usize..b[1] as usize].iter();
            rows.fold(0.0, |sum, &x| sum + f64::from(x))
        };
        let expected: Vec<f64> = offsets.windows(2).map(sum).collect();
        for place in devices() {
            for lay in LAYS {
                let got = sums(place, &log_probs, &offsets, lay).unwrap();
                assert!(got == expected, "{lengths:?} {place:?}: {got:?} instead of {expected:?}");
            }
        }
    }
}

/// Whoever is not finite shows in the sum of its branch, and in no other.
#[test]
fn what_is_not_finite_stays_in_its_branch() {
    for place in devices() {
        let rows = [-1.0f32, f32::NAN, -2.0, f32::NEG_INFINITY, -3.0];
        let got = sums(place, &rows, &[0, 1, 2, 3, 4, 5], Lay::Dense).unwrap();
        assert!(got[1].is_nan());
        assert_eq!([got[0], got[2], got[3], got[4]], [-1.0, -2.0, f64::NEG_INFINITY, -3.0]);
    }
}

#[test]
fn offsets_that_fall_or_leave_the_rows_are_refused() {
    let rows = [0.0f32; 4];
    let refused = |offsets: &[u32]| refusal(sums(Place::CPU, &rows, offsets, Lay::Dense));
    assert_eq!(
        refused(&[0, 3, 5]),
        "log_ratio::branch_sums: offsets[2] is 5, expected 3 to 4 (from the branch before to the rows)"
    );
    assert_eq!(
        refused(&[2, 1, 4]),
        "log_ratio::branch_sums: offsets[1] is 1, expected 2 to 4 (from the branch before to the rows)"
    );
    let (mut none, rows) = (Buffer::host(DType::F64, 2, 1), Tensor::column(&rows));
    assert_eq!(
        refusal(log_ratio::branch_sums(rows, Tensor::vector(&[0u32, 4]), none.view_mut())),
        "log_ratio::branch_sums: offsets has shape [1, 2], expected [1, 3] (1, branches + 1)"
    );
}

/// The host does not see what a GPU holds.
#[test]
fn offsets_that_fall_or_leave_the_rows_are_nan_on_cuda() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::F32 };
    let rows = [-1.0f32; 4];
    let got = sums(place, &rows, &[0, 4, 5, 2, 3, u32::MAX, 4], Lay::Dense).unwrap();
    let expected = [-4.0, f64::NAN, f64::NAN, -1.0, f64::NAN, f64::NAN];
    for (got, expected) in got.iter().zip(expected) {
        assert!(*got == expected || got.is_nan() && expected.is_nan(), "{got} {expected}");
    }
}
