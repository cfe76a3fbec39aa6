//! What is said about a picture: questions, answers with a chosen number of wrong facts, captions,
//! and the judge that reads an answer back into facts.
//!
//! A question names one or two cells and two colours to choose from; and it asks for the number of
//! objects. An answer states those facts in one of three wordings, which say nothing about its
//! truth. The false colour is the other of the two, usually that of another object of the picture;
//! the false number the other one of two and three. Every fact is right in half of a record's four
//! answers, and everything is drawn symmetrically: without the picture a true answer is exactly as
//! likely as a false one, and a model that has learned from answers drawn at random has no reason
//! to prefer either.

use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, RngExt};

use super::world::{Arrangement, Cell, Colour};

/// Wordings of each kind of sentence.
pub const WORDINGS: usize = 3;
/// How often the second colour of a question about one cell is that of another object.
const CONFUSED: f64 = 0.75;
/// How often a question names two cells.
const TWO_CELLS: f64 = 0.6;

/// The facts of an answer or a caption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Which cell holds which colour, in the order told.
    pub objects: Vec<(Cell, Colour)>,
    /// Number of objects in the whole picture: two or three.
    pub count: usize,
}

impl Claim {
    /// In words: wording `0..WORDINGS`. The colour follows its cell at once: what a small decoder
    /// learns first is to look up the word it just said.
    pub fn text(&self, wording: usize) -> String {
        let number = number_word(self.count);
        let one = |&(cell, colour): &(Cell, Colour)| format!("{} {}", cell.word(), colour.word());
        let objects: Vec<String> = self.objects.iter().map(one).collect();
        match wording {
            0 => format!("I see {number} objects: {}.", objects.join(", ")),
            1 => format!("Found: {}; {number} in all.", objects.join(", ")),
            _ => format!("It shows {}. I count {number}.", objects.join(" and ")),
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
    /// The colours to choose from, in the order named: of two cells their own two.
    pub choice: [Colour; 2],
    /// Which wording.
    pub wording: usize,
}

impl Question {
    /// A random question about `arrangement`.
    pub fn draw(arrangement: &Arrangement, rng: &mut impl Rng) -> Question {
        let mut objects = arrangement.clone();
        objects.shuffle(rng);
        let is_double = rng.random_bool(TWO_CELLS);
        // The objects come in random order: the next one is a random other object.
        let other = if is_double || rng.random_bool(CONFUSED) {
            objects[1].1
        } else {
            let present = |colour: &Colour| arrangement.iter().any(|object| object.1 == *colour);
            let absent: Vec<Colour> = Colour::ALL.into_iter().filter(|c| !present(c)).collect();
            *absent.choose(rng).unwrap_or(&objects[1].1)
        };
        let mut choice = [objects[0].1, other];
        choice.shuffle(rng);
        objects.truncate(if is_double { 2 } else { 1 });
        let cells = objects.iter().map(|object| object.0).collect();
        Question { cells, choice, wording: rng.random_range(0..WORDINGS) }
    }

    /// In words.
    pub fn text(&self) -> String {
        let [a, b] = self.choice.map(Colour::word);
        let cells: Vec<&str> = self.cells.iter().map(|cell| cell.word()).collect();
        match self.wording {
            0 => format!("Is it {a} or {b} in the {}? And how many in all?", cells.join(" and ")),
            1 => format!("What is {}, {a} or {b}? Count all objects too.", cells.join(" and ")),
            _ => format!("Choose {a} or {b}: {}? How many are there?", cells.join(", ")),
        }
    }

    /// The true answer.
    pub fn truth(&self, arrangement: &Arrangement) -> Claim {
        self.corrupted(arrangement, &[])
    }

    /// How many facts of each of the four answers are wrong, best first.
    pub fn grades(&self) -> [usize; 4] {
        if self.cells.len() == 1 { [0, 1, 1, 2] } else { [0, 1, 2, 3] }
    }

    /// Four answers with [`Question::grades`] wrong facts. Of two answers with one wrong fact one
    /// has the colour wrong and one the number, so that all four differ.
    pub fn answers(&self, arrangement: &Arrangement, rng: &mut impl Rng) -> [Claim; 4] {
        let mut order: Vec<usize> = (0..=self.cells.len()).collect();
        order.shuffle(rng);
        std::array::from_fn(|i| match (self.grades()[i], i) {
            (1, 2) => self.corrupted(arrangement, &order[1..]),
            (grade, _) => self.corrupted(arrangement, &order[..grade]),
        })
    }

    /// The true answer with the facts of these indices made wrong; the last is the number.
    fn corrupted(&self, arrangement: &Arrangement, wrong: &[usize]) -> Claim {
        let told = |(i, &cell): (usize, &Cell)| {
            let [a, b] = self.choice;
            let is_a = arrangement.contains(&(cell, a)) != wrong.contains(&i);
            (cell, if is_a { a } else { b })
        };
        let is_count_wrong = wrong.contains(&self.cells.len());
        let count = arrangement.len();
        Claim {
            objects: self.cells.iter().enumerate().map(told).collect(),
            count: if is_count_wrong { 5 - count } else { count },
        }
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

/// A caption of the whole picture, cells in their fixed order, which binds colours to cells. Its
/// wording is none of an answer's: sight is learned from captions, how to answer from answers.
pub fn caption(arrangement: &Arrangement) -> String {
    let one = |&(cell, colour): &(Cell, Colour)| format!("{} {}", cell.word(), colour.word());
    let objects: Vec<String> = arrangement.iter().map(one).collect();
    format!("{}: {}.", number_word(arrangement.len()), objects.join("; "))
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
                let chosen = claim.objects.iter().all(|object| question.choice.contains(&object.1));
                prop_assert!(chosen, "a colour that was no choice: {}", text);
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
        let of = |cells: Vec<Cell>, choice| Question { cells, choice, wording: 0 };
        let one = of(vec![northwest], [Colour::Green, Colour::Red]);
        let two = of(vec![northeast, northwest], [Colour::Blue, Colour::Red]);
        assert_eq!(one.text(), "Is it green or red in the northwest? And how many in all?");
        let judged =
            |text| (one.wrong_facts(&arrangement, text), two.wrong_facts(&arrangement, text));
        assert_eq!(judged("Found: northwest red; two in all."), (Some(0), None));
        assert_eq!(judged("I see three objects: northwest blue."), (Some(2), None));
        assert_eq!(judged("northwest red, northeast blue, two"), (None, Some(0)));
        assert_eq!(judged("northwest blue, northeast red, two"), (None, Some(2)));
        for garbled in [
            "",
            "It shows northwest red.",
            "Found: northwest; two in all.",
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

    /// Whatever is preferred without looking (a colour, a number, the colour named first), it is
    /// right in half of the pairs.
    #[test]
    fn nothing_but_the_picture_tells_a_true_answer() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let split = Split::draw(&mut rng);
        type Preference = Box<dyn Fn(&Question, &Claim) -> f64>;
        let mut blind: Vec<(String, Preference)> = vec![
            ("two".into(), Box::new(|_, claim| f64::from(claim.count == 2))),
            (
                "named first".into(),
                Box::new(|question, claim| f64::from(claim.objects[0].1 == question.choice[0])),
            ),
            (
                "no colour twice".into(),
                Box::new(|_, claim| f64::from(claim.objects.windows(2).all(|o| o[0].1 != o[1].1))),
            ),
        ];
        for colour in Colour::ALL {
            let says = move |_: &Question, claim: &Claim| {
                claim.objects.iter().filter(|object| object.1 == colour).count() as f64
            };
            blind.push((format!("{colour:?}"), Box::new(says)));
        }
        let (mut right, mut pairs) = (vec![0.0; blind.len()], 0.0);
        for _ in 0..20_000 {
            let arrangement = split.train.draw(&mut rng);
            let question = Question::draw(&arrangement, &mut rng);
            let (answers, grades) = (question.answers(&arrangement, &mut rng), question.grades());
            for (i, j) in (0..4).flat_map(|i| (0..4).map(move |j| (i, j))) {
                if grades[i] < grades[j] {
                    pairs += 1.0;
                    for (right, (_, prefers)) in right.iter_mut().zip(&blind) {
                        let gain =
                            prefers(&question, &answers[i]) - prefers(&question, &answers[j]);
                        *right += 0.5 + 0.5 * gain.signum() * f64::from(gain != 0.0);
                    }
                }
            }
        }
        for (right, (name, _)) in right.iter().zip(&blind) {
            assert!((right / pairs - 0.5).abs() < 0.01, "{name}: {}", right / pairs);
        }
    }
}
