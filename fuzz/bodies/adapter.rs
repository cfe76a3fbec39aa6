//! An `adapter_config.json` of any content.

use std::path::Path;

use silkie::model::adapter::LoraConfig;
use silkie::model::config::ModelConfig;
use silkie::model::init::{Changes, Preset};
use silkie::tensor::DType;

/// As PEFT writes it.
pub fn seeds() -> Vec<Vec<u8>> {
    let full = r#"{"bias":"none","fan_in_fan_out":false,"lora_alpha":16,"modules_to_save":null,"peft_type":"LORA","r":4,"target_modules":["c_attn","attn.c_proj","w1","w2"],"use_rslora":false}"#;
    let short = r#"{"r":8,"lora_alpha":0.5,"target_modules":["h.1.mlp.c_proj"]}"#;
    [full, short].map(|text| text.as_bytes().to_vec()).to_vec()
}

/// What it adapts are matrices of the decoder.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(lora) = LoraConfig::parse(Path::new("adapter_config.json"), text) else { return };
    for target in lora.targets(&model()).unwrap_or_default() {
        assert!(target.module.starts_with("transformer.h.") && target.rows * target.cols > 0);
    }
}

fn model() -> ModelConfig {
    let changes = Changes {
        vocab_size: None,
        image_start_id: None,
        layers: None,
        vision_layers: None,
        dtype: DType::F32,
    };
    Preset::Tiny.config(&changes).expect("valid")
}
