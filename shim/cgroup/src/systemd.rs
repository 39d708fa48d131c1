//! Registering a pod's scope with systemd, where that is the cgroup driver.
//!
//! systemd leaves directories alone that it does not know, but takes the controllers away from a slice in which it knows
//! no unit that needs them, and with them the limits of everything inside. One delegated scope for each pod, its
//! sandbox's, keeps them. The containers need none of their own.

use std::io;
use std::path::Path;

use slipway_spec::CgroupPath;
use slipway_systemd::{Call, Property, SOCKET, Systemd};

use crate::v2::weight;
use crate::{Error, fail};

/// Name of the unit that a spec's path means: `prefix-name.scope`.
pub(crate) fn unit(prefix: &str, name: &str) -> String {
    match prefix.is_empty() {
        true => format!("{name}.scope"),
        false => format!("{prefix}-{name}.scope"),
    }
}

/// systemd; `None` where there is none.
fn connect() -> Result<Option<Systemd>, Error> {
    Systemd::connect().map_err(fail(Path::new(SOCKET), "connect to systemd"))
}

/// A scope that systemd has been asked for.
#[must_use = "systemd's answer says whether it took the scope"]
#[derive(Debug)]
pub struct Registration {
    systemd: Systemd,
    unit: String,
}

impl Registration {
    /// Asks systemd to take the cgroup as a scope, with this process of it and these cpu.shares. `None` where there is
    /// nobody to ask: another driver's cgroup, or no systemd.
    ///
    /// # Errors
    /// systemd's socket cannot be used.
    pub fn begin(
        cgroup: &CgroupPath,
        pid: i32,
        shares: Option<u64>,
    ) -> Result<Option<Self>, Error> {
        let CgroupPath::Systemd {
            slice,
            prefix,
            name,
        } = cgroup
        else {
            return Ok(None);
        };
        let unit = unit(prefix, name);
        let slice = match slice.as_str() {
            "" => "-.slice",
            slice => slice,
        };
        let call = scope(&unit, slice, pid, shares.map(weight));
        match connect()? {
            Some(systemd) => Self::ask(systemd, unit, &call).map(Some),
            None => Ok(None),
        }
    }

    /// Tells systemd that the cgroup is gone. It may not have seen it: it would make it anew when it is reloaded.
    pub fn end(cgroup: &CgroupPath) {
        let CgroupPath::Systemd { prefix, name, .. } = cgroup else {
            return;
        };
        let unit = unit(prefix, name);
        // A unit that it does not know any more is what is wanted.
        if let Ok(Some(mut systemd)) = connect() {
            let _ = systemd.call(&Call::stop_unit(&unit));
        }
    }

    fn ask(mut systemd: Systemd, unit: String, call: &Call) -> Result<Self, Error> {
        systemd.send(call).map_err(refused(&unit))?;
        Ok(Self { systemd, unit })
    }

    /// Waits for systemd's answer.
    ///
    /// # Errors
    /// systemd's own words, or that it did not answer.
    pub fn finish(mut self) -> Result<(), Error> {
        self.systemd.receive().map_err(refused(&self.unit))?;
        Ok(())
    }
}

fn refused(unit: &str) -> impl FnOnce(io::Error) -> Error {
    fail(Path::new(unit), "register with systemd")
}

/// The call that makes the scope.
fn scope(unit: &str, slice: &str, pid: i32, weight: Option<u64>) -> Call {
    let description = format!("Slipway pod {unit}");
    let pids = [pid.unsigned_abs()];
    let mut properties = vec![
        Property::Text("Description", &description),
        Property::Text("Slice", slice),
        Property::Pids("PIDs", &pids),
        Property::Bool("Delegate", true),
        Property::Bool("DefaultDependencies", false),
        Property::Text("CollectMode", "inactive-or-failed"),
        // Else systemd's own default limit would replace none.
        Property::Number("TasksMax", u64::MAX),
    ];
    properties.extend(weight.map(|weight| Property::Number("CPUWeight", weight)));
    Call::start_transient_unit(unit, &properties)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_systemd_says_names_the_scope() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"REJECTED\r\n").unwrap();
        let call = scope("a-b.scope", "x.slice", 42, Some(1));
        let systemd = Systemd::over(ours).unwrap();
        let asked = Registration::ask(systemd, "a-b.scope".into(), &call).unwrap();
        let error = asked.finish().unwrap_err().to_string();
        assert_eq!(
            error,
            "cgroup a-b.scope: register with systemd: it said \"REJECTED\""
        );
    }
}
