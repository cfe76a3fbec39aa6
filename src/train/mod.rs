//! The step loop: schedule, optimizer, checkpoints, metrics, resume.

pub mod loss;
pub mod schedule;
