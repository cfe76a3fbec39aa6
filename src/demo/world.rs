//! The small world: pictures of two or three coloured objects in the cells of a 2 x 2 grid.
//!
//! What a picture shows, up to jitter, is its *arrangement*: which cells hold which colours. There
//! are only 360 of them (120 with two objects, 240 with three), so holding out pictures would hold
//! out nothing; [`Split`] reserves whole arrangements instead. Shapes and jitter are never asked
//! about. Everything is a pure function of the generator passed in.

use std::sync::Arc;

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

/// Side of a picture in pixels.
pub const IMAGE_SIZE: usize = 56;
/// Side of a cell in pixels: the grid is 2 x 2.
const CELL: f32 = IMAGE_SIZE as f32 / 2.0;
/// Half the width of an object, in cells.
const HALF_WIDTH: std::ops::Range<f32> = 0.36..0.42;
/// Largest shift of an object from its cell's centre, in cells.
const SHIFT: f32 = 0.06;
/// Largest change of each channel of an object's colour.
const TINT: f32 = 0.08;
/// Largest noise of each channel of each pixel.
const NOISE: f32 = 0.03;
/// Grey levels of a background.
const BACKGROUND: std::ops::Range<f32> = 0.35..0.65;

/// One of the four cells; north is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell(u8);

impl Cell {
    /// All cells, row by row.
    pub const ALL: [Cell; 4] = [Cell(0), Cell(1), Cell(2), Cell(3)];

    /// The word for it.
    pub fn word(self) -> &'static str {
        ["northwest", "northeast", "southwest", "southeast"][self.0 as usize]
    }

    /// Centre of the cell, in pixels.
    fn centre(self) -> [f32; 2] {
        [(self.0 % 2) as f32 + 0.5, (self.0 / 2) as f32 + 0.5].map(|cells| cells * CELL)
    }
}

/// The colour of an object. Within a picture all colours differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names say it
pub enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
}

impl Colour {
    /// All colours.
    pub const ALL: [Colour; 5] =
        [Colour::Red, Colour::Green, Colour::Blue, Colour::Yellow, Colour::Purple];

    /// The word for it.
    pub fn word(self) -> &'static str {
        ["red", "green", "blue", "yellow", "purple"][self as usize]
    }

    /// RGB in 0..1.
    fn rgb(self) -> [f32; 3] {
        match self {
            Colour::Red => [0.85, 0.15, 0.15],
            Colour::Green => [0.15, 0.70, 0.20],
            Colour::Blue => [0.15, 0.30, 0.90],
            Colour::Yellow => [0.95, 0.85, 0.15],
            Colour::Purple => [0.60, 0.20, 0.75],
        }
    }
}

/// Which cells hold which colours: two or three, in the order of [`Cell::ALL`].
pub type Arrangement = Vec<(Cell, Colour)>;

/// Every arrangement of `count` distinct colours in distinct cells, in a fixed order.
pub fn arrangements(count: usize) -> Vec<Arrangement> {
    let mut all: Vec<Arrangement> = vec![vec![]];
    for cell in Cell::ALL {
        for i in 0..all.len() {
            for colour in Colour::ALL {
                if all[i].len() < count && all[i].iter().all(|&(_, used)| used != colour) {
                    let mut longer = all[i].clone();
                    longer.push((cell, colour));
                    all.push(longer);
                }
            }
        }
    }
    all.retain(|arrangement| arrangement.len() == count);
    all
}

/// The arrangements of one side of the split; two and three objects are drawn equally often, so
/// that the number of objects cannot be guessed.
pub struct Pool {
    by_count: [Vec<Arrangement>; 2],
}

impl Pool {
    /// A random arrangement.
    pub fn draw(&self, rng: &mut impl Rng) -> Arrangement {
        let side = &self.by_count[rng.random_range(0..2)];
        side.choose(rng).cloned().unwrap_or_default()
    }

    /// Number of arrangements.
    pub fn len(&self) -> usize {
        self.by_count.iter().map(Vec::len).sum()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `arrangement` belongs to it.
    pub fn contains(&self, arrangement: &Arrangement) -> bool {
        self.by_count.iter().any(|side| side.contains(arrangement))
    }
}

/// The arrangements to learn from and those never seen in training.
pub struct Split {
    /// Five sixths.
    pub train: Pool,
    /// One sixth.
    pub held_out: Pool,
}

impl Split {
    /// Draws the split.
    pub fn draw(rng: &mut impl Rng) -> Split {
        let [(two_train, two_held), (three_train, three_held)] = [2, 3].map(|count| {
            let mut held_out = arrangements(count);
            held_out.shuffle(rng);
            let train = held_out.split_off(held_out.len() / 6);
            (train, held_out)
        });
        Split {
            train: Pool { by_count: [two_train, three_train] },
            held_out: Pool { by_count: [two_held, three_held] },
        }
    }
}

/// A picture: RGB bytes, row by row, [`IMAGE_SIZE`] squared.
pub type Pixels = Arc<[u8]>;

/// Paints `arrangement` (empty: a blank picture) with random shapes, sizes, shifts, tints,
/// background and noise.
pub fn paint(arrangement: &[(Cell, Colour)], rng: &mut impl Rng) -> Pixels {
    let grey = rng.random_range(BACKGROUND);
    let mut picture = vec![[grey; 3]; IMAGE_SIZE * IMAGE_SIZE];
    for &(cell, colour) in arrangement {
        let is_disc = rng.random_bool(0.5);
        let half = rng.random_range(HALF_WIDTH) * CELL;
        let centre = cell.centre().map(|c| c + rng.random_range(-SHIFT..SHIFT) * CELL);
        let rgb = colour.rgb().map(|channel| channel + rng.random_range(-TINT..TINT));
        for (i, pixel) in picture.iter_mut().enumerate() {
            let x = (i % IMAGE_SIZE) as f32 + 0.5 - centre[0];
            let y = (i / IMAGE_SIZE) as f32 + 0.5 - centre[1];
            let inside =
                if is_disc { x * x + y * y <= half * half } else { x.abs().max(y.abs()) <= half };
            if inside {
                *pixel = rgb;
            }
        }
    }
    let noisy = |channel: &f32| channel + rng.random_range(-NOISE..NOISE);
    let channels = picture.as_flattened().iter().map(noisy);
    channels.map(|channel| (channel * 255.0).round().clamp(0.0, 255.0) as u8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn there_are_360_arrangements() {
        assert_eq!((arrangements(2).len(), arrangements(3).len()), (120, 240));
        for arrangement in arrangements(3) {
            assert!(arrangement.windows(2).all(|w| w[0].0 < w[1].0), "{arrangement:?}");
            let mut colours: Vec<_> = arrangement.iter().map(|&(_, colour)| colour).collect();
            colours.sort();
            colours.dedup();
            assert_eq!(colours.len(), 3);
        }
    }

    #[test]
    fn no_arrangement_is_on_both_sides() {
        let split = Split::draw(&mut ChaCha8Rng::seed_from_u64(7));
        assert_eq!((split.train.len(), split.held_out.len()), (300, 60));
        for arrangement in arrangements(2).iter().chain(&arrangements(3)) {
            assert_ne!(split.train.contains(arrangement), split.held_out.contains(arrangement));
        }
    }

    #[test]
    fn a_cell_shows_its_colour_and_the_seed_decides_the_bytes() {
        for seed in 0..50 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let split = Split::draw(&mut rng);
            let arrangement = split.train.draw(&mut rng);
            let picture = paint(&arrangement, &mut rng.clone());
            assert_eq!(picture, paint(&arrangement, &mut rng));
            assert_eq!(picture.len(), IMAGE_SIZE * IMAGE_SIZE * 3);
            for &(cell, colour) in &arrangement {
                let [x, y] = cell.centre().map(|c| c as usize);
                let pixel = &picture[(y * IMAGE_SIZE + x) * 3..][..3];
                for (byte, channel) in pixel.iter().zip(colour.rgb()) {
                    assert!((*byte as f32 / 255.0 - channel).abs() <= TINT + NOISE + 0.003);
                }
            }
        }
    }

    #[test]
    fn a_blank_picture_is_flat_up_to_noise() {
        let blank = paint(&[], &mut ChaCha8Rng::seed_from_u64(1));
        let (low, high) = (blank.iter().min(), blank.iter().max());
        assert!(high.zip(low).is_some_and(|(h, l)| h - l <= 17), "{low:?} {high:?}");
    }
}
