//! Each op against its equation in f64; central differences judge the naive gradients.

mod activation;
mod adamw;
mod attention;
mod column_sums;
mod embedding;
mod grad_norm;
mod interpolate;
mod layer_norm;
mod log_ratio;
mod lora;
mod matmul;
mod patch_embed;
mod rms_norm;
mod rope;
mod rows;
mod sampling;
