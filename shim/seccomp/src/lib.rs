//! Filters for system calls: rules as programs for the kernel, and the allow-lists of the three processes that have hostile bytes
//! in them. What a list does not name, those processes never call; whoever breaks out of WebAssembly, the engine or LLVM finds
//! that much of the kernel and no more.

mod bpf;
mod compiler;
mod guest;
mod layers;
#[cfg(any(test, feature = "simulate"))]
pub mod simulate;

pub use bpf::{Action, Condition, Operator, Verdict, program};
pub use compiler::rules as compiler;
pub use guest::{rules as guest, rules_once_loaded as guest_once_loaded};
pub use layers::rules as layers;

use libc::{PROT_EXEC, SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_TRAP};
use slipway_protocol::Instruction;
use syscalls::Sysno;

/// What the kernel takes in one filter (BPF_MAXINSNS).
const MAX_INSTRUCTIONS: usize = 4096;
/// Room for an allow-list in it.
const MAX_ALLOW_LIST: usize = 512;
/// Most instructions of a pod's profile, which follows one.
pub const MAX_PROFILE: usize = MAX_INSTRUCTIONS - MAX_ALLOW_LIST;

/// `si_errno` of the SIGSYS that an allow-list sends; a pod's profile has 0 there.
pub const UNLISTED: i32 = 1;
/// For a call that no rule allows: SIGSYS, whose handler can tell which it was.
const FORBID: Action = SECCOMP_RET_TRAP | UNLISTED.unsigned_abs();
/// For a call that is newer than the list: a library has another way then.
const MISSING: Action = SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();

/// For a call that this process makes for itself, and never its program: a pod's profile has no word in it. The kernel takes no data of
/// an action that allows.
const ALLOW_WHATEVER_THE_PROFILE: Action = SECCOMP_RET_ALLOW | 1;

/// Requests of ioctl(2), by the kernel's numbers: C libraries disagree about their type. What isatty(3) asks for, in two
/// generations of a library: TCGETS and TCGETS2.
const TERMINAL: [u64; 2] = [0x5401, 0x802c_542a];
/// How much there is to read.
const FIONREAD: u64 = 0x541b;
/// The number of a network interface, by its name.
const SIOCGIFINDEX: u64 = 0x8933;
/// This terminal is mine.
const TIOCSCTTY: u64 = 0x540e;

/// A line of an allow-list.
#[derive(Debug)]
pub struct Rule {
    /// Names of system calls; an architecture may lack some.
    pub calls: &'static [&'static str],
    /// What becomes of them.
    pub verdict: Verdict,
    /// Who makes them, and what for.
    pub why: &'static str,
}

/// Calls that are allowed whatever their arguments.
fn allow(calls: &'static [&'static str], why: &'static str) -> Rule {
    Rule {
        calls,
        verdict: SECCOMP_RET_ALLOW.into(),
        why,
    }
}

/// Of calls whose third argument is what may be done with memory: no memory that can be executed.
fn no_code(rule: Rule) -> Rule {
    rule.only([has(2, PROT_EXEC as u64, 0)])
}

/// A call that fails, because a library has another way then.
fn refuse(call: &'static [&'static str], error: i32, why: &'static str) -> Rule {
    Rule {
        verdict: errno(error).into(),
        ..allow(call, why)
    }
}

impl Rule {
    /// Allowed only where all of these conditions hold, or all of another call's of this function.
    fn only<const N: usize>(mut self, all: [Condition; N]) -> Self {
        let before = std::mem::replace(&mut self.verdict, FORBID.into());
        self.verdict.rules = before.rules;
        self.verdict.rules.push((all.to_vec(), SECCOMP_RET_ALLOW));
        self
    }

    /// Only with one of these values of an argument.
    fn one_of(self, argument: u32, values: &[u64]) -> Self {
        let one = |rule: Self, value: &u64| rule.only([is(argument, *value)]);
        values.iter().fold(self, one)
    }

    /// An error, where it is not allowed.
    fn or(mut self, error: i32) -> Self {
        self.verdict.otherwise = errno(error);
        self
    }
}

fn errno(error: i32) -> Action {
    SECCOMP_RET_ERRNO | error.unsigned_abs()
}

/// An argument of the C type int, or one of which the kernel takes no more bits.
fn is(argument: u32, value: u64) -> Condition {
    has(argument, u64::from(u32::MAX), value)
}

/// An argument whose bits of a mask have this value.
fn has(argument: u32, mask: u64, value: u64) -> Condition {
    Condition {
        argument,
        operator: Operator::MaskedEqual(mask),
        value,
    }
}

/// The program of an allow-list.
pub fn allow_list(rules: &[Rule]) -> Vec<Instruction> {
    program(table(rules, FORBID), MISSING)
}

/// The program of rules that follow an allow-list: calls that they do not name stay as they are.
pub fn further(rules: &[Rule]) -> Vec<Instruction> {
    program(table(rules, SECCOMP_RET_ALLOW), SECCOMP_RET_ALLOW)
}

/// Verdicts by the numbers of the calls.
fn table(rules: &[Rule], unnamed: Action) -> Vec<Verdict> {
    let mut table: Vec<Verdict> = Vec::new();
    for rule in rules {
        let numbers = rule.calls.iter().filter_map(|name| number(name));
        for number in numbers {
            if table.len() <= number {
                table.resize(number + 1, unnamed.into());
            }
            table[number] = rule.verdict.clone();
        }
    }
    table
}

fn number(call: &str) -> Option<usize> {
    let call: Option<Sysno> = call.parse().ok();
    call.map(|call| call.id() as usize)
}

/// The name of a call, for people.
pub fn name(number: i32) -> &'static str {
    let call = usize::try_from(number).ok().and_then(Sysno::new);
    call.map_or("unknown", |call| call.name())
}

/// One program of two: what the first allows is the second's to decide about.
pub fn chain(mut first: Vec<Instruction>, second: &[Instruction]) -> Vec<Instruction> {
    let end = first.len();
    for (at, instruction) in first.iter_mut().enumerate() {
        if *instruction == bpf::ret(SECCOMP_RET_ALLOW) {
            *instruction = bpf::skip(end - at - 1);
        }
    }
    if second.is_empty() {
        first.push(bpf::ret(SECCOMP_RET_ALLOW));
    }
    first.extend_from_slice(second);
    first
}

#[cfg(test)]
mod tests;
