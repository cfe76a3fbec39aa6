//! Embedding: rows of a table in every float type with features spliced in, and gradients in token
//! order; on the CPU and on CUDA, where nothing is rounded but what is narrowed.

use half::{bf16, f16};
use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::ops::embedding::{self, sources};
use silkie::ops::rows::{inverse_len, invert};
use silkie::tensor::{DType, Element, Tensor};

use crate::support::*;

fn round(x: f32, dtype: DType) -> f32 {
    if dtype == DType::Bf16 { bf16::from_f32(x).to_f32() } else { x }
}

#[derive(Clone, Copy, Debug)]
struct Case {
    tokens: usize,
    vocab: usize,
    /// Rows of features; the first `tokens` of them have a slot.
    features: usize,
    width: usize,
    lay: Lay,
}

impl Case {
    /// What each token takes: every third one a feature, in order, some of the others the same id.
    fn source(&self) -> Vec<u32> {
        let ids = random_indices(self.tokens, self.vocab, 1);
        let slots: Vec<u32> = (0..self.tokens as u32).step_by(3).take(self.features).collect();
        let mut source = vec![u32::MAX; self.tokens];
        sources(&ids, &slots, self.vocab, &mut source).unwrap();
        source
    }

    fn inverse(&self, place: Place, room: usize) -> Buffer {
        let mut inverse = vec![u32::MAX; inverse_len(room)];
        invert(&self.source(), &mut inverse).unwrap();
        place.buffer(&inverse, 1, inverse.len())
    }

    /// Rows of `table` and `features` by source.
    fn pick(&self, table: &[f32], features: &[f32], to: DType) -> Vec<f32> {
        let both: Vec<f32> = table.iter().chain(features).map(|&x| round(x, to)).collect();
        let row = |&source: &u32| both[source as usize * self.width..][..self.width].to_vec();
        self.source().iter().flat_map(row).collect()
    }

    fn forward(&self, place: Place, table: Tensor<'_>, features: &Matrix) -> Vec<f32> {
        let mut x = place.poisoned(self.tokens, self.width, self.lay);
        let source = place.buffer(&self.source(), self.tokens, 1);
        embedding::forward(source.view(), table, features.view(), x.view_mut()).unwrap();
        x.values()
    }

    fn judge_forward(&self, place: Place, stored: DType) {
        let Case { vocab, features, width, lay, .. } = *self;
        let table = place.of(stored).random(vocab, width, lay, 2);
        let features = place.random(features, width, lay, 3);
        let want = self.pick(&table.values(), &features.values(), place.dtype);
        let got = self.forward(place, table.view(), &features);
        assert_same_bits(format!("{self:?} {place:?}, {stored:?} table"), &got, &want);
    }

    /// A table on the CPU in a type that only files hold.
    fn judge_stored<T: Element + Into<f32>>(&self, f: fn(f32) -> T) {
        let Case { vocab, features, width, lay, .. } = *self;
        let short: Vec<T> = random(vocab * width, 2).into_iter().map(f).collect();
        let wide: Vec<f32> = short.iter().map(|&x| x.into()).collect();
        let features = Matrix::random(features, width, lay, 3);
        let want = self.pick(&wide, &features.values(), DType::F32);
        let got = self.forward(Place::CPU, Tensor::new(&short, vocab, width), &features);
        assert_same_bits(format!("{self:?}, {:?} table", T::DTYPE), &got, &want);
    }

    fn judge_backward(&self, place: Place) {
        let Case { tokens, vocab, features, width, lay } = *self;
        let (dx, start) = (place.random(tokens, width, lay, 3), random(vocab * width, 4));
        let (mut want, mut want_features) = (start.clone(), vec![f32::NAN; features * width]);
        for (&source, dx) in self.source().iter().zip(dx.values().chunks(width)) {
            match (source as usize).checked_sub(vocab) {
                None => {
                    let row = &mut want[source as usize * width..][..width];
                    row.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
                }
                Some(f) => want_features[f * width..][..width].copy_from_slice(dx),
            }
        }
        for (room, trained) in [(tokens, true), (tokens + 2, true), (tokens, false)] {
            let what = |part| format!("{self:?} {place:?} {part}, room {room}, trained {trained}");
            let inverse = self.inverse(place, room);
            let mut dtable = place.of(DType::F32).matrix(&start, vocab, width, lay);
            let mut dfeatures = place.poisoned(features, width, lay);
            let into = trained.then(|| dtable.view_mut());
            let (dx, inverse) = (dx.view(), inverse.view());
            embedding::backward(inverse, dx, into, dfeatures.view_mut(), vocab).unwrap();
            let want = if trained { &want } else { &start };
            assert_same_bits(what("dtable"), &dtable.values(), want);
            let bits = |x: f32| if x.is_nan() { f32::NAN } else { x };
            let got: Vec<f32> = dfeatures.values().into_iter().map(bits).collect();
            assert_same_bits(what("dfeatures"), &got, &want_features);
        }
    }

    fn judge(&self) {
        for place in places() {
            if !self.width.is_multiple_of(8) && place.device != Device::Cpu {
                continue;
            }
            let stored: &[DType] = match place.device {
                Device::Cpu => &[DType::F32],
                Device::Cuda(_) => &[DType::F32, DType::Bf16],
            };
            stored.iter().for_each(|&stored| self.judge_forward(place, stored));
            self.judge_backward(place);
        }
        self.judge_stored(bf16::from_f32);
        self.judge_stored(f16::from_f32);
    }
}

/// No token, no feature, fewer features than slots; odd widths on the CPU; on CUDA around the columns
/// that a block takes, 128 threads with 1 or 4 packs of 4 or 8 elements.
#[test]
fn agrees_with_plain_indexing() {
    let odd = [1, 33, 700];
    let tiles = [512, 1024, 2048, 4096].into_iter().flat_map(|tile| [tile - 8, tile, tile + 8]);
    for width in odd.into_iter().chain([8, 64]).chain(tiles) {
        for lay in LAYS {
            for (tokens, vocab, features) in
                [(0, 3, 0), (1, 1, 0), (1, 1, 1), (7, 3, 4), (10, 5, 2)]
            {
                Case { tokens, vocab, features, width, lay }.judge();
            }
        }
    }
    Case { tokens: 40, vocab: 11, features: 20, width: 64, lay: Lay::Strided }.judge();
}

/// Values of many sizes: another order would round differently.
#[test]
fn equal_ids_add_in_token_order_in_every_run() {
    let case = Case { tokens: 203, vocab: 2, features: 5, width: 600, lay: Lay::Dense };
    let Case { tokens, vocab, features, width, lay } = case;
    let dx: Vec<f32> = random(tokens * width, 2).iter().map(|x| x.powi(9) * 1e6).collect();
    for place in places() {
        let (dx, inverse) = (place.matrix(&dx, tokens, width, lay), case.inverse(place, tokens));
        let got = same_on_any_threads(format!("embedding::backward {place:?}"), || {
            let mut dtable = place.of(DType::F32).matrix(&vec![0.0; 2 * width], 2, width, lay);
            let mut dfeatures = place.poisoned(features, width, lay);
            let (table, features) = (Some(dtable.view_mut()), dfeatures.view_mut());
            embedding::backward(inverse.view(), dx.view(), table, features, vocab).unwrap();
            dtable.values()
        });
        let mut want = vec![0.0f32; 2 * width];
        for (&source, dx) in case.source().iter().zip(dx.values().chunks(width)) {
            if let Some(row) = want.chunks_mut(width).nth(source as usize) {
                row.iter_mut().zip(dx).for_each(|(sum, dx)| *sum += dx);
            }
        }
        assert_same_bits("token order", &got, &want);
    }
}

/// Several tokens may show one feature.
#[test]
fn shared_features_get_the_sum() {
    for place in places() {
        let dx = place.random(3, 8, Lay::Strided, 1);
        let mut inverse = [0; 10];
        invert(&[5, 4, 5], &mut inverse).unwrap();
        let inverse = place.buffer(&inverse, 1, 10);
        let mut d = place.poisoned(2, 8, Lay::Strided);
        embedding::backward(inverse.view(), dx.view(), None, d.view_mut(), 4).unwrap();
        let dx = dx.values();
        let sum = (0..8).map(|j| round(dx[j] + dx[16 + j], place.dtype));
        let want: Vec<f32> = dx[8..16].iter().copied().chain(sum).collect();
        assert_same_bits(place, &d.values(), &want);
    }
}

/// A gradient of −0 stays what it is.
#[test]
fn features_get_the_very_gradient() {
    for place in places() {
        let dx = place.matrix(&[-0.0; 8], 1, 8, Lay::Dense);
        let inverse = place.buffer(&[3u32, 0, 1, 0], 1, 4);
        let mut d = place.poisoned(1, 8, Lay::Dense);
        embedding::backward(inverse.view(), dx.view(), None, d.view_mut(), 3).unwrap();
        assert_same_bits(place, &d.values(), &[-0.0; 8]);
    }
}

#[test]
fn features_that_no_token_takes_stay() {
    for place in places() {
        let dx = place.random(1, 8, Lay::Dense, 1);
        let mut d = place.random(2, 8, Lay::Strided, 2);
        let before = d.values();
        // an empty segment of feature 0, and token 0 for feature 1
        let inverse = place.buffer(&[3u32, 4, 0, 0, 1, 0, 0], 1, 7);
        embedding::backward(inverse.view(), dx.view(), None, d.view_mut(), 3).unwrap();
        assert_same_bits(place, &d.values(), &[&before[..8], &dx.values()].concat());
    }
}

/// One row too far, and one far away.
#[test]
fn a_gpu_reads_nan_and_writes_nothing_beyond_the_rows() {
    let Some(cuda) = cuda() else { return };
    for dtype in [DType::F32, DType::Bf16] {
        let place = Place { device: Device::Cuda(cuda), dtype };
        let (vocab, features, width) = (3, 2, 8);
        let table = place.random(vocab, width, Lay::Strided, 1);
        let rows = place.random(features, width, Lay::Strided, 2);
        let source = place.buffer(&[2u32, 3, 4, 5, u32::MAX], 5, 1);
        let mut x = place.poisoned(5, width, Lay::Strided);
        embedding::forward(source.view(), table.view(), rows.view(), x.view_mut()).unwrap();
        let (x, want) = (x.values(), [&table.values()[2 * width..], &rows.values()].concat());
        assert_same_bits(dtype, &x[..3 * width], &want);
        assert!(x[3 * width..].iter().all(|x| x.is_nan()), "{x:?}");

        // rows 2, 4, 5 and the last get tokens 3, which is not there, 2, 1 and 0
        let dx = place.random(3, width, Lay::Strided, 3);
        let parts = [&[2, 4, 5, u32::MAX][..], &[0, 1, 2, 3, 4], &[3, 2, 1, 0]];
        let inverse = place.buffer(&parts.concat(), 1, 13);
        let mut dtable = place.of(DType::F32).random(vocab, width, Lay::Strided, 4);
        let mut dfeatures = place.random(features, width, Lay::Strided, 5);
        let (before, before_features) = (dtable.values(), dfeatures.values());
        let (into, features) = (Some(dtable.view_mut()), dfeatures.view_mut());
        embedding::backward(inverse.view(), dx.view(), into, features, vocab).unwrap();
        let got = dtable.values();
        assert_same_bits(dtype, &got[..2 * width], &before[..2 * width]);
        assert!(got[2 * width..].iter().all(|x| x.is_nan()), "{got:?}");
        let want = [&before_features[..width], &dx.values()[2 * width..]].concat();
        assert_same_bits(dtype, &dfeatures.values(), &want);
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let refused =
        |tokens: &[u32], slots: &[u32], len| refusal(sources(tokens, slots, 3, &mut vec![0; len]));
    assert_eq!(
        refused(&[2, 3], &[], 2),
        "embedding::sources: tokens[1] is 3, expected less than 3 (rows of the table)"
    );
    assert_eq!(
        refused(&[2, 1], &[0, 2], 2),
        "embedding::sources: slots[1] is 2, expected less than 2 (tokens)"
    );
    assert_eq!(refused(&[2], &[], 2), "embedding::sources: source has 2 elements, expected 1");

    let [table, features] = [3, 1].map(|rows| Matrix::random(rows, 2, Lay::Dense, 1));
    let (source, mut x) = ([3u32, 4], Matrix::poisoned(2, 2, Lay::Dense));
    let (source, table) = (Tensor::column(&source), table.view());
    assert_eq!(
        refusal(embedding::forward(source, table, features.view(), x.view_mut())),
        "embedding::forward: source[1] is 4, expected less than 4 (rows of table and features)"
    );
    let (dx, mut d) = (Matrix::random(2, 2, Lay::Dense, 1), Matrix::poisoned(1, 2, Lay::Dense));
    let mut inverse = [0; 7];
    invert(&[4, 0], &mut inverse).unwrap();
    assert_eq!(
        refusal(embedding::backward(Tensor::vector(&inverse), dx.view(), None, d.view_mut(), 3)),
        "embedding::backward: inverse names row 4, expected rising rows below 4"
    );
    let mut dtable = Matrix::poisoned(2, 2, Lay::Dense);
    let into = Some(dtable.view_mut());
    assert_eq!(
        refusal(embedding::backward(Tensor::vector(&inverse), dx.view(), into, d.view_mut(), 3)),
        "embedding::backward: dtable has shape [2, 2], expected [3, 2] (vocabulary, width)"
    );
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_read() {
    let Some(cuda) = cuda() else { return };
    let place = Place { device: Device::Cuda(cuda), dtype: DType::Bf16 };
    let source = place.buffer(&[0u32], 1, 1);
    let (table, none) = (vec![f16::ZERO; 8], place.random(0, 8, Lay::Dense, 1));
    let (table, mut x) = (place.buffer(&table, 1, 8), place.poisoned(1, 8, Lay::Dense));
    assert_eq!(
        refusal(embedding::forward(source.view(), table.view(), none.view(), x.view_mut())),
        "embedding::forward: table has type F16, expected F32 or Bf16"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_shape_agrees(
        tokens in 0usize..20,
        vocab in 1usize..20,
        features in 0usize..8,
        width in 1usize..70,
        strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        Case { tokens, vocab, features, width: 2 * width, lay }.judge();
    }
}
