//! Rules about system calls as a program of classic BPF, which the kernel runs at each of them.
//!
//! The numbers of system calls fall into ranges of one verdict, and a binary tree of comparisons finds a number's range:
//! containerd's default profile is 170 instructions, of which most calls run ten. Jumps go forward only, so the program is
//! written from its end to its beginning: each jump knows how far it goes.

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
pub(crate) const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub(crate) const AUDIT_ARCH: u32 = 0xc000_00b7;

/// From here on, the numbers of x86-64 are those of x32, an ABI of its own.
const X32: u32 = 0x4000_0000;

/// What the kernel returns of a filter: `SECCOMP_RET_…` and its data.
pub type Action = u32;

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// The value itself.
    Equal,
    /// Any other.
    NotEqual,
    /// One below it.
    Less,
    /// It or one below.
    LessOrEqual,
    /// One above it.
    Greater,
    /// It or one above.
    GreaterOrEqual,
    /// Equal in the bits of a mask.
    MaskedEqual(u64),
}

/// Something that holds for an argument, all 64 bits of it, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Condition {
    /// 0 to 5.
    pub argument: u32,
    /// How it is compared,
    pub operator: Operator,
    /// and with what.
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

/// The program for the calls of a table by number, and those beyond it. A call of another ABI ends the process.
pub fn program(table: Vec<Verdict>, beyond: Action) -> Vec<Instruction> {
    let end = table.len() as u32;
    let mut ranges = Vec::new();
    for (number, verdict) in (0..).zip(table) {
        begin(&mut ranges, number, verdict);
    }
    begin(&mut ranges, end, beyond.into());
    if cfg!(target_arch = "x86_64") {
        begin(&mut ranges, X32, libc::SECCOMP_RET_KILL_PROCESS.into());
    }
    let mut program = Vec::new();
    tree(&mut program, &ranges);
    let head = [
        load(ABI),
        jump(BPF_JEQ, AUDIT_ARCH, 1, 0),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        load(NUMBER),
    ];
    prepend(&mut program, head);
    program.reverse();
    program
}

/// Lets another verdict begin at this number, which is above those of the ranges so far.
fn begin(ranges: &mut Vec<(u32, Verdict)>, number: u32, verdict: Verdict) {
    if ranges.last().is_none_or(|(_, last)| *last != verdict) {
        ranges.push((number, verdict));
    }
}

/// Puts instructions before those of a program that is still backwards.
fn prepend<const N: usize>(program: &mut Vec<Instruction>, part: [Instruction; N]) {
    program.extend(part.into_iter().rev());
}

/// Goes to the range of the loaded number.
fn tree(program: &mut Vec<Instruction>, ranges: &[(u32, Verdict)]) {
    let (below, from) = match ranges {
        [] => return,
        [(_, verdict)] => return decide(program, verdict),
        _ => ranges.split_at(ranges.len() / 2),
    };
    tree(program, from);
    let end = program.len();
    tree(program, below);
    let (first, lower) = (from[0].0, program.len() - end);
    match u8::try_from(lower) {
        Ok(skip) => prepend(program, [jump(BPF_JGE, first, skip, 0)]),
        // Only an unconditional jump goes as far.
        Err(_) => prepend(program, [jump(BPF_JGE, first, 0, 1), self::skip(lower)]),
    }
}

fn decide(program: &mut Vec<Instruction>, verdict: &Verdict) {
    prepend(program, [ret(verdict.otherwise)]);
    for (conditions, action) in verdict.rules.iter().rev() {
        let end = program.len();
        prepend(program, [ret(*action)]);
        for condition in conditions.iter().rev() {
            // At most six conditions of six instructions each.
            let rest = program.len() - end;
            test(program, condition, rest as u8);
        }
    }
}

/// Falls through where the condition holds, and skips a rule's `rest` where it does not: the upper half of the argument
/// first, the lower one where the upper does not tell.
fn test(program: &mut Vec<Instruction>, condition: &Condition, rest: u8) {
    let at = ARGUMENTS + 8 * condition.argument;
    // In the guest's order of bytes, which is little-endian.
    let (lower, upper) = (load(at), load(at + 4));
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    // Whether it holds beyond the value, else below it; the comparison of the lower halves, and whether it holds with it.
    let ordered = |greater: bool, comparison: u32, holds: bool| {
        let (above, below) = if greater {
            (3, 2 + rest)
        } else {
            (3 + rest, 2)
        };
        let (jt, jf) = if holds { (0, rest) } else { (rest, 0) };
        [
            upper,
            jump(BPF_JGT, high, above, 0),
            jump(BPF_JEQ, high, 0, below),
            lower,
            jump(comparison, low, jt, jf),
        ]
    };
    let equal = |above: u8, jt: u8, jf: u8| {
        [
            upper,
            jump(BPF_JEQ, high, 0, above),
            lower,
            jump(BPF_JEQ, low, jt, jf),
        ]
    };
    match condition.operator {
        Operator::Equal => prepend(program, equal(2 + rest, 0, rest)),
        Operator::NotEqual => prepend(program, equal(2, rest, 0)),
        Operator::Greater => prepend(program, ordered(true, BPF_JGT, true)),
        Operator::GreaterOrEqual => prepend(program, ordered(true, BPF_JGE, true)),
        Operator::Less => prepend(program, ordered(false, BPF_JGE, false)),
        Operator::LessOrEqual => prepend(program, ordered(false, BPF_JGT, false)),
        // An int.
        Operator::MaskedEqual(mask) if mask == u64::from(u32::MAX) && high == 0 => {
            prepend(program, [lower, jump(BPF_JEQ, low, 0, rest)]);
        }
        Operator::MaskedEqual(mask) => prepend(
            program,
            [
                upper,
                instruction(BPF_ALU | BPF_AND | BPF_K, (mask >> 32) as u32),
                jump(BPF_JEQ, high, 0, 3 + rest),
                lower,
                instruction(BPF_ALU | BPF_AND | BPF_K, mask as u32),
                jump(BPF_JEQ, low, 0, rest),
            ],
        ),
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

/// Goes on behind that many instructions.
pub(crate) fn skip(instructions: usize) -> Instruction {
    instruction(BPF_JMP | BPF_JA, instructions as u32)
}

pub(crate) fn ret(action: Action) -> Instruction {
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
