//! The reader of PTX, on what nvcc writes and on a snippet for every construct.

mod errors;

use emucuda::ptx::ast::*;
use emucuda::ptx::parse;

use crate::nvcc;

/// Every kernel of the project, as nvcc compiles it for both architectures, is understood.
#[test]
fn kernels_of_the_project() {
    let Some(nvcc) = nvcc::find("kernels_of_the_project") else { return };
    let folder = nvcc::root().join("kernels");
    let mut count = 0;
    for file in std::fs::read_dir(&folder).expect("kernels/") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "cu") {
            continue;
        }
        for arch in ["80", "90a"] {
            let include = format!("-I{}", folder.display());
            let generate = format!("-gencode=arch=compute_{arch},code=compute_{arch}");
            let arguments = ["-ptx", "-lineinfo", "-O3", "-std=c++17", &include, &generate];
            let bytes = nvcc::compile(&nvcc, &path, &arguments);
            let text = String::from_utf8(bytes).expect("PTX is text");
            let module = parse(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            assert_eq!(module.target, format!("sm_{arch}"));
            check(&text, &module);
            count += 1;
        }
    }
    assert!(count > 0, "kernels/ holds no kernel");
}

/// What holds for every module.
fn check(text: &str, module: &Module) {
    let entries = module.functions.iter().filter(|function| function.is_entry).count();
    assert_eq!(entries, text.matches(".entry ").count());
    for function in &module.functions {
        for &label in &function.labels {
            assert!(label <= function.body.len());
        }
        for instruction in &function.body {
            let line = text.lines().nth(instruction.line as usize - 1).expect("a line of the text");
            assert!(line.contains(&instruction.opcode.join(".")), "{line}: {instruction:?}");
            for operand in &instruction.operands {
                if let Operand::Register(register) = operand {
                    assert!(line.contains(&function.registers[*register as usize].0), "{line}");
                }
            }
            let place = instruction.place.map(|place| &function.places[place as usize]);
            assert!(place.is_none_or(|place| module.files.contains_key(&place.file)));
        }
    }
}

const HEAD: &str = ".version 8.7\n.target sm_80\n.address_size 64\n";

fn module(text: &str) -> Module {
    parse(&format!("{HEAD}{text}")).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A kernel `f` with this body, of one parameter `p` of eight bytes.
fn body(text: &str) -> Function {
    let mut module = module(&format!(".entry f(.param .u64 p)\n{{\n{text}\n}}\n"));
    module.functions.remove(0)
}

/// The operands of the last instruction of a body.
fn operands(text: &str) -> Vec<Operand> {
    body(text).body.pop().expect("an instruction").operands
}

#[test]
fn the_head_of_a_module() {
    let text = ".file 1 \"a.cu\"\n.file\t2 \"dir/b.cuh\", 1700000000, 4096\n.pragma \"x\";\n\
        .section .debug_str\n{\n$L__info_string0:\n.b8 95,90,0\n.b64 $L-4\n}\n";
    let module = module(text);
    assert_eq!((module.version, module.target.as_str()), ((8, 7), "sm_80"));
    let files: Vec<_> = module.files.iter().map(|(n, path)| (*n, path.as_str())).collect();
    assert_eq!(files, [(1, "a.cu"), (2, "dir/b.cuh")]);
}

#[test]
fn variables_and_their_initial_values() {
    let module = module(
        ".visible .global .align 4 .b8 a[6] = {1, 255, -1, 0x10};\n\
         .const .f32 b[2] = {0f3F800000, -2.5};\n\
         .global .f64 c = 0d400A000000000000;\n\
         .global .u64 d[3] = {generic(a)+4, b, 7};\n\
         .global .s16 e = -2, g;\n\
         .const .u32 h[] = {1, 2, 3};\n\
         .weak .global .align 16 .v4 .f32 i[2][3];\n\
         .shared .align 8 .b8 s[40];\n\
         .extern .shared .align 16 .b8 dynamic[];\n",
    );
    let shape = |name: &str| {
        let variable = module.variables.iter().find(|variable| variable.name == name).expect(name);
        (variable.space, variable.align, variable.bytes)
    };
    let initial = |name: &str| {
        let variable = module.variables.iter().find(|variable| variable.name == name).expect(name);
        variable.initial.clone().map(|initial| (initial.bytes, initial.addresses))
    };
    assert_eq!(shape("a"), (Space::Global, 4, 6));
    assert_eq!(initial("a"), Some((vec![1, 255, 255, 16], vec![])));
    assert_eq!(shape("b"), (Space::Const, 4, 8));
    assert_eq!(
        initial("b"),
        Some(([1f32.to_le_bytes(), (-2.5f32).to_le_bytes()].concat(), vec![]))
    );
    assert_eq!(initial("c"), Some((3.25f64.to_le_bytes().to_vec(), vec![])));
    let addresses = vec![(0, "a".to_owned(), 4), (8, "b".to_owned(), 0)];
    assert_eq!(initial("d"), Some(([[0; 8], [0; 8], 7u64.to_le_bytes()].concat(), addresses)));
    assert_eq!(initial("e"), Some((vec![0xFE, 0xFF], vec![])));
    assert_eq!((shape("g"), initial("g")), ((Space::Global, 2, 2), None));
    assert_eq!(shape("h"), (Space::Const, 4, 12));
    assert_eq!(shape("i"), (Space::Global, 16, 96));
    assert_eq!(shape("s"), (Space::Shared, 8, 40));
    assert_eq!(shape("dynamic"), (Space::Shared, 16, 0));
}

#[test]
fn functions_and_their_limits() {
    let module = module(
        ".extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);\n\
         .func g(.param .b32 x);\n\
         .visible .entry k(\n.param .u64 .ptr .global .align 16 a,\n.param .align 64 .b8 b[128])\n\
         .maxntid 256, 2\n.minnctapersm 2\n.maxnreg 64\n{ ret; }\n\
         .func (.param .align 8 .b8 r[16]) g(.param .b32 x) .noreturn { ret; }\n\
         .entry none .reqntid 32 { }\n",
    );
    let [k, g, none] = &module.functions[..] else { panic!("three have bodies") };
    assert!(k.is_entry && !g.is_entry && k.name == "k" && none.name == "none");
    assert_eq!((k.max_threads, k.required_threads), (Some([256, 2, 1]), None));
    assert_eq!(none.required_threads, Some([32, 1, 1]));
    let shape = |v: &Variable| (v.name.clone(), v.space, v.align, v.bytes);
    let params: Vec<_> = k.params.iter().map(shape).collect();
    assert_eq!(params, [("a".into(), Space::Param, 8, 8), ("b".into(), Space::Param, 64, 128)]);
    assert_eq!(
        g.results.iter().map(shape).collect::<Vec<_>>(),
        [("r".into(), Space::Param, 8, 16)]
    );
    assert_eq!((k.line, g.line, none.line), (6, 13, 14));
}

#[test]
fn every_kind_of_operand() {
    use Operand::*;
    let address = |base: Operand, offset| Address(Box::new(base), offset);
    let symbol = |name: &str, offset| Symbol(name.into(), offset);
    let cases = [
        (
            "ld.global.v2.b32 {%r0, _}, [%d0+-16];",
            vec![Vector(vec![Register(0), Sink]), address(Register(1), -16)],
        ),
        ("ld.b32 %r0, [%d0-8];", vec![Register(0), address(Register(1), -8)]),
        ("ld.param.u64 %d0, [p];", vec![Register(0), address(symbol("p", 0), 0)]),
        ("ld.param.u64 %d0, [p+4];", vec![Register(0), address(symbol("p", 0), 4)]),
        ("ld.shared.u32 %r0, [16];", vec![Register(0), address(Integer(16), 0)]),
        ("mov.u64 %d0, p+8;", vec![Register(0), symbol("p", 8)]),
        (
            "setp.lt.and.s32 %p0|%p1, %r0, -5, !%p2;",
            vec![Pair(Register(0).into(), Register(1).into()), Register(2), Integer(-5), Not(3)],
        ),
        ("mov.f32 %r0, 0f3F800000;", vec![Register(0), F32(0x3F80_0000)]),
        ("mov.f32 %r0, -0f3F800000;", vec![Register(0), F32(0xBF80_0000)]),
        ("mov.f64 %d0, 0d3FF0000000000000;", vec![Register(0), F64(1f64.to_bits())]),
        ("mov.f64 %d0, -1.5;", vec![Register(0), F64((-1.5f64).to_bits())]),
        ("mov.u32 %r0, %tid.x;", vec![Register(0), Special("%tid.x".into())]),
        ("mov.u32 %r0, WARP_SZ;", vec![Register(0), Integer(32)]),
        ("mov.b64 %d0, 0xFFFFFFFFFFFFFFFF;", vec![Register(0), Integer(-1)]),
        (
            "call.uni (p), f, (p, %r0, 3);",
            vec![
                List(vec![symbol("p", 0)]),
                symbol("f", 0),
                List(vec![symbol("p", 0), Register(0), Integer(3)]),
            ],
        ),
        ("call f, ();", vec![symbol("f", 0), List(vec![])]),
        ("bar.sync 0;", vec![Integer(0)]),
        ("ret;", vec![]),
    ];
    for (text, expected) in cases {
        let declared = ".reg .b32 %r<4>; .reg .b64 %d<4>; .reg .pred %p<4>;";
        assert_eq!(operands(&format!("{declared} {text}")), expected, "{text}");
    }
}

#[test]
fn opcodes_and_guards() {
    let function = body(
        ".reg .pred p, %q;\n@p bra.uni L;\n@!%q cp.async.cg.shared::cta.global [0], [8], 16;\nL: exit;",
    );
    let [bra, copy, exit] = &function.body[..] else { panic!("three instructions") };
    assert_eq!(
        (bra.guard, &bra.opcode[..], bra.line),
        (Some((0, false)), &["bra".into(), "uni".to_owned()][..], 7)
    );
    assert_eq!(copy.guard, Some((1, true)));
    assert_eq!(copy.opcode.join(" "), "cp async cg shared::cta global");
    assert_eq!((exit.guard, exit.opcode.len()), (None, 1));
    assert_eq!(bra.operands, [Operand::Label(0)]);
    assert_eq!(function.labels, [2]);
    assert_eq!(function.registers, [("p".into(), Type::Pred), ("%q".into(), Type::Pred)]);
}

/// Inline assembly opens blocks whose names hide those outside.
#[test]
fn blocks_hide_outer_names() {
    let function = body(
        ".reg .b32 %r<3>;\nmov.b32 %r1, 1;\n\
         { .reg .b64 %r1; .param .b32 x; L: mov.b64 %r1, %r1; mov.b32 %r2, x; bra L; }\n\
         { .reg .pred %r1; .param .b64 x; L: @%r1 bra L; st.param.b64 [x], %r0; }\n\
         mov.b32 %r2, %r1;",
    );
    let types: Vec<_> = function.registers.iter().map(|(name, t)| (name.as_str(), *t)).collect();
    assert_eq!(
        types,
        [
            ("%r1", Type::B32),
            ("%r1", Type::B64),
            ("%r2", Type::B32),
            ("%r1", Type::Pred),
            ("%r0", Type::B32)
        ]
    );
    use Operand::*;
    let operands: Vec<_> = function.body.iter().map(|i| i.operands.clone()).collect();
    assert_eq!(operands[1], [Register(1), Register(1)]);
    assert_eq!(operands[2], [Register(2), Symbol("x".into(), 0)]);
    assert_eq!((&operands[3], &operands[4]), (&vec![Label(0)], &vec![Label(1)]));
    assert_eq!(operands[5][0], Address(Box::new(Symbol("x#1".into(), 0)), 0));
    assert_eq!(operands[6], [Register(2), Register(0)]);
    assert_eq!(function.labels, [1, 4]);
    let names: Vec<_> = function.variables.iter().map(|v| (v.name.as_str(), v.bytes)).collect();
    assert_eq!(names, [("x", 4), ("x#1", 8)]);
}

#[test]
fn labels_are_known_ahead_and_at_the_end() {
    let function = body(
        ".reg .b32 %r<2>;\nbra END;\nA: B: mov.b32 %r0, 1;\n\
         T: .branchtargets A, B, END;\nbrx.idx %r0, T;\n.pragma \"nounroll\";\n\
         .shared .align 4 .b8 s[16];\n.local .b8 depot[8];\nEND:",
    );
    assert_eq!(function.body[0].operands, [Operand::Label(3)]);
    let labels = [0, 1, 3].map(Operand::Label).to_vec();
    assert_eq!(function.body[2].operands, [Operand::Register(0), Operand::List(labels)]);
    assert_eq!(function.labels, [1, 1, 2, 3], "A, B, T and END");
    let spaces: Vec<_> = function.variables.iter().map(|v| v.space).collect();
    assert_eq!(spaces, [Space::Shared, Space::Local]);
}

#[test]
fn places_know_where_they_were_inlined() {
    let function = body(
        "ret;\n.loc 1 10 5\nret;\n.loc 2 20 1, function_name $L__info_string0, inlined_at 1 10 5\nret;\n\
         .loc 3 30 2, function_name $L__info_string1+4, inlined_at 2 20 1\nret;\n.loc 1 0 9\nret;\n\
         .loc 1 10 5\nret;\n.loc 3 1 1, function_name $x, inlined_at 9 9 9\nret;",
    );
    let chain = |instruction: usize| {
        let mut lines = Vec::new();
        let mut next = function.body[instruction].place;
        while let Some(place) = next {
            let place = &function.places[place as usize];
            lines.push((place.file, place.line, place.column));
            next = place.inlined_at;
        }
        lines
    };
    assert_eq!(chain(0), []);
    assert_eq!(chain(1), [(1, 10, 5)]);
    assert_eq!(chain(2), [(2, 20, 1), (1, 10, 5)]);
    assert_eq!(chain(3), [(3, 30, 2), (2, 20, 1), (1, 10, 5)]);
    assert_eq!(chain(4), [], "line 0 is no line");
    assert_eq!(function.body[5].place, function.body[1].place);
    assert_eq!(chain(6), [(3, 1, 1), (9, 9, 9)]);
}
