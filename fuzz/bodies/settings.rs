//! A `silkie.toml`, of any content.

use std::path::Path;

use silkie::train::config::Settings;

/// The published recipe, and settings of every type.
pub fn seeds() -> Vec<Vec<u8>> {
    let odd = "model = 'm'\ndata = 'd'\nout = 'o'\nsteps = 3\nlr-scale = ['conv1=0.3']\n\
               lora-targets = [\"w1\"]\nloss = 'simpo'\nreference-free = true\nbeta = 1e-1\n";
    [include_str!("../../examples/silkie-recipe.toml"), odd]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
}

/// What resolves can be saved, and reads back as the same configuration.
pub fn run(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let Ok(settings) = Settings::parse(Path::new("silkie.toml"), &text) else { return };
    let Ok(config) = settings.resolve() else { return };
    let again = Settings::parse(Path::new("config.toml"), &config.to_toml());
    assert_eq!(again.and_then(Settings::resolve).expect("a saved configuration"), config);
}
