//! A `model.safetensors` of any content.

use std::path::Path;

use silkie::model::weights::safetensors;

/// Three tensors, one of each dtype.
pub fn seeds() -> Vec<Vec<u8>> {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"c":{"dtype":"F16","shape":[],"data_offsets":[14,16]}}"#;
    vec![[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; 16]].concat()]
}

/// Every tensor has the bytes that its shape and dtype need, aligned.
pub fn run(input: &[u8]) {
    let Ok(tensors) = safetensors::from_bytes(Path::new("model.safetensors"), input) else {
        return;
    };
    for tensor in tensors {
        let elements: usize = tensor.shape().iter().product();
        assert_eq!(tensor.bytes().len(), elements * tensor.dtype().size());
        assert_eq!(tensor.to_f32().len(), elements);
    }
}
