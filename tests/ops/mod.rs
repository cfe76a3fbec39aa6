//! Each op against its equation in f64; central differences judge the naive gradients.

mod matmul;
mod rms_norm;
