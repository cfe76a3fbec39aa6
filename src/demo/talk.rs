//! What is said about a picture: questions, answers with a chosen number of wrong facts, captions,
//! and the judge that reads an answer back into facts.
//!
//! A question asks for the colours in one or two cells and for the number of objects. An answer
//! states those facts in one of three wordings; the wording says nothing about its truth. A wrong
//! colour is usually that of another object of the picture, a wrong number the other one of two
//! and three. Colours, cells and numbers are drawn symmetrically, so that without the picture a
//! true answer is exactly as likely as a false one.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::world::{Arrangement, Cell, Colour};

/// Wordings of each kind of sentence.
pub const WORDINGS: usize = 3;
/// How often a wrong colour is that of another object of the picture, where one is free.
const CONFUSED: f64 = 0.75;

/// The facts of an answer or a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which cell holds which colour, in the order told.
    pub objects: Vec<(Cell, Colour)>,
    /// Number of objects in the whole picture: two or three.
    pub count: usize,
}

impl Claim {
    /// In words: wording `0..WORDINGS`.
    pub fn text(&self, wording: usize) -> String {
        let number = number_word(self.count);
        let list = |between: &str| -> Vec<String> {
            let one = |&(cell, colour): &(Cell, Colour)| {
                format!("{}{between}{}", cell.word(), colour.word())
            };
            self.objects.iter().map(one).collect()
        };
        match wording {
            0 => format!("The {}, {number} in all.", list(" one is ").join(", the ")),
            1 => format!("I see {number} objects: {}.", list(" ").join(", ")),
            _ => format!("In the {}. I count {number}.", list(" is ").join(", in the ")),
        }
    }

    /// The facts stated in `text`: every cell is followed by its colour, and one number is said.
    /// `None` when it does not read so.
    pub fn read(text: &str) -> Option<Claim> {
        let (mut objects, mut count, mut pending) = (vec![], None, None);
        for word in text.split(|c: char| !c.is_alphanumeric()) {
            if let Some(&cell) = Cell::ALL.iter().find(|cell| cell.word() == word) {
                if pending.replace(cell).is_some() {
                    return None;
                }
            } else if let Some(&colour) = Colour::ALL.iter().find(|c| c.word() == word) {
                objects.push((pending.take()?, colour));
            } else if let Some(number) = [2, 3].into_iter().find(|&n| number_word(n) == word)
                && count.replace(number).is_some()
            {
                return None;
            }
        }
        if pending.is_some() {
            return None;
        }
        Some(Claim { objects, count: count? })
    }
}

fn number_word(count: usize) -> &'static str {
    if count == 2 { "two" } else { "three" }
}

/// A question about one picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The cells asked about: one or two, each holding an object.
    pub cells: Vec<Cell>,
    /// Which wording.
    pub wording: usize,
}

impl Question {
    /// A random question about `arrangement`.
    pub fn draw(arrangement: &Arrangement, rng: &mut impl Rng) -> Question {
        let mut cells: Vec<Cell> = arrangement.iter().map(|&(cell, _)| cell).collect();
        cells.shuffle(rng);
        cells.truncate(rng.random_range(1..=2));
        Question { cells, wording: rng.random_range(0..WORDINGS) }
    }

    /// In words.
    pub fn text(&self) -> String {
        let words: Vec<&str> = self.cells.iter().map(|cell| cell.word()).collect();
        let place = words.join(" and the ");
        match self.wording {
            0 => format!("What is in the {place}, and how many objects are there?"),
            1 => format!("Name what is in the {place} and count the objects."),
            _ => format!("Look at the {place}: which colour, and how many in all?"),
        }
    }

    /// The true answer.
    pub fn truth(&self, arrangement: &Arrangement) -> Claim {
        let holds = |cell: &Cell| arrangement.iter().find(|object| object.0 == *cell).copied();
        Claim { objects: self.cells.iter().filter_map(holds).collect(), count: arrangement.len() }
    }

    /// How many facts of each of the four answers are wrong, best first.
    pub fn grades(&self) -> [usize; 4] {
        if self.cells.len() == 1 { [0, 1, 1, 2] } else { [0, 1, 2, 3] }
    }

    /// Four answers with [`Question::grades`] wrong facts. Of two answers with one wrong fact one
    /// has the colour wrong and one the number, so that all four differ.
    pub fn answers(&self, arrangement: &Arrangement, rng: &mut impl Rng) -> [Claim; 4] {
        let facts = self.cells.len() + 1;
        let mut order: Vec<usize> = (0..facts).collect();
        order.shuffle(rng);
        std::array::from_fn(|i| {
            let wrong = match (self.grades()[i], i) {
                (1, 2) => order[1..].to_vec(),
                (grade, _) => order[..grade].to_vec(),
            };
            self.corrupted(arrangement, &wrong, rng)
        })
    }

    /// The true answer with the facts of these indices made wrong; the last is the number.
    fn corrupted(&self, arrangement: &Arrangement, wrong: &[usize], rng: &mut impl Rng) -> Claim {
        let mut claim = self.truth(arrangement);
        let present = |colour: &Colour| arrangement.iter().any(|object| object.1 == *colour);
        let mut taken: Vec<Colour> = (0..claim.objects.len())
            .filter(|i| !wrong.contains(i))
            .map(|i| claim.objects[i].1)
            .collect();
        for i in 0..claim.objects.len() {
            if !wrong.contains(&i) {
                continue;
            }
            let truth = claim.objects[i].1;
            let mut free = Colour::ALL.to_vec();
            free.retain(|colour| *colour != truth && !taken.contains(colour));
            let (inside, outside): (Vec<Colour>, Vec<Colour>) = free.into_iter().partition(present);
            let confused = outside.is_empty() || !inside.is_empty() && rng.random_bool(CONFUSED);
            let side = if confused { &inside } else { &outside };
            claim.objects[i].1 = side.choose(rng).copied().unwrap_or(truth);
            taken.push(claim.objects[i].1);
        }
        if wrong.contains(&claim.objects.len()) {
            claim.count = 5 - claim.count;
        }
        claim
    }

    /// The judge: how many of the facts stated in `answer` are wrong. `None` when it does not
    /// state exactly what was asked.
    pub fn wrong_facts(&self, arrangement: &Arrangement, answer: &str) -> Option<usize> {
        let (claim, truth) = (Claim::read(answer)?, self.truth(arrangement));
        let told = |cell: &Cell| claim.objects.iter().find(|object| object.0 == *cell);
        if claim.objects.len() != self.cells.len() || !self.cells.iter().all(|c| told(c).is_some())
        {
            return None;
        }
        let colours = truth.objects.iter().filter(|object| !claim.objects.contains(object)).count();
        Some(colours + usize::from(claim.count != truth.count))
    }
}

/// A request for a caption.
pub fn caption_request(wording: usize) -> &'static str {
    ["Describe the picture.", "What do you see?", "List all objects."][wording % WORDINGS]
}

/// A caption of the whole picture: cells in their fixed order, or shuffled.
pub fn caption(arrangement: &Arrangement, is_shuffled: bool, rng: &mut impl Rng) -> String {
    let mut objects = arrangement.clone();
    if is_shuffled {
        objects.shuffle(rng);
    }
    Claim { objects, count: arrangement.len() }.text(rng.random_range(0..WORDINGS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::world::Split;
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    proptest! {
        #[test]
        fn an_answer_with_k_wrong_facts_is_judged_so(seed: u64, wording in 0..WORDINGS) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let arrangement = Split::draw(&mut rng).train.draw(&mut rng);
            let question = Question::draw(&arrangement, &mut rng);
            let answers = question.answers(&arrangement, &mut rng);
            for (claim, grade) in answers.iter().zip(question.grades()) {
                let text = claim.text(wording);
                prop_assert_eq!(Claim::read(&text), Some(claim.clone()), "{}", text);
                prop_assert_eq!(question.wrong_facts(&arrangement, &text), Some(grade), "{}", text);
                let colours = claim.objects.iter().map(|object| object.1);
                let mut colours: Vec<Colour> = colours.collect();
                colours.sort();
                colours.dedup();
                prop_assert_eq!(colours.len(), claim.objects.len(), "a colour told twice: {}", text);
            }
            for i in 0..4 {
                prop_assert!(answers[i + 1..].iter().all(|other| *other != answers[i]));
            }
        }

        #[test]
        fn the_judge_survives_any_text(seed: u64, text in ".{0,60}") {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let arrangement = Split::draw(&mut rng).train.draw(&mut rng);
            let question = Question::draw(&arrangement, &mut rng);
            prop_assert_eq!(question.wrong_facts(&arrangement, &text), None);
        }
    }

    #[test]
    fn the_judge_wants_exactly_what_was_asked() {
        let [northwest, northeast, ..] = Cell::ALL;
        let arrangement = vec![(northwest, Colour::Red), (northeast, Colour::Blue)];
        let one = Question { cells: vec![northwest], wording: 0 };
        let two = Question { cells: vec![northeast, northwest], wording: 0 };
        let judged =
            |text| (one.wrong_facts(&arrangement, text), two.wrong_facts(&arrangement, text));
        assert_eq!(judged("The northwest one is red, two in all."), (Some(0), None));
        assert_eq!(judged("The northwest one is blue, three in all."), (Some(2), None));
        assert_eq!(judged("northwest red, northeast blue, two"), (None, Some(0)));
        assert_eq!(judged("northwest blue, northeast red, two"), (None, Some(2)));
        for garbled in [
            "",
            "The northwest one is red.",
            "The northwest one is, two in all.",
            "red, two in all",
            "northwest red red, two",
            "northwest northeast red, two",
            "northwest red, two, three in all",
            "northwest red, northwest red, two",
            "northwest red, two southeast",
        ] {
            assert_eq!(judged(garbled), (None, None), "{garbled}");
        }
    }

    /// Over many records: every value is as frequent in the best answer as in the worst, alone and
    /// jointly with the number.
    #[test]
    fn nothing_but_the_picture_tells_a_true_answer() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let split = Split::draw(&mut rng);
        let mut seen = std::collections::BTreeMap::<(Colour, usize), [f64; 4]>::new();
        let records = 20_000;
        for _ in 0..records {
            let arrangement = split.train.draw(&mut rng);
            let question = Question::draw(&arrangement, &mut rng);
            for (i, claim) in question.answers(&arrangement, &mut rng).iter().enumerate() {
                seen.entry((claim.objects[0].1, claim.count)).or_default()[i] += 1.0;
            }
        }
        assert_eq!(seen.len(), 10);
        for (value, times) in seen {
            for i in 0..4 {
                let share = times[i] / records as f64;
                assert!((share - 0.1).abs() < 0.02, "{value:?}, answer {i}: {share}");
            }
        }
    }
}
