//! The product itself: chosen, checked, put into a stream.

use std::ffi::{CString, c_int, c_void};

use crate::driver::{Access, CUDA_INVALID_VALUE, Driver, Work, driver};
use crate::gemm::{self, Places};
use crate::objects::{Objects, preference, with};
use crate::problem::{Matrix, Problem};
use crate::status::{Status, refuse};

/// `cublasLtMatmulAlgo_t`: 64 bytes that a program keeps and hands back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Algorithm {
    magic: u64,
    /// What it relies on of the addresses of A, B, C and D.
    alignments: [u32; 4],
    workspace: u64,
    unused: [u64; 4],
}

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    algorithm: Algorithm,
    workspace: usize,
    state: Status,
    waves: f32,
    reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Algorithm>() == 64 && size_of::<Choice>() == 96);

const MAGIC: u64 = u64::from_le_bytes(*b"emulated");
/// What the algorithm asks for when it may, so that a program's workspace is used. Its bytes are
/// not.
const WORKSPACE: u64 = 1 << 20;

impl Algorithm {
    fn choice(self) -> Choice {
        let (workspace, state) = (self.workspace as usize, Status::SUCCESS);
        Choice { algorithm: self, workspace, state, waves: 1.0, reserved: [0; 4] }
    }
}

fn choose(
    objects: &Objects,
    problem: Result<Problem, Status>,
    preferred: u64,
) -> Result<Algorithm, Status> {
    let problem = problem?;
    let attributes = objects.preferences.get(&preferred).ok_or(Status::INVALID_VALUE)?;
    let matrices = [problem.a.matrix, problem.b.matrix, problem.c, problem.d];
    let mut alignments = [0; 4];
    for (i, matrix) in matrices.iter().enumerate() {
        let alignment = attributes.get(preference::MIN_ALIGNMENT_A_BYTES + i as u32) as u32;
        if alignment < matrix.element.bytes() as u32 || !alignment.is_power_of_two() {
            let sentence = format!("{}: a minimum alignment of {alignment} bytes", matrix.name);
            return refuse(Status::INVALID_VALUE, &sentence);
        }
        alignments[i] = alignment;
    }
    let workspace = attributes.get(preference::MAX_WORKSPACE_BYTES).min(WORKSPACE);
    Ok(Algorithm { magic: MAGIC, alignments, workspace, unused: [0; 4] })
}

/// Gives one algorithm, always the same.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoGetHeuristic(
    handle: u64,
    operation: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    preference: u64,
    room: c_int,
    choices: Option<&mut Choice>,
    count: Option<&mut c_int>,
) -> Status {
    let (Some(choice), Some(count), true) = (choices, count, room > 0) else {
        return Status::INVALID_VALUE;
    };
    *count = 0;
    Status::of(with(|objects| {
        objects.check_context(handle)?;
        let problem = Problem::of(objects, operation, [a, b, c, d]);
        *choice = choose(objects, problem, preference)?.choice();
        *count = 1;
        Ok(())
    }))
}

/// Says whether an algorithm does for a product.
#[unsafe(no_mangle)]
pub extern "C" fn cublasLtMatmulAlgoCheck(
    handle: u64,
    operation: u64,
    a: u64,
    b: u64,
    c: u64,
    d: u64,
    algorithm: Option<&Algorithm>,
    choice: Option<&mut Choice>,
) -> Status {
    let (Some(algorithm), Some(choice)) = (algorithm, choice) else { return Status::INVALID_VALUE };
    Status::of(with(|objects| {
        objects.check_context(handle)?;
        Problem::of(objects, operation, [a, b, c, d])?;
        check_algorithm(algorithm)?;
        *choice = algorithm.choice();
        Ok(())
    }))
}

fn check_algorithm(algorithm: &Algorithm) -> Result<(), Status> {
    if algorithm.magic != MAGIC {
        return refuse(Status::INVALID_VALUE, "the algorithm is not one of this library");
    }
    Ok(())
}

/// D = alpha op(A) op(B) + beta C + bias, in a stream.
///
/// # Safety
/// alpha and beta point to an f32 each, on the host unless the descriptor says on the device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cublasLtMatmul(
    handle: u64,
    operation: u64,
    alpha: *const c_void,
    a: u64,
    a_layout: u64,
    b: u64,
    b_layout: u64,
    beta: *const c_void,
    c: u64,
    c_layout: u64,
    d: u64,
    d_layout: u64,
    algorithm: Option<&Algorithm>,
    workspace: u64,
    workspace_bytes: usize,
    stream: u64,
) -> Status {
    let problem = with(|objects| {
        objects.check_context(handle)?;
        Problem::of(objects, operation, [a_layout, b_layout, c_layout, d_layout])
    });
    Status::of(problem.and_then(|problem| {
        let addresses = [a, b, c, d];
        if alpha.is_null() || beta.is_null() {
            return refuse(Status::INVALID_VALUE, "alpha or beta is null");
        }
        let needed = check_relied_on(algorithm, addresses, workspace, workspace_bytes)?;
        let scalar = |at: *const c_void| match problem.scalars_on_device {
            true => Scalar::Device(at as u64),
            // SAFETY: the caller's promise; not null.
            false => Scalar::Value(unsafe { at.cast::<f32>().read_unaligned() }),
        };
        let (alpha, beta) = (scalar(alpha), scalar(beta));
        let workspace = (workspace, needed);
        driver()?.run(stream, Product { problem, alpha, beta, addresses, workspace })
    }))
}

/// Checks what the algorithm was chosen for, and gives the bytes of workspace it uses.
fn check_relied_on(
    algorithm: Option<&Algorithm>,
    addresses: [u64; 4],
    workspace: u64,
    workspace_bytes: usize,
) -> Result<usize, Status> {
    let Some(algorithm) = algorithm else { return Ok(0) };
    check_algorithm(algorithm)?;
    for ((name, address), alignment) in "ABCD".chars().zip(addresses).zip(algorithm.alignments) {
        if !address.is_multiple_of(alignment.into()) {
            let sentence = format!(
                "{name} lies at {address:#x}; the algorithm was chosen for addresses that are \
                 multiples of {alignment}"
            );
            return refuse(Status::INVALID_VALUE, &sentence);
        }
    }
    let needed = algorithm.workspace as usize;
    if workspace_bytes < needed || (needed > 0 && !workspace.is_multiple_of(16)) {
        let sentence = format!(
            "the algorithm needs a workspace of {needed} bytes, got {workspace_bytes} at \
             {workspace:#x}"
        );
        return refuse(Status::INVALID_VALUE, &sentence);
    }
    Ok(needed)
}

/// alpha or beta.
#[derive(Clone, Copy)]
enum Scalar {
    Value(f32),
    Device(u64),
}

/// A product in a stream or a graph.
struct Product {
    problem: Problem,
    alpha: Scalar,
    beta: Scalar,
    /// Of A, B, C, D.
    addresses: [u64; 4],
    /// Address and bytes.
    workspace: (u64, usize),
}

impl Work for Product {
    fn run(&self) -> Result<(), u32> {
        let driver = driver().map_err(|_| CUDA_INVALID_VALUE)?;
        let Problem { a, b, c, d, bias, .. } = self.problem;
        let alpha = self.alpha.value(driver)?;
        let beta = self.beta.value(driver)?;
        if d.rows == 0 || d.columns == 0 {
            return Ok(());
        }
        let (workspace, bytes) = self.workspace;
        if bytes > 0 {
            driver.range(workspace, bytes, Access::Write, c"the workspace of cublasLtMatmul")?;
        }
        for batch in 0..d.batches {
            let at = |matrix: &Matrix, which: usize, access| {
                lines(driver, matrix, self.addresses[which], batch, access)
            };
            let places = Places {
                a: at(&a.matrix, 0, Access::Read)?,
                b: at(&b.matrix, 1, Access::Read)?,
                // The manual: C is not read when beta is zero.
                c: if beta == 0.0 { None } else { Some(at(&c, 2, Access::Read)?.cast_const()) },
                bias: match bias {
                    Some((address, stride)) => {
                        let bytes = d.element.bytes();
                        let address = address.wrapping_add((batch * stride * bytes) as u64);
                        let what = c"the bias of cublasLtMatmul";
                        Some(
                            driver.range(address, d.rows * bytes, Access::Read, what)?.cast_const(),
                        )
                    }
                    None => None,
                },
                d: at(&d, 3, Access::Write)?,
            };
            // SAFETY: every line of every operand was checked just now; nothing else runs on the
            // device.
            unsafe { gemm::run(&self.problem, alpha, beta, &places) };
        }
        Ok(())
    }
}

impl Scalar {
    fn value(self, driver: &Driver) -> Result<f32, u32> {
        match self {
            Scalar::Value(value) => Ok(value),
            Scalar::Device(address) => {
                let what = c"alpha or beta of cublasLtMatmul";
                let at = driver.range(address, 4, Access::Read, what)?;
                // SAFETY: four bytes that were checked just now.
                Ok(unsafe { at.cast::<f32>().read_unaligned() })
            }
        }
    }
}

/// The host address of a batch of a matrix, every line of which is checked.
fn lines(
    driver: &Driver,
    matrix: &Matrix,
    address: u64,
    batch: usize,
    access: Access,
) -> Result<*mut u8, u32> {
    let Matrix { name, line, lines, ld, batch_stride, .. } = *matrix;
    let size = matrix.element.bytes();
    // Wrapped or not, the driver refuses what lies in no allocation.
    let start = address.wrapping_add((batch * batch_stride * size) as u64);
    if ld == line || lines == 1 {
        let what = CString::new(format!("{name} of cublasLtMatmul, batch {batch}"));
        return driver.range(start, line * lines * size, access, &what.unwrap_or_default());
    }
    let mut first = std::ptr::null_mut();
    for i in 0..lines {
        let what = CString::new(format!("{name} of cublasLtMatmul, batch {batch}, line {i}"));
        let at = start.wrapping_add((i * ld * size) as u64);
        let host = driver.range(at, line * size, access, &what.unwrap_or_default())?;
        if i == 0 {
            first = host;
        }
    }
    Ok(first)
}
