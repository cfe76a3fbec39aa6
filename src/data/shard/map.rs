//! One mapped shard: everything is checked once at opening, so that later access cannot go wrong.

use std::fs::File;
use std::path::{Path, PathBuf};

use bytemuck::Pod;
use memmap2::Mmap;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    ALIGNMENT, BranchEntry, Header, ImageEntry, ImageSlot, MAGIC, Pair, RecordEntry, Section, Span,
    VERSION,
};
use crate::error::{Error, Result};

const COPY_AGAIN: &str = "copy the file again or run prepare again";

/// A checked shard.
///
/// Invariant after [`Shard::open`]: every section lies inside the map and holds whole elements;
/// every span of every table lies inside the section it speaks of; strings are UTF-8.
pub(super) struct Shard {
    pub path: PathBuf,
    pub header: Header,
    map: Mmap,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Shard> {
        let file = File::open(path).map_err(|e| Error::io(path, "open the shard", e))?;
        // SAFETY: the map is read-only and private to us; shards are replaced by rename, never
        // written in place, so nobody changes these bytes while they are mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io(path, "map the shard", e))?;
        let header = read_header(path, &map)?;
        let shard = Shard { path: path.to_path_buf(), header, map };
        shard.check_sections()?;
        for section in Section::ALL {
            if section.is_table() {
                shard.check_checksum(section)?;
            }
        }
        shard.check_records()?;
        Ok(shard)
    }

    /// The elements of a section.
    pub fn section<T: Pod>(&self, section: Section) -> &[T] {
        let entry = self.header.sections[section as usize];
        let bytes = &self.map[entry.offset as usize..][..entry.bytes as usize];
        bytemuck::cast_slice(bytes)
    }

    /// The elements of `span` in a section.
    pub fn span<T: Pod>(&self, section: Section, span: Span) -> &[T] {
        &self.section(section)[span.start as usize..][..span.len as usize]
    }

    /// A checked string.
    pub fn string(&self, span: Span) -> &str {
        std::str::from_utf8(self.span(Section::Strings, span)).unwrap_or_default()
    }

    pub fn records(&self) -> &[RecordEntry] {
        self.section(Section::Records)
    }

    pub fn images(&self) -> usize {
        self.section::<ImageEntry>(Section::ImageTable).len()
    }

    pub fn image_bytes(&self) -> usize {
        let side = self.header.target.image_size as usize;
        side * side * 3
    }

    pub fn bytes(&self) -> u64 {
        self.map.len() as u64
    }

    /// Compares a section's bytes with the checksum in the header.
    pub fn check_checksum(&self, section: Section) -> Result<()> {
        let expected = self.header.sections[section as usize].checksum;
        let got = xxh3_64(self.section::<u8>(section));
        if got != expected {
            let message =
                format!("checksum: expected {expected:016x}, got {got:016x}; {COPY_AGAIN}");
            return Err(self.error(section, message));
        }
        Ok(())
    }

    /// Compares the checksum of every section, and looks for anything between them.
    pub fn verify(&self) -> Result<()> {
        let mut end = size_of::<Header>();
        for section in Section::ALL {
            let entry = self.header.sections[section as usize];
            if self.map[end..entry.offset as usize].iter().any(|&byte| byte != 0) {
                return Err(self.error(section, format!("zeros expected before it; {COPY_AGAIN}")));
            }
            self.check_checksum(section)?;
            end = (entry.offset + entry.bytes) as usize;
        }
        Ok(())
    }

    pub fn error(&self, section: Section, message: impl Into<String>) -> Error {
        Error::file(&self.path, format!("section {}", section.name()), message)
    }

    /// Sections follow each other, aligned, in whole elements, up to the end of the file.
    fn check_sections(&self) -> Result<()> {
        let mut end = ALIGNMENT as u64;
        for section in Section::ALL {
            let entry = self.header.sections[section as usize];
            let start = end.next_multiple_of(ALIGNMENT as u64);
            if entry.offset != start {
                let message =
                    format!("expected at byte {start}, got {}; {COPY_AGAIN}", entry.offset);
                return Err(self.error(section, message));
            }
            end = start
                .checked_add(entry.bytes)
                .filter(|&end| end <= u64::MAX / 2)
                .ok_or_else(|| self.error(section, "overflows any file"))?;
            if end > self.bytes() {
                let length = self.bytes();
                let message = format!(
                    "ends at byte {end}, the file has {length}; it is truncated, {COPY_AGAIN}"
                );
                return Err(self.error(section, message));
            }
            let element = self.element_bytes(section);
            if element == 0 || !entry.bytes.is_multiple_of(element) {
                let message = format!("{} bytes are no multiple of {element}", entry.bytes);
                return Err(self.error(section, message));
            }
        }
        if end != self.bytes() {
            let message = format!("expected {end} bytes, got {}; {COPY_AGAIN}", self.bytes());
            return Err(Error::file(&self.path, "", message));
        }
        let count =
            |section| self.section::<u8>(section).len() as u64 / self.element_bytes(section);
        for (a, b) in [(Section::Images, Section::ImageTable), (Section::Tokens, Section::Scored)] {
            if count(a) != count(b) {
                let message = format!("expected {} elements, got {}", count(a), count(b));
                return Err(self.error(b, message));
            }
        }
        Ok(())
    }

    fn element_bytes(&self, section: Section) -> u64 {
        match section {
            Section::Images => (self.header.target.image_size as u64).pow(2).saturating_mul(3),
            Section::ImageTable => size_of::<ImageEntry>() as u64,
            Section::Tokens => 4,
            Section::Scored | Section::Strings => 1,
            Section::Records => size_of::<RecordEntry>() as u64,
            Section::Branches => size_of::<BranchEntry>() as u64,
            Section::Pairs => size_of::<Pair>() as u64,
            Section::Slots => size_of::<ImageSlot>() as u64,
        }
    }

    /// Every span of every table, once.
    fn check_records(&self) -> Result<()> {
        for (i, record) in self.records().iter().enumerate() {
            self.check_record(record).map_err(|(section, message)| {
                self.error(section, format!("record {i} of the shard: {message}; {COPY_AGAIN}"))
            })?;
        }
        Ok(())
    }

    fn check_record(&self, record: &RecordEntry) -> std::result::Result<(), (Section, String)> {
        let tokens = self.section::<u32>(Section::Tokens).len();
        self.check_span(Section::Records, "trunk", record.trunk, tokens)?;
        self.check_string("id", record.id)?;
        self.check_string("file", record.file)?;
        let slots = self.section::<ImageSlot>(Section::Slots);
        self.check_span(Section::Records, "slots", record.slots, slots.len())?;
        let branches = self.section::<BranchEntry>(Section::Branches);
        self.check_span(Section::Records, "branches", record.branches, branches.len())?;
        let pairs = self.section::<Pair>(Section::Pairs);
        self.check_span(Section::Records, "pairs", record.pairs, pairs.len())?;

        let images = self.header.first_image + self.images() as u64;
        let n_slots = u64::from(self.header.target.n_image_slots);
        for slot in self.span::<ImageSlot>(Section::Slots, record.slots) {
            if u64::from(slot.offset) + n_slots > u64::from(record.trunk.len) {
                return Err((Section::Slots, format!("slots at {} leave the trunk", slot.offset)));
            }
            if u64::from(slot.image.0) >= images {
                return Err((Section::Slots, format!("image {} of {images}", slot.image.0)));
            }
        }
        for branch in self.span::<BranchEntry>(Section::Branches, record.branches) {
            self.check_span(Section::Branches, "tokens", branch.tokens, tokens)?;
            self.check_string("model", branch.model)?;
        }
        for pair in self.span::<Pair>(Section::Pairs, record.pairs) {
            let last = u32::from(pair.chosen.max(pair.rejected));
            if last >= record.branches.len {
                let count = record.branches.len;
                return Err((Section::Pairs, format!("branch {last} of {count}")));
            }
        }
        Ok(())
    }

    fn check_span(
        &self,
        section: Section,
        what: &str,
        span: Span,
        len: usize,
    ) -> std::result::Result<(), (Section, String)> {
        let end = span.start as usize + span.len as usize;
        if end > len {
            return Err((section, format!("{what} end at element {end} of {len}")));
        }
        Ok(())
    }

    fn check_string(&self, what: &str, span: Span) -> std::result::Result<(), (Section, String)> {
        let len = self.section::<u8>(Section::Strings).len();
        self.check_span(Section::Strings, what, span, len)?;
        match std::str::from_utf8(self.span(Section::Strings, span)) {
            Ok(_) => Ok(()),
            Err(_) => Err((Section::Strings, format!("{what} is not UTF-8"))),
        }
    }
}

fn read_header(path: &Path, map: &[u8]) -> Result<Header> {
    let error = |message: String| Error::file(path, "header", message);
    let Some(bytes) = map.get(..ALIGNMENT) else {
        let message = format!("expected {ALIGNMENT} bytes, got {}; {COPY_AGAIN}", map.len());
        return Err(error(message));
    };
    let header: Header = bytemuck::pod_read_unaligned(&bytes[..size_of::<Header>()]);
    if header.magic != MAGIC {
        return Err(error(
            "this is no silkie shard; name a folder made by `silkie prepare`".into(),
        ));
    }
    if header.version != VERSION {
        return Err(error(format!(
            "format version: expected {VERSION}, got {}; run prepare again with this silkie",
            header.version
        )));
    }
    let got = header_checksum(&header);
    if got != header.checksum {
        let expected = header.checksum;
        let message = format!("checksum: expected {expected:016x}, got {got:016x}; {COPY_AGAIN}");
        return Err(error(message));
    }
    Ok(header)
}

pub(super) fn header_checksum(header: &Header) -> u64 {
    let bytes = bytemuck::bytes_of(header);
    xxh3_64(&bytes[..bytes.len() - size_of::<u64>()])
}
