//! `slipway image build`.

use std::io::{BufWriter, Write};
use std::process::ExitCode;

use slipway_image::{BuildOptions, Copied, ImageKind, Reference};

use crate::args::Build;

pub fn build(args: &Build) -> Result<ExitCode, String> {
    let named = |e: &dyn std::fmt::Display| format!("{}: {e}", args.file.display());
    let module = std::fs::read(&args.file).map_err(|e| named(&e))?;
    // An image that would not run is better refused here than on every node.
    slipway_module::prepare(&module).map_err(|e| named(&e))?;
    let reference: Reference = args
        .tag
        .parse()
        .map_err(|e| format!("--tag {}: {e}", args.tag))?;
    let name = args.file.file_name().unwrap_or_default().to_string_lossy();
    let entrypoint = args
        .entrypoint
        .clone()
        .unwrap_or_else(|| format!("/{name}"));
    let options = BuildOptions {
        module: &module,
        reference,
        kind: if args.artifact {
            ImageKind::Artifact
        } else {
            ImageKind::Image
        },
        entrypoint: &entrypoint,
        args: args.args.clone(),
        env: args.env.clone(),
        workdir: args.workdir.clone(),
        copies: args.copies.clone(),
    };
    let directory = args
        .output
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| std::path::Path::new("."));
    let out = |e: &dyn std::fmt::Display| format!("{}: {e}", args.output.display());
    let inside = |copied: &&Copied| {
        let directory = directory.canonicalize();
        let source = copied.source.canonicalize();
        directory.is_ok_and(|directory| source.is_ok_and(|source| directory.starts_with(source)))
    };
    // Else the next image would hold this one, and this one its own beginning.
    if let Some(copied) = args.copies.iter().find(inside) {
        return Err(format!(
            "--output {}: lies in {}, which is copied into the image; write it elsewhere",
            args.output.display(),
            copied.source.display()
        ));
    }
    // Whole or not at all.
    let file = tempfile::NamedTempFile::new_in(directory).map_err(|e| out(&e))?;
    let mut writer = BufWriter::new(&file);
    slipway_image::build(&options, &mut writer).map_err(|e| out(&e))?;
    writer.flush().map_err(|e| out(&e))?;
    drop(writer);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(|e| out(&e))?;
    file.persist(&args.output).map_err(|e| out(&e))?;
    println!("{}: {}", args.output.display(), args.tag);
    Ok(ExitCode::SUCCESS)
}
