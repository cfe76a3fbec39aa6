//! A stand-in for the CUDA driver: it interprets the very PTX that nvcc emitted, on the CPU, under
//! memory, race and barrier checks.

pub mod driver;
pub mod exec;
pub mod fatbin;
mod mapping;
pub mod memory;
pub mod ptx;
mod region;
pub mod report;
