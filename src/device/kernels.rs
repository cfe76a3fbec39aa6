//! The CUDA kernels that `build.rs` compiled into this program: none when it found no nvcc.

/// A file of `kernels/`: a fat binary with machine code and PTX, and what is in it.
pub struct Module {
    /// Path under `kernels/` without `.cu`: `rms_norm`.
    pub name: &'static str,
    fatbin: &'static Fatbin<[u8]>,
    /// Its entry points, once per architecture.
    pub kernels: &'static [Kernel],
}

/// What one entry point takes on one architecture, as ptxas told.
pub struct Kernel {
    /// The name to look it up by: `rms_norm_forward_bf16`.
    pub symbol: &'static str,
    /// `sm_80` or `sm_90a`.
    pub arch: &'static str,
    /// Of a thread.
    pub registers: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Bytes of a thread's stack, in local memory.
    pub stack: u32,
    /// Bytes of a thread's registers spilled to local memory.
    pub spills: u32,
}

/// The driver reads the header of a fat binary as 64-bit words.
#[repr(C, align(16))]
struct Fatbin<T: ?Sized>(T);

impl Module {
    /// What the driver loads, 16-byte aligned.
    pub fn fatbin(&self) -> &'static [u8] {
        &self.fatbin.0
    }
}

/// All files of `kernels/`, by name.
pub fn modules() -> &'static [Module] {
    MODULES
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// First word of a fat binary.
    const MAGIC: [u8; 4] = 0xBA55_ED50u32.to_le_bytes();

    #[test]
    fn every_module_has_code_for_every_architecture() {
        if modules().is_empty() {
            let why = "device::kernels skipped: no nvcc when this was built; run tools/get-cuda";
            writeln!(std::io::stderr(), "{why}").unwrap();
        }
        for module in modules() {
            let fatbin = module.fatbin();
            assert_eq!(
                (&fatbin[..4], fatbin.as_ptr().addr() % 16),
                (&MAGIC[..], 0),
                "{}",
                module.name
            );
            let of = |arch: &str| {
                let kernels = module.kernels.iter().filter(|kernel| kernel.arch == arch);
                let mut symbols: Vec<&str> = kernels.map(|kernel| kernel.symbol).collect();
                symbols.sort();
                symbols
            };
            assert!(!of("sm_90a").is_empty(), "{}", module.name);
            if !module.name.ends_with("_sm90") {
                assert_eq!(of("sm_80"), of("sm_90a"), "{}", module.name);
            }
            for Kernel { symbol, registers, stack, spills, .. } in module.kernels {
                assert!((1..=255).contains(registers), "{symbol}: {registers} registers");
                assert_eq!((*stack, *spills), (0, 0), "{symbol}: local memory");
                let name = symbol.as_bytes();
                assert!(
                    fatbin.windows(name.len()).any(|bytes| bytes == name),
                    "{symbol}: not in it"
                );
            }
        }
    }
}
