//! A TCP echo server (RFC 862) for many clients at a time; `PORT` names its port, default 8080.

use std::process::ExitCode;

use serve::{Next, serve};

fn main() -> ExitCode {
    let served = serve(|received, reply| {
        reply.append(received);
        Next::KeepOpen
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcp-echo: {error}");
            ExitCode::FAILURE
        }
    }
}
