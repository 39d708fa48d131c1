//! Whom the kernel takes first where it has to choose (proc_pid_oom_score_adj(5)).

use slipway_spec::Plan;

/// Gives a process the score that the spec asks for.
pub fn set(plan: &Plan, pid: i32) {
    if let Some(score) = plan.oom_score_adj {
        // Lowering it needs CAP_SYS_RESOURCE, which a nested host may not have: the score is a wish then.
        let _ = std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string());
    }
}

/// Where the kernel has to choose, an exec goes before the container's own program: a point is a thousandth of the limit, so
/// that it does whatever each of them takes, unless the program's score is above 0 already.
pub fn raise_exec(exec: i32, main: u32) {
    const MAX: i32 = 1000;
    let main = std::fs::read_to_string(format!("/proc/{main}/oom_score_adj"));
    let main: Option<i32> = main.ok().and_then(|score| score.trim().parse().ok());
    if let Some(main) = main {
        let score = main.saturating_add(MAX).min(MAX);
        // Fails only for a process that has ended.
        let _ = std::fs::write(format!("/proc/{exec}/oom_score_adj"), score.to_string());
    }
}
