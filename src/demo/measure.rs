//! What is measured before and after: rankings of the held-out records, and the answers the model
//! gives when it is asked.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::files::Example;
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
use crate::train::score::{self, Options};

/// Longest answer, in tokens; the longest true one has about twenty.
const MAX_NEW_TOKENS: usize = 32;
/// Tokens of a scoring pack.
const TOKEN_BUDGET: usize = 4096;
/// Factor of rewards, as in the training runs.
const BETA: f64 = 0.1;

/// A model, perhaps with an adapter, and where its held-out data lie.
pub struct Subject<'a> {
    /// HF directory.
    pub model: &'a Path,
    /// Its adapter.
    pub adapter: Option<PathBuf>,
    /// Shards of the held-out records.
    pub held_out: &'a Path,
    /// Shards of the same records with blank pictures.
    pub blank: &'a Path,
}

impl Subject<'_> {
    /// Its scores, and its greedy answers to the questions of `asked`. `tick` is called after every
    /// record and every answer.
    pub fn measure(
        &self,
        asked: &[Example],
        stop: &dyn Fn() -> bool,
        tick: &mut dyn FnMut(),
    ) -> Result<(Scores, Vec<String>)> {
        let mut scored = |data: &Path| {
            let options = Options {
                model: self.model.into(),
                adapter: self.adapter.clone(),
                data: data.into(),
                beta: BETA,
                token_budget: TOKEN_BUDGET,
            };
            score::run(&options, stop, |_, _| {
                tick();
                Ok(())
            })
        };
        let (held_out, blank) = (scored(self.held_out)?, scored(self.blank)?);
        let answers = self.answers(asked, stop, tick)?;
        let faithful =
            asked.iter().zip(&answers).filter(|(e, text)| e.wrong_facts(text) == Some(0));
        let scores = Scores {
            ranking_accuracy: held_out.ranking_accuracy,
            // Without an adapter the model is its own reference: every pair is a tie.
            reward_accuracy: held_out.reward_accuracy.unwrap_or(0.5),
            reward_margin: held_out.margin.unwrap_or(0.0),
            faithful: faithful.count() as f64 / asked.len().max(1) as f64,
            blank_accuracy: blank.ranking_accuracy,
        };
        Ok((scores, answers))
    }

    /// Greedy answers.
    fn answers(
        &self,
        asked: &[Example],
        stop: &dyn Fn() -> bool,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<String>> {
        let config = ModelConfig::read(self.model)?;
        let tokenizer = Tokenizer::open(self.model, config.visual.n_queries)?;
        let adapter = self.adapter.as_ref().map(|dir| Adapter::open(dir, &config)).transpose()?;
        let model = Model::with_config(self.model, config, Trainable::None, adapter.as_ref())?;
        let prompts = asked.iter().map(|example| prompt(&tokenizer, &example.question.text()));
        let prompts = prompts.collect::<Result<Vec<Pack>>>()?;
        let longest = prompts.iter().map(|pack| pack.tokens.len()).max().unwrap_or(1);
        let mut generator = Generator::new(&model, longest, 1, longest + MAX_NEW_TOKENS, Lora::On);
        let specials = tokenizer.specials();
        let ends = [specials.im_end, specials.endoftext];
        let mut answers = Vec::with_capacity(asked.len());
        for (prompt, example) in prompts.iter().zip(asked) {
            if stop() {
                return Err(Error::Interrupted("stopped; run the same command again".into()));
            }
            let picture = [Tensor::vector(&example.pixels)];
            let (picture, mut greedy) = (Images::Pixels(&picture), Sampling::Greedy.sampler());
            let limit = MAX_NEW_TOKENS;
            let tokens = generator.write(prompt, picture, &mut greedy, limit, &ends, |_| true)?;
            // the model's table has more rows than the tokenizer has words: those say nothing
            let bytes = tokens.iter().filter(|&&id| !tokenizer.is_special(id));
            let bytes = bytes.flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default());
            let bytes: Vec<u8> = bytes.copied().collect();
            answers.push(String::from_utf8_lossy(&bytes).into_owned());
            tick();
        }
        Ok(answers)
    }
}

/// One picture and a question, up to where the answer starts.
fn prompt(tokenizer: &Tokenizer, question: &str) -> Result<Pack> {
    let text = template::prompt_text(&[""], question);
    let prompt = template::generation_prompt::<&str>(tokenizer, &[], &text)?;
    let images = prompt.images.iter().map(|&at| (at, ImageRef(0))).collect();
    let (branches, pairs) = (Vec::new(), Vec::new());
    let tree = TreeView { record: 0, trunk: &prompt.tokens, images, branches, pairs };
    Pack::build(&[tree], tokenizer.n_image_slots(), Layout::Tree)
}

/// How a model does on the held-out records.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of pairs with log pi(chosen) > log pi(rejected); ties count one half.
    pub ranking_accuracy: f64,
    /// Share of pairs whose chosen answer has the higher reward; ties count one half.
    pub reward_accuracy: f64,
    /// Mean of chosen minus rejected reward.
    pub reward_margin: f64,
    /// Share of greedy answers that state exactly what was asked, and all of it right.
    pub faithful: f64,
    /// `ranking_accuracy` with blank pictures in the place of the true ones.
    pub blank_accuracy: f64,
}

/// A row of the table of scores.
pub struct Row {
    /// Its name.
    pub name: &'static str,
    /// What it means, in a sentence without a full stop.
    pub meaning: &'static str,
    value: fn(&Scores) -> f64,
    is_share: bool,
}

impl Row {
    /// The value of `scores` in this row: a percentage, or nats for the margin.
    pub fn text(&self, scores: &Scores) -> String {
        let value = (self.value)(scores);
        if self.is_share { format!("{:.1} %", 100.0 * value) } else { format!("{value:.2}") }
    }
}

impl Scores {
    /// The rows of the table.
    pub const ROWS: [Row; 5] = [
        Row {
            name: "ranking accuracy",
            meaning: "the better answer of a pair has the higher log-probability",
            value: |scores| scores.ranking_accuracy,
            is_share: true,
        },
        Row {
            name: "reward accuracy",
            meaning: "the better answer has gained more over the model before; ties count half",
            value: |scores| scores.reward_accuracy,
            is_share: true,
        },
        Row {
            name: "reward margin",
            meaning: "by how much, times beta",
            value: |scores| scores.reward_margin,
            is_share: false,
        },
        Row {
            name: "faithful answers",
            meaning: "greedy answers that state what was asked and nothing wrong",
            value: |scores| scores.faithful,
            is_share: true,
        },
        Row {
            name: "blank pictures",
            meaning: "ranking accuracy when the pictures are taken away: chance, or the answers \
                      would give themselves away",
            value: |scores| scores.blank_accuracy,
            is_share: true,
        },
    ];
}
