//! The kernels that `build.rs` embedded are whole, when it found nvcc.

use silkie::device::kernels::{Kernel, modules};

use crate::support;

/// First word of a fat binary.
const MAGIC: [u8; 4] = 0xBA55_ED50u32.to_le_bytes();

#[test]
fn every_module_has_code_for_every_architecture() {
    if modules().is_empty() {
        support::skip_cuda("no nvcc when this was built; tools/get-cuda fetches it");
    }
    for module in modules() {
        let fatbin = module.fatbin();
        assert_eq!((&fatbin[..4], fatbin.as_ptr().addr() % 16), (&MAGIC[..], 0), "{}", module.name);
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
            assert!(fatbin.windows(name.len()).any(|bytes| bytes == name), "{symbol}: not in it");
        }
    }
}
