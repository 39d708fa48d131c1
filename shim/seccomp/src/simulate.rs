//! What the kernel would return, for tests.
#![allow(clippy::panic)]

use slipway_protocol::Instruction;
use syscalls::Sysno;

use crate::bpf::AUDIT_ARCH;

/// A filter's verdict on a call of this architecture's ABI, by name.
///
/// # Panics
/// At a name that is none, and at an instruction that no filter of ours has.
pub fn call(program: &[Instruction], name: &str, args: [u64; 6]) -> u32 {
    let Ok(call) = name.parse::<Sysno>() else {
        panic!("no system call {name}");
    };
    run(program, call.id() as u32, AUDIT_ARCH, args)
}

/// A filter's verdict on a call of this architecture's ABI, by number.
///
/// # Panics
/// At an instruction that no filter of ours has.
pub fn number(program: &[Instruction], number: u32, args: [u64; 6]) -> u32 {
    run(program, number, AUDIT_ARCH, args)
}

/// As the kernel's interpreter: `struct seccomp_data` is number, ABI, address, arguments.
///
/// # Panics
/// At an instruction that no filter of ours has.
pub fn run(program: &[Instruction], number: u32, abi: u32, args: [u64; 6]) -> u32 {
    let halves = args.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]);
    let data: Vec<u32> = [number, abi, 0, 0].into_iter().chain(halves).collect();
    let (mut a, mut at) = (0, 0);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let branch = |holds: bool| usize::from(if holds { jt } else { jf });
        match code {
            0x20 => a = data[k as usize / 4],
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(a == k),
            0x25 => at += branch(a > k),
            0x35 => at += branch(a >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
}
