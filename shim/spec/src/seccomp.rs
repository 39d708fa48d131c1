//! linux.seccomp as a filter for the kernel, with runc's meaning: what runc lets a process call, a guest may call too.
//!
//! One thing is stricter. A guest makes calls of the node's own ABI only, so those of the others are not let through
//! where `architectures` has them (i386 and x32 on x86-64): they end the process.

use libc::{
    SECCOMP_FILTER_FLAG_LOG, SECCOMP_FILTER_FLAG_SPEC_ALLOW, SECCOMP_FILTER_FLAG_TSYNC,
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_TRAP,
};
use slipway_protocol::Seccomp;

use crate::{Error, oci, plan::refuse};
use slipway_seccomp::{Action, Condition, MAX_PROFILE, Operator, Verdict};

/// The largest error number that the kernel returns (MAX_ERRNO).
const MAX_ERRNO: u32 = 4095;
/// A system call takes six arguments.
const ARGUMENTS: u32 = 6;

const ARCHITECTURES: [&str; 21] = [
    "SCMP_ARCH_X86",
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_X32",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
];

/// The profile's filter; `None` where there is no profile.
pub fn filter(profile: &oci::Seccomp) -> Result<Option<Seccomp>, Error> {
    if profile.default_action.is_empty() && profile.syscalls.is_empty() {
        return Ok(None);
    }
    for (i, name) in profile.architectures.iter().enumerate() {
        if !ARCHITECTURES.contains(&name.as_str()) {
            let field = format!("linux.seccomp.architectures[{i}]");
            return Err(unknown(&field, name, "an architecture"));
        }
    }
    let others = action(
        ("linux.seccomp.defaultAction", &profile.default_action),
        ("linux.seccomp.defaultErrnoRet", profile.default_errno_ret),
    )?;
    let mut table: Vec<Verdict> = Vec::new();
    for (i, rule) in profile.syscalls.iter().enumerate() {
        let field = format!("linux.seccomp.syscalls[{i}]");
        let action = action(
            (&format!("{field}.action"), &rule.action),
            (&format!("{field}.errnoRet"), rule.errno_ret),
        )?;
        let conditions = conditions(&field, &rule.args)?;
        for number in rule.names.iter().filter_map(|call| call.0) {
            let index = number as usize;
            if table.len() <= index {
                table.resize(index + 1, others.into());
            }
            add(&mut table[index], &conditions, action, others);
        }
    }
    // A call that is newer than the profile is one that the kernel does not have: a library tries another one then, and
    // would take the profile's error for the call's own.
    let missing = SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs();
    let beyond = match profile.default_action.as_str() {
        "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" | "SCMP_ACT_TRACE" => others,
        _ if table.is_empty() => others,
        _ => missing,
    };
    let program = slipway_seccomp::program(table, beyond);
    if program.len() > MAX_PROFILE {
        return Err(refuse(
            "linux.seccomp.syscalls",
            format!(
                "the filter has {} instructions, there is room for {MAX_PROFILE} beside the guest's own; use fewer conditions",
                program.len()
            ),
        ));
    }
    Ok(Some(Seccomp {
        flags: flags(profile.flags.as_deref())?,
        program,
    }))
}

/// Adds a rule to a call's verdict. The first without conditions is for all cases, whatever others say; of those with
/// conditions the first counts that fits. One that does what is done anyway is none.
fn add(verdict: &mut Verdict, conditions: &[Vec<Condition>], action: Action, others: Action) {
    if action == others || verdict.otherwise != others {
        return;
    }
    if conditions.is_empty() {
        *verdict = action.into();
    } else {
        let rules = conditions.iter().map(|all| (all.clone(), action));
        verdict.rules.extend(rules);
    }
}

/// The conditions of a rule as alternatives, each a list of what has to hold. Two conditions on one argument are
/// alternatives to each other, and so are all of that rule.
fn conditions(field: &str, args: &[oci::SyscallArg]) -> Result<Vec<Vec<Condition>>, Error> {
    let all = args.iter().enumerate().map(|(i, arg)| {
        let field = |name: &str| format!("{field}.args[{i}].{name}");
        if arg.index >= ARGUMENTS {
            return Err(refuse(
                &field("index"),
                format!(
                    "{} is none of the {ARGUMENTS} arguments, which begin at 0",
                    arg.index
                ),
            ));
        }
        let (operator, value) = match arg.op.as_str() {
            "SCMP_CMP_NE" => (Operator::NotEqual, arg.value),
            "SCMP_CMP_LT" => (Operator::Less, arg.value),
            "SCMP_CMP_LE" => (Operator::LessOrEqual, arg.value),
            "SCMP_CMP_EQ" => (Operator::Equal, arg.value),
            "SCMP_CMP_GE" => (Operator::GreaterOrEqual, arg.value),
            "SCMP_CMP_GT" => (Operator::Greater, arg.value),
            // Bits outside of the mask are nobody's, in both.
            "SCMP_CMP_MASKED_EQ" => (Operator::MaskedEqual(arg.value), arg.value_two & arg.value),
            other => return Err(unknown(&field("op"), other, "an operator")),
        };
        Ok(Condition {
            argument: arg.index,
            operator,
            value,
        })
    });
    let all: Vec<Condition> = all.collect::<Result<_, _>>()?;
    let of = |argument: u32| all.iter().filter(|c| c.argument == argument).count();
    Ok(match all.is_empty() {
        true => Vec::new(),
        false if (0..ARGUMENTS).any(|argument| of(argument) > 1) => {
            all.into_iter().map(|one| vec![one]).collect()
        }
        false => vec![all],
    })
}

/// An action with its error number, which is EPERM where none is given.
fn action(
    (field, name): (&str, &str),
    (errno_field, errno): (&str, Option<u32>),
) -> Result<Action, Error> {
    let with_errno = |action: Action| match errno.unwrap_or(libc::EPERM.unsigned_abs()) {
        errno @ 0..=MAX_ERRNO => Ok(action | errno),
        errno => Err(refuse(
            errno_field,
            format!("{errno} is no error number: they end at {MAX_ERRNO}"),
        )),
    };
    match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Ok(SECCOMP_RET_KILL_THREAD),
        "SCMP_ACT_KILL_PROCESS" => Ok(SECCOMP_RET_KILL_PROCESS),
        "SCMP_ACT_TRAP" => Ok(SECCOMP_RET_TRAP),
        "SCMP_ACT_ERRNO" => with_errno(SECCOMP_RET_ERRNO),
        "SCMP_ACT_TRACE" => with_errno(SECCOMP_RET_TRACE),
        "SCMP_ACT_ALLOW" => Ok(SECCOMP_RET_ALLOW),
        "SCMP_ACT_LOG" => Ok(SECCOMP_RET_LOG),
        "SCMP_ACT_NOTIFY" => Err(refuse(
            field,
            "SCMP_ACT_NOTIFY: no system call of a Wasm container is handed to an agent; use SCMP_ACT_ERRNO",
        )),
        other => Err(unknown(field, other, "an action")),
    }
}

/// Flags of seccomp(2). Where nothing is said of them, a filter does not switch the processor's speculation off.
fn flags(names: Option<&[String]>) -> Result<u64, Error> {
    let Some(names) = names else {
        return Ok(SECCOMP_FILTER_FLAG_SPEC_ALLOW);
    };
    names.iter().enumerate().try_fold(0, |all, (i, name)| {
        Ok(all
            | match name.as_str() {
                "SECCOMP_FILTER_FLAG_TSYNC" => SECCOMP_FILTER_FLAG_TSYNC,
                "SECCOMP_FILTER_FLAG_LOG" => SECCOMP_FILTER_FLAG_LOG,
                "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                // Of a listener, which there is none of.
                "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => 0,
                other => {
                    let field = format!("linux.seccomp.flags[{i}]");
                    return Err(unknown(&field, other, "a flag"));
                }
            })
    })
}

fn unknown(field: &str, value: &str, what: &str) -> Error {
    refuse(
        field,
        format!("{value:?} is not the name of {what} in the OCI runtime spec"),
    )
}

#[cfg(test)]
mod tests;
