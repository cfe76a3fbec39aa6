//! The emulator's tests: the reader of PTX, and every instruction against what its manual says.

mod attention;
mod cases;
mod counters;
mod device;
mod driver;
mod fatbin;
mod kernels;
mod mathematics;
mod micro;
mod nvcc;
mod planted;
mod process;
mod ptx;
mod random;
mod recordings;
mod replay;
mod run;
mod soft;
