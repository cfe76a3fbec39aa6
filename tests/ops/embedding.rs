//! Embedding: rows of a table in every float type, and gradients in token order.

use half::{bf16, f16};
use proptest::prelude::*;
use silkie::ops::embedding;
use silkie::tensor::{Element, Tensor};

use crate::support::*;

fn lookup(ids: &[u32], table: Tensor<'_>, lay: Lay) -> Vec<f32> {
    let mut x = Matrix::poisoned(ids.len(), table.cols(), lay);
    embedding::forward(Tensor::column(ids), table, x.view_mut()).unwrap();
    x.values()
}

fn judge(tokens: usize, vocab: usize, width: usize, lay: Lay) {
    let what = |part: &str| format!("embedding {part} {tokens} of [{vocab}, {width}] {lay:?}");
    let ids = random_indices(tokens, vocab, 1);
    let table = Matrix::random(vocab, width, lay, 2);
    let rows = table.values();
    let pick = |rows: &[f32]| -> Vec<f32> {
        ids.iter().flat_map(|&id| rows[id as usize * width..][..width].to_vec()).collect()
    };
    assert_same_bits(what("f32"), &lookup(&ids, table.view(), lay), &pick(&rows));

    fn stored<T: Element + Into<f32>>(rows: &[f32], f: fn(f32) -> T) -> (Vec<T>, Vec<f32>) {
        let short: Vec<T> = rows.iter().map(|&x| f(x)).collect();
        let wide = short.iter().map(|&x| x.into()).collect();
        (short, wide)
    }
    let (short, wide) = stored(&rows, bf16::from_f32);
    let got = lookup(&ids, Tensor::new(&short, vocab, width), lay);
    assert_same_bits(what("bf16"), &got, &pick(&wide));
    let (short, wide) = stored(&rows, f16::from_f32);
    let got = lookup(&ids, Tensor::new(&short, vocab, width), lay);
    assert_same_bits(what("f16"), &got, &pick(&wide));

    let (dx, start) = (Matrix::random(tokens, width, lay, 3), random(vocab * width, 4));
    let mut want: Vec<f64> = start.iter().map(|&x| x.into()).collect();
    for (&id, dx) in ids.iter().zip(dx.f64().chunks(width)) {
        (0..width).for_each(|j| want[id as usize * width + j] += dx[j]);
    }
    let mut dtable = Matrix::of(&start, vocab, width, lay);
    embedding::backward(Tensor::column(&ids), dx.view(), dtable.view_mut()).unwrap();
    assert_close(what("backward"), &dtable.values(), &want, 1e-6);
}

#[test]
fn agrees_with_plain_indexing() {
    for (tokens, vocab, width) in [(0, 3, 5), (1, 1, 1), (7, 3, 33), (40, 11, 64), (5, 9, 700)] {
        for lay in LAYS {
            judge(tokens, vocab, width, lay);
        }
    }
}

#[test]
fn equal_ids_add_in_token_order_on_any_threads() {
    let (tokens, width) = (200, 600);
    let ids = random_indices(tokens, 2, 1);
    // values of many sizes: another order would round differently
    let dx: Vec<f32> = random(tokens * width, 2).iter().map(|x| x.powi(9) * 1e6).collect();
    let dx = Matrix::of(&dx, tokens, width, Lay::Dense);
    let got = same_on_any_threads("embedding::backward", || {
        let mut dtable = Matrix::of(&vec![0.0; 2 * width], 2, width, Lay::Dense);
        embedding::backward(Tensor::column(&ids), dx.view(), dtable.view_mut()).unwrap();
        dtable.values()
    });
    let mut want = vec![0.0f32; 2 * width];
    for (&id, dx) in ids.iter().zip(dx.values().chunks(width)) {
        (0..width).for_each(|j| want[id as usize * width + j] += dx[j]);
    }
    assert_same_bits("token order", &got, &want);
}

#[test]
fn refuses_an_id_beyond_the_table() {
    let (table, mut x) = (Matrix::random(3, 2, Lay::Dense, 1), Matrix::poisoned(2, 2, Lay::Dense));
    let ids = [2u32, 3];
    let error = refusal(embedding::forward(Tensor::column(&ids), table.view(), x.view_mut()));
    let expected = "embedding::forward: ids[1] is 3, expected less than 3 (rows of the table)";
    assert_eq!(error, expected);
    let dx = Matrix::random(2, 2, Lay::Dense, 1);
    let mut dtable = Matrix::poisoned(3, 2, Lay::Dense);
    let error = refusal(embedding::backward(Tensor::column(&ids), dx.view(), dtable.view_mut()));
    assert!(error.starts_with("embedding::backward: ids[1] is 3"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(tokens in 0usize..20, vocab in 1usize..20, width in 1usize..70, strided: bool) {
        judge(tokens, vocab, width, if strided { Lay::Strided } else { Lay::Dense });
    }
}
