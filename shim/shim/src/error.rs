//! The one place where errors become ttrpc codes. containerd's errdefs reads the code; people read the text.

use containerd_shim_protos::ttrpc::{self, Code};
use slipway_launch::StartError;

/// An answer that is an error.
pub type Result<T> = std::result::Result<T, ttrpc::Error>;

fn status(code: Code, message: impl std::fmt::Display) -> ttrpc::Error {
    let message = slipway_protocol::printable(&message.to_string());
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, message))
}

/// No such container, or a process that has ended: callers of Kill look for this text.
pub fn not_found(message: impl std::fmt::Display) -> ttrpc::Error {
    status(Code::NOT_FOUND, format!("{message}: not found"))
}

/// The id is taken.
pub fn exists(id: &str) -> ttrpc::Error {
    status(
        Code::ALREADY_EXISTS,
        format!("container {id}: already exists"),
    )
}

/// Not in this state.
pub fn precondition(message: impl std::fmt::Display) -> ttrpc::Error {
    status(Code::FAILED_PRECONDITION, message)
}

/// Not in this version.
pub fn unimplemented(message: impl std::fmt::Display) -> ttrpc::Error {
    status(Code::UNIMPLEMENTED, message)
}

/// The caller's input is wrong.
pub fn invalid(message: impl std::fmt::Display) -> ttrpc::Error {
    status(Code::INVALID_ARGUMENT, message)
}

/// The host's failure.
pub fn internal(message: impl std::fmt::Display) -> ttrpc::Error {
    status(Code::INTERNAL, message)
}

/// What people read of it.
pub fn text(e: &ttrpc::Error) -> String {
    match e {
        ttrpc::Error::RpcStatus(status) => status.message.clone(),
        other => other.to_string(),
    }
}

/// Why a container was not created.
pub fn start(e: &StartError) -> ttrpc::Error {
    match e {
        StartError::NoEntrypoint(_) => status(Code::NOT_FOUND, e),
        StartError::NotWasm(_) | StartError::Refused(_) => invalid(e),
        StartError::Died(..) => precondition(e),
        StartError::Io(_) | StartError::Protocol(_) => internal(e),
    }
}
