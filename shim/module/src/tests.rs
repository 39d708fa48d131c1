//! What is accepted, what is refused with which words, and what hostile bytes can do (nothing).

use crate::{ExternKind, Kind, MAX_CUSTOM_SECTIONS, PROPOSALS, Problem, Reason, inspect, prepare};

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn refusal(bytes: &[u8]) -> Problem {
    let problem = prepare(bytes).unwrap_err();
    assert_eq!(
        inspect(bytes).problems.first(),
        Some(&problem),
        "inspect lists what prepare returns"
    );
    problem
}

/// A program with one of each thing that inspect lists; ends with the code section, so every truncation shows.
const PROGRAM: &str = r#"
    (module
      (@custom "early" (before first) "xyz")
      (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_snapshot_preview1" "sock_accept" (func (param i32 i32 i32) (result i32)))
      (memory (export "memory") 2 10)
      (func $init)
      (start $init)
      (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 0))))
      (func (export "add") (param i32 i64) (result i64) (local.get 1))
      (func (export "answer") (result i32) (i32.const 42)))
"#;

/// The bytes of a custom section.
fn custom_section(name: &str, contents: &[u8]) -> Vec<u8> {
    let mut section = vec![0, (1 + name.len() + contents.len()) as u8, name.len() as u8];
    section.extend_from_slice(name.as_bytes());
    section.extend_from_slice(contents);
    section
}

#[test]
fn a_program_is_described_and_accepted() {
    let bytes = wasm(PROGRAM);
    let info = prepare(&bytes).unwrap().info;
    assert_eq!(
        (info.kind, info.size, info.functions, info.start),
        (Kind::CoreModule, bytes.len() as u64, 4, Some(2))
    );
    let imports: Vec<_> = info
        .imports
        .iter()
        .map(|import| (import.name.as_str(), import.kind))
        .collect();
    assert_eq!(
        imports,
        [
            ("fd_write", ExternKind::Function),
            ("sock_accept", ExternKind::Function)
        ]
    );
    assert_eq!(
        info.imports[0].signature.as_deref(),
        Some("(i32, i32, i32, i32) -> (i32)")
    );
    let exports: Vec<_> = info
        .exports
        .iter()
        .map(|export| (export.name.as_str(), export.signature.as_deref()))
        .collect();
    assert_eq!(
        exports,
        [
            ("memory", None),
            ("_start", Some("() -> ()")),
            ("add", Some("(i32, i64) -> (i64)")),
            ("answer", Some("() -> (i32)"))
        ]
    );
    assert_eq!((info.memories[0].min, info.memories[0].max), (2, Some(10)));
    assert_eq!(info.min_memory_bytes(), 131_072);
    assert_eq!(info.custom_sections[0].name, "early");
    assert_eq!(info.custom_sections[0].size, 3);
    assert_eq!(inspect(&bytes), info);
}

#[test]
fn a_description_survives_json() {
    let info = inspect(&wasm(PROGRAM));
    let json = serde_json::to_string(&info).unwrap();
    assert_eq!(
        serde_json::from_str::<crate::ModuleInfo>(&json).unwrap(),
        info
    );
}

#[test]
fn text_gives_the_same_module_as_its_binary_form() {
    assert_eq!(
        prepare(PROGRAM.as_bytes()).unwrap().stripped,
        prepare(&wasm(PROGRAM)).unwrap().stripped
    );
}

#[test]
fn stripping_removes_every_custom_section_and_nothing_else() {
    let mut bytes = wasm(PROGRAM);
    bytes.extend(custom_section("wasmedge", b"native code"));
    bytes.extend(custom_section(".debug_info", &[0xff; 40]));
    let prepared = prepare(&bytes).unwrap();
    assert_eq!(
        prepared.info.custom_sections.len(),
        4,
        "early, name, wasmedge, .debug_info"
    );
    let again = prepare(&prepared.stripped).unwrap();
    assert!(again.info.custom_sections.is_empty());
    assert_eq!(again.stripped, prepared.stripped);
    assert_eq!(again.info.exports, prepared.info.exports);
    assert_eq!(again.info.functions, prepared.info.functions);
}

#[test]
fn files_of_another_kind_are_refused_by_name() {
    for (bytes, reason, says) in [
        (&b""[..], Reason::NotWasm, "the file is empty"),
        (
            b"\x7fELF\x02\x01",
            Reason::NotWasm,
            "native executable (ELF)",
        ),
        (b"#!/bin/sh\necho", Reason::NotWasm, "script (#!)"),
        (
            b"\0as",
            Reason::NotWasm,
            "it starts with the bytes [00, 61, 73]",
        ),
        (
            b"MZ\x90\0\x03\0\0\0\x04",
            Reason::NotWasm,
            "it starts with the bytes [4d, 5a, 90, 00, 03, 00, 00, 00]",
        ),
        (
            b"\0asm\x0d\0\x01\0",
            Reason::Component,
            "wasm32-wasip1 rather than wasm32-wasip2",
        ),
        (
            b"(component)",
            Reason::Component,
            "wasm32-wasip1 rather than wasm32-wasip2",
        ),
        (
            b"(module (func (export \"_start\") i32.conts 1))",
            Reason::Text,
            "unknown operator",
        ),
        (b"(module \xff)", Reason::Text, "utf-8"),
        (b"\0asm\x02\0\0\0", Reason::Invalid, "version"),
        (b"\0asm", Reason::Invalid, "unexpected end"),
    ] {
        let problem = refusal(bytes);
        assert_eq!(problem.reason, reason, "{problem}");
        assert!(problem.to_string().contains(says), "{problem}");
        assert!(
            problem.offset.is_some() || reason == Reason::Text,
            "{problem}"
        );
    }
}

#[test]
fn a_typo_in_text_is_shown_with_its_line() {
    let text = refusal(b"(module\n  (func (export \"_start\")\n    i32.conts 1))").to_string();
    assert!(text.contains("3:5") && text.contains("i32.conts"), "{text}");
}

#[test]
fn proposals_that_are_off_are_named_with_a_remedy() {
    for (text, says) in [
        ("(memory i64 1)", "memory64"),
        ("(memory 1 2 shared)", "threads"),
        (
            "(memory 1) (func (drop (i32.atomic.load (i32.const 0))))",
            "threads",
        ),
        ("(tag $e) (func (throw $e))", "exception handling"),
        ("(type (struct (field i32)))", "garbage collection"),
        ("(func (param anyref))", "garbage collection"),
        (
            "(type $f (func)) (func (param (ref $f)) (call_ref $f (local.get 0)))",
            "typed function references",
        ),
        (
            "(func (param i64 i64) (result i64 i64) (i64.mul_wide_s (local.get 0) (local.get 1)))",
            "wide arithmetic",
        ),
        ("(memory 1 (pagesize 1))", "custom page sizes"),
        (
            "(type $f (func)) (type $c (cont $f)) (func (param (ref $c)) (resume $c (local.get 0)))",
            "stack switching",
        ),
    ] {
        let problem = refusal(format!("(module (func (export \"_start\")) {text})").as_bytes());
        assert_eq!(problem.reason, Reason::Proposal, "{text}: {problem}");
        assert!(
            problem.text.contains(&format!("uses {says},")),
            "{text}: {problem}"
        );
        assert!(
            !problem.remedy.is_empty() && problem.offset.is_some(),
            "{text}: {problem}"
        );
    }
}

#[test]
fn the_documents_table_of_proposals_is_the_codes() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/wasi.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, section) = page.split_once("\n## Proposals\n").unwrap();
    let table = section.split("\n## ").next().unwrap();
    let rows: Vec<_> = table
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let name = cells.next()?;
            let state = cells.next()?.split([':', ',', ' ']).next()?;
            matches!(state, "on" | "off").then_some((name, state == "on"))
        })
        .collect();
    let code: Vec<_> = PROPOSALS
        .iter()
        .map(|proposal| (proposal.name, proposal.on))
        .collect();
    assert_eq!(rows, code);
}

#[test]
fn the_old_form_of_exception_handling_is_named_in_binary_and_text() {
    const TRY: &[u8] = b"\0asm\x01\0\0\0\x01\x04\x01\x60\0\0\x03\x02\x01\0\x07\x0a\x01\x06_start\0\0\x0a\x07\x01\x05\0\x06\x40\x0b\x0b";
    for module in [
        TRY,
        b"(module (func (export \"_start\") (try (do) (catch_all))))",
        b"(module (tag $e) (func (export \"_start\") try catch $e rethrow 0 end))",
        b"(module (func (export \"_start\") try delegate 0))",
    ] {
        let problem = refusal(module);
        assert_eq!(problem.reason, Reason::Proposal, "{problem}");
        assert!(
            problem.text.contains("uses exception handling,"),
            "{problem}"
        );
        assert!(problem.remedy.contains("-fwasm-exceptions"), "{problem}");
    }
    let problem = refusal(b"(module (func $try (export \"_start\") i32.conts 1))");
    assert_eq!(problem.reason, Reason::Text, "{problem}");
}

#[test]
fn proposals_that_are_on_are_accepted() {
    for text in [
        "(global (export \"g\") (mut i32) (i32.const 0))",
        "(func (drop (i32.trunc_sat_f32_s (f32.const 1))))",
        "(func (drop (i32.extend8_s (i32.const 1))))",
        "(func (result i32 i32) (i32.const 1) (i32.const 2))",
        "(memory 1) (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1)))",
        "(table 1 externref) (func (param externref) (table.set (i32.const 0) (local.get 0)))",
        "(func (drop (i8x16.splat (i32.const 1))))",
        "(func (param v128 v128) (result v128) (i8x16.relaxed_swizzle (local.get 0) (local.get 1)))",
        "(func $f (return_call $f))",
        "(global i32 (i32.add (i32.const 1) (i32.const 2)))",
        "(memory 1) (memory 2)",
    ] {
        let module = format!("(module (func (export \"_start\")) {text})");
        assert!(
            prepare(module.as_bytes()).is_ok(),
            "{text}: {:?}",
            prepare(module.as_bytes()).err()
        );
    }
}

#[test]
fn unknown_imports_are_named_with_the_remedy_for_their_origin() {
    for (import, names, remedy) in [
        (r#""env" "foo" (func)"#, "env::foo", "WASI toolchain"),
        (
            r#""env" "memory" (memory 1)"#,
            "env::memory",
            "WASI toolchain",
        ),
        (
            r#""wasi_unstable" "fd_write" (func)"#,
            "wasi_unstable::fd_write",
            "preview 0",
        ),
        (
            r#""wasi" "thread-spawn" (func (param i32) (result i32))"#,
            "wasi::thread-spawn",
            "wasi-threads",
        ),
        (
            r#""gojs" "runtime.wasmExit" (func)"#,
            "gojs::runtime.wasmExit",
            "GOOS=wasip1",
        ),
        (
            r#""__wbindgen_placeholder__" "f" (func)"#,
            "__wbindgen_placeholder__::f",
            "browsers",
        ),
        (
            r#""wasi:io/streams@0.2.0" "f" (func)"#,
            "wasi:io/streams@0.2.0",
            "not wasm32-wasip2",
        ),
        (
            r#""wasi:http/types@0.2.0" "[method]fields.get" (func)"#,
            "wasi:http/types@0.2.0",
            "preview 1 has no HTTP",
        ),
        (
            r#""wasi_ephemeral_nn" "load" (func)"#,
            "wasi_ephemeral_nn::load",
            "plug-ins",
        ),
        (
            r#""wasi_snapshot_preview1" "fd_fly" (func)"#,
            "wasi_snapshot_preview1::fd_fly",
            "preview 1",
        ),
        (
            r#""wasi_snapshot_preview1" "fd_write" (func)"#,
            "fd_write (with another type",
            "preview 1",
        ),
        (
            r#""wasi_snapshot_preview1" "fd_write" (global i32)"#,
            "fd_write (with another type",
            "preview 1",
        ),
        (
            r#""other" "f" (func)"#,
            "other::f",
            "wasi_snapshot_preview1",
        ),
    ] {
        let problem =
            refusal(format!("(module (import {import}) (func (export \"_start\")))").as_bytes());
        assert_eq!(problem.reason, Reason::Import, "{problem}");
        assert!(
            problem.text.contains(names) && problem.remedy.contains(remedy),
            "{problem}"
        );
        assert!(problem.offset.is_some(), "{problem}");
    }
}

#[test]
fn a_component_of_http_is_not_told_to_build_for_preview_1() {
    let binary = [
        &b"\0asm\x0d\0\x01\0\x0a\x1a\x01\0\x15wasi:http/types@0.2.0"[..],
        &[5, 0],
    ]
    .concat();
    refusal(&binary);
    let problem = refusal(br#"(component (import "wasi:http/types@0.2.0" (instance)))"#);
    assert_eq!(problem.reason, Reason::Component);
    assert!(
        problem.text.contains("wasi:http") && problem.remedy.contains("preview 1 has no HTTP"),
        "{problem}"
    );
    assert_eq!(refusal(&binary).remedy, problem.remedy);
    let other = refusal(br#"(component (import "wasi:io/streams@0.2.0" (instance)))"#);
    assert!(!other.to_string().contains("http"), "{other}");
}

#[test]
fn interfaces_are_listed_once_and_long_names_are_cut() {
    let functions: String = (0..30)
        .map(|n| {
            let interface = ["wasi:io/streams@0.2.0", "wasi:http/types@0.2.0"][n / 15];
            format!(r#"(import "{interface}" "[method]outgoing-body.finish-{n}" (func))"#)
        })
        .collect();
    let problem = refusal(format!("(module {functions} (func (export \"_start\")))").as_bytes());
    assert!(
        problem
            .text
            .ends_with("provide: wasi:io/streams@0.2.0, wasi:http/types@0.2.0"),
        "{problem}"
    );
    assert!(problem.remedy.contains("no HTTP"), "{problem}");
    let long = "ü".repeat(50_000);
    let problem = refusal(
        format!(r#"(module (import "{long}" "{long}" (func)) (func (export "_start")))"#)
            .as_bytes(),
    );
    assert!(problem.text.len() < 400, "{}", problem.text.len());
}

#[test]
fn of_many_unknown_imports_some_are_named_and_the_rest_counted() {
    let imports: String = (0..20)
        .map(|n| format!("(import \"env\" \"f{n}\" (func))"))
        .collect();
    let problem = refusal(format!("(module {imports} (func (export \"_start\")))").as_bytes());
    assert!(
        problem.text.ends_with("env::f6, env::f7 and 12 more"),
        "{problem}"
    );
}

#[test]
fn a_module_that_cannot_run_is_still_described() {
    let info =
        inspect(b"(module (import \"env\" \"f\" (func)) (memory 3) (export \"m\" (memory 0)))");
    let reasons: Vec<_> = info.problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::Import, Reason::Entry]);
    assert_eq!(
        (info.imports.len(), info.exports.len(), info.memories.len()),
        (1, 1, 1)
    );

    let info = inspect(
        b"(module (import \"env\" \"f\" (func)) (memory i64 1) (func (export \"_start\")))",
    );
    let reasons: Vec<_> = info.problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::Proposal, Reason::Import]);
    assert_eq!(info.check_entry("_start", None), Ok(()));
    assert!(info.memories[0].memory64);

    let mut cut = wasm(PROGRAM);
    cut.truncate(cut.len() - 60);
    let info = inspect(&cut);
    assert_eq!(
        (info.problems.len(), info.imports.len()),
        (1, 2),
        "{info:?}"
    );
}

#[test]
fn the_function_to_run_must_exist_and_take_what_the_command_has() {
    let info = inspect(PROGRAM.as_bytes());
    for (func, arguments) in [
        ("_start", None),
        ("_start", Some(3)),
        ("answer", Some(0)),
        ("answer", Some(3)),
        ("add", None),
        ("add", Some(2)),
    ] {
        assert_eq!(
            info.check_entry(func, arguments),
            Ok(()),
            "{func} {arguments:?}"
        );
    }
    for (func, says) in [
        (
            "add",
            "function \"add\" takes 2 arguments, 1 given; give one for each parameter of (i32, i64) -> (i64)",
        ),
        ("memory", "is not a function"),
        (
            "nothing",
            "exports no function \"nothing\"; name a function that can, as in app.wasm#_start: _start, add, answer",
        ),
    ] {
        let problem = info.check_entry(func, Some(1)).unwrap_err();
        assert!(
            problem.reason == Reason::Entry && problem.to_string().contains(says),
            "{problem}"
        );
    }
    let library = inspect(
        b"(module (func (export \"f\") (param v128)) (func (export \"_start\") (result i32) unreachable))",
    );
    let problem = library.check_entry("f", Some(1)).unwrap_err();
    assert!(problem.text.contains("(v128) -> ()"), "{problem}");
    assert!(problem.remedy.contains("not a library"), "{problem}");
    let problem = library.check_entry("_start", None).unwrap_err();
    assert!(problem.text.contains("() -> (i32)"), "{problem}");
    let parameter = inspect(b"(module (func (export \"_start\") (param i32)))");
    let problem = parameter.check_entry("_start", Some(1)).unwrap_err();
    assert!(problem.text.contains("(i32) -> ()"), "{problem}");
}

#[test]
fn functions_have_the_names_of_the_section_of_names() {
    let names = |bytes: &[u8]| prepare(bytes).unwrap().names;
    let named = [(0, "write".into()), (2, "init".into())];
    assert_eq!(names(PROGRAM.as_bytes()), named);
    assert_eq!(names(&prepare(PROGRAM.as_bytes()).unwrap().stripped), []);
    // A damaged one is no reason to refuse a module.
    let mut bytes = wasm("(module (func (export \"_start\")))");
    bytes.extend(custom_section("name", &[1, 5, 2, 0, 1, b'a', 9]));
    assert_eq!(names(&bytes), [(0, "a".into())]);
}

#[test]
fn a_message_shows_a_part_of_a_long_name() {
    let name = "é".repeat(40_000);
    let info = inspect(&wasm(&format!("(module (func (export \"{name}\")))")));
    let problem = info.check_entry("_start", None).unwrap_err().to_string();
    assert!(
        problem.len() < 1000 && problem.contains("app.wasm#éé"),
        "{}",
        problem.len()
    );
}

#[test]
fn more_memories_than_the_limit_are_refused() {
    let module = |memories: usize| {
        let text = format!(
            "(module {} (func (export \"_start\")))",
            "(memory 1)".repeat(memories)
        );
        wasm(&text)
    };
    assert_eq!(
        prepare(&module(16)).unwrap().info.min_memory_bytes(),
        16 << 16
    );
    let problem = refusal(&module(17));
    assert_eq!(problem.reason, Reason::TooLarge);
    assert!(problem.text.contains("17 memories"), "{problem}");
}

#[test]
fn more_custom_sections_than_the_limit_are_refused() {
    let mut bytes = wasm("(module (func (export \"_start\")))");
    bytes.extend(custom_section("x", b"").repeat(MAX_CUSTOM_SECTIONS + 1));
    let problem = refusal(&bytes);
    assert_eq!(problem.reason, Reason::TooLarge);
    assert!(problem.text.contains("10001 custom sections"), "{problem}");
}

/// A module in whose text MANY is a thousand times the type i64, and ZEROS as many constants.
fn many_values(text: &str) -> Vec<u8> {
    let many = "i64 ".repeat(1000);
    let zeros = "(i64.const 0)".repeat(1000);
    let text = text.replace("MANY", &many).replace("ZEROS", &zeros);
    wasm(&format!(
        r#"(module (func (export "_start")) (type $wide (func (param {many}) (result {many}))) {text})"#
    ))
}

#[test]
fn code_that_declares_more_than_it_can_use_is_refused_by_function() {
    let wide = |instruction: &str| {
        let code = instruction.repeat(100);
        format!("(func $wide (type $wide) unreachable) (func ZEROS {code} unreachable)")
    };
    // Of ten times as many, some kilobytes each, the compiler would make gigabytes.
    for (text, which) in [
        ("(func (local MANY))".repeat(100), ""),
        (
            format!("(func (local {}))", "v128 ".repeat(50_000)).repeat(3),
            "function 2 declares",
        ),
        ("(func (param MANY))".repeat(100), ""),
        ("(func (result MANY) unreachable)".repeat(100), ""),
        (wide("(loop (type $wide))"), "function 2 declares"),
        (wide("(block (type $wide))"), "function 2 declares"),
        (
            wide("(i32.const 0) (if (type $wide) (then) (else))"),
            "function 2 declares",
        ),
        (wide("(call $wide)"), "function 2 declares"),
        (
            wide("(i32.const 0) (call_indirect (type $wide))") + "(table 1 funcref)",
            "function 2 declares",
        ),
        (
            wide("(block (type $wide) (br_if 0 (i32.const 0)))"),
            "function 2 declares",
        ),
        (
            wide(&format!(
                "(block (type $wide) (br_table {} (i32.const 0)))",
                "0 ".repeat(9)
            )),
            "function 2 declares",
        ),
        ("(func)".repeat(10_000), ""),
    ] {
        let problem = refusal(&many_values(&text));
        assert_eq!(problem.reason, Reason::TooLarge);
        assert!(
            problem.text.starts_with("function ") && problem.text.starts_with(which),
            "{problem} is told of {text:.99}"
        );
    }
    let types = "(type (func (param MANY)))".repeat(100);
    let problem = refusal(&many_values(&types));
    assert!(
        problem.text.starts_with("type 64 declares 1000 values"),
        "{problem}"
    );
    assert!(
        problem.to_string().contains("more than the 65"),
        "{problem}"
    );
}

#[test]
fn code_that_uses_what_it_declares_is_accepted() {
    // A value of each local, parameter and result, in instructions of two bytes; ten times what compilers emit.
    let locals = "i64 ".repeat(20_000);
    let sets: String = (0..20_000)
        .map(|i| format!("(local.set {i} (i64.const 0))"))
        .collect();
    let passed = "(call $wide ZEROS) $drops"
        .replace("$drops", &"drop ".repeat(1000))
        .repeat(50);
    let text = format!(
        "(func (local {locals}) {sets}) (func $wide (type $wide) unreachable) (func {passed})"
    );
    prepare(&many_values(&text)).unwrap();
}

#[test]
fn long_text_is_refused_before_it_is_parsed() {
    let text = format!("(module {})", " ".repeat(crate::MAX_TEXT_BYTES as usize));
    assert_eq!(refusal(text.as_bytes()).reason, Reason::TooLarge);
}

#[test]
fn deeply_nested_text_is_refused_without_exhausting_the_stack() {
    for text in [
        "(".repeat(1_000_000),
        "(;".repeat(1_000_000) + &";)".repeat(1_000_000),
        format!("(module (func {}))", "(block ".repeat(500_000)),
        format!("(module (func {}))", "block ".repeat(500_000)),
    ] {
        assert!(prepare(text.as_bytes()).is_err());
    }
}

#[test]
fn a_signature_of_many_values_is_cut() {
    let info = inspect(
        format!(
            "(module (func (export \"f\") (param {})))",
            "i32 ".repeat(900)
        )
        .as_bytes(),
    );
    let signature = info.exports[0].signature.clone().unwrap();
    assert!(
        signature.len() < 200 && signature.ends_with("i32, ...) -> ()"),
        "{signature}"
    );
}

#[test]
fn every_truncation_of_a_module_is_refused_with_an_offset_inside_it() {
    let whole = prepare(PROGRAM.as_bytes()).unwrap().stripped;
    for length in 4..whole.len() {
        let problem = prepare(&whole[..length]).expect_err("truncated");
        let offset = problem
            .offset
            .unwrap_or_else(|| panic!("{length}: {problem}"));
        assert!(offset <= length as u64, "{length}: {problem}");
    }
}

/// xorshift64*: enough randomness to wander through the parser, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[test]
fn random_bytes_behind_any_header_are_refused_without_panic() {
    let mut random = Random(1);
    for round in 0..20_000 {
        let header: &[u8] = [
            &b""[..],
            b"\0asm",
            b"\0asm\x01\0\0\0",
            b"\0asm\x0d\0\x01\0",
            b"(module ",
            b"(;",
        ][round % 6];
        let mut bytes = header.to_vec();
        bytes.extend((0..random.below(200)).map(|_| random.next() as u8));
        assert!(prepare(&bytes).is_err(), "{bytes:02x?}");
    }
}

#[test]
fn mutations_of_a_module_never_panic_and_what_is_accepted_strips_to_a_valid_module() {
    let mut random = Random(2);
    let original = wasm(PROGRAM);
    let mut accepted = 0;
    for _ in 0..20_000 {
        let mut bytes = original.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes.insert(at, random.next() as u8),
                _ => drop(bytes.remove(at)),
            }
        }
        if let Ok(prepared) = prepare(&bytes) {
            accepted += 1;
            let again = prepare(&prepared.stripped).unwrap();
            assert_eq!(again.stripped, prepared.stripped);
        }
    }
    assert!(accepted > 0, "some mutations leave the module valid");
}
