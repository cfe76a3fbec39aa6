//! A `config.json` of any content.

use silkie::model::config::ModelConfig;
use silkie::model::init::{Changes, Preset};
use silkie::model::names;
use silkie::tensor::DType;

/// The presets' files.
pub fn seeds() -> Vec<Vec<u8>> {
    let unchanged = Changes {
        vocab_size: None,
        image_start_id: None,
        layers: None,
        vision_layers: None,
        dtype: DType::F32,
    };
    let text = |preset: Preset| preset.config(&unchanged).expect("valid").to_json().into_bytes();
    [Preset::Tiny, Preset::Small, Preset::QwenVlChat].map(text).to_vec()
}

/// What is accepted has divisions without remainder and sizes that can be added up.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(config) = ModelConfig::parse("config.json", text) else { return };
    assert_eq!(config.head_dim * config.num_attention_heads, config.hidden_size);
    assert_eq!(config.visual.head_dim() * config.visual.heads, config.visual.width);
    assert_eq!(config.visual.grid() * config.visual.patch_size, config.visual.image_size);
    let mut elements = 0usize;
    for spec in names::tensors(&config) {
        let product = spec.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let total = product.and_then(|n| elements.checked_add(n));
        elements = total.expect("all sizes fit");
    }
    assert_eq!(ModelConfig::parse("config.json", &config.to_json()).expect("as written"), config);
}
