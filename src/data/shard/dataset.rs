//! All shards of a folder as one list of records.

use std::path::{Path, PathBuf};

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::map::Shard;
use super::{
    BranchEntry, ImageEntry, ImageRef, ImageSlot, Manifest, Pair, Section, Target, shard_name,
};
use crate::error::{Error, Result};

/// An opened data set: every shard mapped and checked. Cheap to share between threads.
pub struct Dataset {
    folder: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
    /// Records and images before each shard, and in all: one more entry than shards.
    first_records: Vec<usize>,
    first_images: Vec<usize>,
}

/// One record, borrowed from its shard.
#[derive(Clone, Debug)]
pub struct Record<'a> {
    /// Token ids of system text, images and prompt; `<imgpad>` in the image slots.
    pub trunk: &'a [u32],
    /// Where the trunk shows images.
    pub images: &'a [ImageSlot],
    /// The distinct responses.
    pub branches: Vec<Branch<'a>>,
    /// Chosen and rejected, indices into `branches`.
    pub pairs: &'a [Pair],
    /// Line in the source file, counted from 1.
    pub line: u64,
    /// Name of the source file.
    pub file: &'a str,
    /// Its id there; need not be unique.
    pub id: &'a str,
    /// Bits of [`super::flags`].
    pub flags: u32,
}

/// One response, borrowed from its shard.
#[derive(Clone, Copy, Debug)]
pub struct Branch<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// One per token: 1 where its log-probability counts, else 0.
    pub scored: &'a [u8],
    /// Mean score; NaN when unrated.
    pub score: f32,
    /// The model that wrote it; may be empty.
    pub model: &'a str,
}

/// What a sidecar needs to know of a shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardInfo {
    /// The file.
    pub path: PathBuf,
    /// Stands for all bytes of the file.
    pub fingerprint: u64,
    /// Number in the data set of its first record.
    pub first_record: usize,
    /// Records in it.
    pub records: usize,
    /// Number in the data set of its first image.
    pub first_image: usize,
    /// Images in it.
    pub images: usize,
    /// Bytes of the file.
    pub bytes: u64,
}

impl Dataset {
    /// Opens the folder that `silkie prepare` filled. Errors name file and section: missing,
    /// truncated, altered or foreign shards, another format version, an unfinished preparation.
    pub fn open(folder: impl AsRef<Path>) -> Result<Dataset> {
        let folder = folder.as_ref();
        let Some(manifest) = Manifest::read(folder)? else {
            let message = "holds no dataset.json; name a folder made by `silkie prepare`";
            return Err(Error::file(folder, "", message));
        };
        if !manifest.complete {
            let message = format!(
                "is unfinished ({} shards so far); run the same `silkie prepare` again",
                manifest.shards.len()
            );
            return Err(Error::file(folder, "", message));
        }
        Self::open_shards(folder, manifest)
    }

    /// Opens the shards that `manifest` names, finished preparation or not.
    pub(crate) fn open_shards(folder: &Path, manifest: Manifest) -> Result<Dataset> {
        let mut data = Dataset {
            folder: folder.to_path_buf(),
            shards: Vec::new(),
            first_records: vec![0],
            first_images: vec![0],
            manifest,
        };
        for number in 0..data.manifest.shards.len() {
            let shard = data.open_shard(number)?;
            data.first_records.push(data.len() + shard.records().len());
            data.first_images.push(data.images() + shard.images());
            data.shards.push(shard);
        }
        Ok(data)
    }

    fn open_shard(&self, number: usize) -> Result<Shard> {
        let path = self.folder.join(shard_name(number));
        let shard = Shard::open(&path)?;
        let header = &shard.header;
        let error = |message: &str| {
            let again = "it was replaced or copied from elsewhere, run prepare again";
            Err(Error::file(&path, "header", format!("{message}; {again}")))
        };
        if header.target != self.manifest.target {
            return error("made for another model, tokenizer or truncation than dataset.json says");
        }
        let place = (header.number as usize, header.first_record, header.first_image);
        if place != (number, self.len() as u64, self.images() as u64) {
            return error("does not follow the shards before it");
        }
        if format!("{:016x}", header.checksum) != self.manifest.shards[number].checksum {
            return error("is not the shard that dataset.json names");
        }
        Ok(shard)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.first_records[self.shards.len()]
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of distinct images.
    pub fn images(&self) -> usize {
        self.first_images[self.shards.len()]
    }

    /// Bytes of all shards.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(Shard::bytes).sum()
    }

    /// Record `i` of [`Dataset::len`]; panics beyond.
    pub fn record(&self, i: usize) -> Record<'_> {
        assert!(i < self.len(), "record {i} of {}", self.len());
        let number = self.first_records.partition_point(|&first| first <= i) - 1;
        let shard = &self.shards[number];
        let entry = &shard.records()[i - self.first_records[number]];
        let branches = shard.span::<BranchEntry>(Section::Branches, entry.branches);
        let branch = |branch: &BranchEntry| Branch {
            tokens: shard.span(Section::Tokens, branch.tokens),
            scored: shard.span(Section::Scored, branch.tokens),
            score: branch.score,
            model: shard.string(branch.model),
        };
        Record {
            trunk: shard.span(Section::Tokens, entry.trunk),
            images: shard.span(Section::Slots, entry.slots),
            branches: branches.iter().map(branch).collect(),
            pairs: shard.span(Section::Pairs, entry.pairs),
            line: entry.line,
            file: shard.string(entry.file),
            id: shard.string(entry.id),
            flags: entry.flags,
        }
    }

    /// All records, in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        (0..self.len()).map(|i| self.record(i))
    }

    /// Pixels of an image: `[image_size, image_size, 3]` bytes. Panics when there is no such image;
    /// those that records show exist.
    pub fn image(&self, image: ImageRef) -> &[u8] {
        let (shard, i) = self.image_place(image);
        let bytes = shard.image_bytes();
        &shard.section(Section::Images)[i * bytes..][..bytes]
    }

    /// Where an image came from. Panics like [`Dataset::image`].
    pub fn image_entry(&self, image: ImageRef) -> ImageEntry {
        let (shard, i) = self.image_place(image);
        shard.section(Section::ImageTable)[i]
    }

    fn image_place(&self, image: ImageRef) -> (&Shard, usize) {
        let i = image.0 as usize;
        assert!(i < self.images(), "image {i} of {}", self.images());
        let number = self.first_images.partition_point(|&first| first <= i) - 1;
        (&self.shards[number], i - self.first_images[number])
    }

    /// What the shards were made for.
    pub fn target(&self) -> &Target {
        &self.manifest.target
    }

    /// Side of the stored images.
    pub fn image_size(&self) -> usize {
        self.manifest.target.image_size as usize
    }

    /// Tokens that one image fills.
    pub fn n_image_slots(&self) -> usize {
        self.manifest.target.n_image_slots as usize
    }

    /// The options and input files of the preparation.
    pub fn settings(&self) -> &Value {
        &self.manifest.settings
    }

    /// The counts of the preparation.
    pub fn progress(&self) -> &Value {
        &self.manifest.progress
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The shards, in order.
    pub fn shards(&self) -> Vec<ShardInfo> {
        let info = |(number, shard): (usize, &Shard)| ShardInfo {
            path: shard.path.clone(),
            fingerprint: shard.header.checksum,
            first_record: self.first_records[number],
            records: shard.records().len(),
            first_image: self.first_images[number],
            images: shard.images(),
            bytes: shard.bytes(),
        };
        self.shards.iter().enumerate().map(info).collect()
    }

    /// Stands for the content of all shards: sidecars and checkpoints carry it.
    pub fn fingerprint(&self) -> u64 {
        let checksums: Vec<u64> = self.shards.iter().map(|s| s.header.checksum).collect();
        xxh3_64(bytemuck::cast_slice(&checksums))
    }

    /// Reads every byte and compares every checksum; `done` hears of each finished shard.
    pub fn verify(&self, mut done: impl FnMut(&ShardInfo)) -> Result<()> {
        for (shard, info) in self.shards.iter().zip(self.shards()) {
            shard.verify()?;
            done(&info);
        }
        Ok(())
    }
}
