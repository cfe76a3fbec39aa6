//! Patch embedding against a plain convolution in f64 and PyTorch's recorded numbers, on the CPU and on
//! CUDA.

use half::bf16;
use proptest::prelude::*;
use silkie::device::{Buffer, Device};
use silkie::model::config::ModelConfig;
use silkie::model::weights::Weights;
use silkie::ops::patch_embed::{self, Patches};
use silkie::ops::{Write, layer_norm};
use silkie::tensor::{DType, Tensor, TensorMut};

use crate::support::*;

const MEAN: [f32; 3] = [0.5, 0.4, 0.3];
const STD: [f32; 3] = [0.2, 0.25, 0.3];
const EPS: f32 = 1e-6;

/// A product over at most 3·14·14 values in f32, then a norm of its rows.
const BOUND: f64 = 1e-6;

/// f32 on the CPU, bf16 on a GPU: tensor cores take no f32.
fn here() -> Vec<Place> {
    let takes = |place: &Place| place.device == Device::Cpu || place.dtype == DType::Bf16;
    places().into_iter().filter(takes).collect()
}

struct Case {
    place: Place,
    spec: Patches,
    images: usize,
    width: usize,
    lay: Lay,
    bytes: Vec<u8>,
    weight: Vec<f32>,
    position: Matrix,
    norm: [Matrix; 2],
    dx: Matrix,
}

/// What forward writes.
struct Out {
    patches: Matrix,
    x: Matrix,
    y: Matrix,
    mean: Matrix,
    rstd: Matrix,
}

fn case(place: Place, [images, grid, patch, width]: [usize; 4], lay: Lay) -> Case {
    let spec = Patches { image_size: grid * patch, patch_size: patch, mean: MEAN, std: STD };
    let size = images * 3 * spec.image_size * spec.image_size;
    let bytes = random_indices(size, 256, 1).into_iter().map(|b| b as u8).collect();
    let weight = random(width * spec.values(), 2);
    Case {
        place,
        spec,
        images,
        width,
        lay,
        bytes,
        weight: weight.iter().map(|&w| bf16::from_f32(w).to_f32()).collect(),
        position: place.random(spec.count(), width, lay, 3),
        norm: [5, 6].map(|seed| place.random(1, width, lay, seed)),
        dx: place.random(images * spec.count(), width, lay, 4),
    }
}

impl Case {
    fn rows(&self) -> usize {
        self.images * self.spec.count()
    }

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

    /// The patches, `[n·P, 3·p·p]`, rounded where kernels round them.
    fn values(&self) -> Vec<f64> {
        let (p, s, grid) = (self.spec.patch_size, self.spec.image_size, self.spec.grid());
        let (floats, mut values) = (self.floats(), vec![]);
        for row in 0..self.rows() {
            let (image, patch) = (row / self.spec.count(), row % self.spec.count());
            for (c, dy, dx) in (0..3 * p * p).map(|k| (k / (p * p), k / p % p, k % p)) {
                let (py, px) = (patch / grid * p + dy, patch % grid * p + dx);
                let value = floats[((image * 3 + c) * s + py) * s + px];
                let is_exact = self.place.dtype == DType::F32;
                values.push(if is_exact { value } else { self.place.round(value) });
            }
        }
        values
    }

    /// `x` by the definition of a convolution.
    fn naive(&self, weight: &[f64]) -> Vec<f64> {
        let (values, position) = (self.values(), self.position.f64());
        let (k, mut x) = (self.spec.values(), vec![]);
        for row in 0..self.rows() {
            for o in 0..self.width {
                let terms = weight[o * k..][..k].iter().zip(&values[row * k..][..k]);
                let product: f64 = terms.map(|(w, v)| w * v).sum();
                x.push(product + position[row % self.spec.count() * self.width + o]);
            }
        }
        x
    }

    /// `[y, mean, rstd]`
    fn naive_norm(&self, x: &[f64]) -> [Vec<f64>; 3] {
        let [weight, bias] = [0, 1].map(|i| self.norm[i].f64());
        let (n, [mut y, mut means, mut rstds]) = (self.width, [vec![], vec![], vec![]]);
        for x in x.chunks(n) {
            let mean = x.iter().sum::<f64>() / n as f64;
            let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
            let rstd = 1.0 / (variance + f64::from(EPS)).sqrt();
            y.extend((0..n).map(|j| (x[j] - mean) * rstd * weight[j] + bias[j]));
            means.push(mean);
            rstds.push(rstd);
        }
        [y, means, rstds]
    }

    /// `[dweight, dposition]`
    fn naive_backward(&self, dx: &[f64]) -> [Vec<f64>; 2] {
        let (values, k, period) = (self.values(), self.spec.values(), self.spec.count());
        let [mut dweight, mut dposition] = [k, period].map(|n| vec![0.0; self.width * n]);
        for (row, dx) in dx.chunks(self.width).enumerate() {
            for (o, dx) in dx.iter().enumerate() {
                dposition[row % period * self.width + o] += dx;
                let sums = dweight[o * k..][..k].iter_mut();
                sums.zip(&values[row * k..]).for_each(|(sum, v)| *sum += dx * v);
            }
        }
        [dweight, dposition]
    }

    /// Pixels where the case is, at an odd address and stride when its rows have gaps.
    fn pixels(&self) -> (Buffer, [usize; 2]) {
        let size = 3 * self.spec.image_size.pow(2);
        let (left, stride) = if self.lay == Lay::Dense { (0, size) } else { (1, size | 1) };
        let mut data = vec![0xaau8; self.images * stride + left];
        for (i, image) in self.bytes.chunks(size).enumerate() {
            data[left + i * stride..][..size].copy_from_slice(image);
        }
        (self.place.buffer(&data, 1, data.len()), [left, stride])
    }

    fn with_pixels<R>(&self, run: impl FnOnce(Tensor<'_>) -> R) -> R {
        let (buffer, [left, stride]) = self.pixels();
        let size = 3 * self.spec.image_size.pow(2);
        let whole = buffer.view().slice_cols(left..left + self.images * stride);
        run(whole.reshape(self.images, stride).slice_cols(0..size))
    }

    /// The weight as the device takes it: on a GPU with columns behind that count nothing.
    fn placed_weight(&self) -> Matrix {
        let k = self.spec.values();
        let padded = patch_embed::padded(k);
        if self.place.device == Device::Cpu {
            return self.place.matrix(&self.weight, self.width, k, self.lay);
        }
        let mut weight = vec![0.5; self.width * padded];
        for (to, from) in weight.chunks_mut(padded).zip(self.weight.chunks(k)) {
            to[..k].copy_from_slice(from);
        }
        self.place.matrix(&weight, self.width, padded, self.lay)
    }

    fn run(&self, pixels: Tensor<'_>, weight: Tensor<'_>, keep: bool) -> silkie::Result<Out> {
        let (place, rows, lay) = (self.place, self.rows(), self.lay);
        let host_rows = if place.device == Device::Cpu { rows } else { 0 };
        let poisoned = |cols| place.of(DType::F32).poisoned(rows, cols, lay);
        let mut out = Out {
            patches: Place::CPU.poisoned(host_rows, self.spec.values(), lay),
            x: place.poisoned(rows, self.width, lay),
            y: place.poisoned(rows, self.width, lay),
            mean: poisoned(1),
            rstd: poisoned(1),
        };
        let [norm_weight, norm_bias] = [0, 1].map(|i| self.norm[i].view());
        patch_embed::forward(
            pixels,
            weight,
            self.position.view(),
            norm_weight,
            norm_bias,
            out.patches.view_mut(),
            keep.then(|| out.x.view_mut()),
            out.y.view_mut(),
            out.mean.view_mut(),
            out.rstd.view_mut(),
            &self.spec,
            EPS,
        )?;
        Ok(out)
    }

    fn forward(&self) -> Out {
        let weight = self.placed_weight();
        self.with_pixels(|pixels| self.run(pixels, weight.view(), true)).unwrap()
    }

    /// Adds to both.
    fn backward(&self, dx: &Matrix, dweight: Option<&mut Matrix>, dposition: Option<&mut Matrix>) {
        let run = |source: Tensor<'_>| {
            let (dw, dp) = (dweight.map(Matrix::view_mut), dposition.map(Matrix::view_mut));
            patch_embed::backward(source, dx.view(), dw, dp, &self.spec).unwrap();
        };
        match self.place.device {
            Device::Cpu => run(self.forward().patches.view()),
            Device::Cuda(_) => self.with_pixels(run),
        }
    }

    fn what(&self, part: &str) -> String {
        let Case { images, width, lay, place, .. } = self;
        let (grid, patch) = (self.spec.grid(), self.spec.patch_size);
        format!("patch_embed {part} {images} x {grid}² of {patch} to {width} {lay:?} {place:?}")
    }

    fn judge_forward(&self, out: &Out) {
        let weight: Vec<f64> = self.weight.iter().map(|&w| w.into()).collect();
        let want = self.naive(&weight);
        let [want_y, want_mean, want_rstd] = self.naive_norm(&want);
        // a norm makes the rounding of x larger as it does x itself, whose mean it takes away
        let sizes = want_mean.iter().zip(&want_rstd).map(|(mean, rstd)| (mean * rstd).hypot(1.0));
        let condition = sizes.fold(1.0, f64::max);
        for (part, got, want, condition) in
            [("x", &out.x, &want, 1.0), ("y", &out.y, &want_y, condition)]
        {
            let (got, part) = (got.values(), self.what(part));
            let rounded: Vec<f64> = want.iter().map(|&x| self.place.round(x)).collect();
            assert_rounded(&part, &got, want, &rounded, BOUND * condition);
            // no element may be lost among many: each is within an ulp of bf16, or rounding of f32
            let ulp =
                if self.place.dtype == DType::Bf16 { 2f64.powi(-8) } else { 1e-5 * condition };
            let largest = want.iter().fold(0.0f64, |max, x| max.max(x.abs()));
            assert_within(&part, &got, want, ulp * largest);
        }
        // a mean is as exact as the elements it averages are large: it may cancel to almost nothing
        for ((got, want), rstd) in out.mean.values().iter().zip(&want_mean).zip(&want_rstd) {
            let (error, size) = ((f64::from(*got) - want).abs(), want.abs() + 1.0 / rstd);
            assert!(error <= BOUND * size, "{}: {got} instead of {want}", self.what("mean"));
        }
        assert_close(self.what("rstd"), &out.rstd.values(), &want_rstd, 2.0 * BOUND * condition);
    }

    fn judge_backward(&self) {
        let (k, period) = (self.spec.values(), self.spec.count());
        let [want_dweight, want_dposition] = self.naive_backward(&self.dx.f64());
        let plus = |x: &[f64], y: f64| x.iter().map(|x| x + y).collect::<Vec<_>>();
        let f32 = self.place.of(DType::F32);
        let half = |n: usize| f32.matrix(&vec![0.5; n * self.width], self.width, n, self.lay);
        let mut dweight = half(k);
        let start = vec![-0.5; period * self.width];
        let mut dposition = f32.matrix(&start, period, self.width, self.lay);
        self.backward(&self.dx, Some(&mut dweight), Some(&mut dposition));
        let (got, want) = (dweight.values(), plus(&want_dweight, 0.5));
        assert_close(self.what("dweight"), &got, &want, BOUND);
        let largest = want.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        assert_within(self.what("dweight"), &got, &want, 1e-5 * largest);
        let want = plus(&want_dposition, -0.5);
        assert_close(self.what("dposition"), &dposition.values(), &want, BOUND);
    }
}

fn judge(place: Place, shape: [usize; 4], lay: Lay) {
    let case = case(place, shape, lay);
    case.judge_forward(&case.forward());
    case.judge_backward();
}

/// Images, patches along a side, side of a patch, width. No image; one value; on a GPU around the
/// patches of a block, with images that end inside of it; around the columns of a unit, of a warp, of a
/// block, and what a block takes in three parts; sides whose values are a tile, one less and one more;
/// the widest that fits; Qwen-VL's.
const SHAPES: [[usize; 4]; 17] = [
    [0, 2, 3, 16],
    [1, 1, 1, 16],
    [2, 3, 2, 48],
    [31, 1, 2, 16],
    [2, 4, 2, 32],
    [33, 1, 2, 16],
    [2, 6, 3, 208],
    [7, 3, 4, 224],
    [1, 2, 5, 192],
    [65, 1, 1, 144],
    [1, 3, 16, 128],
    [3, 2, 15, 112],
    [1, 6, 14, 1664],
    [1, 2, 4, 1648],
    [2, 1, 7, 1680],
    [3, 2, 2, 3328],
    [1, 6, 2, 3344],
];

#[test]
fn agrees_with_a_convolution() {
    for place in here() {
        for shape in SHAPES {
            for lay in LAYS {
                judge(place, shape, lay);
            }
        }
    }
}

#[test]
fn any_width_agrees_on_the_cpu() {
    for shape in [[0, 2, 3, 4], [2, 3, 2, 5], [1, 8, 14, 96], [3, 2, 4, 33]] {
        LAYS.iter().for_each(|&lay| judge(Place::CPU, shape, lay));
    }
}

/// Weights of backward are computed window by window: of one pixel row or many, parts of rows, and of less
/// at the end; for patches too large for forward's blocks, too.
#[test]
fn windows_of_any_patch_make_its_gradient() {
    for place in here() {
        for (grid, patch) in
            [(6, 2), (4, 8), (2, 9), (3, 13), (2, 17), (1, 27), (2, 28), (1, 29), (1, 57)]
        {
            for width in [112, 128, 144, 272] {
                LAYS.iter()
                    .for_each(|&lay| case(place, [1, grid, patch, width], lay).judge_backward());
            }
        }
    }
}

#[test]
fn the_cpu_takes_floats_and_weights_of_any_type() {
    for lay in LAYS {
        let c = case(Place::CPU, [2, 3, 4, 33], lay);
        let floats: Vec<f32> = c.floats().into_iter().map(|x| x as f32).collect();
        let short: Vec<bf16> = c.weight.iter().map(|&w| bf16::from_f32(w)).collect();
        let size = 3 * c.spec.image_size.pow(2);
        let (k, weight) = (c.spec.values(), c.placed_weight());
        let out = c.run(Tensor::new(&floats, 2, size), weight.view(), true).unwrap();
        assert_close(c.what("patches"), &out.patches.values(), &c.values(), 2e-7);
        c.judge_forward(&out);
        let weight = Tensor::new(&short, 33, k);
        c.judge_forward(&c.with_pixels(|pixels| c.run(pixels, weight, true)).unwrap());
        assert_close(c.what("patches"), &c.forward().patches.values(), &c.values(), 2e-7);
    }
}

#[test]
fn a_gpu_need_not_keep_what_only_backward_reads() {
    for place in here().into_iter().filter(|place| *place != Place::CPU) {
        let c = case(place, [1, 6, 2, 48], Lay::Strided);
        let (weight, kept) = (c.placed_weight(), c.forward());
        let bare = c.with_pixels(|pixels| c.run(pixels, weight.view(), false)).unwrap();
        let all = |out: &Out| [&out.y, &out.mean, &out.rstd].map(Matrix::values).concat();
        assert_same_bits("patch_embed without x", &all(&bare), &all(&kept));
        assert!(bare.x.values().iter().all(|x| x.is_nan()));
    }
}

#[test]
fn either_gradient_may_be_frozen() {
    for place in here() {
        let c = case(place, [2, 3, 2, 48], Lay::Dense);
        let f32 = place.of(DType::F32);
        let zeros = |rows, cols| f32.matrix(&vec![0.0; rows * cols], rows, cols, Lay::Dense);
        let [mut dweight, mut dposition] = [zeros(48, 12), zeros(9, 48)];
        c.backward(&c.dx, Some(&mut dweight), Some(&mut dposition));
        let [mut dweight_alone, mut dposition_alone] = [zeros(48, 12), zeros(9, 48)];
        c.backward(&c.dx, Some(&mut dweight_alone), None);
        c.backward(&c.dx, None, Some(&mut dposition_alone));
        c.backward(&c.dx, None, None);
        assert_same_bits("dweight", &dweight_alone.values(), &dweight.values());
        assert_same_bits("dposition", &dposition_alone.values(), &dposition.values());
    }
}

/// `x` is linear in the weight and the position, so one central difference is exact.
#[test]
fn the_naive_gradient_is_the_derivative() {
    let c = case(Place::CPU, [2, 2, 2, 3], Lay::Dense);
    let dx = c.dx.f64();
    let [dweight, dposition] = c.naive_backward(&dx);
    let start: Vec<f64> = c.weight.iter().map(|&w| w.into()).collect();
    let by_weight = central_differences(&start, 0.25, |w| inner(&c.naive(w), &dx));
    let by_position = central_differences(&c.position.f64(), 0.25, |position| {
        let moved: Vec<f64> = (0..dx.len()).map(|i| position[i % position.len()]).collect();
        inner(&moved, &dx)
    });
    assert_derivative(&dweight, &by_weight, 1e-8);
    assert_derivative(&dposition, &by_position, 1e-8);
}

/// Through `ln_pre`, whose backward takes the `x`, mean and rstd that forward kept.
#[test]
fn the_gradient_of_the_whole_is_the_derivative() {
    for place in here() {
        let c = case(place, [2, 2, 2, 16], Lay::Dense);
        let (out, f32) = (c.forward(), place.of(DType::F32));
        let (mut dx, dy) = (place.poisoned(8, 16, Lay::Dense), c.dx.view());
        let (mean, rstd, norm) = (out.mean.view(), out.rstd.view(), c.norm[0].view());
        let (none, x) = (TensorMut::vector::<f32>(&mut []), out.x.view());
        let write = Write::Overwrite;
        let d = dx.view_mut();
        layer_norm::backward(x, norm, mean, rstd, dy, d, None, None, none, write).unwrap();
        let mut dweight = f32.matrix(&[0.0; 16 * 12], 16, 12, Lay::Dense);
        c.backward(&dx, Some(&mut dweight), None);
        let dy = c.dx.f64();
        let start: Vec<f64> = c.weight.iter().map(|&w| w.into()).collect();
        let loss = |weight: &[f64]| inner(&c.naive_norm(&c.naive(weight))[0], &dy);
        let want = central_differences(&start, 1e-4, loss);
        // in bf16 x and dx are rounded, each to 2^-9 of its size
        let bound = if place.dtype == DType::Bf16 { 2f64.powi(-7) } else { 1e-5 };
        assert_close(c.what("whole"), &dweight.values(), &want, bound);
    }
}

#[test]
fn neither_threads_nor_another_run_change_a_bit() {
    for place in here() {
        let c = case(place, [3, 4, 3, 304], Lay::Strided);
        same_on_any_threads(c.what("bits"), || {
            let start = vec![0.5; 304 * 27];
            let mut dweight = place.of(DType::F32).matrix(&start, 304, 27, Lay::Dense);
            c.backward(&c.dx, Some(&mut dweight), None);
            let Out { x, y, mean, rstd, .. } = c.forward();
            [x, y, mean, rstd, dweight].map(|part| part.values()).concat()
        });
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let mut c = case(Place::CPU, [1, 2, 2, 3], Lay::Dense);
    let weight = c.placed_weight();
    let run = |c: &Case, pixels: Tensor<'_>, keep| refusal(c.run(pixels, weight.view(), keep));
    let bytes = c.bytes.clone();
    let pixels = Tensor::new(&bytes, 1, 48);
    assert_eq!(
        run(&c, pixels, false),
        "patch_embed::forward: x is missing, expected [n · P, width] on the CPU"
    );
    let ids = [0u32; 48];
    let error = run(&c, Tensor::new(&ids, 1, 48), true);
    assert_eq!(error, "patch_embed::forward: pixels has type U32, expected U8 or F32");
    c.spec.patch_size = 3;
    let expected = "patch_embed::forward: patch_size is 3, expected a divisor of image_size 4";
    assert_eq!(run(&c, pixels, true), expected);
    c.spec = Patches { image_size: 6, patch_size: 2, ..c.spec };
    let error = run(&c, pixels, true);
    assert!(error.starts_with("patch_embed::forward: pixels has shape [1, 48], expected [1, 108]"));
}

#[test]
fn a_gpu_refuses_what_its_kernels_cannot_do() {
    for place in here().into_iter().filter(|place| *place != Place::CPU) {
        let c = case(place, [1, 2, 2, 16], Lay::Dense);
        let weight = c.placed_weight();
        let floats = place.of(DType::F32).random(1, 48, Lay::Dense, 1);
        assert_eq!(
            refusal(c.run(floats.view(), weight.view(), true)),
            "patch_embed::forward: pixels has type F32, expected U8"
        );
        let refused = |c: &Case, weight: Tensor<'_>| {
            c.with_pixels(|pixels| refusal(c.run(pixels, weight, true)))
        };
        assert_eq!(
            refused(&c, place.of(DType::F32).random(16, 16, Lay::Dense, 1).view()),
            "patch_embed::forward: weight has type F32, expected Bf16"
        );
        assert_eq!(
            refused(&c, place.random(16, 12, Lay::Dense, 1).view()),
            "patch_embed::forward: weight has shape [16, 12], expected [16, 16] (width, K)"
        );
        let narrow = case(place, [1, 2, 2, 24], Lay::Dense);
        assert_eq!(
            refused(&narrow, narrow.placed_weight().view()),
            "patch_embed::forward: weight has 24 rows, expected a multiple of 16"
        );
        let backward = |source: Tensor<'_>| {
            patch_embed::backward(source, narrow.dx.view(), None, None, &narrow.spec)
        };
        assert_eq!(
            refusal(narrow.with_pixels(backward)),
            "patch_embed::backward: dx has 24 columns, expected a multiple of 16"
        );
        let Device::Cuda(cuda) = place.device else { continue };
        let large = case(place, [1, 1, 32, 16], Lay::Dense);
        assert_eq!(
            refused(&large, large.placed_weight().view()),
            format!(
                "patch_embed::forward: patch_size is 32: 357120 bytes of shared memory for 32 patches, \
                 and cuda:0 has {}; pass --device cpu",
                cuda.gpu().shared
            )
        );
    }
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
    let poisoned = |cols| Matrix::poisoned(images * count, cols, Lay::Dense);
    let [mut patches, mut x, mut y] = [spec.values(), width, width].map(poisoned);
    let [mut mean, mut rstd] = [1, 1].map(poisoned);
    let weight = weights.get("transformer.visual.conv1.weight").to_f32();
    let zeros = |rows: usize| Matrix::of(&vec![0.0; rows * width], rows, width, Lay::Dense);
    patch_embed::forward(
        Tensor::new(&pixels, images, pixels.len() / images),
        Tensor::new(&weight, width, spec.values()),
        zeros(count).view(),
        zeros(1).view(),
        zeros(1).view(),
        patches.view_mut(),
        Some(x.view_mut()),
        y.view_mut(),
        mean.view_mut(),
        rstd.view_mut(),
        &spec,
        EPS,
    )
    .unwrap();
    let at = |row: usize, o: usize| (row / count * width + o) * count + row % count;
    let want: Vec<f64> =
        (0..images * count * width).map(|i| f64::from(want[at(i / width, i % width)])).collect();
    assert_within("vision.conv1", &x.values(), &want, 1e-4);
    assert_close("vision.conv1", &x.values(), &want, BOUND);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]
    #[test]
    fn any_shape_agrees(
        images in 0usize..4, grid in 1usize..5, patch in 1usize..6, width in 2usize..20, strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        judge(Place::CPU, [images, grid, patch, width], lay);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn any_shape_agrees_on_cuda(
        images in 0usize..4, grid in 1usize..6, patch in 1usize..9, tiles in 1usize..30, strided: bool,
    ) {
        let lay = if strided { Lay::Strided } else { Lay::Dense };
        for place in here().into_iter().filter(|place| *place != Place::CPU) {
            judge(place, [images, grid, patch, 16 * tiles], lay);
        }
    }
}
