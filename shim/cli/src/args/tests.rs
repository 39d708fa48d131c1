use super::*;
use clap::CommandFactory;

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn sizes_are_kubernetes_quantities() {
    assert_eq!(
        (size("64Mi"), size("1G"), size("7")),
        (Ok(64 << 20), Ok(1_000_000_000), Ok(7))
    );
    for bad in ["", "Mi", "1Xi", "-1", "99999999999Ti"] {
        assert!(size(bad).is_err(), "{bad}");
    }
}

#[test]
fn times_have_a_unit() {
    assert_eq!(duration("5m"), Ok(std::time::Duration::from_secs(300)));
    for bad in ["", "5", "m", "-1s", "99999999999999999999h"] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn a_programs_own_flags_are_not_slipways() {
    let cli = Cli::parse_from(["slipway", "run", "-e", "A=1", "app.wasm", "--env", "x"]);
    let Command::Run(run) = cli.command else {
        panic!("run")
    };
    assert_eq!(
        (run.env.as_slice(), &run.command[1..]),
        (
            &["A=1".to_string()][..],
            &["--env".to_string(), "x".to_string()][..]
        )
    );
}
