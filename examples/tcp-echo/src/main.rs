//! A TCP echo server (RFC 862) for many clients at a time; `PORT` names its port, default 8080.

use std::process::ExitCode;

use serve::{Next, serve};

fn main() -> ExitCode {
    let Err(error) = serve(|received, reply| {
        reply.append(received);
        Next::KeepOpen
    });
    eprintln!("tcp-echo: {error}");
    ExitCode::FAILURE
}
