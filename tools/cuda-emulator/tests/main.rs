//! The emulator's tests: the reader of PTX, and every instruction against what its manual says.

mod fatbin;
mod nvcc;
mod ptx;
mod random;
