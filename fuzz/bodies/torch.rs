//! A `pytorch_model.bin` of any content.

use std::path::Path;

use silkie::model::weights::torch;

/// A file that torch made.
pub fn seeds() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../tests/model/fixtures/torch.bin").to_vec()]
}

/// Every tensor has the bytes that its shape and dtype need, aligned.
pub fn run(input: &[u8]) {
    let Ok(tensors) = torch::from_bytes(Path::new("pytorch_model.bin"), input) else { return };
    for tensor in tensors {
        let elements: usize = tensor.shape().iter().product();
        assert_eq!(tensor.bytes().len(), elements * tensor.dtype().size());
        assert_eq!(tensor.to_f32().len(), elements);
    }
}
