//! Training: losses, schedule, metrics, checkpoints, and whole runs.

mod loss;
mod metrics;
mod schedule;
