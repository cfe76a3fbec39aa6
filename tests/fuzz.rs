//! Every body of `fuzz/` on 10,000 seeded inputs: random bytes, and seeds that were damaged.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[path = "../fuzz/bodies/adapter.rs"]
mod adapter;
#[path = "../fuzz/bodies/checkpoint.rs"]
mod checkpoint;
#[path = "../fuzz/bodies/config.rs"]
mod config;
#[path = "../fuzz/bodies/decode.rs"]
mod decode;
#[path = "../fuzz/bodies/encode.rs"]
mod encode;
#[path = "../fuzz/bodies/picture.rs"]
mod picture;
#[path = "../fuzz/bodies/pictures_zip.rs"]
mod pictures_zip;
#[path = "../fuzz/bodies/records.rs"]
mod records;
#[path = "../fuzz/bodies/reference.rs"]
mod reference;
#[path = "../fuzz/bodies/safetensors.rs"]
mod safetensors;
#[path = "../fuzz/bodies/settings.rs"]
mod settings;
#[path = "../fuzz/bodies/shard.rs"]
mod shard;
#[path = "../fuzz/bodies/tiktoken.rs"]
mod tiktoken;
#[path = "../fuzz/bodies/tokenizer_json.rs"]
mod tokenizer_json;
#[path = "../fuzz/bodies/torch.rs"]
mod torch;

const INPUTS: u64 = 10_000;

/// Runs `body` on the seeds as they are, then on [`INPUTS`] inputs, one in four without a seed.
fn run(seeds: Vec<Vec<u8>>, body: fn(&[u8])) {
    seeds.iter().for_each(|seed| body(seed));
    for n in 0..INPUTS {
        let mut rng = ChaCha8Rng::seed_from_u64(n);
        let input = match n % 4 {
            0 => (0..rng.random_range(0..200)).map(|_| rng.random()).collect(),
            _ => damaged(&seeds, &mut rng),
        };
        body(&input);
    }
}

/// A seed after one to four changes: a byte, a stretch removed, repeated, overwritten by
/// a stretch of another seed, or the end cut off.
fn damaged(seeds: &[Vec<u8>], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut input = seeds[rng.random_range(0..seeds.len())].clone();
    for _ in 0..rng.random_range(1..5) {
        let start = rng.random_range(0..=input.len());
        let end = (start + rng.random_range(1..16)).min(input.len());
        match rng.random_range(0..6) {
            0 if start < end => input[start] = rng.random(),
            1 if start < end => input[start] ^= 1 << rng.random_range(0..8),
            2 => drop(input.drain(start..end)),
            3 => drop(input.splice(start..start, input[start..end].to_vec())),
            4 => {
                let other = &seeds[rng.random_range(0..seeds.len())];
                let from = rng.random_range(0..=other.len());
                let to = (from + rng.random_range(1..16)).min(other.len());
                input.splice(start..end, other[from..to].iter().copied());
            }
            _ if rng.random_ratio(1, 4) => input.truncate(start),
            _ => {}
        }
    }
    input
}

#[test]
fn decode_any_ids() {
    run(decode::seeds(), decode::run);
}

#[test]
fn encode_any_text() {
    run(encode::seeds(), encode::run);
}

#[test]
fn picture_of_any_content() {
    run(picture::seeds(), picture::run);
}

#[test]
fn pictures_zip_of_any_content() {
    run(pictures_zip::seeds(), pictures_zip::run);
}

#[test]
fn records_of_any_content() {
    run(records::seeds(), records::run);
}

#[test]
fn shard_of_any_content() {
    run(shard::seeds(), shard::run);
}

#[test]
fn tiktoken_of_any_content() {
    run(tiktoken::seeds(), tiktoken::run);
}

#[test]
fn tokenizer_json_of_any_content() {
    run(tokenizer_json::seeds(), tokenizer_json::run);
}

#[test]
fn adapter_config_of_any_content() {
    run(adapter::seeds(), adapter::run);
}

#[test]
fn safetensors_of_any_content() {
    run(safetensors::seeds(), safetensors::run);
}

#[test]
fn torch_file_of_any_content() {
    run(torch::seeds(), torch::run);
}

#[test]
fn config_json_of_any_content() {
    run(config::seeds(), config::run);
}

#[test]
fn checkpoint_of_any_content() {
    run(checkpoint::seeds(), checkpoint::run);
}

#[test]
fn reference_of_any_content() {
    run(reference::seeds(), reference::run);
}

#[test]
fn settings_of_any_content() {
    run(settings::seeds(), settings::run);
}
