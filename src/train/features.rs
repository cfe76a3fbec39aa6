//! Vision features of every image, beside the shards: while tower and resampler are frozen their
//! output is a constant.
//!
//! ```text
//! DATA/vision-VISUAL.features     one line of JSON (Header) padded to 4096 bytes, then f32
//!                                 [images, n_queries · hidden]
//! ```
//!
//! f32, so that a run reads the very bytes that it would have computed.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use memmap2::Mmap;
use serde::{Deserialize, Serialize};

use crate::data::atomic;
use crate::data::pack::ImageRef;
use crate::data::shard::Dataset;
use crate::error::{Error, Result};
use crate::model::{Model, Purpose, VisionWorkspace};
use crate::tensor::{Tensor, TensorMut};

/// Where the numbers start: a page, so that they are aligned.
const START: usize = 4096;
/// Images encoded between two looks at the stop flag.
const CHUNK: usize = 16;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    silkie_features: u32,
    data: String,
    visual: String,
    images: usize,
    values: usize,
}

/// The mapped file.
pub struct Features {
    map: Mmap,
    n_queries: usize,
    hidden: usize,
}

/// Bytes that the features of `data` take on the disk.
pub fn disk_bytes(data: &Dataset, model: &Model) -> u64 {
    let values = model.config.visual.n_queries * model.config.hidden_size;
    START as u64 + 4 * values as u64 * data.images() as u64
}

impl Features {
    /// Opens the features of `data` under the visual part `visual` of `model`; computes and writes
    /// them first where there are none. `done` hears of encoded images; `stop` ends the work.
    ///
    /// Errors: a file that belongs to other shards or to another model; a full disk.
    pub fn open(
        data: &Dataset,
        model: &Model,
        visual: &str,
        stop: &dyn Fn() -> bool,
        mut done: impl FnMut(usize),
    ) -> Result<Features> {
        let path = data.folder().join(format!("vision-{visual}.features"));
        let (n_queries, hidden) = (model.config.visual.n_queries, model.config.hidden_size);
        let header = Header {
            silkie_features: 1,
            data: format!("{:016x}", data.fingerprint()),
            visual: visual.to_string(),
            images: data.images(),
            values: n_queries * hidden,
        };
        if !path.exists() {
            write(&path, &header, data, model, stop, &mut done)?;
        }
        let map = map(&path, &header)?;
        Ok(Features { map, n_queries, hidden })
    }

    /// `[n_queries, hidden]` of one image.
    pub fn of(&self, image: ImageRef) -> Tensor<'_> {
        let n = self.n_queries * self.hidden;
        let bytes = &self.map[START + 4 * n * image.0 as usize..][..4 * n];
        Tensor::new(bytemuck::cast_slice::<u8, f32>(bytes), self.n_queries, self.hidden)
    }
}

fn map(path: &Path, expected: &Header) -> Result<Mmap> {
    let fail = |m: &str| Error::file(path, "", format!("{m}; remove the file to compute it again"));
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    // SAFETY: the file is written whole under another name and only ever replaced by a rename; a
    // user who truncates it while it is in use gets a bus error, as with every mapped file.
    let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map", e))?;
    let line = map.get(..START).and_then(|page| page.split(|&b| b == b'\n').next());
    let header = line.and_then(|line| serde_json::from_slice::<Header>(line).ok());
    match header {
        None => Err(fail("no vision features: the header cannot be read")),
        Some(header) if header != *expected => {
            Err(fail("the vision features belong to other shards or another model"))
        }
        Some(_) if map.len() != START + 4 * expected.values * expected.images => {
            Err(fail("truncated"))
        }
        Some(_) => Ok(map),
    }
}

fn write(
    path: &Path,
    header: &Header,
    data: &Dataset,
    model: &Model,
    stop: &dyn Fn() -> bool,
    done: &mut dyn FnMut(usize),
) -> Result<()> {
    let (n_queries, hidden) = (model.config.visual.n_queries, model.config.hidden_size);
    let mut workspace = VisionWorkspace::new(model, CHUNK, Purpose::Score);
    let mut features = vec![0.0f32; CHUNK * header.values];
    atomic::write(path, |writer| {
        let io = |e| Error::io(path, "write", e);
        let mut page = serde_json::to_vec(header).map_err(|e| io(e.into()))?;
        page.push(b'\n');
        page.resize(START, b' ');
        writer.write_all(&page).map_err(io)?;
        for first in (0..data.images()).step_by(CHUNK) {
            if stop() {
                let message = "stopped while computing vision features; nothing was kept of them";
                return Err(Error::Interrupted(message.into()));
            }
            let images = first..(first + CHUNK).min(data.images());
            let pixels: Vec<Tensor<'_>> =
                images.clone().map(|i| Tensor::vector(data.image(ImageRef(i as u32)))).collect();
            let used = &mut features[..images.len() * header.values];
            let out = TensorMut::new(used, images.len() * n_queries, hidden);
            model.encode_images(&mut workspace, &pixels, out)?;
            writer.write_all(bytemuck::cast_slice(used)).map_err(io)?;
            done(images.len());
        }
        Ok(())
    })
}
