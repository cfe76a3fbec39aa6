//! cuBLASLt on one GPU, and the plans of the products it was asked for.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtEpilogue_t, cublasLtHandle_t, cublasLtMatmulAlgo_t,
    cublasLtMatmulDesc_t, cublasLtMatmulDescAttributes_t as Attribute,
    cublasLtMatmulHeuristicResult_t as Choice, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as Preference, cublasLtMatrixLayout_t,
    cublasLtReductionScheme_t, cublasStatus_t, cudaDataType_t, cudaStream_t,
};
use libloading::Library;

use super::{Place, Shape};
use crate::device::cuda::library::{self, Found};
use crate::device::cuda::{Cuda, driver};
use crate::device::gemm::{Operand, Store};
use crate::error::{Error, Result};

/// Bytes of scratch an algorithm may use: what NVIDIA advises for Hopper.
const WORKSPACE: usize = 32 << 20;

type Told<T> = std::result::Result<T, CublasError>;

/// The library on one GPU.
pub(in crate::device::cuda) struct Blas {
    functions: Functions,
    handle: cublasLtHandle_t,
    workspace: NonNull<u8>,
    plans: Mutex<BTreeMap<Shape, Plan>>,
    /// The algorithms of plans that were made, or are still to be.
    pub(super) chosen: Mutex<BTreeMap<Shape, [u64; 8]>>,
    pub(super) found: Found,
    _library: Library,
}

/// One product, ready to be asked for. Kept for the life of the process.
struct Plan {
    product: cublasLtMatmulDesc_t,
    /// Of Bᵀ, Aᵀ, Cᵀ.
    layouts: [cublasLtMatrixLayout_t; 3],
    algorithm: cublasLtMatmulAlgo_t,
}

impl Blas {
    /// Finds and opens cuBLASLt, and allocates its workspace. Errors: a sentence for each product that
    /// is asked for; kernels work without.
    pub fn open(cuda: Cuda) -> std::result::Result<Blas, String> {
        let driver = driver::version().map_err(|error| error.to_string())?;
        let opened = library::open_cublas_lt(Some(driver)).ok_or_else(|| {
            format!(
                "{cuda}: no cuBLASLt 12 to {} on this machine; run tools/get-cuda --runtime, or \
                 name the folder of libcublasLt.so in SILKIE_CUDA_LIB",
                driver.major
            )
        })?;
        let (library, found) = (opened.library, opened.found);
        let at = format!("{cuda}: cuBLASLt {} in {}", found.version, found.path.display());
        let functions = Functions::of(&library).ok_or_else(|| format!("{at}: lacks a function"))?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the one handle.
        let made = unsafe { (functions.cublasLtCreate)(&raw mut handle) }.result();
        made.map_err(|CublasError(status)| format!("{at}: does not start: {status:?}"))?;
        let workspace = cuda.allocate(WORKSPACE).map_err(|error| error.to_string())?;
        let (plans, chosen) = (Mutex::default(), Mutex::default());
        Ok(Blas { functions, handle, workspace, plans, chosen, found, _library: library })
    }

    /// The product of `shape`, which is that of the operands.
    pub(super) fn multiply(
        &self,
        cuda: Cuda,
        shape: &Shape,
        a: Operand<'_>,
        b: Operand<'_>,
        c: *mut u8,
        store: Store<'_>,
    ) -> Result<()> {
        cuda.bind()?;
        let multiplied = cuda.on_stream(|stream| {
            let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
            if !plans.contains_key(shape) {
                plans.insert(*shape, self.plan(shape, store)?);
            }
            let Plan { product, layouts: [of_b, of_a, of_c], algorithm } = &plans[shape];
            let beta = if store.accumulate { 1.0f32 } else { 0.0 };
            let [a, b] = [a, b].map(|operand| operand.data().as_ptr().cast::<c_void>());
            let c = c.cast::<c_void>();
            // SAFETY: `Shape::of` saw operands of these shapes, strides and types on this GPU; the
            // workspace is used in the order of the stream; alpha and beta are read at once.
            unsafe {
                self.set_bias(*product, store)?;
                let (alpha, beta) = ((&raw const store.alpha).cast(), (&raw const beta).cast());
                let workspace = self.workspace.as_ptr().cast();
                #[rustfmt::skip]
                let status = (self.functions.cublasLtMatmul)(
                    self.handle, *product, alpha, b, *of_b, a, *of_a, beta, c, *of_c, c, *of_c,
                    algorithm, workspace, WORKSPACE, stream.cast(),
                );
                status.result()
            }
        });
        multiplied.map_err(|CublasError(status)| {
            let Shape { rows, columns, depth, .. } = shape;
            let what = format!("a product of [{rows}, {depth}] and [{depth}, {columns}]");
            Error::Device(format!("{cuda}: cuBLASLt {}: {what}: {status:?}", self.found.version))
        })
    }

    /// Describes a product, and chooses its algorithm unless that was done before.
    fn plan(&self, shape: &Shape, store: Store<'_>) -> Told<Plan> {
        let f = &self.functions;
        let (a, b, c) = (shape.a, shape.b, shape.c);
        let Shape { rows, columns, depth, .. } = *shape;
        let mut product = std::ptr::null_mut();
        let mut layouts = [std::ptr::null_mut(); 3];
        let epilogue = match shape.bias {
            true => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS,
            false => cublasLtEpilogue_t::CUBLASLT_EPILOGUE_DEFAULT,
        };
        let operation = |place: Place| i32::from(place.transposed); // CUBLAS_OP_N, CUBLAS_OP_T
        let (compute, scale) =
            (cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType_t::CUDA_R_32F);
        // SAFETY: every description is made before it is used; attributes have the types that the
        // library documents.
        unsafe {
            (f.cublasLtMatmulDescCreate)(&raw mut product, compute, scale).result()?;
            self.set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, operation(b))?;
            self.set(product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, operation(a))?;
            self.set(product, Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue)?;
            self.set_bias(product, store)?;
            let sizes = [(b, [columns, depth]), (a, [depth, rows]), (c, [columns, rows])];
            for (layout, (place, [rows, columns])) in layouts.iter_mut().zip(sizes) {
                let [rows, columns] = match place.transposed {
                    true => [columns, rows],
                    false => [rows, columns],
                };
                let (rows, columns, stride) = (rows as u64, columns as u64, place.stride as i64);
                let made =
                    (f.cublasLtMatrixLayoutCreate)(layout, dtype(place), rows, columns, stride);
                made.result()?;
            }
        }
        let algorithm = self.choose(shape, product, layouts)?;
        Ok(Plan { product, layouts, algorithm })
    }

    /// The algorithm that was chosen before, or the library's first choice.
    fn choose(
        &self,
        shape: &Shape,
        product: cublasLtMatmulDesc_t,
        [of_b, of_a, of_c]: [cublasLtMatrixLayout_t; 3],
    ) -> Told<cublasLtMatmulAlgo_t> {
        let (f, handle) = (&self.functions, self.handle);
        let mut chosen = self.chosen.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: numbers, null or 0 as all bits are.
        let mut choice: Choice = unsafe { std::mem::zeroed() };
        if let Some(&data) = chosen.get(shape) {
            let algorithm = cublasLtMatmulAlgo_t { data };
            // SAFETY: the descriptions are whole; writes `choice`.
            #[rustfmt::skip]
            let fits = unsafe {
                (f.cublasLtMatmulAlgoCheck)(
                    handle, product, of_b, of_a, of_c, of_c, &algorithm, &raw mut choice,
                )
            };
            return fits.result().map(|()| algorithm);
        }
        let (mut preference, mut count) = (std::ptr::null_mut(), 0);
        // SAFETY: as above, for the preference as well.
        unsafe {
            (f.cublasLtMatmulPreferenceCreate)(&raw mut preference).result()?;
            let asked = self.prefer(preference, shape).and_then(|()| {
                #[rustfmt::skip]
                let asked = (f.cublasLtMatmulAlgoGetHeuristic)(
                    handle, product, of_b, of_a, of_c, of_c, preference, 1, &raw mut choice,
                    &raw mut count,
                );
                asked.result()
            });
            (f.cublasLtMatmulPreferenceDestroy)(preference).result()?;
            asked?;
        }
        if count == 0 {
            return Err(CublasError(cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED));
        }
        choice.state.result()?;
        chosen.insert(*shape, choice.algo.data);
        Ok(choice.algo)
    }

    /// # Safety
    /// `preference` was made.
    unsafe fn prefer(&self, preference: cublasLtMatmulPreference_t, shape: &Shape) -> Told<()> {
        let set = |name, value: *const c_void, bytes| {
            // SAFETY: promised; the callers below give these attributes their types.
            let set = unsafe {
                (self.functions.cublasLtMatmulPreferenceSetAttribute)(
                    preference, name, value, bytes,
                )
            };
            set.result()
        };
        let workspace = WORKSPACE as u64;
        let at = (&raw const workspace).cast();
        set(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, at, size_of::<u64>())?;
        // Partial sums stay f32, whatever C is.
        let scheme = cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        for (name, value) in [
            (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, scheme),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, shape.b.alignment),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, shape.a.alignment),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, shape.c.alignment),
            (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, shape.c.alignment),
        ] {
            set(name, (&raw const value).cast(), size_of::<u32>())?;
        }
        Ok(())
    }

    /// # Safety
    /// `product` was made.
    unsafe fn set_bias(&self, product: cublasLtMatmulDesc_t, store: Store<'_>) -> Told<()> {
        let name = Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
        match store.bias {
            // SAFETY: promised; the attribute is an address.
            Some(bias) => unsafe { self.set(product, name, bias.as_ptr()) },
            None => Ok(()),
        }
    }

    /// # Safety
    /// `T` is the type of this attribute, and `product` was made.
    unsafe fn set<T>(&self, product: cublasLtMatmulDesc_t, name: Attribute, value: T) -> Told<()> {
        let (at, bytes) = ((&raw const value).cast(), size_of::<T>());
        // SAFETY: promised.
        unsafe { (self.functions.cublasLtMatmulDescSetAttribute)(product, name, at, bytes) }
            .result()
    }
}

fn dtype(place: Place) -> cudaDataType_t {
    if place.wide { cudaDataType_t::CUDA_R_32F } else { cudaDataType_t::CUDA_R_16BF }
}

macro_rules! functions {
    ($($name:ident($($type:ty),*);)+) => {
        /// What is used of the library.
        #[allow(non_snake_case)]
        struct Functions { $($name: unsafe extern "C" fn($($type),*) -> cublasStatus_t,)+ }

        impl Functions {
            fn of(library: &Library) -> Option<Functions> {
                // SAFETY: the types are those of the library's header.
                unsafe {
                    Some(Functions { $($name: *library.get(stringify!($name).as_bytes()).ok()?,)+ })
                }
            }
        }
    };
}

functions! {
    cublasLtCreate(*mut cublasLtHandle_t);
    cublasLtMatmulDescCreate(*mut cublasLtMatmulDesc_t, cublasComputeType_t, cudaDataType_t);
    cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t, Attribute, *const c_void, usize);
    cublasLtMatrixLayoutCreate(*mut cublasLtMatrixLayout_t, cudaDataType_t, u64, u64, i64);
    cublasLtMatmulPreferenceCreate(*mut cublasLtMatmulPreference_t);
    cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, Preference, *const c_void, usize);
    cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t);
    cublasLtMatmulAlgoGetHeuristic(
        cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatmulPreference_t, i32,
        *mut Choice, *mut i32
    );
    cublasLtMatmulAlgoCheck(
        cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
        cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, *const cublasLtMatmulAlgo_t,
        *mut Choice
    );
    cublasLtMatmul(
        cublasLtHandle_t, cublasLtMatmulDesc_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
        *const c_void, cublasLtMatrixLayout_t, *const c_void, *const c_void, cublasLtMatrixLayout_t,
        *mut c_void, cublasLtMatrixLayout_t, *const cublasLtMatmulAlgo_t, *mut c_void, usize,
        cudaStream_t
    );
}
