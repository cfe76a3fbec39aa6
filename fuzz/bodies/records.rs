//! A line of a records file, of any content.

use std::path::Path;

use silkie::data::records::{Line, parse};

/// One line of each kind and shape.
pub fn seeds() -> Vec<Vec<u8>> {
    let annotations = r#"{"Helpfulness":{"Rating":"4.5","Rationale":""},"V":{"Rating":2}}"#;
    let rows = format!(
        r#"{{"id":"a","prompt":" q ","models":["m"],"img_path":"i.jpg","completions":[{{"model":"m","response":"x","annotations":{annotations}}},{{"response":"y","annotations":{{"V":{{"Rating":"N/A"}}}}}}]}}"#
    );
    let columns = format!(
        r#"{{"prompt":"q","img_path":null,"completions":{{"model":["m"],"response":["x"],"annotations":[{annotations}]}}}}"#
    );
    let pair = r#"{"prompt":"q","images":["a","b"],"chosen":"x","rejected":"y"}"#;
    let instruction = r#"{"id":3,"prompt":"q","image":"a","response":"x"}"#;
    [&rows, &columns, pair, instruction].map(|line| line.as_bytes().to_vec()).to_vec()
}

/// Pairs name responses, and the chosen one has the higher score where there are scores.
pub fn run(input: &[u8]) {
    let line = Line { number: 1, bytes: input.to_vec() };
    let Ok(record) = parse(Path::new("records.jsonl"), &line) else { return };
    for &[chosen, rejected] in &record.pairs {
        let [chosen, rejected] = [chosen, rejected].map(|i| record.responses[i].score);
        assert!(chosen > rejected || (chosen, rejected) == (None, None));
    }
}
