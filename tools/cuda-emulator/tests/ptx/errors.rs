//! The reader of PTX on what is not PTX: an error with the line, never a panic.

use emucuda::ptx::parse;

use super::HEAD;
use crate::random::Random;

#[test]
fn errors_name_the_line_and_the_thing() {
    let cases = [
        (".global .texref t;", "4: unknown type or directive `.texref`"),
        (".alias a, b;", "4: unknown directive `.alias`"),
        (
            ".extern .global .u32 x;",
            "4: `x` is in another module; expected `.extern .shared x[]` only",
        ),
        (".global .b8 x[];", "4: `x` has no size"),
        (".global .b8 x[4];\n.global .b8 x[4];", "5: `x` is declared twice"),
        (".global .b8 x[2] = {1,2,3};", "4: more initial values than `x` has elements"),
        (".global .b8 x[4000000000][4000000000];", "4: `x` is larger than 2^40 bytes"),
        (
            ".global .align 3 .b8 x;",
            "4: expected an alignment that is a power of two up to 4096, got 3",
        ),
        (
            ".global .u32 x = generic(y);",
            "4: the address of `generic` needs 8 bytes, the element has 4",
        ),
        (".global .u32 x = 0f3F800000;", "4: an initial value of another type than its variable"),
        (".shared .u32 x = 1;", "4: only .global and .const variables have initial values"),
        (".global .pred x;", "4: a variable in memory cannot be a predicate"),
        (".address_size 32", "expected addresses of 64 bits, got 32"),
        (".target sm_80, texmode_unified", "`texmode_unified` is not supported in `.target`"),
        (".version x", "4: expected a version, got `x`"),
        (".section .debug_str { 1", "4: the section has no end"),
        (".entry f .maxfoo 3 { }", "4: unknown directive `.maxfoo` of `f`"),
        (
            ".entry f(.reg .u32 x) { }",
            "4: expected `.param`, the space in which this emulator passes",
        ),
        (".entry f { }\n.entry f { }", "5: `f` is defined twice"),
        (".entry f {\n.foo 3;\n}", "5: unknown directive `.foo` in a function"),
        (".entry f {\nmov.b32 x, 1;\n}", "5: `x` is not declared"),
        (".entry f {\nbra L;\n}", "5: `L` is not declared"),
        (".entry f {\nL: L: ret;\n}", "4: label `L` stands twice in the block that starts here"),
        (".entry f {\n.reg .b32 L;\nL: ret;\n}", "label `L` is declared as something else too"),
        (".entry f {\nret\n}", "6: expected an operand, got `}`"),
        (
            ".entry f {\nret;\n",
            "expected an instruction, a directive or `}`, got the end of the text",
        ),
        (".entry f {\nmov.b32 [{}], 1;\n}", "5: expected an operand, got `{`"),
        (".entry f {\n@3 ret;\n}", "5: a guard is a predicate register"),
        (".entry f {\n.reg .b32 %r;\nmov.b32 %r, 0f12;\n}", "6: `0f12` is not a number of PTX"),
        (
            ".entry f {\n.reg .b32 %r<5000000000>;\n}",
            "5: expected a number of registers below 2^32",
        ),
        (
            ".entry f {\nP: .callprototype _ ();\n}",
            "5: unknown directive `.callprototype` in a function",
        ),
        ("mov.b32 x, 1;", "4: expected a directive, got `mov.b32`"),
    ];
    for (text, expected) in cases {
        let error = parse(&format!("{HEAD}{text}")).expect_err(text).to_string();
        assert!(error.starts_with("PTX line ") && error.contains(expected), "{text}\n{error}");
    }
    let deep = format!("{HEAD}.entry f {}", "{".repeat(100_000));
    assert_eq!(parse(&deep).unwrap_err().message, "blocks are nested deeper than 64");
}

/// Damaged text is an error or another module, never a panic.
#[test]
fn damaged_text_does_not_panic() {
    let text = format!(
        "{HEAD}.file 1 \"a.cu\"\n.global .u64 d[2] = {{generic(d)+4, 7}};\n.extern .shared .b8 e[];\n\
         .func (.param .b32 r) g(.param .b32 x) {{ ret; }}\n\
         .entry f(.param .align 8 .b8 p[16]) .maxntid 256, 1, 1\n{{\n.reg .b32 %r<9>; .reg .pred %p<2>;\n\
         .loc 1 10 5\n$L: @!%p1 ld.global.v2.f32 {{%r1, _}}, [%r2+-16]; // comment\n\
         .loc 2 20 1, function_name $i, inlined_at 1 10 5\n{{ .reg .b64 x; mov.b64 x, -0d3FF0000000000000; }}\n\
         setp.eq.or.s32 %p0|%p1, %r1, 0x1F, !%p1; /* c */ call (p), g, (p, 3);\nT: .branchtargets $L;\n\
         brx.idx %r1, T;\nret;\n}}\n.section .debug_str {{ .b8 1,2 }}\n"
    );
    parse(&text).expect("undamaged it is understood");
    let pieces =
        "{ } [ ] ( ) , ; : . < | ! @ - + \" /* // %r1 0f 99999999999999999999 .reg .loc é \n";
    let pieces: Vec<&str> = pieces.split(' ').collect();
    let mut random = Random::new(7);
    let mut understood = 0;
    for _ in 0..20_000 {
        let mut damaged = text.clone();
        for _ in 0..1 + random.below(3) {
            let mut at = random.below(damaged.len().max(1));
            while !damaged.is_char_boundary(at) {
                at -= 1;
            }
            match random.below(3) {
                0 => damaged.insert_str(at, pieces[random.below(pieces.len())]),
                1 => {
                    let end = damaged[at..].chars().next().map_or(at, |c| at + c.len_utf8());
                    damaged.replace_range(at..end, "");
                }
                _ => damaged.truncate(at),
            }
        }
        understood += usize::from(parse(&damaged).is_ok());
    }
    assert!(understood > 100, "some damage is inside of names and comments");
}
