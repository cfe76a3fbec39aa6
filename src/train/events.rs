//! TensorBoard event files, written by hand.
//!
//! A file is a sequence of records (TFRecord framing), each one protobuf message `Event`:
//!
//! ```text
//! record    u64 length · u32 masked crc32c(length bytes) · message · u32 masked crc32c(message)
//! masked    rotate_right(crc, 15) + 0xa282ead8
//!
//! Event     1: double wall_time   2: int64 step   3: string file_version   5: Summary
//! Summary   1: repeated Value { 1: string tag   2: float simple_value }
//! ```
//!
//! Source: tensorboard/compat/proto/{event,summary}.proto and lib/io/record_writer.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// A file that `tensorboard --logdir` of its folder shows.
pub struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Opens `path`, cut back to its first `keep` bytes; an empty file gets the version record that
    /// readers expect first.
    pub fn open(path: &Path, keep: u64) -> Result<Events> {
        let file = open_cut(path, keep)?;
        let empty = file.metadata().map_err(|e| Error::io(path, "look at the file", e))?.len() == 0;
        let mut events = Events { path: path.to_path_buf(), file };
        if empty {
            let mut message = Vec::new();
            put_double(&mut message, 1, wall_time());
            put_bytes(&mut message, 3, b"brain.Event:2");
            events.write(&message)?;
        }
        Ok(events)
    }

    /// Writes the values of one step, each under its tag.
    pub fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            put_bytes(&mut scalar, 1, tag.as_bytes());
            put_float(&mut scalar, 2, *value as f32);
            put_bytes(&mut summary, 1, &scalar);
        }
        let mut message = Vec::new();
        put_double(&mut message, 1, wall_time());
        put_varint(&mut message, 2 << 3);
        put_varint(&mut message, step);
        put_bytes(&mut message, 5, &summary);
        self.write(&message)
    }

    /// Bytes written so far, all of them on the disk afterwards.
    pub fn synced_len(&mut self) -> Result<u64> {
        synced_len(&self.path, &mut self.file)
    }

    fn write(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(message);
        record.extend(masked_crc(message).to_le_bytes());
        self.file.write_all(&record).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// Opens a file that grows, after cutting it back to its first `keep` bytes.
pub(super) fn open_cut(path: &Path, keep: u64) -> Result<File> {
    let open = OpenOptions::new().create(true).write(true).truncate(false).open(path);
    let mut file = open.map_err(|e| Error::io(path, "open", e))?;
    let cut = |file: &mut File| {
        let end = file.metadata()?.len().min(keep);
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))
    };
    cut(&mut file).map_err(|e| Error::io(path, "cut back to the checkpoint", e))?;
    Ok(file)
}

/// Flushes `file` to the disk and says where it ends.
pub(super) fn synced_len(path: &Path, file: &mut File) -> Result<u64> {
    file.sync_all().map_err(|e| Error::io(path, "flush to the disk", e))?;
    file.stream_position().map_err(|e| Error::io(path, "look at the file", e))
}

fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_varint(out, field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn put_float(out: &mut Vec<u8>, field: u64, value: f32) {
    put_varint(out, field << 3 | 5);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}
