//! A stand-in for the CUDA driver: it interprets the very PTX that nvcc emitted, on the CPU, under
//! memory and barrier checks.

pub mod driver;
pub mod exec;
pub mod fatbin;
pub mod memory;
pub mod ptx;
pub mod report;
