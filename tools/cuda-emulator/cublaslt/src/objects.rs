//! Handles, and the descriptors of products, matrices and preferences.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use crate::attributes::{Attributes, Kind};
use crate::driver::driver;
use crate::status::Status;

/// Numbers of `cublasLtMatmulDescAttributes_t`.
pub mod product {
    pub const COMPUTE_TYPE: u32 = 0;
    pub const SCALE_TYPE: u32 = 1;
    pub const POINTER_MODE: u32 = 2;
    pub const TRANSA: u32 = 3;
    pub const TRANSB: u32 = 4;
    pub const TRANSC: u32 = 5;
    pub const EPILOGUE: u32 = 7;
    pub const BIAS_POINTER: u32 = 8;
    pub const BIAS_BATCH_STRIDE: u32 = 10;
    pub const SM_COUNT_TARGET: u32 = 15;
    pub const BIAS_DATA_TYPE: u32 = 26;
    /// CUBLASLT_EPILOGUE_DEFAULT and _BIAS.
    pub const EPILOGUE_DEFAULT: u64 = 1;
    pub const EPILOGUE_BIAS: u64 = 4;
    /// Of BIAS_DATA_TYPE: D's. -1 as four bytes.
    pub const SAME_TYPE: u64 = 0xFFFF_FFFF;
}

/// Numbers of `cublasLtMatrixLayoutAttribute_t`.
pub mod layout {
    pub const TYPE: u32 = 0;
    pub const ORDER: u32 = 1;
    pub const ROWS: u32 = 2;
    pub const COLS: u32 = 3;
    pub const LD: u32 = 4;
    pub const BATCH_COUNT: u32 = 5;
    pub const STRIDED_BATCH_OFFSET: u32 = 6;
}

/// Numbers of `cublasLtMatmulPreferenceAttributes_t`.
pub mod preference {
    pub const SEARCH_MODE: u32 = 0;
    pub const MAX_WORKSPACE_BYTES: u32 = 1;
    pub const REDUCTION_SCHEME_MASK: u32 = 3;
    /// Of A; those of B, C and D follow.
    pub const MIN_ALIGNMENT_A_BYTES: u32 = 5;
    pub const MAX_WAVES_COUNT: u32 = 9;
    pub const IMPL_MASK: u32 = 12;
}

const fn kind(number: u32, bytes: usize, default: u64) -> Kind {
    Kind { number, bytes, default }
}

const PRODUCT: &[Kind] = &[
    kind(product::COMPUTE_TYPE, 4, 0),
    kind(product::SCALE_TYPE, 4, 0),
    kind(product::POINTER_MODE, 4, 0),
    kind(product::TRANSA, 4, 0),
    kind(product::TRANSB, 4, 0),
    kind(product::TRANSC, 4, 0),
    kind(product::EPILOGUE, 4, product::EPILOGUE_DEFAULT),
    kind(product::BIAS_POINTER, 8, 0),
    kind(product::BIAS_BATCH_STRIDE, 8, 0),
    kind(product::SM_COUNT_TARGET, 4, 0),
    kind(product::BIAS_DATA_TYPE, 4, product::SAME_TYPE),
];

const LAYOUT: &[Kind] = &[
    kind(layout::TYPE, 4, 0),
    kind(layout::ORDER, 4, 0),
    kind(layout::ROWS, 8, 0),
    kind(layout::COLS, 8, 0),
    kind(layout::LD, 8, 0),
    kind(layout::BATCH_COUNT, 4, 1),
    kind(layout::STRIDED_BATCH_OFFSET, 8, 0),
];

/// What an algorithm may rely on of an address, unless told otherwise.
const ALIGNMENT: u64 = 256;

const PREFERENCE: &[Kind] = &[
    kind(preference::SEARCH_MODE, 4, 0),
    kind(preference::MAX_WORKSPACE_BYTES, 8, 0),
    kind(preference::REDUCTION_SCHEME_MASK, 4, 7),
    kind(preference::MIN_ALIGNMENT_A_BYTES, 4, ALIGNMENT),
    kind(preference::MIN_ALIGNMENT_A_BYTES + 1, 4, ALIGNMENT),
    kind(preference::MIN_ALIGNMENT_A_BYTES + 2, 4, ALIGNMENT),
    kind(preference::MIN_ALIGNMENT_A_BYTES + 3, 4, ALIGNMENT),
    kind(preference::MAX_WAVES_COUNT, 4, 0),
    kind(preference::IMPL_MASK, 8, u64::MAX),
];

/// Everything that was created, by handle: opaque pointers in the manual, here numbers that are
/// never used twice.
#[derive(Default)]
pub struct Objects {
    last: u64,
    contexts: BTreeMap<u64, ()>,
    pub products: BTreeMap<u64, Attributes>,
    pub layouts: BTreeMap<u64, Attributes>,
    pub preferences: BTreeMap<u64, Attributes>,
}

static OBJECTS: Mutex<Option<Objects>> = Mutex::new(None);

/// Runs `body` on all objects.
pub fn with<T>(body: impl FnOnce(&mut Objects) -> T) -> T {
    let mut objects: MutexGuard<'_, Option<Objects>> =
        OBJECTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    body(objects.get_or_insert_default())
}

impl Objects {
    fn new_handle(&mut self) -> u64 {
        self.last += 0x10;
        self.last
    }

    /// Whether `handle` is of cublasLtCreate.
    pub fn check_context(&self, handle: u64) -> Result<(), Status> {
        self.contexts.get(&handle).copied().ok_or(Status::NOT_INITIALIZED)
    }
}

/// One of the tables of descriptors.
type Pick = fn(&mut Objects) -> &mut BTreeMap<u64, Attributes>;

fn create(handle: Option<&mut u64>, pick: Pick, attributes: Attributes) -> Status {
    let Some(handle) = handle else { return Status::INVALID_VALUE };
    with(|objects| {
        *handle = objects.new_handle();
        pick(objects).insert(*handle, attributes);
    });
    Status::SUCCESS
}

fn destroy(handle: u64, pick: Pick) -> Status {
    let ended = with(|objects| pick(objects).remove(&handle));
    if ended.is_some() { Status::SUCCESS } else { Status::INVALID_VALUE }
}

fn change(
    handle: u64,
    pick: Pick,
    change: impl FnOnce(&mut Attributes) -> Result<(), Status>,
) -> Status {
    with(|objects| {
        let found = pick(objects).get_mut(&handle).ok_or(Status::INVALID_VALUE);
        Status::of(found.and_then(change))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtCreate(handle: Option<&mut u64>) -> Status {
    let Some(handle) = handle else { return Status::INVALID_VALUE };
    Status::of(driver().map(|_| {
        with(|objects| {
            *handle = objects.new_handle();
            objects.contexts.insert(*handle, ());
        });
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtDestroy(handle: u64) -> Status {
    let ended = with(|objects| objects.contexts.remove(&handle));
    if ended.is_some() { Status::SUCCESS } else { Status::NOT_INITIALIZED }
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulDescCreate(
    handle: Option<&mut u64>,
    compute: u32,
    scale: u32,
) -> Status {
    let mut attributes = Attributes::new("product", PRODUCT);
    attributes.put(product::COMPUTE_TYPE, compute.into());
    attributes.put(product::SCALE_TYPE, scale.into());
    create(handle, |objects| &mut objects.products, attributes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatrixLayoutCreate(
    handle: Option<&mut u64>,
    element: u32,
    rows: u64,
    cols: u64,
    ld: i64,
) -> Status {
    let mut attributes = Attributes::new("matrix layout", LAYOUT);
    attributes.put(layout::TYPE, element.into());
    attributes.put(layout::ROWS, rows);
    attributes.put(layout::COLS, cols);
    attributes.put(layout::LD, ld as u64);
    create(handle, |objects| &mut objects.layouts, attributes)
}

#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulPreferenceCreate(handle: Option<&mut u64>) -> Status {
    let attributes = Attributes::new("preference", PREFERENCE);
    create(handle, |objects| &mut objects.preferences, attributes)
}

/// Exports what is alike for every kind of descriptor.
macro_rules! descriptor {
    ($table:ident, $destroy:ident, $set:ident, $get:ident) => {
        #[unsafe(no_mangle)]
        pub extern "C" fn $destroy(handle: u64) -> Status {
            destroy(handle, |objects| &mut objects.$table)
        }

        /// # Safety
        /// `from` is null or points to `bytes` bytes.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $set(
            handle: u64,
            attribute: u32,
            from: *const c_void,
            bytes: usize,
        ) -> Status {
            let pick: Pick = |objects| &mut objects.$table;
            // SAFETY: the caller's promise.
            change(handle, pick, |attributes| unsafe { attributes.read(attribute, from, bytes) })
        }

        /// # Safety
        /// `to` is null or has room for `room` bytes.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $get(
            handle: u64,
            attribute: u32,
            to: *mut c_void,
            room: usize,
            written: Option<&mut usize>,
        ) -> Status {
            let pick: Pick = |objects| &mut objects.$table;
            change(handle, pick, |attributes| {
                // SAFETY: the caller's promise.
                unsafe { attributes.write(attribute, to, room, written) }
            })
        }
    };
}

descriptor! {
    products,
    cublasLtMatmulDescDestroy,
    cublasLtMatmulDescSetAttribute,
    cublasLtMatmulDescGetAttribute
}
descriptor! {
    layouts,
    cublasLtMatrixLayoutDestroy,
    cublasLtMatrixLayoutSetAttribute,
    cublasLtMatrixLayoutGetAttribute
}
descriptor! {
    preferences,
    cublasLtMatmulPreferenceDestroy,
    cublasLtMatmulPreferenceSetAttribute,
    cublasLtMatmulPreferenceGetAttribute
}
