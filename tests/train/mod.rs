//! Training: losses, schedule, metrics, checkpoints, and whole runs.

mod loss;
mod schedule;
