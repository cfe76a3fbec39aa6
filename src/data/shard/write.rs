//! Writing one shard: images stream to the disk, tables wait in memory until the end.

use std::path::Path;

use bytemuck::Zeroable;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::map::header_checksum;
use super::{
    ALIGNMENT, BranchEntry, Header, ImageEntry, ImageSlot, MAGIC, Pair, RecordEntry, Section,
    SectionEntry, ShardLine, Span, Target, VERSION,
};
use crate::data::atomic::Pending;
use crate::error::{Error, Result};

/// A record to be written; images are referred to by their number in the data set.
#[derive(Clone, Debug, Default)]
pub struct NewRecord {
    /// Its id in the source.
    pub id: String,
    /// Name of the source file.
    pub file: String,
    /// Line there, counted from 1.
    pub line: u64,
    /// Token ids of system text, images and prompt.
    pub trunk: Vec<u32>,
    /// Where the trunk shows images.
    pub slots: Vec<ImageSlot>,
    /// Distinct responses.
    pub branches: Vec<NewBranch>,
    /// Chosen and rejected, numbers of branches.
    pub pairs: Vec<Pair>,
    /// Bits of [`super::flags`].
    pub flags: u32,
}

/// A response to be written.
#[derive(Clone, Debug, Default)]
pub struct NewBranch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// One per token: whether its log-probability counts.
    pub scored: Vec<bool>,
    /// The model that wrote it; may be empty.
    pub model: String,
    /// Mean score; NaN when unrated.
    pub score: f32,
}

/// A shard under construction. Dropped before [`ShardWriter::finish`], it leaves no file.
pub struct ShardWriter {
    file: Pending,
    header: Header,
    images: Xxh3,
    image_table: Vec<ImageEntry>,
    tokens: Vec<u32>,
    scored: Vec<u8>,
    records: Vec<RecordEntry>,
    branches: Vec<BranchEntry>,
    pairs: Vec<Pair>,
    slots: Vec<ImageSlot>,
    strings: Vec<u8>,
    /// The file names stand once per shard, not once per record.
    last_file: Span,
}

impl ShardWriter {
    /// Starts shard `number` of a data set whose earlier shards hold `first_record` records and
    /// `first_image` images.
    pub fn create(
        path: &Path,
        target: Target,
        number: u32,
        first_record: u64,
        first_image: u64,
    ) -> Result<Self> {
        let mut file = Pending::create(path)?;
        file.write(&[0; ALIGNMENT])?; // room for the header, which is known last
        let sections = [SectionEntry::default(); 9];
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            number,
            first_record,
            first_image,
            target,
            sections,
            checksum: 0,
        };
        Ok(ShardWriter {
            file,
            header,
            images: Xxh3::new(),
            image_table: Vec::new(),
            tokens: Vec::new(),
            scored: Vec::new(),
            records: Vec::new(),
            branches: Vec::new(),
            pairs: Vec::new(),
            slots: Vec::new(),
            strings: Vec::new(),
            last_file: Span::zeroed(),
        })
    }

    /// Records so far.
    pub fn records(&self) -> usize {
        self.records.len()
    }

    /// Images so far.
    pub fn images(&self) -> usize {
        self.image_table.len()
    }

    /// About how large the file will be.
    pub fn bytes(&self) -> u64 {
        let side = u64::from(self.header.target.image_size);
        self.images() as u64 * side * side * 3 + self.tokens.len() as u64 * 5
    }

    /// Appends an image: `[S, S, 3]` bytes. Its number is the one after the last.
    pub fn push_image(&mut self, entry: ImageEntry, pixels: &[u8]) -> Result<()> {
        let side = self.header.target.image_size as usize;
        assert!(pixels.len() == side * side * 3, "an image of another size than the shard's");
        self.file.write(pixels)?;
        self.images.update(pixels);
        self.image_table.push(entry);
        Ok(())
    }

    /// Appends a record. The caller has checked what a reader will check: token ids, slots,
    /// images pushed before, pairs that name branches.
    pub fn push(&mut self, record: &NewRecord) -> Result<()> {
        let trunk = self.push_tokens(&record.trunk, None)?;
        let slots = extend(&mut self.slots, &record.slots)?;
        let pairs = extend(&mut self.pairs, &record.pairs)?;
        let mut branches = Vec::with_capacity(record.branches.len());
        for branch in &record.branches {
            let tokens = self.push_tokens(&branch.tokens, Some(&branch.scored))?;
            let model = extend(&mut self.strings, branch.model.as_bytes())?;
            branches.push(BranchEntry { tokens, model, score: branch.score, reserved: 0 });
        }
        let branches = extend(&mut self.branches, &branches)?;
        let id = extend(&mut self.strings, record.id.as_bytes())?;
        let last =
            self.last_file.start as usize..(self.last_file.start + self.last_file.len) as usize;
        if self.strings[last] != *record.file.as_bytes() {
            self.last_file = extend(&mut self.strings, record.file.as_bytes())?;
        }
        let (line, flags, file) = (record.line, record.flags, self.last_file);
        let entry =
            RecordEntry { line, trunk, slots, branches, pairs, id, file, flags, reserved: 0 };
        extend(&mut self.records, &[entry])?;
        Ok(())
    }

    /// Writes the tables and the header, flushes, and gives the file its name.
    pub fn finish(mut self) -> Result<ShardLine> {
        let side = u64::from(self.header.target.image_size);
        let bytes = self.image_table.len() as u64 * side * side * 3;
        let checksum = self.images.digest();
        let mut end = ALIGNMENT as u64 + bytes;
        self.header.sections[0] = SectionEntry { offset: ALIGNMENT as u64, bytes, checksum };
        let tables: [(Section, &[u8]); 8] = [
            (Section::ImageTable, bytemuck::cast_slice(&self.image_table)),
            (Section::Tokens, bytemuck::cast_slice(&self.tokens)),
            (Section::Scored, &self.scored),
            (Section::Records, bytemuck::cast_slice(&self.records)),
            (Section::Branches, bytemuck::cast_slice(&self.branches)),
            (Section::Pairs, bytemuck::cast_slice(&self.pairs)),
            (Section::Slots, bytemuck::cast_slice(&self.slots)),
            (Section::Strings, &self.strings),
        ];
        for (section, bytes) in tables {
            let offset = end.next_multiple_of(ALIGNMENT as u64);
            self.file.write(&[0; ALIGNMENT][..(offset - end) as usize])?;
            self.file.write(bytes)?;
            let entry =
                SectionEntry { offset, bytes: bytes.len() as u64, checksum: xxh3_64(bytes) };
            self.header.sections[section as usize] = entry;
            end = offset + entry.bytes;
        }
        self.header.checksum = header_checksum(&self.header);
        self.file.rewrite_start(bytemuck::bytes_of(&self.header))?;
        self.file.commit()?;
        Ok(ShardLine {
            checksum: format!("{:016x}", self.header.checksum),
            records: self.records.len() as u64,
            images: self.image_table.len() as u64,
            bytes: end,
        })
    }

    fn push_tokens(&mut self, tokens: &[u32], scored: Option<&[bool]>) -> Result<Span> {
        match scored {
            Some(scored) => {
                assert!(scored.len() == tokens.len(), "a mask of another length than its tokens");
                self.scored.extend(scored.iter().map(|&s| u8::from(s)));
            }
            None => self.scored.resize(self.scored.len() + tokens.len(), 0),
        }
        extend(&mut self.tokens, tokens)
    }
}

/// Appends `new` to a section and says where it stands.
fn extend<T: Clone>(section: &mut Vec<T>, new: &[T]) -> Result<Span> {
    let (start, end) = (section.len(), section.len() + new.len());
    if u32::try_from(end).is_err() {
        return Err(Error::Usage(
            "a shard section over 2^32 elements; lower --shard-records".into(),
        ));
    }
    section.extend_from_slice(new);
    Ok(Span { start: start as u32, len: new.len() as u32 })
}
