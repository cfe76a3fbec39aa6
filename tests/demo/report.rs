//! The page stands alone and shows what it was given.

use silkie::demo::measure::Scores;
use silkie::demo::report::{Plot, Report, Sample};
use silkie::demo::world::IMAGE_SIZE;

fn report() -> Report {
    let before = Scores {
        ranking_accuracy: 0.511,
        reward_accuracy: 0.5,
        reward_margin: 0.0,
        faithful: 0.085,
        blank_accuracy: 0.497,
    };
    let after = Scores { ranking_accuracy: 0.967, reward_margin: 1.234, faithful: 0.9, ..before };
    let curve = |f: fn(f64) -> f64| (1..=500).map(|i| (i as f64, f(i as f64))).collect::<Vec<_>>();
    Report {
        seed: 3,
        stages: vec![("prepare".into(), 1.25)],
        columns: vec![("before".into(), before), ("after".into(), after)],
        plots: vec![
            Plot {
                title: "warm-up: loss".into(),
                lines: vec![("loss".into(), curve(|i| 3.0 / i))],
            },
            Plot {
                title: "rewards".into(),
                lines: vec![
                    ("chosen".into(), curve(|i| i / 500.0)),
                    ("rejected".into(), curve(|i| -i / 200.0)),
                ],
            },
            Plot { title: "nothing".into(), lines: vec![("a".into(), vec![(1.0, f64::NAN)])] },
        ],
        samples: vec![Sample {
            pixels: vec![200; IMAGE_SIZE * IMAGE_SIZE * 3].into(),
            question: "What is <here> & there?".into(),
            truth: "northwest red".into(),
            answers: vec![
                ("before".into(), "\"\"".into(), None),
                ("after".into(), "red".into(), Some(0)),
            ],
        }],
        settings: vec![("warm-up".into(), "lr = 0.003".into())],
    }
}

#[test]
fn the_page_is_self_contained_and_complete() {
    let html = report().html().unwrap();
    for part in ["51.1 %", "96.7 %", "1.23", "prepare", "1.2 s", "lr = 0.003", "does not answer"] {
        assert!(html.contains(part), "{part}");
    }
    assert!(html.contains("What is &lt;here&gt; &amp; there?"));
    assert_eq!(html.matches("<svg").count(), 3);
    assert_eq!(html.matches("data:image/png;base64,").count(), 1);
    for absent in ["<script", "href=", "NaN", "@import", "url("] {
        assert!(!html.contains(absent), "{absent}");
    }
    if let Some(path) = std::env::var_os("SILKIE_KEEP_REPORT") {
        std::fs::write(path, html).unwrap();
    }
}
