//! Where a workspace gets its buffers: on the host one by one, or from nowhere, noted in a plan of
//! what a GPU would hold. One list of buffers thus serves both.

use std::fmt::Display;

use crate::device::Buffer;
use crate::device::arena::Plan;
use crate::tensor::DType;

/// Gives buffers to whoever builds a workspace.
pub(crate) struct Buffers<'p> {
    plan: Option<&'p mut Plan>,
    group: String,
}

impl Buffers<'_> {
    /// Zeroed host memory.
    pub fn host() -> Buffers<'static> {
        Buffers { plan: None, group: String::new() }
    }

    /// Buffers without rows, and a span of `plan` for each.
    pub fn planned(plan: &mut Plan) -> Buffers<'_> {
        Buffers { plan: Some(plan), group: String::new() }
    }

    /// Whether they are a GPU's, noted in a plan.
    pub fn are_planned(&self) -> bool {
        self.plan.is_some()
    }

    /// The same for a part whose buffers are called "`name` …".
    pub fn of(&mut self, name: impl Display) -> Buffers<'_> {
        let group = match &self.plan {
            Some(_) => format!("{}{name} ", self.group),
            None => String::new(),
        };
        Buffers { plan: self.plan.as_deref_mut(), group }
    }

    /// What GEMMs and kernels read and write: f32 on the CPU, bf16 on a GPU.
    pub fn values(&mut self, name: &str, rows: usize, cols: usize) -> Buffer {
        self.buffer(name, DType::Bf16, rows, cols)
    }

    /// Statistics, logits and log-probabilities: f32 everywhere.
    pub fn f32(&mut self, name: &str, rows: usize, cols: usize) -> Buffer {
        self.buffer(name, DType::F32, rows, cols)
    }

    /// f32 that only the CPU needs: no kernel has this in memory.
    pub fn on_cpu(&mut self, rows: usize, cols: usize) -> Buffer {
        match self.plan {
            Some(_) => Buffer::f32(0, 0),
            None => Buffer::f32(rows, cols),
        }
    }

    /// One row of `n` f32 for what kernels sum block by block; the CPU needs none.
    pub fn partials(&mut self, n: usize) -> Buffer {
        match self.plan {
            Some(_) if n > 0 => self.f32("partials", 1, n),
            _ => Buffer::f32(0, 0),
        }
    }

    fn buffer(&mut self, name: &str, planned: DType, rows: usize, cols: usize) -> Buffer {
        match &mut self.plan {
            Some(plan) => {
                plan.add(format!("{}{name}", self.group), planned, rows, cols);
                Buffer::f32(0, 0)
            }
            None => Buffer::f32(rows, cols),
        }
    }
}
