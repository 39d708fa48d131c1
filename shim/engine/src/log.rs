//! Failures, with the details that the engine logs of them.

use std::ffi::CStr;
use std::sync::Mutex;

use crate::ffi;

/// What the engine says about a failure, with the details it logged (function, offset).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Lines that the engine logged since the last failure; bounded, for a module may provoke any number of them.
static LOG: Mutex<Vec<String>> = Mutex::new(Vec::new());

const MAX_LOG_LINES: usize = 16;

unsafe extern "C" fn on_log(message: *const ffi::LogMessage) {
    // SAFETY: the engine passes a message that lives during the call.
    let text = unsafe { text_of((*message).message) };
    if let Ok(mut log) = LOG.lock()
        && log.len() < MAX_LOG_LINES
    {
        log.push(text.trim().to_string());
    }
}

/// # Safety
/// `s` is a string of the engine that is still alive.
pub unsafe fn text_of(s: ffi::Str) -> String {
    if s.buf.is_null() {
        return String::new();
    }
    // SAFETY: length bytes are readable by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(s.buf.cast::<u8>(), s.length as usize) };
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn check(result: ffi::Res) -> Result<(), Error> {
    let Some((message, details)) = failure(result) else {
        return Ok(());
    };
    Err(Error(if details.is_empty() {
        message
    } else {
        format!("{message} ({})", details.join("; "))
    }))
}

/// What the engine says of a failure, and the details that it has logged.
pub fn failure(result: ffi::Res) -> Option<(String, Vec<String>)> {
    // SAFETY: plain value in, plain value out; the message is a constant of the library.
    let message = unsafe {
        if ffi::WasmEdge_ResultOK(result) {
            return None;
        }
        CStr::from_ptr(ffi::WasmEdge_ResultGetMessage(result)).to_string_lossy()
    };
    let details = LOG
        .lock()
        .map(|mut log| std::mem::take(&mut *log))
        .unwrap_or_default();
    // The first logged line repeats the message with its code.
    let details = details.into_iter().filter(|l| !l.contains(&*message));
    let details = details.collect();
    Some((message.into_owned(), details))
}

pub fn capture_log() {
    // SAFETY: the callback is a function of this library and lives for ever.
    unsafe {
        ffi::WasmEdge_LogSetLevel(ffi::LOG_ERROR);
        ffi::WasmEdge_LogSetCallback(Some(on_log));
    }
}

/// Forgets what was logged: nothing that a later failure has to tell.
pub fn clear() {
    if let Ok(mut log) = LOG.lock() {
        log.clear();
    }
}
