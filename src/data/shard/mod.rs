//! Shards: prepared records in memory-mapped files. This page is the whole format.
//!
//! A data set is a folder of `00000.shard`, `00001.shard`, … and `dataset.json` ([`Manifest`]), which
//! binds them: settings, input files, the checksum of every shard's header. Numbers are
//! little-endian. A shard is a [`Header`] and nine sections, in this order, each starting at the
//! next multiple of 4,096 bytes (zeros between), the file ending with the last one:
//!
//! | section | element | what |
//! |---|---|---|
//! | images | `[S, S, 3]` u8 | RGB at the model's input size S, rows top to bottom |
//! | image table | [`ImageEntry`] | where image i of this shard came from; one per image |
//! | tokens | u32 | trunks and branches of all records |
//! | scored | u8 | one per token: 1 where its log-probability counts, else 0 |
//! | records | [`RecordEntry`] | spans into the sections around it |
//! | branches | [`BranchEntry`] | the distinct responses of each record |
//! | pairs | [`Pair`] | chosen, rejected: numbers of branches within the record |
//! | slots | [`ImageSlot`] | where a trunk shows an image, and which |
//! | strings | u8 | UTF-8: ids, file names, model names; equal neighbours share a span |
//!
//! An image is stored once per distinct file content over the whole data set; an [`ImageRef`] counts
//! images through all shards, and may point back to an earlier shard, never to a later one. A
//! trunk holds `<imgpad>` in every image slot. Checksums are xxh3-64 of a section's bytes; the
//! header's own covers all its bytes before it, so it stands for the content of the shard.
//! Opening checks the header, every table's checksum and every span; [`Dataset::verify`] all bytes.

mod dataset;
mod manifest;
mod map;
mod write;

use bytemuck::{Pod, Zeroable};

pub use crate::data::pack::ImageRef;
pub use dataset::{Branch, Dataset, Record, ShardInfo};
pub use manifest::{Manifest, ShardLine, shard_name};
pub use write::{NewBranch, NewRecord, ShardWriter};

#[cfg(target_endian = "big")]
compile_error!("shards are mapped little-endian files; a big-endian reader is not written");

/// First bytes of every shard.
pub const MAGIC: [u8; 8] = *b"silkieSH";

/// The format told above. Any change of a struct or section is a new number.
pub const VERSION: u32 = 1;

/// Bytes of the header, and the alignment of sections: a page.
pub const ALIGNMENT: usize = 4096;

/// The sections, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// Pixels.
    Images,
    /// [`ImageEntry`] per image.
    ImageTable,
    /// Token ids.
    Tokens,
    /// Mask over the tokens.
    Scored,
    /// [`RecordEntry`] per record.
    Records,
    /// [`BranchEntry`] per response.
    Branches,
    /// [`Pair`]s.
    Pairs,
    /// [`ImageSlot`]s.
    Slots,
    /// Text.
    Strings,
}

impl Section {
    /// All, in file order.
    pub const ALL: [Section; 9] = [
        Section::Images,
        Section::ImageTable,
        Section::Tokens,
        Section::Scored,
        Section::Records,
        Section::Branches,
        Section::Pairs,
        Section::Slots,
        Section::Strings,
    ];

    /// The name messages use.
    pub fn name(self) -> &'static str {
        [
            "images",
            "image table",
            "tokens",
            "scored",
            "records",
            "branches",
            "pairs",
            "slots",
            "strings",
        ][self as usize]
    }

    /// Whether it is small enough to be checked whenever a shard is opened.
    fn is_table(self) -> bool {
        !matches!(self, Section::Images | Section::Tokens | Section::Scored)
    }
}

/// What the shards were made for; equal in every shard of a data set.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable, serde::Serialize, serde::Deserialize,
)]
#[repr(C)]
pub struct Target {
    /// Side S of the stored images: the model's `visual.image_size`.
    pub image_size: u32,
    /// Rows of the token stream that one image fills: the model's `visual.n_queries`.
    pub n_image_slots: u32,
    /// Token ids are below this: the model's `vocab_size`.
    pub vocab_size: u32,
    /// Zero.
    pub reserved: u32,
    /// Fingerprint of the tokenizer.
    pub tokenizer: u64,
    /// Fingerprint of the chat template.
    pub template: u64,
    /// Fingerprint of the truncation rule and its lengths.
    pub truncation: u64,
}

/// The first bytes of a shard; zeros fill up the page.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Number of this shard in its data set.
    pub number: u32,
    /// Records in the shards before this one.
    pub first_record: u64,
    /// Images in the shards before this one.
    pub first_image: u64,
    /// What the shard was made for.
    pub target: Target,
    /// Place and checksum of each section.
    pub sections: [SectionEntry; 9],
    /// xxh3-64 of all bytes before this field.
    pub checksum: u64,
}

const _: () = assert!(size_of::<Header>() == 296);

/// Place and checksum of a section.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct SectionEntry {
    /// Bytes from the start of the file, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// Bytes, without padding.
    pub bytes: u64,
    /// xxh3-64 of those bytes.
    pub checksum: u64,
}

/// `len` elements of a section from `start` on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Span {
    /// First element.
    pub start: u32,
    /// Elements.
    pub len: u32,
}

/// Where a stored image came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ImageEntry {
    /// xxh3-128 of the picture file, low half first.
    pub hash: [u64; 2],
    /// Bytes of the picture file.
    pub file_bytes: u64,
    /// Pixels per row before resizing.
    pub width: u32,
    /// Rows before resizing.
    pub height: u32,
}

/// One record: an instruction, its images and its responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct RecordEntry {
    /// Line in the source file, counted from 1.
    pub line: u64,
    /// Tokens of the trunk.
    pub trunk: Span,
    /// Slots of the trunk's images, in order.
    pub slots: Span,
    /// Branches, in order of first appearance.
    pub branches: Span,
    /// Pairs.
    pub pairs: Span,
    /// The record's id, a string; need not be unique.
    pub id: Span,
    /// Name of the source file, a string.
    pub file: Span,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<RecordEntry>() == 64);

/// One distinct response of a record.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BranchEntry {
    /// Its tokens, and the same places of the scored mask.
    pub tokens: Span,
    /// The model that wrote it first, a string; empty when unknown.
    pub model: Span,
    /// Mean score; NaN when nobody rated it.
    pub score: f32,
    /// Zero.
    pub reserved: u32,
}

/// Numbers of two branches within their record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Pair {
    /// The preferred one.
    pub chosen: u16,
    /// The other. Equal to `chosen` when two completions with different scores have one text.
    pub rejected: u16,
}

/// Where a trunk shows an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct ImageSlot {
    /// Index in the trunk of the first of its `n_image_slots` tokens.
    pub offset: u32,
    /// The image.
    pub image: ImageRef,
}

/// What happened to a record on its way into the shard.
pub mod flags {
    /// The prompt lost its beginning to a length limit.
    pub const PROMPT_CUT: u32 = 1;
    /// At least one response lost its end to a length limit.
    pub const RESPONSE_CUT: u32 = 2;
    /// The cut prompt no longer shows at least one of its images.
    pub const IMAGE_LOST: u32 = 4;
    /// Prompt or responses held text of special tokens, kept on request.
    pub const SPECIAL_TEXT: u32 = 8;
}
