//! Runs kernels: a warp at a time, blocks on all cores.

pub mod allocate;
