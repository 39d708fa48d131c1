//! Slipway's own annotations: `slipway.dev/…`.

use std::collections::BTreeMap;

use slipway_protocol::CompileMode;

use crate::Error;
use crate::plan::{Unsupported, refuse};

const COMPILE: &str = "slipway.dev/compile";
const CPU_TIME: &str = "slipway.dev/cpu-time";
const STOP: &str = "slipway.dev/stop";
const CA_CERTIFICATES: &str = "slipway.dev/ca-certificates";

/// What they ask for.
pub struct Annotations {
    /// How thoroughly the module is to be compiled.
    pub compile_mode: CompileMode,
    /// CPU time in seconds.
    pub cpu_time: Option<u64>,
    /// A stop lets a server finish.
    pub drain: bool,
    /// The node's CA certificates are to be there.
    pub ca_certificates: bool,
}

/// Those of one container.
pub fn read(
    given: &BTreeMap<String, String>,
    unsupported: &mut Unsupported,
) -> Result<Annotations, Error> {
    let text = |name| given.get(name).map(String::as_str);
    Ok(Annotations {
        ca_certificates: ca_certificates(text(CA_CERTIFICATES))?,
        compile_mode: compile_mode(text(COMPILE))?,
        cpu_time: text(CPU_TIME).and_then(|text| unsupported.note(cpu_time(text))),
        drain: text(STOP).is_some_and(|text| unsupported.note(drain(text)).is_some()),
    })
}

fn compile_mode(text: Option<&str>) -> Result<CompileMode, Error> {
    match text {
        None | Some("auto") => Ok(CompileMode::Auto),
        Some("quick") => Ok(CompileMode::Quick),
        Some("full") => Ok(CompileMode::Full),
        Some(other) => Err(refuse(
            &format!("annotations[{COMPILE}]"),
            format!("{other:?} is not one of auto, quick, full"),
        )),
    }
}

/// Refuses what is no way to stop.
fn drain(text: &str) -> Result<(), Error> {
    match text {
        "drain" => Ok(()),
        _ => Err(refuse(
            &format!("annotations[{STOP}]"),
            format!("{text:?} is not drain; leave the annotation out to end at SIGTERM"),
        )),
    }
}

/// `90s`, `5m`, `2h` or a number of seconds.
fn cpu_time(text: &str) -> Result<u64, Error> {
    const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3600), ("", 1)];
    let seconds = UNITS.iter().find_map(|(unit, seconds)| {
        let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
        number.checked_mul(*seconds).filter(|n| *n > 0)
    });
    seconds.ok_or_else(|| {
        refuse(
            &format!("annotations[{CPU_TIME}]"),
            format!(
                "{text:?} is no duration of whole seconds, at least one; examples: 90s, 5m, 2h"
            ),
        )
    })
}

/// Says whether the node's CA certificates are asked for.
fn ca_certificates(text: Option<&str>) -> Result<bool, Error> {
    match text {
        None => Ok(false),
        Some("node") => Ok(true),
        Some(other) => Err(refuse(
            &format!("annotations[{CA_CERTIFICATES}]"),
            format!("{other:?} is not node; certificates of one's own come by a volume"),
        )),
    }
}
