//! Training: losses, schedule, metrics, checkpoints, and whole runs.

mod config;
mod loss;
mod metrics;
mod schedule;
