//! Each op against its equation in f64; central differences judge the naive gradients.

mod rms_norm;
