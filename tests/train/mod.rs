//! Training: losses, schedule, metrics, checkpoints, and whole runs.

mod checkpoint;
mod config;
mod fixture;
mod loss;
mod memory;
mod metrics;
mod resume;
mod run;
mod schedule;
