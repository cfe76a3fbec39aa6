//! Qwen-VL's chat template as the published training script fills it, the labels, and what is cut
//! when a sequence is too long. Source: the public `run_dpo.py` of VLFeedback/Silkie.
//!
//! ```text
//! trunk    <|im_start|>system\nYou are a helpful assistant.<|im_end|>\n
//!          <|im_start|>user\nPROMPT<|im_end|>\n
//! branch   <|im_start|>assistant\nANSWER<|im_end|>\n<|endoftext|>
//! scored        1      0         1       1       1      1
//! ```
//!
//! PROMPT is "Picture 1: `<img>`…`</img>`\n" for every picture, then the question, stripped. The
//! pieces are tokenised one by one: no token spans two of them. An answer is never stripped.

use crate::data::python;
use crate::data::tokenizer::{Encoded, Tokenizer};
use crate::error::{Error, Result};

/// Changes whenever ids or labels of the same record would: part of what shards are keyed by.
pub const VERSION: u32 = 1;

const SYSTEM: &str = "You are a helpful assistant.";

/// The user's turn: one "Picture N" line per name, then the stripped question. Shards keep
/// pictures apart from text, so their prompts have empty names: every image slot is `<imgpad>`.
pub fn prompt_text<S: AsRef<str>>(image_names: &[S], raw_prompt: &str) -> String {
    let lines = image_names.iter().zip(1..);
    let mut text: String =
        lines.map(|(name, n)| format!("Picture {n}: <img>{}</img>\n", name.as_ref())).collect();
    text.push_str(python::strip(raw_prompt));
    text
}

/// The trunk of a prompt made by [`prompt_text`]: system turn, user turn. Errors: as
/// [`Tokenizer::encode`].
pub fn trunk(tokenizer: &Tokenizer, prompt: &str) -> Result<Encoded> {
    let mut out = Encoded::default();
    turn(tokenizer, &mut out, "system", SYSTEM)?;
    turn(tokenizer, &mut out, "user", prompt)?;
    Ok(out)
}

/// The trunk of a question about `n_images` pictures, every image slot an `<imgpad>`.
///
/// Errors: as [`trunk`]; a question that holds an `<img>` span of its own.
pub fn trunk_of_pictures(tokenizer: &Tokenizer, n_images: usize, prompt: &str) -> Result<Encoded> {
    let out = trunk(tokenizer, &prompt_text(&vec![""; n_images], prompt))?;
    match out.images.len() == n_images {
        true => Ok(out),
        false => Err(Error::argument("template::trunk", "the prompt holds an <img> span")),
    }
}

/// What the model continues: the turns of `history` (query, answer) and `query`, open at the
/// assistant's. Errors: as [`Tokenizer::encode`].
pub fn generation_prompt<S: AsRef<str>>(
    tokenizer: &Tokenizer,
    history: &[(S, S)],
    query: &str,
) -> Result<Encoded> {
    let mut out = Encoded::default();
    turn(tokenizer, &mut out, "system", SYSTEM)?;
    for (query, answer) in history {
        turn(tokenizer, &mut out, "user", query.as_ref())?;
        turn(tokenizer, &mut out, "assistant", answer.as_ref())?;
    }
    turn(tokenizer, &mut out, "user", query)?;
    header(tokenizer, &mut out, "assistant")?;
    Ok(out)
}

fn turn(tokenizer: &Tokenizer, out: &mut Encoded, role: &str, content: &str) -> Result<()> {
    header(tokenizer, out, role)?;
    append(out, tokenizer.encode_with_images(content)?);
    out.tokens.push(tokenizer.specials().im_end);
    append(out, tokenizer.encode_with_images("\n")?);
    Ok(())
}

fn header(tokenizer: &Tokenizer, out: &mut Encoded, role: &str) -> Result<()> {
    out.tokens.push(tokenizer.specials().im_start);
    append(out, tokenizer.encode_with_images(role)?);
    append(out, tokenizer.encode_with_images("\n")?);
    Ok(())
}

fn append(out: &mut Encoded, piece: Encoded) {
    let before = out.tokens.len() as u32;
    out.images.extend(piece.images.iter().map(|at| at + before));
    out.tokens.extend(piece.tokens);
}

/// Which tokens of a branch count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scored {
    /// As the original: im_start, answer, im_end, the newline after it, endoftext.
    Template,
    /// The answer and im_end.
    Answer,
}

/// One response after the trunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// im_start … endoftext.
    pub tokens: Vec<u32>,
    /// For every token, whether its log-probability is part of log π(y|x).
    pub scored: Vec<bool>,
    /// Whether the end was cut off.
    pub trimmed: bool,
}

impl Branch {
    /// Cuts everything after `length` tokens.
    fn trim(&mut self, length: usize) {
        self.trimmed |= length < self.tokens.len();
        self.tokens.truncate(length);
        self.scored.truncate(length);
    }
}

/// The branch of `answer`, which may be empty. Errors: as [`Tokenizer::encode`]; an answer with
/// an `<img>` span.
pub fn branch(tokenizer: &Tokenizer, answer: &str, scored: Scored) -> Result<Branch> {
    let mut out = Encoded::default();
    header(tokenizer, &mut out, "assistant")?;
    let answer_at = out.tokens.len();
    append(&mut out, tokenizer.encode_with_images(answer)?);
    if !out.images.is_empty() {
        return Err(Error::argument("template::branch", "the answer holds an <img> span"));
    }
    let answer_end = out.tokens.len();
    out.tokens.push(tokenizer.specials().im_end);
    append(&mut out, tokenizer.encode_with_images("\n")?);
    out.tokens.push(tokenizer.specials().endoftext);
    let counts = |i: usize| match scored {
        Scored::Template => i == 0 || i >= answer_at,
        Scored::Answer => (answer_at..=answer_end).contains(&i),
    };
    let scored = (0..out.tokens.len()).map(counts).collect();
    Ok(Branch { tokens: out.tokens, scored, trimmed: false })
}

/// The original's attention mask of trunk and branch: false where `<|endoftext|>` stands inside
/// prompt or answer, true on the appended one. Packs attend everywhere, so a record for which
/// this is not all true does not reproduce the original's numbers.
pub fn attended(tokenizer: &Tokenizer, trunk: &[u32], branch: &Branch) -> Vec<bool> {
    let endoftext = tokenizer.specials().endoftext;
    let tokens = trunk.iter().chain(&branch.tokens);
    let mut mask: Vec<bool> = tokens.map(|&id| id != endoftext).collect();
    if let Some(last) = mask.last_mut().filter(|_| !branch.trimmed) {
        *last = true;
    }
    mask
}

/// What is cut from a record whose longest path, trunk + branch, exceeds `max_length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncation {
    /// Neither the system turn nor an image is ever cut. The question keeps its last tokens, so
    /// many that the trunk fits `max_prompt_length` (or what the longest branch leaves, if that
    /// is more); then responses keep their first tokens.
    KeepImage,
    /// A record that is too long is an error.
    Drop,
    /// The rule of `run_dpo.py`: the trunk keeps its last `max_prompt_length` tokens, and images
    /// may go; if that is not enough, every branch keeps its first
    /// `max_length - max_prompt_length`. The original looks at each pair by itself; a tree has
    /// one trunk, so here the record's longest branch decides for all of them.
    Published,
}

/// Lengths in tokens, and the rule that holds them. The published run: 2048 and 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of trunk + branch.
    pub max_length: usize,
    /// Of a trunk that must be cut.
    pub max_prompt_length: usize,
    /// What to cut.
    pub truncation: Truncation,
}

/// What [`fit`] did to a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Tokens taken from the trunk.
    pub prompt_tokens: usize,
    /// Responses that lost their end.
    pub trimmed_responses: usize,
    /// Images whose span was cut away, whole or in part ([`Truncation::Published`] only).
    pub images_gone: usize,
}

/// Cuts `trunk` and `branches` to `limits`. Images that are gone leave `trunk.images`.
///
/// Errors: limits that leave no room for a response; a record that does not fit
/// ([`Truncation::Drop`]), or whose images alone exceed the trunk's share
/// ([`Truncation::KeepImage`]); a response of which no scored token is left.
pub fn fit(
    tokenizer: &Tokenizer,
    trunk: &mut Encoded,
    branches: &mut [Branch],
    limits: Limits,
) -> Result<Cuts> {
    let Limits { max_length, max_prompt_length, truncation } = limits;
    let fail = |message: String| Err(Error::argument("template::fit", message));
    if max_prompt_length >= max_length {
        return fail(format!(
            "max_prompt_length {max_prompt_length}, max_length {max_length}: expected less"
        ));
    }
    let longest = branches.iter().map(|b| b.tokens.len()).max().unwrap_or_default();
    let length = trunk.tokens.len();
    let mut cuts = Cuts::default();
    if length + longest <= max_length {
        return Ok(cuts);
    }
    let room = match truncation {
        Truncation::Drop => {
            return fail(format!("{} tokens, at most {max_length}", length + longest));
        }
        Truncation::Published => {
            let cut = length.saturating_sub(max_prompt_length);
            cuts.images_gone = cut_front(trunk, 0, cut);
            cuts.prompt_tokens = cut;
            match trunk.tokens.len() + longest > max_length {
                true => max_length - max_prompt_length,
                false => longest,
            }
        }
        Truncation::KeepImage => {
            let budget = max_prompt_length.max(max_length.saturating_sub(longest));
            let cut = length.saturating_sub(budget);
            let from = question_start(tokenizer, trunk)?;
            // The turn's end, im_end and the newline's tokens, stays as well.
            let tail = 1 + tokenizer.encode_ordinary("\n")?.len();
            if from + tail + cut > length {
                let fixed = from + tail;
                return fail(format!("the images alone take {fixed} of {budget} prompt tokens"));
            }
            cut_front(trunk, from, cut);
            cuts.prompt_tokens = cut;
            max_length - trunk.tokens.len()
        }
    };
    for branch in branches {
        branch.trim(room);
        cuts.trimmed_responses += usize::from(branch.trimmed);
        if !branch.scored.contains(&true) {
            return fail(format!("no scored token is left of a response cut to {room} tokens"));
        }
    }
    Ok(cuts)
}

/// Where the part of the user's turn begins that may be cut: behind the last image, or behind the
/// turn's header.
fn question_start(tokenizer: &Tokenizer, trunk: &Encoded) -> Result<usize> {
    if let Some(&last) = trunk.images.last() {
        return Ok(last as usize + tokenizer.n_image_slots() + 1);
    }
    let mut head = Encoded::default();
    turn(tokenizer, &mut head, "system", SYSTEM)?;
    header(tokenizer, &mut head, "user")?;
    Ok(head.tokens.len())
}

/// Removes `count` tokens at `from`. Returns how many images lost their span's first token.
fn cut_front(trunk: &mut Encoded, from: usize, count: usize) -> usize {
    trunk.tokens.drain(from..from + count);
    let images = trunk.images.len();
    let end = from + count;
    trunk.images.retain(|&at| (at as usize) <= from || at as usize > end);
    for at in trunk.images.iter_mut().filter(|at| **at as usize > from) {
        *at -= count as u32;
    }
    images - trunk.images.len()
}
