//! The node's `containerd-shim-runc-v2` as a program: asked for its features, and for the removal of a container.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::RuntimeInfo;

use crate::{features, handler};

/// Its name.
pub const PROGRAM: &str = "containerd-shim-runc-v2";

/// A program on containerd's PATH.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/bin:/usr/bin:/usr/local/sbin:/usr/sbin".into());
    std::env::split_paths(&path)
        .map(|d| d.join(name))
        .find(|p| p.is_file())
}

/// The features of the node's runc, asked of its shim with the handler's options.
pub fn info(options: &[u8]) -> Option<RuntimeInfo> {
    use std::io::Write;
    let options = handler::runc_options(Any::parse_from_bytes(options).ok()?).ok()?;
    let mut child = std::process::Command::new(find(PROGRAM)?)
        .arg("-info")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let options = options.write_to_bytes().ok()?;
    child.stdin.take()?.write_all(&options).ok()?;
    let output = child.wait_with_output().ok()?;
    RuntimeInfo::parse_from_bytes(&output.stdout).ok()
}

/// Whether the runc of these options maps the ids of mounts. Takes as long as two programs' start.
pub fn maps_ids(options: Option<&Any>) -> bool {
    let options = options.and_then(|any| any.write_to_bytes().ok());
    let info = info(&options.unwrap_or_default());
    info.is_some_and(|info| info.features.as_ref().is_some_and(features::map_ids))
}

/// The delegate's own `delete`: kills what is left of a container and removes it.
pub fn delete_container(namespace: &str, grpc: &str, id: &str, bundle: &Path) {
    if let Some(program) = find(PROGRAM) {
        let _ = std::process::Command::new(program)
            .args([
                "-namespace",
                namespace,
                "-address",
                grpc,
                "-id",
                id,
                "delete",
            ])
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}
