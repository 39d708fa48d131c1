//! Whom the kernel takes first where it has to choose (proc_pid_oom_score_adj(5)).

use slipway_spec::Plan;

/// The kernel's highest.
const MAX: i32 = 1000;

/// One above containerd's own, so that containerd outlives its shims; the same as containerd's own shim does.
pub fn raise_own() {
    if let Some(score) = of("self").filter(|score| *score < MAX) {
        write("self", score + 1);
    }
}

/// Gives a process the score that the spec asks for.
pub fn set(plan: &Plan, pid: i32) {
    if let Some(score) = plan.oom_score_adj {
        // Lowering it needs CAP_SYS_RESOURCE, which a nested host may not have: the score is a wish then.
        write(&pid.to_string(), score);
    }
}

/// Where the kernel has to choose, an exec goes before the container's own program: a point is a thousandth of the limit, so
/// that it does whatever each of them takes, unless the program's score is above 0 already.
pub fn raise_exec(exec: i32, main: u32) {
    if let Some(main) = of(&main.to_string()) {
        // Fails only for a process that has ended.
        write(&exec.to_string(), main.saturating_add(MAX).min(MAX));
    }
}

fn of(process: &str) -> Option<i32> {
    let score = std::fs::read_to_string(file(process)).ok()?;
    score.trim().parse().ok()
}

fn write(process: &str, score: i32) {
    let _ = std::fs::write(file(process), score.to_string());
}

fn file(process: &str) -> String {
    format!("/proc/{process}/oom_score_adj")
}
