//! Filters are run here as the kernel runs them, on made-up calls. test/integration/test_seccomp.py has real ones.

use serde_json::{Value, json};
use slipway_protocol::{Instruction, Seccomp};
use slipway_seccomp::simulate;
use syscalls::Sysno;

use super::*;

const ERRNO: u32 = SECCOMP_RET_ERRNO;
const ALLOW: u32 = SECCOMP_RET_ALLOW;
const EPERM: u32 = ERRNO | 1;
const ENOSYS: u32 = ERRNO | 38;

fn parse(profile: &Value) -> Result<Option<Seccomp>, Error> {
    filter(&serde_json::from_value(profile.clone()).unwrap())
}

fn error(profile: Value) -> String {
    parse(&profile).unwrap_err().to_string()
}

/// A profile's filter.
struct Filter(Vec<Instruction>);

impl Filter {
    fn new(profile: Value) -> Self {
        Self(parse(&profile).unwrap().unwrap().program)
    }

    /// A profile that allows all but what is in these rules.
    fn of_rules(rules: Value) -> Self {
        Self::new(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}))
    }

    fn call(&self, name: &str, args: [u64; 6]) -> u32 {
        simulate::call(&self.0, name, args)
    }

    fn number(&self, number: u32, args: [u64; 6]) -> u32 {
        simulate::number(&self.0, number, args)
    }

    fn run(&self, number: u32, abi: u32, args: [u64; 6]) -> u32 {
        simulate::run(&self.0, number, abi, args)
    }
}

#[test]
fn no_profile_is_no_filter() {
    assert_eq!(parse(&json!({})).unwrap(), None);
    assert_eq!(
        parse(&json!({"architectures": ["SCMP_ARCH_X86"]})).unwrap(),
        None
    );
}

#[test]
fn each_call_has_its_action_and_the_others_the_default() {
    let filter = Filter::new(json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
        "syscalls": [
            {"names": ["read", "write", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30},
            {"names": ["bpf"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["ptrace"], "action": "SCMP_ACT_KILL"},
            {"names": ["mount"], "action": "SCMP_ACT_KILL_THREAD"},
            {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["swapon"], "action": "SCMP_ACT_TRAP"},
            {"names": ["acct"], "action": "SCMP_ACT_TRACE", "errnoRet": 7},
            {"names": ["chroot"], "action": "SCMP_ACT_LOG"},
        ],
    }));
    for (call, action) in [
        ("read", ALLOW),
        ("write", ALLOW),
        ("close", ERRNO | 13),
        ("mkdirat", ERRNO | 30),
        ("bpf", EPERM),
        ("ptrace", SECCOMP_RET_KILL_THREAD),
        ("mount", SECCOMP_RET_KILL_THREAD),
        ("reboot", SECCOMP_RET_KILL_PROCESS),
        ("swapon", SECCOMP_RET_TRAP),
        ("acct", SECCOMP_RET_TRACE | 7),
        ("chroot", SECCOMP_RET_LOG),
    ] {
        assert_eq!(filter.call(call, [0; 6]), action, "{call}");
    }
}

#[test]
fn a_call_of_another_abi_ends_the_process() {
    let filter = Filter::new(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(filter.number(0, [0; 6]), ALLOW);
    assert_eq!(filter.run(0, 0x4000_0003, [0; 6]), SECCOMP_RET_KILL_PROCESS);
    if cfg!(target_arch = "x86_64") {
        assert_eq!(filter.number(X32_READ, [0; 6]), SECCOMP_RET_KILL_PROCESS);
    }
}

const X32_READ: u32 = 0x4000_0000;

#[test]
fn a_call_newer_than_the_profile_is_one_that_the_kernel_lacks() {
    let profile = |default: &str| {
        Filter::new(json!({
            "defaultAction": default,
            "syscalls": [{"names": ["read", "openat2"], "action": "SCMP_ACT_LOG"}],
        }))
    };
    let openat2 = Sysno::openat2.id() as u32;
    assert_eq!(profile("SCMP_ACT_ERRNO").number(openat2 - 1, [0; 6]), EPERM);
    assert_eq!(
        profile("SCMP_ACT_ERRNO").number(openat2 + 1, [0; 6]),
        ENOSYS
    );
    assert_eq!(profile("SCMP_ACT_KILL").number(openat2 + 1, [0; 6]), ENOSYS);
    assert_eq!(profile("SCMP_ACT_ALLOW").number(openat2 + 1, [0; 6]), ALLOW);
}

#[test]
fn operators_compare_all_64_bits() {
    const BIG: u64 = 5 << 32 | 7;
    // Around a value, with equal and different halves.
    let around = [
        0,
        6,
        7,
        8,
        BIG - 1,
        BIG,
        BIG + 1,
        4 << 32 | 8,
        6 << 32 | 6,
        u64::MAX,
    ];
    type Holds = fn(u64) -> bool;
    let holds: [(&str, Holds); 6] = [
        ("SCMP_CMP_EQ", |a| a == BIG),
        ("SCMP_CMP_NE", |a| a != BIG),
        ("SCMP_CMP_LT", |a| a < BIG),
        ("SCMP_CMP_LE", |a| a <= BIG),
        ("SCMP_CMP_GT", |a| a > BIG),
        ("SCMP_CMP_GE", |a| a >= BIG),
    ];
    for (op, holds) in holds {
        let filter = Filter::of_rules(json!([{"names": ["ioctl"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 5, "value": BIG, "op": op}]}]));
        for value in around {
            let action = if holds(value) { EPERM } else { ALLOW };
            let args = [BIG, BIG, BIG, BIG, BIG, value];
            assert_eq!(filter.call("ioctl", args), action, "{value:#x} {op}");
            assert_eq!(filter.call("fcntl", args), ALLOW);
        }
    }
    let masked = Filter::of_rules(json!([{"names": ["clone"], "action": "SCMP_ACT_ERRNO",
        "args": [{"index": 0, "value": 0xf_0000_000fu64, "valueTwo": 0x25_0000_0003u64, "op": "SCMP_CMP_MASKED_EQ"}]}]));
    for (value, action) in [
        (0x5_0000_0003u64, EPERM),
        (0x35_0000_0ff3, EPERM),
        (0x4_0000_0003, ALLOW),
        (0x5_0000_0001, ALLOW),
    ] {
        assert_eq!(
            masked.call("clone", [value, 0, 0, 0, 0, 0]),
            action,
            "{value:#x}"
        );
    }
}

#[test]
fn conditions_of_a_rule_all_hold_but_those_on_one_argument_are_alternatives() {
    let is = |index: u32, value: u64| json!({"index": index, "value": value, "op": "SCMP_CMP_EQ"});
    let rule =
        |args: Value| json!([{"names": ["socket"], "action": "SCMP_ACT_ERRNO", "args": args}]);
    let both = Filter::of_rules(rule(json!([is(0, 40), is(1, 1)])));
    assert_eq!(both.call("socket", [40, 1, 0, 0, 0, 0]), EPERM);
    assert_eq!(both.call("socket", [40, 2, 0, 0, 0, 0]), ALLOW);
    let either = Filter::of_rules(rule(json!([is(0, 40), is(0, 41), is(1, 1)])));
    for (args, action) in [
        ([40, 2], EPERM),
        ([41, 2], EPERM),
        ([2, 1], EPERM),
        ([2, 2], ALLOW),
    ] {
        let args = [args[0], args[1], 0, 0, 0, 0];
        assert_eq!(either.call("socket", args), action, "{args:?}");
    }
}

#[test]
fn a_rule_without_conditions_is_for_all_cases() {
    let is = |value: u64| json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]);
    let rules = [
        json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2, "args": is(0)}),
        json!({"names": ["personality"], "action": "SCMP_ACT_ERRNO", "errnoRet": 3, "args": is(8)}),
        json!({"names": ["personality"], "action": "SCMP_ACT_LOG"}),
        json!({"names": ["personality"], "action": "SCMP_ACT_TRAP", "args": is(8)}),
    ];
    let two = Filter::of_rules(json!(rules[..2]));
    let action = |filter: &Filter, value| filter.call("personality", [value, 0, 0, 0, 0, 0]);
    assert_eq!(action(&two, 0), ERRNO | 2);
    assert_eq!(action(&two, 8), ERRNO | 3);
    assert_eq!(action(&two, 9), ALLOW);
    let reversed: Vec<_> = rules.iter().rev().collect();
    for rules in [json!(rules), json!(reversed)] {
        let all = Filter::of_rules(rules);
        assert_eq!(
            [0, 8, 9].map(|value| action(&all, value)),
            [SECCOMP_RET_LOG; 3]
        );
    }
}

#[test]
fn many_ranges_are_few_steps_and_reach_far() {
    let every_other: Vec<&str> = (0..200)
        .step_by(2)
        .filter_map(Sysno::new)
        .map(|c| c.name())
        .collect();
    let conditions: Vec<Value> = (0..6)
        .map(|i| json!({"index": i, "value": 1, "op": "SCMP_CMP_GE"}))
        .collect();
    let filter = Filter::of_rules(
        json!([{"names": every_other, "action": "SCMP_ACT_ERRNO", "args": conditions}]),
    );
    assert!(filter.0.len() > 3000, "{}", filter.0.len());
    for name in every_other {
        assert_eq!(filter.call(name, [1; 6]), EPERM, "{name}");
        assert_eq!(filter.call(name, [1, 1, 1, 1, 1, 0]), ALLOW, "{name}");
    }
    assert_eq!(filter.number(1, [1; 6]), ALLOW);
}

#[test]
fn flags_are_those_that_are_asked_for() {
    let flags = |flags: Value| {
        let profile = json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags});
        parse(&profile).unwrap().unwrap().flags
    };
    assert_eq!(flags(Value::Null), SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    assert_eq!(flags(json!([])), 0);
    assert_eq!(
        flags(json!([
            "SECCOMP_FILTER_FLAG_TSYNC",
            "SECCOMP_FILTER_FLAG_LOG",
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"
        ])),
        SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_LOG
    );
}

#[test]
fn refusals_name_their_field() {
    let with = |field: &str, value: Value| {
        let mut profile = json!({"defaultAction": "SCMP_ACT_ALLOW"});
        profile[field] = value;
        profile
    };
    let rule = |more: Value| {
        let mut rule = json!({"names": ["read"], "action": "SCMP_ACT_ERRNO"});
        rule.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        with(
            "syscalls",
            json!([{"names": [], "action": "SCMP_ACT_LOG"}, rule]),
        )
    };
    let arg =
        |index: u32, op: &str| rule(json!({"args": [{"index": index, "value": 1, "op": op}]}));
    let many: Vec<Value> = (0..900)
        .map(|i| {
            json!({"names": ["read"], "action": "SCMP_ACT_LOG",
        "args": [{"index": 0, "value": i, "op": "SCMP_CMP_EQ"}]})
        })
        .collect();
    for (profile, field, text) in [
        (
            with("defaultAction", json!("ALLOW")),
            "defaultAction",
            "\"ALLOW\"",
        ),
        (
            with("syscalls", json!([{"names": ["read"]}])),
            "syscalls[0].action",
            "\"\"",
        ),
        (
            with("defaultAction", json!("SCMP_ACT_NOTIFY")),
            "defaultAction",
            "agent",
        ),
        (
            with("architectures", json!(["x86"])),
            "architectures[0]",
            "\"x86\"",
        ),
        (with("flags", json!(["TSYNC"])), "flags[0]", "\"TSYNC\""),
        (
            rule(json!({"action": "SCMP_ACT_NOTIFY"})),
            "syscalls[1].action",
            "agent",
        ),
        (
            rule(json!({"errnoRet": 4096})),
            "syscalls[1].errnoRet",
            "4096",
        ),
        (arg(6, "SCMP_CMP_EQ"), "syscalls[1].args[0].index", "6"),
        (arg(0, "=="), "syscalls[1].args[0].op", "\"==\""),
        (with("syscalls", json!(many)), "syscalls", "3584"),
    ] {
        let error = error(profile);
        assert!(
            error.contains(&format!("linux.seccomp.{field}: ")),
            "{error}"
        );
        assert!(error.contains(text), "{error}");
    }
}
