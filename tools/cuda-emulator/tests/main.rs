//! The emulator's tests: the reader of PTX, and every instruction against what its manual says.

mod nvcc;
mod ptx;
