//! Rules about system calls as a program of classic BPF, which the kernel runs at each of them.
//!
//! The numbers of system calls fall into ranges of one verdict, and a binary tree of comparisons finds a number's range:
//! containerd's default profile allows some 340 calls in 40 ranges. No instruction jumps back or into another's middle,
//! so a part of the program is a list of instructions that stands for itself: it either returns, or falls off its end.

use std::collections::BTreeMap;

use libc::{
    BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET,
    BPF_W,
};
use slipway_protocol::Instruction;

/// Offsets in the kernel's `struct seccomp_data`: the number of the call, its ABI, the first of six arguments.
const NUMBER: u32 = 0;
const ABI: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The ABI of the guest (linux/audit.h), whose calls the rules are about.
#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xc000_00b7;

/// From here on, the numbers of x86-64 are those of x32, an ABI of its own.
const X32: u32 = 0x4000_0000;

/// What the kernel returns of a filter: `SECCOMP_RET_…` and its data.
pub type Action = u32;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal in the bits of a mask.
    MaskedEqual(u64),
}

/// Something that holds for an argument, all 64 bits of it, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u32,
    pub operator: Operator,
    pub value: u64,
}

/// What becomes of a system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The first of them whose conditions all hold.
    pub rules: Vec<(Vec<Condition>, Action)>,
    /// Where there is none.
    pub otherwise: Action,
}

impl From<Action> for Verdict {
    fn from(otherwise: Action) -> Self {
        Self {
            rules: Vec::new(),
            otherwise,
        }
    }
}

/// The program for these calls by number. The others have one verdict, but from some number on another.
/// A call of another ABI ends the process.
pub fn program(
    calls: BTreeMap<u32, Verdict>,
    others: Action,
    beyond: Option<(u32, Action)>,
) -> Vec<Instruction> {
    let mut ranges = Vec::from([(0, others.into())]);
    for (number, verdict) in calls {
        begin(&mut ranges, number, verdict);
        begin(&mut ranges, number + 1, others.into());
    }
    if let Some((number, verdict)) = beyond {
        begin(&mut ranges, number, verdict.into());
    }
    if cfg!(target_arch = "x86_64") {
        begin(&mut ranges, X32, libc::SECCOMP_RET_KILL_PROCESS.into());
    }
    let head = [
        load(ABI),
        jump(BPF_JEQ, AUDIT_ARCH, 1, 0),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    [&head[..], &tree(&ranges)].concat()
}

/// Lets another verdict begin at this number, which is not below that of the last range.
fn begin(ranges: &mut Vec<(u32, Verdict)>, number: u32, verdict: Verdict) {
    ranges.pop_if(|(first, _)| *first == number);
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((number, verdict));
    }
}

/// Goes to the range of the loaded number.
fn tree(ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    let (below, from) = match ranges {
        [] => return Vec::new(),
        [(_, verdict)] => return decide(verdict),
        _ => ranges.split_at(ranges.len() / 2),
    };
    let (first, lower) = (from[0].0, tree(below));
    let branch = match u8::try_from(lower.len()) {
        Ok(skip) => vec![jump(BPF_JGE, first, skip, 0)],
        // Only an unconditional jump goes as far.
        Err(_) => vec![
            jump(BPF_JGE, first, 0, 1),
            instruction(BPF_JMP | BPF_JA, lower.len() as u32),
        ],
    };
    [branch, lower, tree(from)].concat()
}

fn decide(verdict: &Verdict) -> Vec<Instruction> {
    let rules = verdict.rules.iter().map(|(conditions, action)| {
        let end = vec![ret(*action)];
        let all = conditions.iter().rev();
        all.fold(end, |rest, condition| {
            [test(condition, rest.len() as u8), rest].concat()
        })
    });
    let mut all: Vec<Instruction> = rules.flatten().collect();
    all.push(ret(verdict.otherwise));
    all
}

/// Falls through where the condition holds, and skips a rule's `rest` where it does not: the upper half of the argument
/// first, the lower one where the upper does not tell.
fn test(condition: &Condition, rest: u8) -> Vec<Instruction> {
    let at = ARGUMENTS + 8 * condition.argument;
    // In the guest's order of bytes, which is little-endian.
    let (lower, upper) = (load(at), load(at + 4));
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    // (greater: beyond the value, or below it; the comparison of the lower half that holds for `holds`)
    let ordered = |greater: bool, comparison: u32, holds: bool| {
        let (above, below) = if greater {
            (3, 2 + rest)
        } else {
            (3 + rest, 2)
        };
        let (jt, jf) = if holds { (0, rest) } else { (rest, 0) };
        vec![
            upper,
            jump(BPF_JGT, high, above, 0),
            jump(BPF_JEQ, high, 0, below),
            lower,
            jump(comparison, low, jt, jf),
        ]
    };
    match condition.operator {
        Operator::Equal => vec![
            upper,
            jump(BPF_JEQ, high, 0, 2 + rest),
            lower,
            jump(BPF_JEQ, low, 0, rest),
        ],
        Operator::NotEqual => vec![
            upper,
            jump(BPF_JEQ, high, 0, 2),
            lower,
            jump(BPF_JEQ, low, rest, 0),
        ],
        Operator::Greater => ordered(true, BPF_JGT, true),
        Operator::GreaterOrEqual => ordered(true, BPF_JGE, true),
        Operator::Less => ordered(false, BPF_JGE, false),
        Operator::LessOrEqual => ordered(false, BPF_JGT, false),
        Operator::MaskedEqual(mask) => vec![
            upper,
            instruction(BPF_ALU | BPF_AND | BPF_K, (mask >> 32) as u32),
            jump(BPF_JEQ, high, 0, 3 + rest),
            lower,
            instruction(BPF_ALU | BPF_AND | BPF_K, mask as u32),
            jump(BPF_JEQ, low, 0, rest),
        ],
    }
}

fn instruction(code: u32, k: u32) -> Instruction {
    Instruction {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

fn load(offset: u32) -> Instruction {
    instruction(BPF_LD | BPF_W | BPF_ABS, offset)
}

fn ret(action: Action) -> Instruction {
    instruction(BPF_RET | BPF_K, action)
}

fn jump(comparison: u32, k: u32, jt: u8, jf: u8) -> Instruction {
    let code = BPF_JMP | comparison | BPF_K;
    Instruction {
        jt,
        jf,
        ..instruction(code, k)
    }
}
