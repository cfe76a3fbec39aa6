//! A shard of any content, its checksums made right, so that only the bounds are left to object.

use std::fs;

use silkie::data::shard::{
    Dataset, Header, ImageEntry, ImageRef, ImageSlot, Manifest, NewBranch, NewRecord, Pair,
    ShardLine, ShardWriter, Target, shard_name,
};
use xxhash_rust::xxh3::xxh3_64;

const TARGET: Target = Target {
    image_size: 2,
    n_image_slots: 3,
    vocab_size: 100,
    reserved: 0,
    tokenizer: 1,
    template: 2,
    truncation: 3,
};

thread_local! {
    static FOLDER: tempfile::TempDir = tempfile::tempdir().expect("a folder");
}

/// Two records, an image, two responses.
pub fn seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(shard_name(0));
    let mut writer = ShardWriter::create(&path, TARGET, 0, 0, 0).expect("a new shard");
    let entry = ImageEntry { hash: [1, 2], file_bytes: 3, width: 4, height: 5 };
    writer.push_image(entry, &[7; 12]).expect("an image");
    let branch = |token| NewBranch {
        tokens: vec![token, 8],
        scored: vec![true, false],
        model: "m".into(),
        score: 1.5,
    };
    let record = NewRecord {
        id: "id".into(),
        file: "f".into(),
        line: 1,
        trunk: vec![9; 5],
        slots: vec![ImageSlot { offset: 1, image: ImageRef(0) }],
        branches: vec![branch(1), branch(2)],
        pairs: vec![Pair { chosen: 1, rejected: 0 }],
        flags: 0,
    };
    writer.push(&record).expect("a record");
    writer.push(&record).expect("a record");
    writer.finish().expect("a shard");
    vec![fs::read(&path).expect("the shard")]
}

/// What opens can be read to the last span.
pub fn run(input: &[u8]) {
    let mut bytes = input.to_vec();
    let mut manifest = Manifest::new(TARGET, serde_json::Value::Null);
    manifest.complete = true;
    let checksum = reseal(&mut bytes, &mut manifest).unwrap_or_default();
    let checksum = format!("{checksum:016x}");
    manifest.shards.push(ShardLine { checksum, records: 0, images: 0, bytes: 0 });

    let manifest = serde_json::to_vec(&manifest).expect("JSON");
    let data = FOLDER.with(|folder| {
        fs::write(folder.path().join("dataset.json"), manifest).expect("written");
        // A new file each time: the old one may still be mapped.
        fs::remove_file(folder.path().join(shard_name(0))).ok();
        fs::write(folder.path().join(shard_name(0)), &bytes).expect("written");
        Dataset::open(folder.path())
    });
    let Ok(data) = data else { return };
    let mut sum = data.fingerprint();
    for record in data.records() {
        for slot in record.images {
            let end = slot.offset as usize + data.n_image_slots();
            sum ^= u64::from(record.trunk[slot.offset as usize..end].iter().sum::<u32>() == 0);
            sum ^= data.image(slot.image).len() as u64 + data.image_entry(slot.image).file_bytes;
        }
        for pair in record.pairs {
            assert!(usize::from(pair.chosen.max(pair.rejected)) < record.branches.len());
        }
        for branch in &record.branches {
            assert_eq!(branch.tokens.len(), branch.scored.len());
            sum ^= branch.model.len() as u64;
        }
        sum ^= (record.id.len() + record.file.len()) as u64;
    }
    std::hint::black_box(sum);
    data.verify(|_| ()).ok();
}

/// Makes every checksum right and the manifest agree; `None` when there is no whole header.
fn reseal(bytes: &mut [u8], manifest: &mut Manifest) -> Option<u64> {
    let size = size_of::<Header>();
    let mut header: Header = bytemuck::pod_read_unaligned(bytes.get(..size)?);
    for entry in &mut header.sections {
        let end = entry.offset.checked_add(entry.bytes)?;
        entry.checksum = xxh3_64(bytes.get(entry.offset as usize..end as usize)?);
    }
    header.checksum = xxh3_64(&bytemuck::bytes_of(&header)[..size - 8]);
    bytes[..size].copy_from_slice(bytemuck::bytes_of(&header));
    manifest.target = header.target;
    Some(header.checksum)
}
