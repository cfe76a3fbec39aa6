//! What the stand-in refuses: what cuBLASLt would, and what a product should not use.

use cudarc::cublaslt::result;
use cudarc::cublaslt::sys::cublasComputeType_t::*;
use cudarc::cublaslt::sys::cublasLtEpilogue_t::*;
use cudarc::cublaslt::sys::cublasStatus_t::{self, *};
use cudarc::cublaslt::sys::cudaDataType_t::*;
use cudarc::cublaslt::sys::*;
use cudarc::driver::DevicePtr;

use crate::library::{Call, Layout, stream};
use crate::products::small;

#[test]
fn epilogues_types_and_shapes() {
    let stream = stream();
    let (call, _matrices) = small(&stream);
    let status =
        |call: Call| call.run(&stream).map_or_else(|error| error.0, |()| CUBLAS_STATUS_SUCCESS);
    let of = |which: usize, layout: Layout| {
        let mut layouts = call.layouts;
        layouts[which] = layout;
        Call { layouts, ..call }
    };
    assert_eq!(status(call), CUBLAS_STATUS_SUCCESS);
    for epilogue in [CUBLASLT_EPILOGUE_RELU, CUBLASLT_EPILOGUE_GELU, CUBLASLT_EPILOGUE_GELU_BIAS] {
        assert_eq!(status(Call { epilogue, ..call }), CUBLAS_STATUS_NOT_SUPPORTED);
    }
    for compute in [CUBLAS_COMPUTE_16F, CUBLAS_COMPUTE_32I, CUBLAS_COMPUTE_64F] {
        assert_eq!(status(Call { compute, ..call }), CUBLAS_STATUS_NOT_SUPPORTED);
    }
    for element in [CUDA_R_8F_E4M3, CUDA_R_8I, CUDA_C_32F, CUDA_R_64F, CUDA_R_16BF] {
        let layout = Layout { element, ..call.layouts[0] };
        assert_eq!(status(of(0, layout)), CUBLAS_STATUS_NOT_SUPPORTED, "{element:?}");
    }
    let wrong = [
        Layout { columns: 3, ..call.layouts[0] },
        Layout { ld: 1, ..call.layouts[0] },
        Layout { batches: 2, batch_stride: 4, ..call.layouts[0] },
        Layout { batches: 0, ..call.layouts[0] },
    ];
    for layout in wrong {
        assert_eq!(status(of(0, layout)), CUBLAS_STATUS_INVALID_VALUE, "{layout:?}");
    }
    assert_eq!(status(Call { alignment: 3, ..call }), CUBLAS_STATUS_INVALID_VALUE);
}

#[test]
fn memory_that_is_not_the_products() {
    let stream = stream();
    let (call, _matrices) = small(&stream);
    let [a, b, c, d] = call.addresses;
    let status = |call: Call| call.run(&stream).map_err(|error| error.0);
    let failed = Err(CUBLAS_STATUS_EXECUTION_FAILED);
    let with = |addresses| status(Call { addresses, alignment: 4, ..call });
    assert_eq!(with([a + 4, b, c, d]), failed, "A ends beyond its allocation");
    assert_eq!(with([0, b, c, d]), failed);
    assert_eq!(with([a, b, c, 1 << 40]), failed);
    // SAFETY: not written, on purpose.
    let unwritten = unsafe { stream.alloc::<f32>(4) }.unwrap();
    let (empty, _read) = unwritten.device_ptr(&stream);
    assert_eq!(with([a, empty, c, d]), failed, "B holds no values");
    assert_eq!(with([a, b, empty, d]), Ok(()), "C is not read when beta is zero");
    let beta = Call { addresses: [a, b, empty, d], beta: 1.0, ..call };
    assert_eq!(status(beta), failed);
    let bias = Call { epilogue: CUBLASLT_EPILOGUE_BIAS, ..call };
    assert_eq!(status(bias), failed, "the bias is null");
    assert_eq!(with([a, b, empty, empty]), Ok(()), "D need not hold values");
}

#[test]
fn what_the_algorithm_relies_on() {
    let stream = stream();
    let (call, _matrices) = small(&stream);
    let [a, b, c, d] = call.addresses;
    let status = |call: Call| call.run(&stream).map_err(|error| error.0);
    let invalid = Err(CUBLAS_STATUS_INVALID_VALUE);
    let shifted = Call { addresses: [a + 8, b, c, d], ..call };
    assert_eq!(
        status(Call { alignment: 16, ..shifted }),
        invalid,
        "A is less aligned than promised"
    );
    let workspace = stream.alloc_zeros::<u8>(2 << 20).unwrap();
    let (at, _write) = workspace.device_ptr(&stream);
    assert_eq!(status(Call { workspace: (at, 2 << 20), ..call }), Ok(()));
    let failed = Err(CUBLAS_STATUS_EXECUTION_FAILED);
    assert_eq!(status(Call { workspace: (at + (1 << 20) + 16, 2 << 20), ..call }), failed);
    assert_eq!(status(Call { workspace: (at + 1, 2 << 20), ..call }), invalid);
}

#[test]
fn handles_that_were_destroyed() {
    let _stream = stream();
    let handle = result::create_handle().unwrap();
    let layout = result::create_matrix_layout(CUDA_R_32F, 2, 2, 2).unwrap();
    // SAFETY: handles are numbers, checked by the library; values have the documented sizes.
    unsafe {
        let rows = cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_ROWS;
        let (mut value, mut written) = (0u64, 0);
        let to = (&raw mut value).cast();
        let get = |room, written: &mut usize| {
            cublasLtMatrixLayoutGetAttribute(layout, rows, to, room, written)
        };
        assert_eq!(get(8, &mut written), CUBLAS_STATUS_SUCCESS);
        assert_eq!((value, written), (2, 8));
        assert_eq!(get(4, &mut written), CUBLAS_STATUS_INVALID_VALUE);
        let set = |bytes| cublasLtMatrixLayoutSetAttribute(layout, rows, to, bytes);
        assert_eq!(set(4), CUBLAS_STATUS_INVALID_VALUE, "rows are 64 bits");
        assert_eq!(set(8), CUBLAS_STATUS_SUCCESS);
        let planes = cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_PLANE_OFFSET;
        let code = cublasLtMatrixLayoutSetAttribute(layout, planes, to, 8);
        assert_eq!(code, CUBLAS_STATUS_NOT_SUPPORTED);
        result::destroy_matrix_layout(layout).unwrap();
        assert_eq!(set(8), CUBLAS_STATUS_INVALID_VALUE);
        assert_eq!(
            result::destroy_matrix_layout(layout).unwrap_err().0,
            CUBLAS_STATUS_INVALID_VALUE
        );
        result::destroy_handle(handle).unwrap();
        assert_eq!(result::destroy_handle(handle).unwrap_err().0, CUBLAS_STATUS_NOT_INITIALIZED);
    }
}

#[test]
fn statuses_have_names() {
    let _stream = stream();
    // SAFETY: texts of the library, which live for ever.
    let text = |status: cublasStatus_t| unsafe {
        let name = std::ffi::CStr::from_ptr(cublasLtGetStatusName(status));
        let sentence = std::ffi::CStr::from_ptr(cublasLtGetStatusString(status));
        (name.to_str().unwrap(), sentence.to_str().unwrap())
    };
    let expected = ("CUBLAS_STATUS_NOT_SUPPORTED", "the functionality requested is not supported");
    assert_eq!(text(CUBLAS_STATUS_NOT_SUPPORTED), expected);
    // SAFETY: takes nothing.
    assert_eq!(unsafe { cublasLtGetVersion() }, 130_000);
}
