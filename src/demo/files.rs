//! The world on disk, as a user's files would be: pictures in a zip, captions as SFT JSONL,
//! answers with ratings as VLFeedback records.

use std::io::{Cursor, Write};
use std::path::Path;

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rand::seq::SliceRandom;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Value, json};

use super::talk::{self, Claim, Question, WORDINGS};
use super::world::{Arrangement, IMAGE_SIZE, Pixels, Pool, Split, paint};
use crate::data::atomic;
use crate::error::{Error, Result};

/// The names of the files of a world.
pub mod names {
    /// Every picture, as PNG.
    pub const PICTURES: &str = "pictures.zip";
    /// SFT JSONL: a caption of every training picture.
    pub const CAPTIONS: &str = "captions.jsonl";
    /// VLFeedback records on the training pictures.
    pub const TRAIN: &str = "preferences.jsonl";
    /// VLFeedback records on pictures of held-out arrangements.
    pub const HELD_OUT: &str = "held-out.jsonl";
    /// The held-out records with blank pictures in the place of theirs.
    pub const BLANK: &str = "blank.jsonl";
}

/// How much of everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    /// Training pictures, each with one caption.
    pub pictures: usize,
    /// Questions about every training picture, each a record.
    pub questions: usize,
    /// Held-out pictures, each with one record; as many blank ones.
    pub held_out: usize,
}

/// A picture with a question about it and four graded answers.
pub struct Example {
    /// Its file name in the zip, and `img_path` in the record.
    pub image: String,
    /// RGB bytes.
    pub pixels: Pixels,
    /// What it shows.
    pub arrangement: Arrangement,
    /// What is asked.
    pub question: Question,
    /// The answers, in the order of the file.
    pub answers: Vec<Answer>,
}

/// One of the four answers.
pub struct Answer {
    /// Its text.
    pub text: String,
    /// How many of its facts are wrong.
    pub wrong: usize,
}

/// Everything the files say.
pub struct World {
    /// Questions about arrangements to learn from; all about one picture stand together.
    pub train: Vec<Example>,
    /// Questions about arrangements never seen in training.
    pub held_out: Vec<Example>,
    captions: Vec<Value>,
    blanks: Vec<Pixels>,
}

impl World {
    /// The world of this seed.
    pub fn make(seed: u64, sizes: &Sizes) -> World {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let split = Split::draw(&mut rng);
        let mut examples = |pool: &Pool, folder: &str, pictures: usize, questions: usize| {
            let mut examples = Vec::with_capacity(pictures * questions);
            for i in 0..pictures {
                let arrangement = pool.draw(&mut rng);
                let pixels = paint(&arrangement, &mut rng);
                for _ in 0..questions {
                    let (image, pixels) = (format!("{folder}/{i:05}.png"), pixels.clone());
                    examples.push(Example::draw(image, pixels, arrangement.clone(), &mut rng));
                }
            }
            examples
        };
        let train = examples(&split.train, "train", sizes.pictures, sizes.questions);
        let held_out = examples(&split.held_out, "held-out", sizes.held_out, 1);
        let blanks = (0..sizes.held_out).map(|_| paint(&[], &mut rng)).collect();
        let captions = distinct(&train).map(|example| {
            json!({
                "prompt": talk::caption_request(rng.random_range(0..WORDINGS)),
                "image": example.image,
                "response": talk::caption(&example.arrangement),
            })
        });
        World { captions: captions.collect(), train, held_out, blanks }
    }

    /// Writes the files into the new folder `folder`, which appears whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let whole = atomic::Folder::create(folder)?;
        write_pictures(&whole.path().join(names::PICTURES), &self.pictures())?;
        let lines = |name: &str, values: Vec<Value>| {
            let path = whole.path().join(name);
            atomic::write(&path, |w| {
                let mut each = values.iter();
                each.try_for_each(|line| writeln!(w, "{line}"))
                    .map_err(|e| Error::io(&path, "write", e))
            })
        };
        lines(names::CAPTIONS, self.captions.clone())?;
        lines(names::TRAIN, self.train.iter().map(|e| e.record(&e.image)).collect())?;
        lines(names::HELD_OUT, self.held_out.iter().map(|e| e.record(&e.image)).collect())?;
        let blank = |(i, e): (usize, &Example)| e.record(&blank_name(i));
        lines(names::BLANK, self.held_out.iter().enumerate().map(blank).collect())?;
        whole.commit()
    }

    /// Every sentence of the training files: what a tokenizer is trained on.
    pub fn text(&self) -> Vec<String> {
        let said =
            |caption: &Value, key: &str| caption[key].as_str().unwrap_or_default().to_string();
        let captions = self.captions.iter();
        let captions = captions.flat_map(|c| [said(c, "prompt"), said(c, "response")]);
        let answers = self.train.iter().flat_map(|example| {
            let texts = example.answers.iter().map(|answer| answer.text.clone());
            texts.chain([example.question.text()])
        });
        captions.chain(answers).collect()
    }

    fn pictures(&self) -> Vec<(String, &Pixels)> {
        let blanks = self.blanks.iter().enumerate().map(|(i, pixels)| (blank_name(i), pixels));
        let seen = distinct(&self.train).chain(&self.held_out);
        seen.map(|example| (example.image.clone(), &example.pixels)).chain(blanks).collect()
    }
}

/// The first of the examples of every picture.
fn distinct(examples: &[Example]) -> impl Iterator<Item = &Example> {
    examples.chunk_by(|a, b| a.image == b.image).map(|same| &same[0])
}

fn blank_name(i: usize) -> String {
    format!("blank/{i:05}.png")
}

impl Example {
    fn draw(
        image: String,
        pixels: Pixels,
        arrangement: Arrangement,
        rng: &mut impl Rng,
    ) -> Example {
        let question = Question::draw(&arrangement, rng);
        let claims = question.answers(&arrangement, rng);
        let mut said = |(claim, wrong): (&Claim, usize)| Answer {
            text: claim.text(rng.random_range(0..WORDINGS)),
            wrong,
        };
        let mut answers: Vec<Answer> =
            claims.iter().zip(question.grades()).map(&mut said).collect();
        answers.shuffle(rng);
        Example { image, pixels, arrangement, question, answers }
    }

    /// The judge: how many of the facts stated in `answer` are wrong; `None` when it does not
    /// state exactly what was asked.
    pub fn wrong_facts(&self, answer: &str) -> Option<usize> {
        self.question.wrong_facts(&self.arrangement, answer)
    }

    /// As a VLFeedback record. Ratings are strings, as there.
    fn record(&self, image: &str) -> Value {
        let models = ["painter-a", "painter-b", "painter-c", "painter-d"];
        let rate = |rating: usize, wrong: usize| json!({"Rating": rating.to_string(), "Rationale": format!("Wrong facts: {wrong}.")});
        let completion = |(answer, model): (&Answer, &str)| {
            json!({
                "annotations": {
                    "Helpfulness": rate(5 - answer.wrong, answer.wrong),
                    "Ethical Considerations": rate(5, answer.wrong),
                    "Visual Faithfulness": rate([5, 3, 2, 1][answer.wrong.min(3)], answer.wrong),
                },
                "model": model,
                "response": answer.text,
            })
        };
        json!({
            "id": image.trim_end_matches(".png"),
            "prompt": self.question.text(),
            "models": models,
            "completions": self.answers.iter().zip(models).map(completion).collect::<Vec<_>>(),
            "img_path": image,
        })
    }
}

/// `pixels` as a PNG file.
pub fn png(pixels: &Pixels) -> Result<Vec<u8>> {
    let mut bytes = vec![];
    let side = IMAGE_SIZE as u32;
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, side, side, ExtendedColorType::Rgb8)
        .map_err(|e| Error::Run(format!("demo: cannot encode a picture as PNG: {e}")))?;
    Ok(bytes)
}

fn write_pictures(path: &Path, pictures: &[(String, &Pixels)]) -> Result<()> {
    let encoded: Result<Vec<Vec<u8>>> =
        pictures.par_iter().map(|(_, pixels)| png(pixels)).collect();
    let broken = |e: zip::result::ZipError| Error::io(path, "write", e.into());
    let mut archive = zip::ZipWriter::new(Cursor::new(vec![]));
    let stored =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for ((name, _), bytes) in pictures.iter().zip(encoded?) {
        archive.start_file(name.as_str(), stored).map_err(broken)?;
        archive.write_all(&bytes).map_err(|e| Error::io(path, "write", e))?;
    }
    atomic::write_bytes(path, archive.finish().map_err(broken)?.get_ref())
}
