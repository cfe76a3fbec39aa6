//! Shards: what is written is read, and nothing else is accepted.

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use silkie::data::shard::{
    ALIGNMENT, Dataset, ImageEntry, ImageRef, ImageSlot, Manifest, NewBranch, NewRecord, Pair,
    Section, ShardWriter, Target, shard_name,
};
use tempfile::TempDir;

const SIDE: usize = 3;
const SLOTS: u32 = 4;

fn target() -> Target {
    Target {
        image_size: SIDE as u32,
        n_image_slots: SLOTS,
        vocab_size: 1000,
        reserved: 0,
        tokenizer: 1,
        template: 2,
        truncation: 3,
    }
}

fn pixels(image: u32) -> Vec<u8> {
    (0..SIDE * SIDE * 3).map(|i| (image as usize * 31 + i) as u8).collect()
}

/// Writes `shards`, each with one more image than the records before it needed.
fn write(folder: &Path, shards: &[Vec<NewRecord>]) -> Manifest {
    let mut manifest = Manifest::new(target(), json!({"made by": "a test"}));
    let (mut first_record, mut images) = (0, 0);
    for (number, records) in shards.iter().enumerate() {
        let path = folder.join(shard_name(number));
        let mut writer =
            ShardWriter::create(&path, target(), number as u32, first_record, images).expect("new");
        let hash = [images, 7];
        let entry = ImageEntry { hash, file_bytes: 10 + images, width: 5, height: 6 };
        writer.push_image(entry, &pixels(images as u32)).expect("pushed");
        images += 1;
        records.iter().for_each(|record| writer.push(record).expect("pushed"));
        first_record += records.len() as u64;
        manifest.shards.push(writer.finish().expect("finished"));
    }
    manifest.complete = true;
    manifest.write(folder).expect("written");
    manifest
}

fn branch() -> impl Strategy<Value = NewBranch> {
    let tokens = vec((0u32..1000, any::<bool>()), 0..9);
    let score = prop_oneof![Just(f32::NAN), 0f32..5.0];
    (tokens, "[a-zé ]{0,5}", score).prop_map(|(tokens, model, score)| {
        let (tokens, scored) = tokens.into_iter().unzip();
        NewBranch { tokens, scored, model, score }
    })
}

fn record() -> impl Strategy<Value = NewRecord> {
    let trunk = vec(0u32..1000, SLOTS as usize..20);
    let rest = (vec(branch(), 0..5), vec((0u16..5, 0u16..5), 0..7), "\\PC{0,6}", "[ab]{1,2}");
    (trunk, any::<bool>(), any::<u64>(), any::<u32>(), rest).prop_map(
        |(trunk, shows, line, flags, (branches, pairs, id, file))| {
            let last = trunk.len() as u32 - SLOTS;
            let slots = [ImageSlot { offset: last, image: ImageRef(0) }];
            let slots = slots[..usize::from(shows)].to_vec();
            let n = branches.len() as u16;
            let pairs = pairs.into_iter().filter(|p| p.0.max(p.1) < n);
            let pairs = pairs.map(|(chosen, rejected)| Pair { chosen, rejected }).collect();
            NewRecord { id, file, line, trunk, slots, branches, pairs, flags }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read(shards in vec(vec(record(), 0..6), 0..4)) {
        let folder = TempDir::new().expect("a folder");
        write(folder.path(), &shards);
        let data = Dataset::open(folder.path()).expect("opens");
        data.verify(|_| ()).expect("intact");
        let expected: Vec<&NewRecord> = shards.iter().flatten().collect();
        prop_assert_eq!(data.len(), expected.len());
        prop_assert_eq!(data.images(), shards.len());
        for i in 0..shards.len() as u32 {
            prop_assert_eq!(data.image(ImageRef(i)), &pixels(i)[..]);
            prop_assert_eq!(data.image_entry(ImageRef(i)).file_bytes, 10 + u64::from(i));
        }
        for (got, want) in data.records().zip(expected) {
            prop_assert_eq!(got.trunk, &want.trunk[..]);
            prop_assert_eq!(got.images, &want.slots[..]);
            prop_assert_eq!(got.pairs, &want.pairs[..]);
            prop_assert_eq!((got.line, got.flags), (want.line, want.flags));
            prop_assert_eq!((got.id, got.file), (&want.id[..], &want.file[..]));
            prop_assert_eq!(got.branches.len(), want.branches.len());
            for (got, want) in got.branches.iter().zip(&want.branches) {
                prop_assert_eq!(got.tokens, &want.tokens[..]);
                prop_assert!(got.scored.iter().map(|&s| s == 1).eq(want.scored.iter().copied()));
                prop_assert_eq!(got.score.to_bits(), want.score.to_bits());
                prop_assert_eq!(got.model, &want.model);
            }
        }
    }
}

/// One shard of one record with something in every section.
fn sample() -> (TempDir, Manifest) {
    let branch = |score: f32| NewBranch {
        tokens: vec![4, 5, 6],
        scored: vec![true, false, true],
        model: "a model".into(),
        score,
    };
    let record = NewRecord {
        id: "an id".into(),
        file: "records.jsonl".into(),
        line: 7,
        trunk: vec![9; 6],
        slots: vec![ImageSlot { offset: 1, image: ImageRef(0) }],
        branches: vec![branch(1.0), branch(2.0)],
        pairs: vec![Pair { chosen: 1, rejected: 0 }],
        flags: 0,
    };
    let folder = TempDir::new().expect("a folder");
    let manifest = write(folder.path(), &[vec![record]]);
    (folder, manifest)
}

fn refusal(folder: &TempDir) -> String {
    match Dataset::open(folder.path()).and_then(|data| data.verify(|_| ())) {
        Ok(()) => panic!("a broken data set was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_flipped_byte_names_its_section() {
    let (folder, _) = sample();
    let path = folder.path().join(shard_name(0));
    let whole = fs::read(&path).expect("read");
    let header: silkie::data::shard::Header =
        bytemuck::pod_read_unaligned(&whole[..size_of::<silkie::data::shard::Header>()]);
    for section in Section::ALL {
        let entry = header.sections[section as usize];
        assert!(entry.bytes > 0, "{} is empty in the sample", section.name());
        for at in [entry.offset, entry.offset + entry.bytes - 1] {
            let mut altered = whole.clone();
            altered[at as usize] ^= 0x10;
            fs::write(&path, &altered).expect("written");
            let error = refusal(&folder);
            let expected = format!("00000.shard: section {}: checksum", section.name());
            assert!(error.contains(&expected), "{error}");
            // What needs no --verify is found without it.
            let heavy = [Section::Images, Section::Tokens, Section::Scored].contains(&section);
            assert_eq!(Dataset::open(folder.path()).is_ok(), heavy, "{}", section.name());
        }
    }
    for at in [ALIGNMENT - 1, header.sections[1].offset as usize - 1] {
        let mut altered = whole.clone();
        altered[at] = 1;
        fs::write(&path, &altered).expect("written");
        assert!(refusal(&folder).contains("zeros expected before it"));
    }
}

#[test]
fn any_shorter_or_longer_file_is_refused() {
    let (folder, _) = sample();
    let path = folder.path().join(shard_name(0));
    let whole = fs::read(&path).expect("read");
    for length in (0..whole.len()).step_by(997).chain([whole.len() - 1]) {
        fs::write(&path, &whole[..length]).expect("written");
        let error = refusal(&folder);
        assert!(error.contains("00000.shard") && error.contains("copy"), "{length}: {error}");
    }
    let longer = [&whole[..], b"x"].concat();
    fs::write(&path, longer).expect("written");
    assert!(refusal(&folder).contains("bytes, got"));
}

#[test]
fn headers_of_others_are_refused() {
    let (folder, manifest) = sample();
    let path = folder.path().join(shard_name(0));
    let whole = fs::read(&path).expect("read");
    let altered = |at: usize, message: &str| {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&path, &bytes).expect("written");
        let error = refusal(&folder);
        assert!(error.contains(message), "byte {at}: {error}");
    };
    altered(0, "this is no silkie shard");
    altered(8, "format version: expected 1, got 0");
    for at in [12, 16, 24, 32, 40, 50, 60, 70, 80, 200, 295] {
        altered(at, "header: checksum");
    }
    fs::write(&path, &whole).expect("written");

    let refused = |manifest: &Manifest, message: &str| {
        manifest.write(folder.path()).expect("written");
        let error = refusal(&folder);
        assert!(error.contains(message), "{error}");
    };
    let mut other = manifest.clone();
    other.target.tokenizer = 99;
    refused(&other, "made for another model, tokenizer or truncation");
    let mut other = manifest.clone();
    other.shards[0].checksum = "0".repeat(16);
    refused(&other, "is not the shard that dataset.json names");
    let mut other = manifest.clone();
    other.shards.push(other.shards[0].clone());
    refused(&other, "00001.shard: cannot open the shard");
    fs::copy(&path, folder.path().join(shard_name(1))).expect("copied");
    refused(&other, "00001.shard: header: does not follow the shards before it");
    let mut other = manifest.clone();
    other.complete = false;
    refused(&other, "is unfinished (1 shards so far)");
    let mut other = manifest.clone();
    other.version = 9;
    refused(&other, "version: expected 1, got 9");
    fs::write(Manifest::path(folder.path()), "{").expect("written");
    assert!(refusal(&folder).contains("dataset.json: is no JSON object"));
    fs::write(Manifest::path(folder.path()), "[1]").expect("written");
    assert!(refusal(&folder).contains("dataset.json: format: expected"));
    fs::remove_file(Manifest::path(folder.path())).expect("removed");
    assert!(refusal(&folder).contains("holds no dataset.json"));
}

/// Rewrites the checksums, so that only the bounds are left to object.
fn resealed(folder: &TempDir, mut bytes: Vec<u8>, mut manifest: Manifest) {
    use silkie::data::shard::Header;
    use xxhash_rust::xxh3::xxh3_64;
    let size = size_of::<Header>();
    let mut header: Header = bytemuck::pod_read_unaligned(&bytes[..size]);
    for entry in &mut header.sections {
        entry.checksum = xxh3_64(&bytes[entry.offset as usize..][..entry.bytes as usize]);
    }
    header.checksum = xxh3_64(&bytemuck::bytes_of(&header)[..size - 8]);
    bytes[..size].copy_from_slice(bytemuck::bytes_of(&header));
    fs::write(folder.path().join(shard_name(0)), bytes).expect("written");
    manifest.shards[0].checksum = format!("{:016x}", header.checksum);
    manifest.write(folder.path()).expect("written");
}

#[test]
fn spans_out_of_bounds_are_refused_even_with_right_checksums() {
    let (folder, manifest) = sample();
    let whole = fs::read(folder.path().join(shard_name(0))).expect("read");
    let header: silkie::data::shard::Header =
        bytemuck::pod_read_unaligned(&whole[..size_of::<silkie::data::shard::Header>()]);
    let cases = [
        (Section::Records, 8, "section records: record 0 of the shard: trunk end"),
        (Section::Records, 16, "section records: record 0 of the shard: slots end"),
        (Section::Records, 24, "section records: record 0 of the shard: branches end"),
        (Section::Records, 32, "section records: record 0 of the shard: pairs end"),
        (Section::Records, 40, "section strings: record 0 of the shard: id end"),
        (Section::Records, 48, "section strings: record 0 of the shard: file end"),
        (Section::Branches, 0, "section branches: record 0 of the shard: tokens end"),
        (Section::Branches, 8, "section strings: record 0 of the shard: model end"),
        (Section::Pairs, 0, "section pairs: record 0 of the shard: branch"),
        (Section::Slots, 0, "section slots: record 0 of the shard: slots at"),
        (Section::Slots, 4, "section slots: record 0 of the shard: image"),
        (Section::Strings, 0, "section strings: record 0 of the shard: "),
    ];
    for (section, at, message) in cases {
        let mut bytes = whole.clone();
        let at = header.sections[section as usize].offset as usize + at;
        // A huge little-endian number for tables, a byte that is no UTF-8 for strings.
        let n = if section == Section::Pairs { 2 } else { 4 };
        bytes[at..at + n].fill(0xff);
        resealed(&folder, bytes, manifest.clone());
        let error = refusal(&folder);
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn an_unfinished_writer_leaves_no_file() {
    let folder = TempDir::new().expect("a folder");
    let path = folder.path().join(shard_name(0));
    let mut writer = ShardWriter::create(&path, target(), 0, 0, 0).expect("new");
    writer.push(&NewRecord { trunk: vec![1], ..NewRecord::default() }).expect("pushed");
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 0);
    assert!(ShardWriter::create(&folder.path().join("no/0.shard"), target(), 0, 0, 0).is_err());
}

#[test]
fn equal_content_has_equal_fingerprints() {
    let ((a, _), (b, _)) = (sample(), sample());
    let print = |folder: &TempDir| Dataset::open(folder.path()).expect("opens").fingerprint();
    assert_eq!(print(&a), print(&b));
    let empty = TempDir::new().expect("a folder");
    write(empty.path(), &[]);
    assert_ne!(print(&a), print(&empty));
    assert_eq!(
        Dataset::open(empty.path()).expect("opens").settings()["made by"],
        Value::from("a test")
    );
}
