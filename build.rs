//! Build script. There are no kernels yet, so there is nothing to compile and nothing to say.
//!
//! It will compile `kernels/**/*.cu` with nvcc into one table of embedded code, and, where nvcc
//! is missing, leave that table empty and say so once. See `kernels/README.md`.

fn main() {
    println!("cargo::rerun-if-changed=kernels");
}
