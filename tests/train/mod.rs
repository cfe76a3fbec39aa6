//! Training: losses, schedule, metrics, checkpoints, and whole runs.

mod checkpoint;
mod config;
mod cuda;
mod fixture;
mod loss;
mod memory;
mod metrics;
mod resume;
mod run;
mod schedule;
