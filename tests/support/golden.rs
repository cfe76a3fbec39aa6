//! One safetensors file of golden numbers.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

/// The bytes of the file; tensors are parsed out of them on demand.
pub struct Golden {
    path: String,
    bytes: Vec<u8>,
}

impl Golden {
    /// Reads the file whole.
    pub fn open(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { path: path.display().to_string(), bytes }
    }

    fn parse(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path))
    }

    /// All tensor names.
    pub fn names(&self) -> Vec<String> {
        self.parse().names().into_iter().map(str::to_owned).collect()
    }

    /// Shape and values of a float tensor (f32, bf16 or f16, widened).
    pub fn f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let file = self.parse();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path));
        let values = match tensor.dtype() {
            Dtype::F32 => each(tensor.data(), f32::from_le_bytes),
            Dtype::BF16 => each(tensor.data(), |b| half::bf16::from_le_bytes(b).to_f32()),
            Dtype::F16 => each(tensor.data(), |b| half::f16::from_le_bytes(b).to_f32()),
            other => panic!("{}: {name} is {other:?}", self.path),
        };
        (tensor.shape().to_vec(), values)
    }

    /// The values of a float tensor in f64.
    pub fn f64(&self, name: &str) -> Vec<f64> {
        self.f32(name).1.into_iter().map(f64::from).collect()
    }

    /// The values of an I64 tensor.
    pub fn i64(&self, name: &str) -> Vec<i64> {
        let file = self.parse();
        let tensor = file.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path));
        assert_eq!(tensor.dtype(), Dtype::I64, "{}: {name}", self.path);
        each(tensor.data(), i64::from_le_bytes)
    }
}

fn each<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let chunks = bytes.as_chunks::<N>().0;
    chunks.iter().map(|&c| value(c)).collect()
}
