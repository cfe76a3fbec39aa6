//! `pytorch_model.bin`: what torch writes is read, anything else is refused, nothing is executed.

use std::io::Write;
use std::path::Path;

use proptest::prelude::*;
use silkie::model::config::ModelConfig;
use silkie::model::names;
use silkie::model::weights::{MappedTensor, Weights, torch};
use silkie::tensor::DType;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::config::tiny;

/// Opcodes of a pickle, appended one by one.
#[derive(Clone)]
struct Pickle(Vec<u8>);

impl Pickle {
    fn new() -> Self {
        Pickle(b"\x80\x02".to_vec())
    }

    fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn text(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    fn int(self, n: i32) -> Self {
        self.op(b"J").op(&n.to_le_bytes())
    }

    fn ints(self, list: &[i32]) -> Self {
        list.iter().fold(self.op(b"("), |p, &n| p.int(n)).op(b"t")
    }

    /// A tensor, as `torch.save` pickles it.
    fn tensor(
        self,
        class: &str,
        key: &str,
        elements: i32,
        at: i32,
        shape: &[i32],
        stride: &[i32],
    ) -> Self {
        self.op(b"ctorch._utils\n_rebuild_tensor_v2\n((")
            .text("storage")
            .op(format!("ctorch\n{class}\n").as_bytes())
            .text(key)
            .text("cpu")
            .int(elements)
            .op(b"tQ")
            .int(at)
            .ints(shape)
            .ints(stride)
            .op(b"\x89ccollections\nOrderedDict\n)RtR")
    }

    /// A dict of one tensor "x", f32 in storage "0".
    fn one(elements: i32, at: i32, shape: &[i32], stride: &[i32]) -> Vec<u8> {
        let start = Pickle::new().op(b"}").text("x");
        start.tensor("FloatStorage", "0", elements, at, shape, stride).op(b"s.").0
    }
}

/// A zip of these entries under `archive/`.
fn zip(entries: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    for (name, bytes) in entries {
        zip.start_file(format!("archive/{name}"), options).expect("started");
        zip.write_all(bytes).expect("written");
    }
    zip.finish().expect("finished").into_inner()
}

fn open(bytes: &[u8]) -> Result<Vec<MappedTensor>, String> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("pytorch_model.bin");
    std::fs::write(&path, bytes).expect("written");
    torch::open(path).map_err(|e| e.to_string())
}

/// A file with this pickle and a storage "0" of the floats 0, 1, …, 9.
fn open_pickle(pickle: &[u8]) -> Result<Vec<MappedTensor>, String> {
    let storage: Vec<u8> = (0..10).flat_map(|i| (i as f32).to_le_bytes()).collect();
    open(&zip(&[("data.pkl", pickle), ("data/0", &storage)], CompressionMethod::Stored))
}

#[test]
fn a_file_made_by_torch() {
    // torch 2.5.1: an OrderedDict with _metadata of a tensor, a Parameter, a transposed tensor,
    // two views of one storage (the second with steps) and a scalar.
    let tensors = open(include_bytes!("fixtures/torch.bin")).expect("opened");
    let expected: [(&str, DType, &[usize], &[f32]); 6] = [
        ("f32", DType::F32, &[2, 3], &[0., 1., 2., 3., 4., 5.]),
        ("bf16", DType::Bf16, &[5], &[0., 1., 2., 3., 4.]),
        ("f16.transposed", DType::F16, &[3, 2], &[0., 3., 1., 4., 2., 5.]),
        ("view", DType::F32, &[2, 2], &[4., 5., 6., 7.]),
        ("steps", DType::F32, &[3], &[1., 4., 7.]),
        ("scalar", DType::F32, &[], &[2.5]),
    ];
    assert_eq!(tensors.len(), expected.len());
    for (tensor, (name, dtype, shape, values)) in tensors.iter().zip(expected) {
        assert_eq!((tensor.name(), tensor.dtype(), tensor.shape()), (name, dtype, shape));
        assert_eq!(tensor.to_f32(), values, "{name}");
    }
}

#[test]
fn views_of_a_storage() {
    let values = |at, shape: &[i32], stride: &[i32]| {
        open_pickle(&Pickle::one(10, at, shape, stride)).map(|t| t[0].to_f32())
    };
    assert_eq!(values(2, &[2, 3], &[3, 1]).expect("rows"), [2., 3., 4., 5., 6., 7.]);
    assert_eq!(values(0, &[2, 2], &[1, 5]).expect("columns"), [0., 5., 1., 6.]);
    assert_eq!(values(9, &[1, 1, 1], &[7, 8, 9]).expect("one element"), [9.]);
    assert!(values(3, &[0, 2], &[2, 1]).expect("empty").is_empty());
    for (at, shape, stride) in [
        (0, &[11][..], &[1][..]),
        (5, &[2, 3], &[3, 1]),
        (0, &[2], &[10]),
        (0, &[2, 2], &[1]),
        (0, &[i32::MAX, i32::MAX, i32::MAX], &[0, 0, 0]),
        (0, &[100], &[0]),
        (10, &[1], &[1]),
    ] {
        let error = values(at, shape, stride).expect_err("outside");
        assert!(error.contains("tensor x: ") && error.contains("does not fit"), "{error}");
    }
    for (at, shape, stride) in [(-1, &[1][..], &[1][..]), (0, &[-1], &[1]), (0, &[1], &[-1])] {
        let error = values(at, shape, stride).expect_err("negative");
        assert!(error.contains("data.pkl: byte ") && error.contains("a size, got -1"), "{error}");
    }
}

#[test]
fn names_other_than_tensors_are_refused() {
    let command = |p: Pickle| p.text("touch /tmp/owned").op(b"\x85R.").0;
    let cases: [(&str, Vec<u8>); 8] = [
        ("os.system", command(Pickle::new().op(b"cos\nsystem\n"))),
        ("posix.system", command(Pickle::new().text("posix").text("system").op(b"\x93"))),
        ("subprocess.Popen", Pickle::new().op(b"(isubprocess\nPopen\n.").0),
        ("builtins.eval", Pickle::new().op(b"}").text("x").op(b"cbuiltins\neval\ns.").0),
        ("torch._utils.exec", Pickle::new().op(b"ctorch._utils\nexec\n.").0),
        (
            "torch.LongStorage",
            Pickle::new()
                .op(b"}")
                .text("x")
                .tensor("LongStorage", "0", 1, 0, &[1], &[1])
                .op(b"s.")
                .0,
        ),
        (
            "torch.storage._load_from_bytes",
            Pickle::new().op(b"ctorch.storage\n_load_from_bytes\n.").0,
        ),
        (
            "collections.OrderedDict.__init__",
            Pickle::new().op(b"ccollections\nOrderedDict.__init__\n.").0,
        ),
    ];
    for (name, pickle) in cases {
        let error = open_pickle(&pickle).expect_err(name);
        assert!(error.contains(&format!("it asks for {name}, which is no part")), "{error}");
        assert!(error.contains("pytorch_model.bin: archive/data.pkl: byte "), "{error}");
    }
}

#[test]
fn programs_that_make_no_tensors_are_refused() {
    let tensor = |p: Pickle| p.tensor("FloatStorage", "0", 10, 0, &[2], &[1]);
    let cases: [(&str, Vec<u8>); 14] = [
        ("the pickle ends", Pickle::new().0),
        ("the stack is empty", Pickle::new().op(b".").0),
        ("the stack is empty", Pickle::new().op(b"}(0.").0),
        ("no MARK", Pickle::new().op(b"}u.").0),
        ("expected a dict of tensors", Pickle::new().int(1).op(b".").0),
        ("entry x: expected a tensor", Pickle::new().op(b"}").text("x").int(1).op(b"s.").0),
        ("expected text", tensor(Pickle::new().op(b"}").int(3)).op(b"s.").0),
        ("memo 7 is not set", Pickle::new().op(b"h\x07.").0),
        ("the stack is empty", Pickle::new().op(b"}R.").0),
        ("opcode 0x81 is not used", Pickle::new().op(b"})\x81.").0),
        ("opcode 0x82 is not used", Pickle::new().op(b"\x82\x01.").0),
        ("a call of something that is no function", Pickle::new().text("os.system").op(b")R.").0),
        ("items for something that is no dict", Pickle::new().int(1).text("x").int(2).op(b"s.").0),
        ("attributes for something", Pickle::new().int(1).op(b"}b.").0),
    ];
    for (expected, pickle) in cases {
        let error = open_pickle(&pickle).expect_err(expected);
        assert!(error.contains(expected), "expected {expected:?} in {error}");
    }
}

#[test]
fn damaged_archives_are_refused() {
    let pickle = Pickle::one(10, 0, &[10], &[1]);
    let (stored, deflated) = (CompressionMethod::Stored, CompressionMethod::Deflated);
    let storage = [1; 40];
    let both: [(&str, &[u8]); 2] = [("data.pkl", &pickle), ("data/0", &storage)];
    assert!(open(&zip(&both, stored)).is_ok());
    let cases = [
        ("expected a zip as torch.save writes it", b"\x80\x02not a zip".to_vec()),
        ("expected a data.pkl in it", zip(&both[1..], stored)),
        ("archive/data/0: missing", zip(&both[..1], stored)),
        ("archive/data/0: 36 bytes for the 10", zip(&[both[0], ("data/0", &storage[4..])], stored)),
        ("archive/data.pkl: expected it stored", zip(&both, deflated)),
        ("byteorder: expected little", zip(&[both[0], both[1], ("byteorder", b"big")], stored)),
    ];
    for (expected, bytes) in cases {
        let error = open(&bytes).expect_err(expected);
        assert!(error.contains(expected), "expected {expected:?} in {error}");
    }
}

/// Some file of torch holding these tensors, every element 1.5 in bf16.
pub fn write_bf16(path: &Path, specs: &[names::TensorSpec]) {
    let (mut pickle, mut entries) = (Pickle::new().op(b"}("), Vec::new());
    for (i, spec) in specs.iter().enumerate() {
        let shape: Vec<i32> = spec.shape.iter().map(|&n| n as i32).collect();
        let elements: i32 = shape.iter().product();
        let stride: Vec<i32> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        pickle = pickle.text(&spec.name);
        pickle = pickle.tensor("BFloat16Storage", &i.to_string(), elements, 0, &shape, &stride);
        entries.push((format!("data/{i}"), [0xc0, 0x3f].repeat(elements as usize)));
    }
    let pickle = pickle.op(b"u.").0;
    let mut list: Vec<(&str, &[u8])> = vec![("data.pkl", &pickle)];
    list.extend(entries.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())));
    std::fs::write(path, zip(&list, CompressionMethod::Stored)).expect("written");
}

#[test]
fn a_model_in_two_bin_files() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = ModelConfig::parse("config.json", &tiny().to_string()).expect("valid");
    let specs = names::tensors(&config);
    write_bf16(&dir.path().join("pytorch_model-00001-of-00002.bin"), &specs[..9]);
    write_bf16(&dir.path().join("pytorch_model-00002-of-00002.bin"), &specs[9..]);
    let weights = Weights::open(dir.path(), &config).expect("opened");
    for (tensor, spec) in weights.iter().zip(&specs) {
        assert_eq!((tensor.name(), tensor.shape()), (spec.name.as_str(), spec.shape.as_slice()));
        assert!(tensor.to_f32().iter().all(|&x| x == 1.5), "{}", spec.name);
    }
    std::fs::remove_file(dir.path().join("pytorch_model-00002-of-00002.bin")).expect("removed");
    let error = Weights::open(dir.path(), &config).expect_err("half").to_string();
    assert!(error.contains(&format!("tensor {}: missing", specs[9].name)), "{error}");
}

proptest! {
    #[test]
    fn damage_never_panics(seed in 0usize..1_000_000, value in any::<u8>(), cut in any::<bool>()) {
        let mut bytes = include_bytes!("fixtures/torch.bin").to_vec();
        let at = seed % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] = value }
        if let Ok(tensors) = open(&bytes) {
            prop_assert!(tensors.iter().all(|t| t.tensor().rows() <= 10));
        }
    }

    #[test]
    fn any_program_ends(ops in prop::collection::vec(
        prop::sample::select(&b"(.01GJKMNQRXabcehijqrstu])}\x80\x85\x86\x87\x88\x8a\x8c\x93\x94\x00\x01\x02"[..]),
        0..200,
    )) {
        let makes_a_dict = ops.contains(&b'}');
        prop_assert!(open_pickle(&ops).is_err() || makes_a_dict);
    }
}
