//! The model: configuration, weights, adapters, presets.

mod adapter;
mod config;
mod forward;
mod gradients;
mod init;
mod torch;
mod training;
mod weights;
