//! Both emulated libraries, loaded as a product's tests load them, and one call of cublasLtMatmul.

use std::ffi::{CString, c_void};
use std::ptr::from_ref;
use std::sync::{Arc, Once};

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::*;
use cudarc::driver::{CudaContext, CudaStream};

/// A stream of the emulated driver.
pub fn stream() -> Arc<CudaStream> {
    static LOAD: Once = Once::new();
    LOAD.call_once(|| {
        load("libemucuda.so");
        load("libemucublaslt.so");
    });
    let context = CudaContext::new(0).unwrap();
    assert_eq!(context.name().unwrap(), "Emulated sm_80 (silkie cuda-emulator)");
    // SAFETY: every test uses one stream.
    unsafe { context.disable_event_tracking() };
    context.new_stream().unwrap()
}

/// Loads a library from beside this test; from then on it is what its SONAME means.
fn load(name: &str) {
    let test = std::env::current_exe().unwrap();
    let path = test.parent().unwrap().join(name);
    let path = CString::new(path.into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: a library of this workspace, whose initialisers do nothing.
    let loaded = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!loaded.is_null(), "{path:?} cannot be loaded");
}

/// A matrix as cuBLASLt is told of it.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub element: cudaDataType_t,
    pub rows: usize,
    pub columns: usize,
    pub ld: usize,
    pub row_major: bool,
    pub batches: usize,
    pub batch_stride: usize,
}

impl Layout {
    pub fn new(element: cudaDataType_t, rows: usize, columns: usize) -> Self {
        Layout { element, rows, columns, ld: rows, row_major: false, batches: 1, batch_stride: 0 }
    }

    fn create(self) -> cublasLtMatrixLayout_t {
        use cublasLtMatrixLayoutAttribute_t::*;
        let (rows, columns, ld) = (self.rows as u64, self.columns as u64, self.ld as i64);
        let layout = result::create_matrix_layout(self.element, rows, columns, ld).unwrap();
        let order = u32::from(self.row_major);
        let (batches, stride) = (self.batches as i32, self.batch_stride as i64);
        // SAFETY: a layout of now; values of the documented types.
        unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matrix_layout_attribute(layout, attribute, value, bytes).unwrap();
            };
            set(CUBLASLT_MATRIX_LAYOUT_ORDER, from_ref(&order).cast(), 4);
            set(CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, from_ref(&batches).cast(), 4);
            set(CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, from_ref(&stride).cast(), 8);
        }
        layout
    }
}

/// Everything that a product is told.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// A, B, C, D.
    pub layouts: [Layout; 4],
    pub addresses: [u64; 4],
    /// Of A and of B.
    pub transposed: [bool; 2],
    pub alpha: f32,
    pub beta: f32,
    /// alpha and beta are at these addresses of the device.
    pub scalars: Option<[u64; 2]>,
    pub epilogue: cublasLtEpilogue_t,
    pub bias: u64,
    pub compute: cublasComputeType_t,
    /// What the algorithm may rely on.
    pub alignment: u32,
    pub workspace: (u64, usize),
}

impl Call {
    /// Chooses an algorithm, checks it and runs it.
    pub fn run(&self, stream: &CudaStream) -> Result<(), CublasError> {
        let handle = result::create_handle().unwrap();
        let product = self.product();
        let layouts = self.layouts.map(Layout::create);
        let preference = self.preference();
        let [a, b, c, d] = layouts;
        // SAFETY: descriptors of now; addresses are checked by the emulated driver.
        unsafe {
            let ran = result::get_matmul_algo_heuristic(handle, product, a, b, c, d, preference)
                .and_then(|choice| {
                    let mut same = choice;
                    let algorithm = from_ref(&choice.algo);
                    let check =
                        cublasLtMatmulAlgoCheck(handle, product, a, b, c, d, algorithm, &mut same);
                    assert_eq!((check.result(), same), (Ok(()), choice));
                    self.multiply(stream, handle, product, layouts, algorithm)
                });
            result::destroy_matmul_pref(preference).unwrap();
            result::destroy_matmul_desc(product).unwrap();
            for layout in layouts {
                result::destroy_matrix_layout(layout).unwrap();
            }
            result::destroy_handle(handle).unwrap();
            ran
        }
    }

    unsafe fn multiply(
        &self,
        stream: &CudaStream,
        handle: cublasLtHandle_t,
        product: cublasLtMatmulDesc_t,
        [of_a, of_b, of_c, of_d]: [cublasLtMatrixLayout_t; 4],
        algorithm: *const cublasLtMatmulAlgo_t,
    ) -> Result<(), CublasError> {
        let [a, b, c, d] = self.addresses.map(|address| address as *mut c_void);
        let host = [from_ref(&self.alpha).cast(), from_ref(&self.beta).cast()];
        let [alpha, beta] =
            self.scalars.map_or(host, |device| device.map(|address| address as *const c_void));
        let (workspace, bytes) = (self.workspace.0 as *mut c_void, self.workspace.1);
        // SAFETY: the caller's descriptors; scalars are as the descriptor says.
        unsafe {
            result::matmul(
                handle,
                product,
                alpha,
                beta,
                a,
                of_a,
                b,
                of_b,
                c,
                of_c,
                d,
                of_d,
                algorithm,
                workspace,
                bytes,
                stream.cu_stream().cast(),
            )
        }
    }

    fn product(&self) -> cublasLtMatmulDesc_t {
        use cublasLtMatmulDescAttributes_t::*;
        let product = result::create_matmul_desc(self.compute, cudaDataType_t::CUDA_R_32F).unwrap();
        let [a, b] = self.transposed.map(i32::from);
        let mode = i32::from(self.scalars.is_some());
        // SAFETY: a descriptor of now; values of the documented types.
        unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matmul_desc_attribute(product, attribute, value, bytes).unwrap();
            };
            set(CUBLASLT_MATMUL_DESC_TRANSA, from_ref(&a).cast(), 4);
            set(CUBLASLT_MATMUL_DESC_TRANSB, from_ref(&b).cast(), 4);
            set(CUBLASLT_MATMUL_DESC_POINTER_MODE, from_ref(&mode).cast(), 4);
            set(CUBLASLT_MATMUL_DESC_EPILOGUE, from_ref(&self.epilogue).cast(), 4);
            set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, from_ref(&self.bias).cast(), 8);
        }
        product
    }

    fn preference(&self) -> cublasLtMatmulPreference_t {
        use cublasLtMatmulPreferenceAttributes_t::*;
        let preference = result::create_matmul_pref().unwrap();
        let most = self.workspace.1;
        // SAFETY: a preference of now; values of the documented types.
        unsafe {
            let set = |attribute, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference, attribute, value, bytes).unwrap();
            };
            set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, from_ref(&most).cast(), 8);
            for attribute in [
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                set(attribute, from_ref(&self.alignment).cast(), 4);
            }
        }
        preference
    }
}
