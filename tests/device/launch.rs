//! Launches that cannot be, by name and by grid. Those that can are in `ops`.

use silkie::device::cuda::{Arguments, Cuda, Grid, KernelName};
use silkie::device::kernels;

use crate::support;

/// As large as the arguments of any kernel.
#[repr(C)]
#[derive(Clone, Copy)]
struct Nothing([u64; 64]);
// SAFETY: never read: no launch here starts a kernel.
unsafe impl Arguments for Nothing {}

fn launch(cuda: Cuda, name: &'static str, grid: Grid) -> silkie::Result<()> {
    // SAFETY: the grids below start no kernel.
    unsafe { cuda.launch(&KernelName(name), grid, &Nothing([0; 64])) }
}

fn first_kernel() -> &'static str {
    kernels::modules()[0].kernels[0].symbol
}

#[test]
fn a_kernel_that_is_not_there_is_named() {
    let Some(cuda) = support::cuda() else { return };
    let error = launch(cuda, "rope_forward_f8", Grid::new([1, 1, 1], 32)).unwrap_err();
    let expected = "cuda:0: no kernel rope_forward_f8 in this binary; build again";
    assert_eq!(error.to_string(), expected);
}

/// Every kernel that this GPU can run was loaded.
#[test]
fn a_grid_without_blocks_does_nothing() {
    let Some(cuda) = support::cuda() else { return };
    let hopper = cuda.gpu().capability == [9, 0];
    for kernel in kernels::modules().iter().flat_map(|module| module.kernels) {
        if kernel.arch == "sm_80" || hopper {
            for blocks in [[0, 1, 1], [1, 0, 1], [1, 1, 0]] {
                launch(cuda, kernel.symbol, Grid::new(blocks, 256)).unwrap();
            }
        }
    }
    cuda.synchronize().unwrap();
}

#[test]
fn a_grid_that_cannot_run_names_its_kernel() {
    let Some(cuda) = support::cuda() else { return };
    let shared = cuda.gpu().shared + 1;
    for grid in [Grid::new([1, 1, 1], 2048), Grid { shared, ..Grid::new([1, 1, 1], 32) }] {
        let error = launch(cuda, first_kernel(), grid).unwrap_err().to_string();
        let start = format!("cuda:0: {}: CUDA_ERROR_INVALID_VALUE", first_kernel());
        assert!(error.starts_with(&start), "{grid:?}: {error}");
    }
    cuda.synchronize().unwrap();
}

#[test]
fn a_gpu_is_opened_once() {
    let Some(cuda) = support::cuda() else { return };
    assert_eq!(Cuda::open(0).unwrap(), cuda);
    assert!(cuda.multiprocessors() > 0);
    let error = Cuda::open(99).unwrap_err().to_string();
    assert!(error.starts_with("cuda:99: this machine's GPUs are cuda:0 to cuda:"), "{error}");
}
