//! A sidecar of reference log-probabilities, of any content.

use std::path::Path;

use silkie::train::reference::parse;
use xxhash_rust::xxh3::xxh3_64;

/// Two branches, and none.
pub fn seeds() -> Vec<Vec<u8>> {
    let seed = |values: &[f64]| {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let (branches, checksum) = (values.len(), xxh3_64(&data));
        let header = format!(
            "{{\"silkie_reference\":1,\"key\":{{\"data\":\"a\",\"base\":\"b\",\"device\":\"cpu\",\
             \"dtype\":\"f32\",\"template\":\"c\",\"truncation\":\"d\"}},\"branches\":{branches},\
             \"checksum\":\"{checksum:016x}\"}}\n"
        );
        [header.into_bytes(), data].concat()
    };
    vec![seed(&[-3.5, f64::NAN]), seed(&[])]
}

/// What is accepted is as long as its data.
pub fn run(input: &[u8]) {
    if let Ok((_, values)) = parse(Path::new("reference.sidecar"), input) {
        assert!(values.len() * 8 < input.len());
    }
}
