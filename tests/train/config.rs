//! One table of settings: flags, TOML and defaults agree.

use std::path::{Path, PathBuf};

use clap::{Args, FromArgMatches};
use silkie::train::config::{Config, Settings};
use silkie::train::loss::Kind;

const PATHS: &str = "model = 'm'\ndata = 'd'\nout = 'o'\n";

fn parse(toml: &str) -> silkie::Result<Settings> {
    Settings::parse(Path::new("silkie.toml"), toml)
}

fn resolve(toml: &str) -> silkie::Result<Config> {
    parse(&format!("{PATHS}{toml}"))?.resolve()
}

fn flags(line: &str) -> Settings {
    let command = Settings::augment_args(clap::Command::new("train").no_binary_name(true));
    let matches = command.try_get_matches_from(line.split_whitespace()).unwrap();
    Settings::from_arg_matches(&matches).unwrap()
}

fn error(toml: &str) -> String {
    resolve(toml).unwrap_err().to_string()
}

#[test]
fn the_example_is_the_published_recipe_and_the_default() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/silkie-recipe.toml");
    let example = Settings::read(&path).unwrap().or(parse(PATHS).unwrap()).resolve().unwrap();
    assert_eq!(example, resolve("").unwrap());
    // arXiv 2312.10665 and its configuration, as told in design.md.
    assert_eq!((example.lora_r, example.lora_alpha, example.beta), (64, 16.0, 0.1));
    assert_eq!((example.lr, example.beta1, example.beta2), (1e-5, 0.9, 0.98));
    assert_eq!((example.weight_decay, example.batch_pairs, example.epochs), (0.05, 256, 3));
}

#[test]
fn every_default_stands_in_the_help() {
    let mut command = Settings::augment_args(clap::Command::new("train"));
    command.build();
    let defaults = toml::Table::try_from(resolve("").unwrap()).unwrap();
    for argument in command.get_arguments().filter(|a| a.get_id() != "help") {
        let name = argument.get_long().unwrap();
        let help =
            argument.get_help().unwrap_or_else(|| panic!("--{name} has no help")).to_string();
        let said = help.rsplit_once('[').and_then(|(_, text)| text.strip_suffix(']'));
        let expected = match defaults.get(name) {
            Some(toml::Value::String(s)) if !["model", "data", "out"].contains(&name) => s.clone(),
            Some(toml::Value::Array(list)) if !list.is_empty() => {
                list.iter().map(|v| v.as_str().unwrap()).collect::<Vec<_>>().join(",")
            }
            Some(toml::Value::String(_) | toml::Value::Array(_)) | None => {
                assert_eq!(said, None, "--{name}");
                continue;
            }
            Some(toml::Value::Float(x)) => {
                assert_eq!(said.and_then(|s| s.parse().ok()), Some(*x), "--{name}: {help}");
                continue;
            }
            Some(value) => value.to_string(),
        };
        assert_eq!(said, Some(expected.as_str()), "--{name}: {help}");
        assert!(help.len() <= 79, "--{name}: {help}");
    }
}

#[test]
fn flags_win_over_the_file() {
    let file = parse("lr = 1e-3\nloss = 'ipo'\nlora-targets = ['w1']").unwrap();
    let given = flags("--lr 1e-4 --model a --data b --out c --reference-free --lr-scale x=0.3,y=2");
    let config = given.or(file).resolve().unwrap();
    assert_eq!((config.lr, config.loss, config.beta), (1e-4, Kind::Ipo, 0.1));
    assert_eq!((config.model, config.lora_targets), (PathBuf::from("a"), vec!["w1".to_string()]));
    assert!(config.reference_free);
}

#[test]
fn the_saved_configuration_reads_back() {
    let config = resolve("steps = 7\nlr-scale = ['conv1=0.3']\nloss = 'sft'").unwrap();
    let again = parse(&config.to_toml()).unwrap().resolve().unwrap();
    assert_eq!(config, again);
    assert_eq!(config.lr_factor("transformer.visual.conv1.weight"), 0.3);
    assert_eq!(config.lr_factor("lm_head.weight"), 1.0);
}

#[test]
fn a_resumed_run_may_change_what_changes_no_number() {
    let saved = resolve("").unwrap();
    resolve("keep = 9\nsave-every = 1").unwrap().check_resumed(&saved).unwrap();
    let message = resolve("lr = 2e-5").unwrap().check_resumed(&saved).unwrap_err().to_string();
    assert!(
        message.starts_with("--lr 0.00002: the run in o was started with 0.00001"),
        "{message}"
    );
    let message = resolve("steps = 3").unwrap().check_resumed(&saved).unwrap_err().to_string();
    assert!(message.starts_with("--steps 3: the run in o was started with nothing"), "{message}");
}

#[test]
fn what_cannot_be_used_is_named() {
    let cases = [
        ("learning-rate = 1", "silkie.toml: line 4: unknown field `learning-rate`"),
        ("lr = 'fast'", "line 4: invalid type"),
        ("lr = -1.0", "--lr: expected at least 0, got -1.0"),
        ("beta = nan", "--beta: expected more than 0, got nan"),
        ("loss = 'dpo'", "unknown variant `dpo`"),
        ("token-budget = 0", "--token-budget: expected from 1 to 2^31, got 0"),
        ("lr-scale = ['conv1']", "--lr-scale: expected TEXT=NUMBER"),
        ("device = 'tpu'", "--device: expected auto, cpu, cuda or cuda:N, got tpu"),
        ("device = 'cuda:first'", "expected auto, cpu, cuda or cuda:N, got cuda:first"),
        ("trainable = 'full'\nvision = 'cached'", "--vision cached: the resampler is trained"),
        ("trainable = 'all'\nreference = 'online'", "--reference online: the base itself"),
        ("trainable = 'full'\ninit-adapter = 'a'", "--init-adapter: only --trainable lora"),
        ("lr = [", "silkie.toml: line 4"),
    ];
    for (toml, expected) in cases {
        let message = error(toml);
        assert!(message.contains(expected), "{toml:?}: {message}");
    }
    let message = parse("").unwrap().resolve().unwrap_err().to_string();
    assert!(message.contains("--model is missing"), "{message}");
    let huge = flags("--model a --data b --out c --seed 18446744073709551615");
    assert!(huge.resolve().unwrap_err().to_string().contains("cannot save the configuration"));
}
