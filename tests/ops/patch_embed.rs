//! Patch embedding against a plain convolution in f64 and PyTorch's recorded numbers.

use half::bf16;
use proptest::prelude::*;
use silkie::model::config::ModelConfig;
use silkie::model::weights::Weights;
use silkie::ops::patch_embed::{self, Patches};
use silkie::tensor::{Tensor, TensorMut};

use crate::support::*;

const MEAN: [f32; 3] = [0.5, 0.4, 0.3];
const STD: [f32; 3] = [0.2, 0.25, 0.3];

/// A product over at most 3·14·14 values in f32.
const BOUND: f64 = 1e-6;

struct Case {
    spec: Patches,
    images: usize,
    width: usize,
    bytes: Vec<u8>,
    weight: Vec<f32>,
    position: Matrix,
}

fn case(images: usize, grid: usize, patch: usize, width: usize, lay: Lay) -> Case {
    let spec = Patches { image_size: grid * patch, patch_size: patch, mean: MEAN, std: STD };
    let size = images * 3 * spec.image_size * spec.image_size;
    let bytes = random_indices(size, 256, 1).into_iter().map(|b| b as u8).collect();
    let weight = random(width * spec.values(), 2);
    let weight = weight.iter().map(|&w| bf16::from_f32(w).to_f32()).collect();
    let position = Matrix::random(spec.count(), width, lay, 3);
    Case { spec, images, width, bytes, weight, position }
}

impl Case {
    /// Normalised values `[image, channel, y, x]` in f64.
    fn floats(&self) -> Vec<f64> {
        let area = self.spec.image_size.pow(2);
        let mut out = vec![0.0; self.bytes.len()];
        for (i, &byte) in self.bytes.iter().enumerate() {
            let (image, pixel, c) = (i / (3 * area), i / 3 % area, i % 3);
            let value = f64::from(byte) / 255.0 - f64::from(MEAN[c]);
            out[(image * 3 + c) * area + pixel] = value / f64::from(STD[c]);
        }
        out
    }

    /// `(patches, y)` by the definition of a convolution.
    fn naive(&self) -> (Vec<f64>, Vec<f64>) {
        let (p, s, grid) = (self.spec.patch_size, self.spec.image_size, self.spec.grid());
        let (floats, position) = (self.floats(), self.position.f64());
        let (mut patches, mut y) = (vec![], vec![]);
        for row in 0..self.images * self.spec.count() {
            let (image, patch) = (row / self.spec.count(), row % self.spec.count());
            let mut values = vec![];
            for (c, dy, dx) in (0..3 * p * p).map(|k| (k / (p * p), k / p % p, k % p)) {
                let (py, px) = (patch / grid * p + dy, patch % grid * p + dx);
                values.push(floats[((image * 3 + c) * s + py) * s + px]);
            }
            for o in 0..self.width {
                let weight = self.weight[o * values.len()..][..values.len()].iter();
                let product: f64 = weight.zip(&values).map(|(&w, v)| f64::from(w) * v).sum();
                y.push(product + position[patch * self.width + o]);
            }
            patches.extend(values);
        }
        (patches, y)
    }

    fn forward(&self, pixels: Tensor<'_>, weight: Tensor<'_>, lay: Lay) -> [Matrix; 2] {
        let rows = self.images * self.spec.count();
        let [mut patches, mut y] =
            [self.spec.values(), self.width].map(|cols| Matrix::poisoned(rows, cols, lay));
        let outputs = (patches.view_mut(), y.view_mut());
        let position = self.position.view();
        patch_embed::forward(pixels, weight, position, outputs.0, outputs.1, &self.spec).unwrap();
        [patches, y]
    }
}

fn judge(images: usize, grid: usize, patch: usize, width: usize, lay: Lay) {
    let what = |part: &str| format!("patch_embed {part} {images} x {grid}² of {patch} {lay:?}");
    let c = case(images, grid, patch, width, lay);
    let (want_patches, want_y) = c.naive();
    let size = 3 * c.spec.image_size * c.spec.image_size;
    let floats: Vec<f32> = c.floats().into_iter().map(|x| x as f32).collect();
    let short: Vec<bf16> = c.weight.iter().map(|&w| bf16::from_f32(w)).collect();
    let weight = Tensor::new(&c.weight, width, c.spec.values());
    for (part, pixels, weight) in [
        ("bytes", Tensor::new(&c.bytes, images, size), weight),
        ("floats", Tensor::new(&floats, images, size), weight),
        ("bf16", Tensor::new(&c.bytes, images, size), Tensor::new(&short, width, c.spec.values())),
    ] {
        let [patches, y] = c.forward(pixels, weight, lay);
        assert_close(what(part), &patches.values(), &want_patches, 2e-7);
        assert_close(what(part), &y.values(), &want_y, BOUND);
    }

    let [patches, _] = c.forward(Tensor::new(&c.bytes, images, size), weight, lay);
    let dy = Matrix::random(images * c.spec.count(), width, lay, 4);
    let values = c.spec.values();
    let (mut want_weight, mut want_position) = (vec![0.5; width * values], c.position.f64());
    for (row, dy) in dy.f64().chunks(width).enumerate() {
        for o in 0..width {
            want_position[row % c.spec.count() * width + o] += dy[o];
            let patch = &want_patches[row * values..][..values];
            (0..values).for_each(|k| want_weight[o * values + k] += dy[o] * patch[k]);
        }
    }
    let mut dweight = Matrix::of(&vec![0.5; width * values], width, values, lay);
    let mut dposition = c.position.clone();
    let (dw, dp) = (Some(dweight.view_mut()), Some(dposition.view_mut()));
    patch_embed::backward(patches.view(), dy.view(), dw, dp).unwrap();
    assert_close(what("dweight"), &dweight.values(), &want_weight, BOUND);
    assert_close(what("dposition"), &dposition.values(), &want_position, BOUND);
    patch_embed::backward(patches.view(), dy.view(), None, None).unwrap();
}

#[test]
fn agrees_with_a_convolution() {
    for (images, grid, patch, width) in
        [(0, 2, 3, 4), (1, 1, 1, 1), (2, 3, 2, 5), (1, 8, 14, 96), (3, 2, 4, 33)]
    {
        for lay in LAYS {
            judge(images, grid, patch, width, lay);
        }
    }
}

/// `y` is linear in the weight and the position, so one central difference is exact.
#[test]
fn the_gradient_is_the_derivative() {
    let c = case(2, 2, 2, 3, Lay::Dense);
    let pixels = Tensor::new(&c.bytes, 2, 48);
    let dy = Matrix::random(8, 3, Lay::Dense, 4);
    let loss = |weight: &[f64]| {
        let weight = weight.iter().map(|&w| w as f32).collect();
        let c = Case { weight, position: c.position.clone(), bytes: c.bytes.clone(), ..c };
        inner(&c.naive().1, &dy.f64())
    };
    let start: Vec<f64> = c.weight.iter().map(|&w| w.into()).collect();
    let by_differences = central_differences(&start, 0.25, loss);
    let weight = Tensor::new(&c.weight, 3, 12);
    let [patches, _] = c.forward(pixels, weight, Lay::Dense);
    let mut dweight = vec![0.0f32; 36];
    let dw = Some(TensorMut::new(&mut dweight, 3, 12));
    patch_embed::backward(patches.view(), dy.view(), dw, None).unwrap();
    assert_close("dweight", &dweight, &by_differences, BOUND);
}

#[test]
fn refuses_what_does_not_fit() {
    let c = case(1, 2, 2, 3, Lay::Dense);
    let [mut patches, mut y] = [12, 3].map(|cols| Matrix::poisoned(4, cols, Lay::Dense));
    let (pixels, weight) = (Tensor::new(&c.bytes, 1, 48), Tensor::new(&c.weight, 3, 12));
    let mut run = |pixels, spec: &Patches| {
        let outputs = (patches.view_mut(), y.view_mut());
        let position = c.position.view();
        refusal(patch_embed::forward(pixels, weight, position, outputs.0, outputs.1, spec))
    };
    let expected = "patch_embed::forward: patch_size is 3, expected a divisor of image_size 4";
    assert_eq!(run(pixels, &Patches { patch_size: 3, ..c.spec }), expected);
    let error = run(pixels, &Patches { image_size: 6, ..c.spec });
    assert!(error.starts_with("patch_embed::forward: pixels has shape [1, 48], expected [1, 108]"));
    let ids = [0u32; 48];
    let error = run(Tensor::new(&ids, 1, 48), &c.spec);
    assert_eq!(error, "patch_embed::forward: pixels has type U32, expected U8 or F32");
}

#[test]
fn golden_convolution_of_pytorch() {
    let Some(goldens) = goldens() else { return };
    let model = goldens.join("tiny-qwen-vl");
    let config = ModelConfig::read(&model).unwrap();
    let weights = Weights::open(&model, &config).unwrap();
    let recorded = Golden::open(goldens.join("forward.safetensors"));
    let (shape, want) = recorded.f32("vision.conv1"); // [images, width, grid, grid]
    let (images, width, count) = (shape[0], shape[1], shape[2] * shape[3]);
    let pixels: Vec<f32> =
        (0..images).flat_map(|i| recorded.f32(&format!("pixels.{i}")).1).collect();
    let (image_size, patch_size) = (config.visual.image_size, config.visual.patch_size);
    let spec = Patches { image_size, patch_size, mean: MEAN, std: STD };
    let [mut patches, mut y] =
        [spec.values(), width].map(|cols| Matrix::poisoned(images * count, cols, Lay::Dense));
    let weight = weights.get("transformer.visual.conv1.weight").to_f32();
    patch_embed::forward(
        Tensor::new(&pixels, images, pixels.len() / images),
        Tensor::new(&weight, width, spec.values()),
        Matrix::of(&vec![0.0; count * width], count, width, Lay::Dense).view(),
        patches.view_mut(),
        y.view_mut(),
        &spec,
    )
    .unwrap();
    let at = |row: usize, o: usize| (row / count * width + o) * count + row % count;
    let want: Vec<f64> =
        (0..images * count * width).map(|i| f64::from(want[at(i / width, i % width)])).collect();
    assert_within("vision.conv1", &y.values(), &want, 1e-4);
    assert_close("vision.conv1", &y.values(), &want, BOUND);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_shape_agrees(
        images in 0usize..4, grid in 1usize..5, patch in 1usize..6, width in 1usize..20, strided: bool,
    ) {
        judge(images, grid, patch, width, if strided { Lay::Strided } else { Lay::Dense });
    }
}
