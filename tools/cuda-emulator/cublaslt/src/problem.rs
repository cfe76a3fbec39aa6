//! A product as its descriptors say it, checked.

use crate::attributes::Attributes;
use crate::element::Element;
use crate::objects::{Objects, layout, product};
use crate::status::{Status, refuse};

/// A matrix in memory. Element (i, j) lies `i * row_stride + j * column_stride` elements after the
/// first.
#[derive(Clone, Copy, Debug)]
pub struct Matrix {
    pub name: char,
    pub element: Element,
    pub rows: usize,
    pub columns: usize,
    /// Elements that lie next to each other: a column, or with ORDER_ROW a row.
    pub line: usize,
    pub lines: usize,
    /// Elements from one line to the next.
    pub ld: usize,
    is_row_major: bool,
    pub batches: usize,
    /// Elements from one batch to the next.
    pub batch_stride: usize,
}

impl Matrix {
    fn of(name: char, attributes: &Attributes) -> Result<Self, Status> {
        let invalid = |what: String| refuse(Status::INVALID_VALUE, &format!("{name}: {what}"));
        let get = |number| attributes.get(number);
        let element = Element::of(get(layout::TYPE), &name.to_string())?;
        let (rows, columns) = (get(layout::ROWS), get(layout::COLS));
        let is_row_major = match get(layout::ORDER) {
            0 => false,
            1 => true,
            order => {
                let sentence = format!("{name} has order {order}; columns and rows are emulated");
                return refuse(Status::NOT_SUPPORTED, &sentence);
            }
        };
        let (line, lines) = if is_row_major { (columns, rows) } else { (rows, columns) };
        let (ld, batch_stride) = (get(layout::LD) as i64, get(layout::STRIDED_BATCH_OFFSET) as i64);
        let batches = get(layout::BATCH_COUNT) as i32;
        if ld < 0 || (ld as u64) < line {
            return invalid(format!("leading dimension {ld} of lines of {line} elements"));
        }
        if batches < 1 || batch_stride < 0 {
            return invalid(format!("{batches} batches, {batch_stride} elements apart"));
        }
        let elements = (ld as u128 * lines as u128) + batch_stride as u128 * batches as u128;
        if elements > 1 << 48 {
            return invalid(format!("{elements} elements"));
        }
        let [rows, columns, line, lines] = [rows, columns, line, lines].map(|size| size as usize);
        let (ld, batches, batch_stride) = (ld as usize, batches as usize, batch_stride as usize);
        Ok(Matrix {
            name,
            element,
            rows,
            columns,
            line,
            lines,
            ld,
            is_row_major,
            batches,
            batch_stride,
        })
    }

    /// Elements between neighbours in a column and in a row.
    pub fn strides(&self) -> (usize, usize) {
        if self.is_row_major { (self.ld, 1) } else { (1, self.ld) }
    }
}

/// An operand, or its transpose.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    pub matrix: Matrix,
    pub is_transposed: bool,
}

impl Operand {
    pub fn rows(&self) -> usize {
        if self.is_transposed { self.matrix.columns } else { self.matrix.rows }
    }

    pub fn columns(&self) -> usize {
        if self.is_transposed { self.matrix.rows } else { self.matrix.columns }
    }

    pub fn strides(&self) -> (usize, usize) {
        let (row, column) = self.matrix.strides();
        if self.is_transposed { (column, row) } else { (row, column) }
    }
}

/// D = alpha op(A) op(B) + beta C + bias
#[derive(Clone, Copy, Debug)]
pub struct Problem {
    pub a: Operand,
    pub b: Operand,
    pub c: Matrix,
    pub d: Matrix,
    /// Address of as many elements as D has rows, of D's type; and elements from one batch's to the
    /// next's.
    pub bias: Option<(u64, usize)>,
    /// alpha and beta are device addresses.
    pub scalars_on_device: bool,
}

/// CUBLAS_COMPUTE_32F, _PEDANTIC, _FAST_16F, _FAST_16BF, _FAST_TF32: all are f32 here.
const COMPUTE_F32: [u64; 5] = [68, 69, 74, 75, 77];

impl Problem {
    /// Reads the descriptors. Errors: what is not emulated, and what does not fit together.
    pub fn of(objects: &Objects, operation: u64, [a, b, c, d]: [u64; 4]) -> Result<Self, Status> {
        let operation = objects.products.get(&operation).ok_or(Status::INVALID_VALUE)?;
        let matrix = |name, handle: u64| {
            Matrix::of(name, objects.layouts.get(&handle).ok_or(Status::INVALID_VALUE)?)
        };
        let operand = |name, handle, attribute| {
            let is_transposed = match operation.get(attribute) {
                0 => false,
                // Conjugation changes no real number.
                1 | 2 => true,
                _ => return Err(Status::INVALID_VALUE),
            };
            Ok(Operand { matrix: matrix(name, handle)?, is_transposed })
        };
        let problem = Problem {
            a: operand('A', a, product::TRANSA)?,
            b: operand('B', b, product::TRANSB)?,
            c: matrix('C', c)?,
            d: matrix('D', d)?,
            bias: bias(operation)?,
            scalars_on_device: operation.get(product::POINTER_MODE) == 1,
        };
        problem.check_types(operation)?;
        problem.check_shapes()?;
        Ok(problem)
    }

    fn check_types(&self, operation: &Attributes) -> Result<(), Status> {
        let unsupported = |sentence: &str| refuse(Status::NOT_SUPPORTED, sentence);
        let compute = operation.get(product::COMPUTE_TYPE);
        if !COMPUTE_F32.contains(&compute) {
            return unsupported(&format!("compute type {compute}; CUBLAS_COMPUTE_32F is emulated"));
        }
        if operation.get(product::SCALE_TYPE) != Element::F32 as u64 {
            return unsupported("alpha and beta that are not f32");
        }
        if operation.get(product::POINTER_MODE) > 1 || operation.get(product::TRANSC) != 0 {
            return unsupported("a vector of alphas, or a transposed C");
        }
        let [a, b, c, d] =
            [self.a.matrix, self.b.matrix, self.c, self.d].map(|matrix| matrix.element);
        if a != b || c != d || (d != a && d != Element::F32) {
            return unsupported(&format!("A {a:?}, B {b:?}, C {c:?}, D {d:?}"));
        }
        let bias_type = operation.get(product::BIAS_DATA_TYPE);
        if self.bias.is_some() && bias_type != product::SAME_TYPE && bias_type != d as u64 {
            return unsupported("a bias of another type than D");
        }
        Ok(())
    }

    fn check_shapes(&self) -> Result<(), Status> {
        let Problem { a, b, c, d, .. } = self;
        let fits = a.columns() == b.rows()
            && (a.rows(), b.columns()) == (d.rows, d.columns)
            && (c.rows, c.columns) == (d.rows, d.columns);
        if !fits {
            let sentence = format!(
                "op(A) is {} x {}, op(B) {} x {}, C {} x {}, D {} x {}",
                a.rows(),
                a.columns(),
                b.rows(),
                b.columns(),
                c.rows,
                c.columns,
                d.rows,
                d.columns
            );
            return refuse(Status::INVALID_VALUE, &sentence);
        }
        if [a.matrix, b.matrix, *c].iter().any(|matrix| matrix.batches != d.batches) {
            return refuse(Status::INVALID_VALUE, "A, B, C and D differ in batches");
        }
        Ok(())
    }
}

fn bias(operation: &Attributes) -> Result<Option<(u64, usize)>, Status> {
    match operation.get(product::EPILOGUE) {
        product::EPILOGUE_DEFAULT => Ok(None),
        product::EPILOGUE_BIAS => {
            let stride = operation.get(product::BIAS_BATCH_STRIDE) as usize;
            Ok(Some((operation.get(product::BIAS_POINTER), stride)))
        }
        epilogue => refuse(
            Status::NOT_SUPPORTED,
            &format!("epilogue {epilogue}; CUBLASLT_EPILOGUE_DEFAULT and _BIAS are emulated"),
        ),
    }
}
