//! The command line of a shim, as containerd writes it.

use std::path::PathBuf;

/// The flags that containerd passes to every action.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Flags {
    /// containerd's namespace.
    pub namespace: String,
    /// The container's id.
    pub id: String,
    /// containerd's gRPC address.
    pub address: String,
    /// The bundle; the working directory where it is not given.
    pub bundle: PathBuf,
    /// Log debug messages.
    pub debug: bool,
}

/// What the shim is asked to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// `-v`
    Version,
    /// `-info`
    Info,
    /// `start`
    Start(Flags),
    /// `delete`
    Delete(Flags),
}

impl Command {
    /// Go's flag syntax: one or two dashes, value after `=` or in the next argument.
    pub fn parse(args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut flags = Flags {
            bundle: ".".into(),
            ..Flags::default()
        };
        let mut action = None;
        let mut args = args;
        while let Some(arg) = args.next() {
            let Some(flag) = arg.strip_prefix("--").or_else(|| arg.strip_prefix('-')) else {
                action = Some(arg);
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_string())),
                None => (flag, None),
            };
            let mut take = || {
                value
                    .clone()
                    .or_else(|| args.next())
                    .ok_or_else(|| format!("flag -{name} needs a value"))
            };
            match name {
                "v" | "version" => return Ok(Self::Version),
                "info" => return Ok(Self::Info),
                "debug" => flags.debug = value.as_deref() != Some("false"),
                "namespace" => flags.namespace = take()?,
                "id" => flags.id = take()?,
                "address" => flags.address = take()?,
                "bundle" => flags.bundle = take()?.into(),
                "publish-binary" | "socket" => drop(take()?),
                other => return Err(format!("unknown flag -{other}")),
            }
        }
        let needs = |name: &str, value: &str| match value.is_empty() {
            true => Err(format!(
                "flag -{name} is required; containerd starts this program, see docs/"
            )),
            false => Ok(()),
        };
        match action.as_deref() {
            Some(verb @ ("start" | "delete")) => {
                needs("namespace", &flags.namespace)?;
                needs("id", &flags.id)?;
                check_id(&flags.id)?;
                Ok(if verb == "start" {
                    Self::Start(flags)
                } else {
                    Self::Delete(flags)
                })
            }
            Some(other) => Err(format!(
                "unknown action {other:?}: start and delete are known, or -info, -v"
            )),
            None => Err(
                "no action: start or delete, or -info, -v; containerd starts this program".into(),
            ),
        }
    }
}

/// containerd's rule for ids keeps them file names.
fn check_id(id: &str) -> Result<(), String> {
    match id.contains('/') || id == "." || id == ".." {
        true => Err(format!("flag -id: {id:?} is not an identifier")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &str) -> Result<Command, String> {
        Command::parse(args.split_whitespace().map(String::from))
    }

    #[test]
    fn flags_come_in_all_of_gos_forms() {
        let flags = Flags {
            namespace: "n".into(),
            id: "i".into(),
            address: "/a".into(),
            bundle: ".".into(),
            debug: true,
        };
        assert_eq!(
            parse("-namespace n --id=i -address /a -publish-binary c -debug start"),
            Ok(Command::Start(flags))
        );
        assert_eq!(parse("-v"), Ok(Command::Version));
        assert_eq!(parse("-info"), Ok(Command::Info));
    }

    #[test]
    fn a_wrong_command_line_names_what_is_wrong() {
        for (args, word) in [
            ("", "no action"),
            ("-id x start", "namespace"),
            ("-bogus", "bogus"),
            ("-namespace n -id ../x start", "identifier"),
            ("-id", "needs a value"),
            ("-namespace n -id i run", "run"),
        ] {
            assert!(parse(args).unwrap_err().contains(word), "{args}");
        }
    }
}
