//! The memory-bound ops. The floor is the measured rate at which all cores add one array to
//! another (two reads, one write); a row that fits the cache can therefore be above 100 %.

use silkie::device::Device;
use silkie::ops::Write::Overwrite;
use silkie::ops::adamw::{self, AdamW, Part};
use silkie::ops::grad_norm::{Step, Verdict};
use silkie::ops::rope::{self, Table};
use silkie::ops::sampling::{self, Nucleus};
use silkie::ops::{activation, embedding, grad_norm, layer_norm, rms_norm, rows};
use silkie::tensor::{Tensor, TensorMut};

use super::{close, median, values};

/// The rows whose name contains `filter`.
pub fn run(filter: &str) {
    let bench = Bench { filter, peak: peak() };
    println!("{:.1} GB/s", bench.peak);
    for (tokens, width) in [(736, 512), (2048, 4096)] {
        norms(&bench, tokens, width);
        pointwise(&bench, tokens, width);
        movements(&bench, tokens, width);
    }
    tokens(&bench, 151_936);
    flat(&bench, 1 << 24);
}

struct Bench<'a> {
    filter: &'a str,
    /// GB/s.
    peak: f64,
}

impl Bench<'_> {
    /// One row: `run` reads and writes `passes` arrays of `[rows, cols]` f32. Whether it ran.
    fn row(
        &self,
        name: &str,
        [rows, cols]: [usize; 2],
        passes: usize,
        mut run: impl FnMut(),
    ) -> bool {
        let name = format!("{name} {rows}x{cols}");
        if !name.contains(self.filter) {
            return false;
        }
        let seconds = median(&mut run);
        let rate = (passes * rows * cols * 4) as f64 / seconds / 1e9;
        println!(
            "{name:<48} {:>9.1} us {rate:>8.1} GB/s     {:>4.0} % of floor",
            seconds * 1e6,
            100.0 * rate / self.peak
        );
        true
    }
}

fn peak() -> f64 {
    let n = 1 << 24;
    let (x, mut y) = (values(n), values(n));
    let seconds = median(&mut || {
        rows::add(Tensor::new(&x, 4096, n / 4096), TensorMut::new(&mut y, 4096, n / 4096)).unwrap()
    });
    (3 * n * 4) as f64 / seconds / 1e9
}

fn norms(bench: &Bench, r: usize, c: usize) {
    let (x, w, mut y, mut dx) = (values(r * c), values(c), vec![0.0; r * c], vec![0.0; r * c]);
    let (mut mean, mut rstd, mut dw, mut db) = (vec![0.0; r], vec![0.0; r], w.clone(), w.clone());
    let (xt, wt) = (Tensor::new(&x, r, c), Tensor::vector(&w));
    let ran = bench.row("rms_norm forward", [r, c], 2, || {
        let (y, rstd) = (TensorMut::new(&mut y, r, c), TensorMut::column(&mut rstd));
        rms_norm::forward(xt, None, wt, y, rstd, 1e-6).unwrap();
    });
    if ran {
        close("rms_norm", y[c - 1], f64::from(x[c - 1] * rstd[0] * w[c - 1]), 1.0);
    }
    bench.row("rms_norm backward", [r, c], 5, || {
        let (dx, dw) = (TensorMut::new(&mut dx, r, c), Some(TensorMut::vector(&mut dw)));
        let rstd = Tensor::column(&rstd);
        let partials = TensorMut::vector::<f32>(&mut []);
        rms_norm::backward(xt, wt, rstd, xt, dx, dw, partials, Overwrite).unwrap();
    });
    bench.row("layer_norm forward", [r, c], 2, || {
        let (mean, rstd) = (TensorMut::column(&mut mean), TensorMut::column(&mut rstd));
        layer_norm::forward(xt, wt, wt, TensorMut::new(&mut y, r, c), mean, rstd, 1e-6).unwrap();
    });
    bench.row("layer_norm backward", [r, c], 6, || {
        let (dw, db) = (Some(TensorMut::vector(&mut dw)), Some(TensorMut::vector(&mut db)));
        let (mean, rstd) = (Tensor::column(&mean), Tensor::column(&rstd));
        let dx = TensorMut::new(&mut dx, r, c);
        let partials = TensorMut::vector::<f32>(&mut []);
        layer_norm::backward(xt, wt, mean, rstd, xt, dx, dw, db, partials, Overwrite).unwrap();
    });
}

fn pointwise(bench: &Bench, r: usize, c: usize) {
    let (x, mut y, mut z) = (values(r * c), vec![0.0; r * c], vec![0.0; r * c]);
    let xt = Tensor::new(&x, r, c);
    bench.row("activation gelu", [r, c], 2, || {
        activation::gelu(xt, TensorMut::new(&mut y, r, c)).unwrap();
    });
    bench.row("activation gelu_backward", [r, c], 3, || {
        activation::gelu_backward(xt, xt, TensorMut::new(&mut y, r, c), None).unwrap();
    });
    let ran = bench.row("activation swiglu", [r, c], 3, || {
        activation::swiglu(xt, xt, TensorMut::new(&mut y, r, c)).unwrap();
    });
    if ran {
        let x = f64::from(x[0]);
        close("swiglu", y[0], x * x / (1.0 + (-x).exp()), 1.0);
    }
    bench.row("activation swiglu_backward", [r, c], 5, || {
        let (da, db) = (TensorMut::new(&mut y, r, c), TensorMut::new(&mut z, r, c));
        activation::swiglu_backward(xt, xt, xt, da, db, None).unwrap();
    });
    let (table, positions) = (Table::new(128, r, 10_000.0, 1.0), (0..r as u32).collect::<Vec<_>>());
    bench.row("rope forward", [r, c], 2, || {
        let (qk, positions) = (TensorMut::new(&mut z, r, c), Tensor::column(&positions));
        rope::forward(qk, positions, table.view(), None, 128).unwrap();
    });
}

fn tokens(bench: &Bench, vocab: usize) {
    let (logits, mut weights, mut token) = (values(vocab), vec![0.0; vocab], [0u32]);
    let logits = Tensor::vector(&logits);
    bench.row("sampling greedy", [1, vocab], 1, || {
        sampling::greedy(logits, TensorMut::column(&mut token)).unwrap();
    });
    let (nucleus, uniform) = (Nucleus { temperature: 0.1, top_p: 0.9 }, [0.0]);
    let ran = bench.row("sampling nucleus", [1, vocab], 12, || {
        let (weights, token) = (TensorMut::vector(&mut weights), TensorMut::column(&mut token));
        let uniform = Tensor::column::<f64>(&uniform);
        sampling::nucleus(logits, nucleus.view(), uniform, weights, token).unwrap();
    });
    if ran {
        let largest = logits.elements::<f32>().iter().fold(f32::MIN, |m, &x| m.max(x));
        let chosen = logits.elements::<f32>()[token[0] as usize];
        close("sampling nucleus", chosen, largest.into(), 1.0);
    }
}

fn movements(bench: &Bench, r: usize, c: usize) {
    let (x, mut y) = (values(r * c), vec![0.0; r * c]);
    let index: Vec<u32> = (0..r).map(|i| (i * 7919 % r) as u32).collect();
    let mut inverse = vec![0; rows::inverse_len(r)];
    rows::invert(&index, &mut inverse).unwrap();
    let (xt, index, inverse) =
        (Tensor::new(&x, r, c), Tensor::column(&index), Tensor::vector(&inverse));
    let none = Tensor::new::<f32>(&[], 0, c);
    bench.row("embedding forward", [r, c], 2, || {
        embedding::forward(index, xt, none, TensorMut::new(&mut y, r, c)).unwrap();
    });
    bench.row("embedding backward", [r, c], 3, || {
        let (dtable, none) = (TensorMut::new(&mut y, r, c), TensorMut::new::<f32>(&mut [], 0, c));
        embedding::backward(inverse, xt, Some(dtable), none, r).unwrap();
    });
    bench.row("rows gather", [r, c], 2, || {
        rows::gather(xt, index, TensorMut::new(&mut y, r, c)).unwrap();
    });
    bench.row("rows scatter", [r, c], 2, || {
        rows::scatter(xt, inverse, TensorMut::new(&mut y, r, c)).unwrap();
    });
    bench.row("rows add", [r, c], 3, || {
        rows::add(xt, TensorMut::new(&mut y, r, c)).unwrap();
    });
}

/// What walks the flat parameter buffers.
fn flat(bench: &Bench, n: usize) {
    let (g, [mut p, mut m, mut v]) = (values(n), [(); 3].map(|()| vec![0.0f32; n]));
    let config = AdamW { beta1: 0.9, beta2: 0.98, eps: 1e-8 };
    let part = Part { range: 0..n, lr_scale: 1.0, weight_decay: 0.05 };
    let table = adamw::Table::new(Device::Cpu, &[part]).unwrap();
    let step = Step { lr: 1e-5, scale: 1.0, loss: 0.0 };
    let mut verdict = Verdict { scale: 1.0, finite: 1.0, updates: 1.0, ..Verdict::default() };
    bench.row("adamw step", [1, n], 7, || {
        let [p, m, v] = [&mut p, &mut m, &mut v].map(|x| TensorMut::vector(x));
        let (g, step, verdict) = (Tensor::vector(&g), step.view(), verdict.view());
        adamw::step(g, step, verdict, &table, p, m, v, None, &config).unwrap();
    });
    let mut partials = vec![0.0f64; grad_norm::partials(n)];
    if bench.row("grad_norm forward", [1, n], 1, || {
        let (g, partials) = (Tensor::vector(&g), TensorMut::vector(&mut partials));
        grad_norm::forward(g, step.view(), partials, verdict.view_mut(), 0.0).unwrap();
    }) {
        // uniform in -1..1: a third of the elements, give or take their scatter
        let mean = verdict.norm.powi(2) / n as f64;
        assert!((mean - 1.0 / 3.0).abs() < 1e-3, "mean square {mean}");
    }
    let mut finite = true;
    bench.row("grad_norm all_finite", [1, n], 1, || finite = grad_norm::all_finite(&g));
    assert!(finite);
}
