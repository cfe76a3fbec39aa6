//! The files of the world are what they say they are.

use std::fs;
use std::io::Read;

use serde_json::Value;
use silkie::demo::files::{Sizes, World, names};
use silkie::demo::world::IMAGE_SIZE;

const SIZES: Sizes = Sizes { pictures: 20, questions: 3, held_out: 7 };

fn lines(path: std::path::PathBuf) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn records_are_vlfeedback_and_every_picture_is_in_the_zip() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("world");
    let world = World::make(5, &SIZES);
    world.write(&folder).unwrap();
    let mut zip =
        zip::ZipArchive::new(fs::File::open(folder.join(names::PICTURES)).unwrap()).unwrap();
    assert_eq!(zip.len(), 20 + 7 + 7);

    for (name, count) in [(names::TRAIN, 60), (names::HELD_OUT, 7), (names::BLANK, 7)] {
        let records = lines(folder.join(name));
        assert_eq!(records.len(), count);
        for record in &records {
            zip.by_name(record["img_path"].as_str().unwrap()).unwrap();
            let completions = record["completions"].as_array().unwrap();
            assert_eq!(completions.len(), 4);
            for completion in completions {
                let aspects = completion["annotations"].as_object().unwrap();
                assert_eq!(aspects.len(), 3);
                for aspect in aspects.values() {
                    let rating: f64 = aspect["Rating"].as_str().unwrap().parse().unwrap();
                    assert!((1.0..=5.0).contains(&rating));
                }
            }
        }
    }
    let captions = lines(folder.join(names::CAPTIONS));
    assert_eq!(captions.len(), 20);
    for caption in &captions {
        zip.by_name(caption["image"].as_str().unwrap()).unwrap();
        assert!(!caption["prompt"].as_str().unwrap().is_empty());
        assert!(!caption["response"].as_str().unwrap().is_empty());
    }

    let mut bytes = vec![];
    zip.by_name(&world.held_out[3].image).unwrap().read_to_end(&mut bytes).unwrap();
    let picture = image::load_from_memory(&bytes).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (IMAGE_SIZE as u32, IMAGE_SIZE as u32));
    assert_eq!(picture.as_raw()[..], world.held_out[3].pixels[..]);
}

#[test]
fn fewer_wrong_facts_means_a_higher_mean_rating() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("world");
    let world = World::make(6, &SIZES);
    world.write(&folder).unwrap();
    for (record, example) in lines(folder.join(names::TRAIN)).iter().zip(&world.train) {
        let mut graded: Vec<(usize, f64)> = vec![];
        for (completion, answer) in
            record["completions"].as_array().unwrap().iter().zip(&example.answers)
        {
            assert_eq!(completion["response"], answer.text.as_str());
            let judged = example.question.wrong_facts(&example.arrangement, &answer.text);
            assert_eq!(judged, Some(answer.wrong));
            let aspects = completion["annotations"].as_object().unwrap();
            let ratings =
                aspects.values().map(|a| a["Rating"].as_str().unwrap().parse::<f64>().unwrap());
            graded.push((answer.wrong, ratings.sum()));
        }
        for a in &graded {
            assert!(graded.iter().all(|b| a.0.cmp(&b.0) == b.1.total_cmp(&a.1)), "{graded:?}");
        }
    }
}

#[test]
fn the_seed_decides_every_byte() {
    let temporary = tempfile::tempdir().unwrap();
    let bytes = |seed: u64, name: &str, file: &str| {
        let folder = temporary.path().join(name);
        if !folder.exists() {
            World::make(seed, &SIZES).write(&folder).unwrap();
        }
        fs::read(folder.join(file)).unwrap()
    };
    for file in [names::CAPTIONS, names::TRAIN, names::HELD_OUT, names::BLANK, names::PICTURES] {
        assert_eq!(bytes(1, "a", file), bytes(1, "b", file), "{file}");
        assert_ne!(bytes(1, "a", file), bytes(2, "c", file), "{file}");
    }
}
