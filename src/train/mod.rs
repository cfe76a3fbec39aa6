//! The step loop: schedule, optimizer, checkpoints, metrics, resume.

pub mod config;
pub mod events;
pub use crate::data::lock;
pub mod loss;
pub mod metrics;
pub mod schedule;
