//! `silkie generate`: an answer to a question about pictures, streamed as it is written.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::data::image;
use crate::data::pack::{ImageRef, Layout, Pack, TreeView};
use crate::data::template;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::generate::{Generator, Sampling};
use crate::model::params::Trainable;
use crate::model::{Images, Lora, Model};
use crate::tensor::Tensor;

/// Answer a question about pictures.
///
/// The prompt gets the chat template of Qwen-VL-Chat; each --image becomes one "Picture N" line. The
/// answer streams to stdout. Greedy unless --temperature is given.
#[derive(Args)]
pub struct Generate {
    /// Model: an HF directory of Qwen-VL-Chat's layout
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// PEFT adapter to put on it
    #[arg(long, value_name = "DIR")]
    adapter: Option<PathBuf>,
    /// Picture; may be given several times, or not at all
    #[arg(long = "image", value_name = "FILE")]
    images: Vec<PathBuf>,
    /// Question
    #[arg(long, value_name = "TEXT")]
    prompt: String,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_new_tokens: usize,
    /// Sample at this temperature instead of taking the most likely token
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Sample from the most likely tokens that reach this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Seed of sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
}

impl Generate {
    /// Runs the command.
    pub fn run(self) -> Result<()> {
        let sampling = self.sampling()?;
        let config = ModelConfig::read(&self.model)?;
        let tokenizer = Tokenizer::open(&self.model, config.visual.n_queries)?;
        let prompt = self.prompt_pack(&tokenizer)?;
        if let Some(&id) = prompt.tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
            let message = format!(
                "token {id} of the prompt is beyond vocab_size {}; the tokenizer is of another model",
                config.vocab_size
            );
            return Err(Error::file(self.model.join("config.json"), "", message));
        }
        let size = config.visual.image_size;
        let pixels =
            self.images.iter().map(|path| image::load(path, size)).collect::<Result<Vec<_>>>()?;
        let pixels: Vec<_> = pixels.iter().map(|pixels| Tensor::vector(pixels)).collect();

        let adapter = self.adapter.as_ref().map(|dir| Adapter::open(dir, &config)).transpose()?;
        let model = Model::with_config(&self.model, config, Trainable::None, adapter.as_ref())?;
        let capacity = prompt.tokens.len().saturating_add(self.max_new_tokens);
        let mut generator =
            Generator::new(&model, prompt.tokens.len(), pixels.len(), capacity, Lora::On);
        let specials = tokenizer.specials();
        let mut text = Utf8Stream::default();
        let mut on_token = |token| {
            text.push(tokenizer.token_bytes(token).unwrap_or_default());
            std::io::stdout().write_all(text.take().as_bytes()).is_ok()
                && std::io::stdout().flush().is_ok()
        };
        generator.write(
            &prompt,
            Images::Pixels(&pixels),
            &mut sampling.sampler(),
            self.max_new_tokens,
            &[specials.im_end, specials.endoftext],
            &mut on_token,
        )?;
        println!("{}", text.finish());
        Ok(())
    }

    fn sampling(&self) -> Result<Sampling> {
        let Some(temperature) = self.temperature else { return Ok(Sampling::Greedy) };
        if !(temperature.is_finite() && temperature > 0.0) {
            let message = format!("--temperature {temperature}: expected a number above 0");
            return Err(Error::Usage(message + "; leave it out for the most likely tokens"));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::Usage(format!(
                "--top-p {}: expected above 0, at most 1",
                self.top_p
            )));
        }
        Ok(Sampling::Nucleus { temperature, top_p: self.top_p, seed: self.seed })
    }

    /// The open assistant turn as one sequence.
    fn prompt_pack(&self, tokenizer: &Tokenizer) -> Result<Pack> {
        let names = vec![""; self.images.len()];
        let text = template::prompt_text(&names, &self.prompt);
        let prompt = template::generation_prompt::<&str>(tokenizer, &[], &text)?;
        if prompt.images.len() != self.images.len() {
            let message = "--prompt: holds an <img> span; pass pictures with --image";
            return Err(Error::Usage(message.to_string()));
        }
        let images = prompt.images.iter().zip(0..).map(|(&at, i)| (at, ImageRef(i))).collect();
        let (branches, pairs) = (Vec::new(), Vec::new());
        let tree = TreeView { record: 0, trunk: &prompt.tokens, images, branches, pairs };
        Pack::build(&[tree], tokenizer.n_image_slots(), Layout::Tree)
    }
}

/// Bytes of tokens in, whole characters out.
#[derive(Default)]
struct Utf8Stream {
    bytes: Vec<u8>,
}

impl Utf8Stream {
    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What is complete so far; invalid bytes become U+FFFD.
    fn take(&mut self) -> String {
        let mut text = String::new();
        let mut used = 0;
        for chunk in self.bytes.utf8_chunks() {
            let open = used + chunk.valid().len() + chunk.invalid().len() == self.bytes.len()
                && std::str::from_utf8(&self.bytes[used..]).is_err_and(|e| e.error_len().is_none());
            text.push_str(chunk.valid());
            used += chunk.valid().len();
            if open {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                used += chunk.invalid().len();
            }
        }
        self.bytes.drain(..used);
        text
    }

    /// What is left at the end.
    fn finish(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_split_over_tokens_come_out_whole() {
        let mut stream = Utf8Stream::default();
        let mut out = String::new();
        for bytes in [&b"a\xe5"[..], b"\x9b", b"\xbe\xff", b"b\xf0\x9f"] {
            stream.push(bytes);
            out += &stream.take();
        }
        assert_eq!(out + &stream.finish(), "a图\u{fffd}b\u{fffd}");
    }
}
