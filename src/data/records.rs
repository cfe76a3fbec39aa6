//! Preference and instruction records, one JSON object a line, read one line at a time.
//!
//! | kind | a line has |
//! |---|---|
//! | VLFeedback | `id`, `prompt`, `img_path`, `completions`: a list of `{model, response, annotations}` or an object of three lists |
//! | pair | `prompt`, `image` or `images`, `chosen`, `rejected` |
//! | instruction (SFT) | `prompt`, `image` or `images`, `response` |
//!
//! The kind is seen on each line by itself. `image` is a path, `images` a list of them; null or
//! neither means no picture. A missing or mistyped field is an error that names line and field.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::data::python;
use crate::error::{Error, Result};

/// Longest line read; VLFeedback's average 5 kB.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// Most responses of one record; their pairs grow as the square.
const MAX_RESPONSES: usize = 1024;

/// One instruction with its responses and the preferences between them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceRecord {
    /// As in the file, may repeat; empty when there is none.
    pub id: String,
    /// What the line holds.
    pub kind: Kind,
    /// Line number in the file, from 1: with the file, the record's key.
    pub line: u64,
    /// The question, not stripped.
    pub prompt: String,
    /// Paths of the pictures, as written.
    pub images: Vec<String>,
    /// Responses, in the file's order; texts may be empty or equal.
    pub responses: Vec<Response>,
    /// `[chosen, rejected]`, indices of responses, in order of combinations (0,1), (0,2), ….
    pub pairs: Vec<[usize; 2]>,
    /// Combinations of equal score.
    pub ties: usize,
    /// Combinations with a response that has no score.
    pub unrated: usize,
}

/// What a line holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Rated completions.
    #[default]
    VlFeedback,
    /// One chosen and one rejected response.
    Pair,
    /// One response.
    Instruction,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Kind::VlFeedback => "a VLFeedback record",
            Kind::Pair => "a pair",
            Kind::Instruction => "an instruction",
        })
    }
}

/// One model's answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// The model's name; empty when unknown.
    pub model: String,
    /// The answer, as written.
    pub text: String,
    /// Mean rating over the aspects present; `None` when one of them is no number, or NaN.
    pub score: Option<f64>,
}

/// A line of a JSONL file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: u64,
    /// Without its line end.
    pub bytes: Vec<u8>,
}

/// The lines of a file that are not blank. An overlong line is an error, and reading goes on.
pub struct Lines {
    path: PathBuf,
    file: BufReader<File>,
    number: u64,
    failed: bool,
}

impl Lines {
    /// Opens `path`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let file = File::open(&path).map_err(|e| Error::io(&path, "open", e))?;
        Ok(Lines { path, file: BufReader::new(file), number: 0, failed: false })
    }

    fn read(&mut self) -> std::io::Result<Option<(Vec<u8>, bool)>> {
        let mut bytes = Vec::new();
        (&mut self.file).take(MAX_LINE_BYTES).read_until(b'\n', &mut bytes)?;
        let overlong = bytes.len() as u64 == MAX_LINE_BYTES && bytes.last() != Some(&b'\n');
        if overlong {
            self.file.skip_until(b'\n')?;
        }
        let more = !bytes.is_empty();
        Ok(more.then_some((bytes, overlong)))
    }
}

impl Iterator for Lines {
    type Item = Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.failed {
            let (mut bytes, overlong) = match self.read() {
                Ok(read) => read?,
                Err(e) => {
                    self.failed = true;
                    return Some(Err(Error::io(&self.path, "read", e)));
                }
            };
            self.number += 1;
            if overlong {
                let message = format!("longer than {MAX_LINE_BYTES} bytes; one record a line");
                return Some(Err(line_error(&self.path, self.number, message)));
            }
            let end = bytes.trim_ascii_end().len();
            bytes.truncate(end);
            if self.number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            if !bytes.trim_ascii().is_empty() {
                return Some(Ok(Line { number: self.number, bytes }));
            }
        }
        None
    }
}

/// The records of a file, one at a time; a bad line is an error, and the next one follows.
pub fn read(path: impl AsRef<Path>) -> Result<impl Iterator<Item = Result<SourceRecord>>> {
    let path = path.as_ref().to_path_buf();
    let lines = Lines::open(&path)?;
    Ok(lines.map(move |line| parse(&path, &line?)))
}

/// The record on `line` of `path` (named in errors, not read): for callers that parse in parallel.
pub fn parse(path: &Path, line: &Line) -> Result<SourceRecord> {
    let value = serde_json::from_slice(&line.bytes);
    let value = value.map_err(|e| format!("no JSON: {e}; one object a line"));
    let record = value.and_then(|value: Value| match value {
        Value::Object(fields) => record(&Fields { at: String::new(), fields: &fields }),
        other => Err(format!("expected a JSON object, got {}", kind(&other))),
    });
    match record {
        Ok(record) => Ok(SourceRecord { line: line.number, ..record }),
        Err(message) => Err(line_error(path, line.number, message)),
    }
}

fn line_error(path: &Path, number: u64, message: String) -> Error {
    Error::file(path, format!("line {number}"), message)
}

type Parsed<T> = std::result::Result<T, String>;

fn record(fields: &Fields<'_>) -> Parsed<SourceRecord> {
    let mut record = SourceRecord {
        id: match fields.optional("id") {
            None => String::new(),
            Some(Value::String(id)) => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            Some(other) => return fields.mistyped("id", "a string", other),
        },
        prompt: fields.text("prompt")?.to_string(),
        images: images(fields)?,
        ..SourceRecord::default()
    };
    let plain = |text: &str| Response { text: text.to_string(), ..Response::default() };
    if fields.optional("completions").is_some() {
        record.responses = completions(fields)?;
        pair_up(&mut record);
    } else if fields.optional("chosen").is_some() || fields.optional("rejected").is_some() {
        record.responses = vec![plain(fields.text("chosen")?), plain(fields.text("rejected")?)];
        record.pairs = vec![[0, 1]];
        record.kind = Kind::Pair;
    } else if fields.optional("response").is_some() {
        record.responses = vec![plain(fields.text("response")?)];
        record.kind = Kind::Instruction;
    } else {
        return Err(
            "expected completions, or chosen and rejected, or response; none is there".into()
        );
    }
    Ok(record)
}

/// `images`, `image` or `img_path`; the last, VLFeedback's, must be there when the others are not.
fn images(fields: &Fields<'_>) -> Parsed<Vec<String>> {
    let named = |key: &str, value: &Value| match value {
        Value::String(name) if !name.is_empty() => Ok(name.clone()),
        other => fields.mistyped(key, "the path of a picture", other),
    };
    if let Some(list) = fields.optional("images") {
        let Value::Array(list) = list else { return fields.mistyped("images", "a list", list) };
        return list.iter().map(|value| named("images", value)).collect();
    }
    for key in ["image", "img_path"] {
        if let Some(value) = fields.optional(key) {
            return Ok(vec![named(key, value)?]);
        }
    }
    let told = ["images", "image", "img_path"].iter().any(|key| fields.fields.contains_key(*key));
    if fields.fields.contains_key("completions") && !told {
        return Err("field img_path is missing; null says that there is no picture".into());
    }
    Ok(Vec::new())
}

/// Rows `[{model, response, annotations}]`, or columns `{model: […], response: […], …}`.
fn completions(fields: &Fields<'_>) -> Parsed<Vec<Response>> {
    let key = "completions";
    let check = |count: usize| match count <= MAX_RESPONSES {
        true => Ok(()),
        false => Err(format!("{count} completions, at most {MAX_RESPONSES}")),
    };
    match fields.any(key)? {
        Value::Array(rows) => {
            check(rows.len())?;
            let row = |(i, row): (usize, &Value)| {
                let row = Fields::of(row, format!("{key}[{i}]."))?;
                response(row.optional("model"), row.any("response")?, row.any("annotations")?, i)
            };
            rows.iter().enumerate().map(row).collect()
        }
        columns @ Value::Object(_) => {
            let columns = Fields::of(columns, format!("{key}."))?;
            let texts = columns.list("response")?;
            let annotations = columns.list("annotations")?;
            let no_models = Vec::new();
            let models = match columns.optional("model") {
                Some(_) => columns.list("model")?,
                None => &no_models,
            };
            check(texts.len())?;
            let lengths =
                [annotations.len(), if models.is_empty() { texts.len() } else { models.len() }];
            if lengths != [texts.len(); 2] {
                return Err(format!("the lists in {key} have different lengths"));
            }
            let row = |i: usize| response(models.get(i), &texts[i], &annotations[i], i);
            (0..texts.len()).map(row).collect()
        }
        other => fields.mistyped(key, "a list or an object of lists", other),
    }
}

fn response(
    model: Option<&Value>,
    text: &Value,
    annotations: &Value,
    i: usize,
) -> Parsed<Response> {
    let at = |field: &str| format!("completions[{i}].{field}");
    let string = |field: &str, value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        other => mistyped(&at(field), "a string", other),
    };
    let model = model.filter(|m| !m.is_null()).map(|m| string("model", m)).transpose()?;
    Ok(Response {
        model: model.unwrap_or_default(),
        text: string("response", text)?,
        score: mean_rating(&Fields::of(annotations, at("annotations."))?)?,
    })
}

/// The mean over the aspects present of `float(Rating)`. An aspect that is null (as typed tables
/// store an absent one) is an error, as in the original.
fn mean_rating(aspects: &Fields<'_>) -> Parsed<Option<f64>> {
    let (mut sum, mut numbers) = (0.0, true);
    for (aspect, annotation) in aspects.fields {
        let annotation = Fields::of(annotation, format!("{}{aspect}.", aspects.at))?;
        let rating = match annotation.any("Rating")? {
            Value::String(text) => python::float(text),
            Value::Number(number) => number.as_f64(),
            other => return annotation.mistyped("Rating", "a string or a number", other),
        };
        numbers &= rating.is_some();
        sum += rating.unwrap_or_default();
    }
    // No aspect at all: 0 / 0, not a number either.
    let mean = sum / aspects.fields.len() as f64;
    Ok((numbers && !mean.is_nan()).then_some(mean))
}

/// Every two responses of different score are a pair, the higher one chosen.
fn pair_up(record: &mut SourceRecord) {
    let scores: Vec<Option<f64>> = record.responses.iter().map(|r| r.score).collect();
    for i in 0..scores.len() {
        for j in i + 1..scores.len() {
            match (scores[i], scores[j]) {
                (Some(a), Some(b)) if a > b => record.pairs.push([i, j]),
                (Some(a), Some(b)) if a < b => record.pairs.push([j, i]),
                (Some(_), Some(_)) => record.ties += 1,
                _ => record.unrated += 1,
            }
        }
    }
}

/// A JSON object, and where in the line it stands ("completions[2].").
struct Fields<'a> {
    at: String,
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn of(value: &'a Value, at: String) -> Parsed<Self> {
        match value {
            Value::Object(fields) => Ok(Fields { at, fields }),
            other => mistyped(at.trim_end_matches('.'), "an object", other),
        }
    }

    /// The field, unless it is absent or null.
    fn optional(&self, key: &str) -> Option<&'a Value> {
        self.fields.get(key).filter(|value| !value.is_null())
    }

    fn any(&self, key: &str) -> Parsed<&'a Value> {
        self.fields.get(key).ok_or_else(|| format!("field {}{key} is missing", self.at))
    }

    fn text(&self, key: &str) -> Parsed<&'a str> {
        let value = self.any(key)?;
        value.as_str().map_or_else(|| self.mistyped(key, "a string", value), Ok)
    }

    fn list(&self, key: &str) -> Parsed<&'a Vec<Value>> {
        let value = self.any(key)?;
        value.as_array().map_or_else(|| self.mistyped(key, "a list", value), Ok)
    }

    fn mistyped<T>(&self, key: &str, expected: &str, got: &Value) -> Parsed<T> {
        mistyped(&format!("{}{key}", self.at), expected, got)
    }
}

fn mistyped<T>(field: &str, expected: &str, got: &Value) -> Parsed<T> {
    Err(format!("field {field}: expected {expected}, got {}", kind(got)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(text) if text.is_empty() => "an empty string",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
