//! Token-by-token generation with a key/value cache, in eval mode.
//!
//! Alpha of dynamic NTK is set by the prompt's length and kept while decoding; logn goes by absolute
//! position: what the original's `chat()` computes.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::data::pack::Pack;
use crate::device::Buffer;
use crate::error::{Error, Result};
use crate::model::workspace::{Budget, Purpose, Workspace};
use crate::model::{Images, Lora, Model, RopeMode};
use crate::ops::attention::Segment;
use crate::ops::rows;
use crate::ops::sampling::{self, Nucleus};
use crate::tensor::{Tensor, TensorMut};

/// Keys and values of one block, `[capacity, hidden]` each, filled from the front.
pub struct LayerCache {
    k: Buffer,
    v: Buffer,
    len: usize,
}

impl LayerCache {
    /// Appends rows of rotated keys and of values; returns all rows so far.
    pub fn append(&mut self, k: Tensor, v: Tensor) -> Result<(Tensor<'_>, Tensor<'_>)> {
        let range = self.len..self.len + k.rows();
        if range.end > self.k.rows() {
            let message = format!("{} tokens in a cache for {}", range.end, self.k.rows());
            return Err(Error::argument("model::generate", message));
        }
        rows::copy(k, self.k.view_mut().slice_rows(range.clone()))?;
        rows::copy(v, self.v.view_mut().slice_rows(range.clone()))?;
        self.len = range.end;
        Ok((self.k.head(self.len), self.v.head(self.len)))
    }
}

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The most likely token; the lowest id among equals.
    Greedy,
    /// From the smallest set of most likely tokens whose probability reaches `top_p`, at
    /// `temperature`; reproducible from `seed`.
    Nucleus {
        /// Divides the logits; > 0.
        temperature: f32,
        /// In (0, 1].
        top_p: f32,
        /// Of the random numbers.
        seed: u64,
    },
}

impl Sampling {
    /// A chooser of tokens; holds the random state.
    pub fn sampler(self) -> Sampler {
        let seed = if let Sampling::Nucleus { seed, .. } = self { seed } else { 0 };
        Sampler { sampling: self, rng: ChaCha8Rng::seed_from_u64(seed), weights: Vec::new() }
    }
}

/// Chooses tokens from logits.
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    weights: Vec<f32>,
}

impl Sampler {
    /// The next token for `logits` `[vocab]`. Errors: those of [`sampling`].
    pub fn choose(&mut self, logits: &[f32]) -> Result<u32> {
        let mut token = [0];
        let (logits, chosen) = (Tensor::vector(logits), TensorMut::column(&mut token));
        match self.sampling {
            Sampling::Greedy => sampling::greedy(logits, chosen)?,
            Sampling::Nucleus { temperature, top_p, .. } => {
                self.weights.resize(logits.cols(), 0.0);
                let weights = TensorMut::vector(&mut self.weights);
                let (nucleus, uniform) = (Nucleus { temperature, top_p }, [self.rng.random()]);
                let uniform = Tensor::vector::<f64>(&uniform);
                sampling::nucleus(logits, nucleus.view(), uniform, weights, chosen)?;
            }
        }
        Ok(token[0])
    }
}

/// A sequence being written: cache and buffers for up to a number of tokens.
pub struct Generator<'m> {
    model: &'m Model,
    ws: Workspace,
    layers: Vec<LayerCache>,
    logits: Buffer,
    lora: Lora,
    rope: RopeMode,
}

impl<'m> Generator<'m> {
    /// Room for `capacity` tokens, prompt included, of which the prompt has at most `prompt`, with at
    /// most `images` images.
    pub fn new(
        model: &'m Model,
        prompt: usize,
        images: usize,
        capacity: usize,
        lora: Lora,
    ) -> Self {
        let config = &model.config;
        let budget =
            Budget { tokens: prompt.max(1), images, head_rows: 1, purpose: Purpose::Score };
        let cache = || LayerCache {
            k: Buffer::f32(capacity, config.hidden_size),
            v: Buffer::f32(capacity, config.hidden_size),
            len: 0,
        };
        let mut ws = Workspace::new(model, budget);
        ws.tables.reserve(capacity);
        Generator {
            model,
            ws,
            layers: (0..config.num_hidden_layers).map(|_| cache()).collect(),
            logits: Buffer::f32(1, config.vocab_size),
            lora,
            rope: RopeMode::TRAIN,
        }
    }

    /// Starts a sequence with `prompt`, one trunk without branches; logits `[vocab]` of what follows.
    pub fn start(&mut self, prompt: &Pack, images: Images) -> Result<&[f32]> {
        if prompt.segments.len() != 1 {
            return Err(Error::argument("model::generate", "the prompt is not a single sequence"));
        }
        self.rope = RopeMode::eval(&self.model.config, prompt.tokens.len());
        self.layers.iter_mut().for_each(|layer| layer.len = 0);
        self.ws.load(self.model, prompt, images.count(), self.rope)?;
        self.advance(prompt, images)
    }

    /// Appends `token`; logits `[vocab]` of what follows.
    pub fn step(&mut self, token: u32) -> Result<&[f32]> {
        let position = self.len() as u32;
        let pack = Pack { tokens: vec![token], positions: vec![position], ..Pack::default() };
        self.ws.load(self.model, &pack, 0, self.rope)?;
        self.ws.tables.attend([Segment::all(0, 1, 0, self.len() + 1)]);
        self.advance(&pack, Images::Pixels(&[]))
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.len)
    }

    /// Whether nothing has been started.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn advance(&mut self, pack: &Pack, images: Images) -> Result<&[f32]> {
        let (model, t) = (self.model, pack.tokens.len());
        model.decode(&mut self.ws, pack, images, self.lora, Some(&mut self.layers))?;
        model.logits(&mut self.ws, &[t as u32 - 1], self.logits.view_mut())?;
        Ok(self.logits.view().elements())
    }

    /// Writes up to `max_new_tokens` after `prompt`, until one of `stop` or until `on_token` returns
    /// false; returns what was written, without the stop token.
    pub fn write(
        &mut self,
        prompt: &Pack,
        images: Images,
        sampler: &mut Sampler,
        max_new_tokens: usize,
        stop: &[u32],
        mut on_token: impl FnMut(u32) -> bool,
    ) -> Result<Vec<u32>> {
        let mut written = Vec::new();
        if max_new_tokens == 0 {
            return Ok(written);
        }
        let mut token = sampler.choose(self.start(prompt, images)?)?;
        while !stop.contains(&token) {
            written.push(token);
            if !on_token(token) || written.len() == max_new_tokens {
                break;
            }
            token = sampler.choose(self.step(token)?)?;
        }
        Ok(written)
    }
}
