//! Rows of log_ratio over Qwen-VL's vocabulary: with its products, the pass between them, and the sums of branches.

use super::{BF16, F32, On, Row, Run, prepared};
use crate::device::Buffer;
use crate::error::Result;
use crate::ops::{log_ratio, rows};
use crate::tensor::DType;

/// Of hidden states.
const WIDTH: usize = 4096;
/// A chunk of scored rows.
const CHUNK: &[[usize; 2]] = &[[512, 151_936]];
const CHUNK_COUNTED: &[[usize; 2]] = &[[4, 151_936]];

pub fn rows() -> Vec<Row> {
    vec![
        // the products are a library's: nothing to count
        Row {
            name: "log_ratio forward",
            dtypes: BF16,
            counted: &[],
            bytes: |[rows, vocabulary], t| (2 * rows + vocabulary) * WIDTH * t.size() + 8 * rows,
            flop: |[rows, vocabulary]| 4 * rows * vocabulary * WIDTH,
            macs: |[rows, vocabulary]| 2 * rows * vocabulary * WIDTH,
            bound: |_| 8e-3,
            new: |on, [rows, vocabulary]| {
                let [h, head] = [on.input(rows, WIDTH, 1)?, on.input(vocabulary, WIDTH, 2)?];
                let (targets, logits) =
                    (targets(on, rows, vocabulary)?, on.f32_output(rows, vocabulary)?);
                let (log_probs, dh) = (on.f32_output(rows, 1)?, on.output(rows, WIDTH)?);
                let buffers = [h, head, targets, logits, log_probs, dh];
                prepared(buffers, 2, |[h, head, targets, logits, log_probs, dh]| {
                    let (h, head, targets) = (h.view(), head.view(), targets.view());
                    let (log_probs, dh) = (log_probs.view_mut(), Some(dh.view_mut()));
                    log_ratio::forward(h, head, targets, log_probs, dh, logits.view_mut())
                })
            },
            ..USUAL
        },
        Row {
            name: "log_ratio log_probs",
            bytes: |[rows, vocabulary], _| 4 * rows * (vocabulary + 2),
            flop: |[rows, vocabulary]| 5 * rows * vocabulary,
            new: |on, [rows, vocabulary]| {
                let logits = on.f32_input(rows, vocabulary, 1)?;
                let buffers = [logits, targets(on, rows, vocabulary)?, on.f32_output(rows, 1)?];
                prepared(buffers, 1, |[logits, targets, log_probs]| {
                    let (logits, log_probs) = (logits.view_mut(), log_probs.view_mut());
                    log_ratio::log_probs(logits, targets.view(), log_probs)
                })
            },
            ..USUAL
        },
        Row {
            name: "log_ratio gradients",
            new: |on, shape| Ok(Box::new(Gradients::new(on, shape, false)?)),
            ..GRADIENTS
        },
        Row {
            name: "log_ratio gradients, factors",
            new: |on, shape| Ok(Box::new(Gradients::new(on, shape, true)?)),
            ..GRADIENTS
        },
        Row {
            name: "log_ratio branch_sums",
            shapes: &[[16_384, 128]],
            counted: &[[4096, 32]],
            bytes: |[rows, branches], _| 4 * rows + 4 * (branches + 1) + 8 * branches,
            flop: |[rows, _]| rows,
            bound: |_| 0.0,
            new: |on, [rows, branches]| {
                let offsets: Vec<u32> =
                    (0..=branches).map(|b| (b * rows / branches) as u32).collect();
                let sums = Buffer::on(on.device, DType::F64, branches, 1)?;
                let buffers = [on.f32_input(rows, 1, 1)?, on.table(&offsets)?, sums];
                prepared(buffers, 1, |[log_probs, offsets, sums]| {
                    log_ratio::branch_sums(log_probs.view(), offsets.view(), sums.view_mut())
                })
            },
            ..USUAL
        },
    ]
}

const USUAL: Row = Row { dtypes: F32, shapes: CHUNK, counted: CHUNK_COUNTED, ..Row::USUAL };

/// Logits are read once and gradients of half their size written; beside them a target, and a log-probability
/// or a factor.
const GRADIENTS: Row = Row {
    bytes: |[rows, vocabulary], _| rows * (6 * vocabulary + 8),
    flop: |[rows, vocabulary]| 12 * rows * vocabulary,
    // gradients are bf16
    bound: |_| 4e-3,
    ..USUAL
};

fn targets(on: On, rows: usize, vocabulary: usize) -> Result<Buffer> {
    let targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
    on.indices(&targets)
}

/// In place: a run reads what the one before it left, to which its time and its counters are blind.
struct Gradients {
    logits: Buffer,
    targets: Buffer,
    factors: Option<Buffer>,
    log_probs: Buffer,
    /// As f32.
    gradients: Buffer,
}

impl Gradients {
    fn new(on: On, [rows, vocabulary]: [usize; 2], with_factors: bool) -> Result<Gradients> {
        let factors = with_factors.then(|| on.f32_input(rows, 1, 2)).transpose()?;
        Ok(Gradients {
            logits: on.f32_input(rows, vocabulary, 1)?,
            targets: targets(on, rows, vocabulary)?,
            factors,
            log_probs: on.f32_output(rows, 1)?,
            gradients: on.f32_output(rows, vocabulary)?,
        })
    }
}

impl Run for Gradients {
    fn run(&mut self) -> Result<()> {
        let factors = self.factors.as_ref().map(Buffer::view);
        let log_probs = factors.is_none().then(|| self.log_probs.view_mut());
        log_ratio::gradients(self.logits.view_mut(), self.targets.view(), factors, log_probs)
    }

    fn settle(&mut self) -> Result<()> {
        rows::copy(log_ratio::gradients_in(self.logits.view()), self.gradients.view_mut())
    }

    fn outputs(&self) -> Vec<&Buffer> {
        vec![&self.log_probs, &self.gradients]
    }
}
