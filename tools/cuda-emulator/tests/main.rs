//! The emulator's tests: the reader of PTX, and every instruction against what its manual says.

mod device;
mod kernels;
mod nvcc;
mod ptx;
