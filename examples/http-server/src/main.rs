//! A small HTTP/1.1 server with keep-alive and pipelining (RFC 9112); `PORT` names its port,
//! default 8080. `GET /` and `HEAD /` answer with a greeting, everything else with an error.

use std::process::ExitCode;

use serve::{Next, serve};

/// Longest request head taken, in bytes.
const MAX_HEAD: usize = 8 * 1024;
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

fn main() -> ExitCode {
    match serve(answer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("http-server: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Answers every complete request in `received`.
fn answer(received: &mut Vec<u8>, reply: &mut Vec<u8>) -> Next {
    while let Some(end) = received.windows(4).position(|bytes| bytes == END_OF_HEAD) {
        let head: Vec<u8> = received.drain(..end + END_OF_HEAD.len()).collect();
        let response = Response::to(&String::from_utf8_lossy(&head));
        response.write(reply);
        if response.next == Next::Close {
            return Next::Close;
        }
    }
    if received.len() > MAX_HEAD {
        Response::error("431 Request Header Fields Too Large").write(reply);
        return Next::Close;
    }
    Next::KeepOpen
}

struct Response {
    status: &'static str,
    body: &'static str,
    /// A reply to `HEAD` announces the body's length and leaves the body out.
    head_only: bool,
    next: Next,
}

impl Response {
    fn to(head: &str) -> Self {
        let mut lines = head.lines();
        let request_line: Vec<&str> = lines.next().unwrap_or_default().split(' ').collect();
        let [method, path, version @ ("HTTP/1.1" | "HTTP/1.0")] = request_line[..] else {
            return Self::error("400 Bad Request");
        };
        let mut next = if version == "HTTP/1.1" {
            Next::KeepOpen
        } else {
            Next::Close
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim().to_ascii_lowercase();
            match name.to_ascii_lowercase().as_str() {
                "connection" if value == "close" => next = Next::Close,
                "connection" if value == "keep-alive" => next = Next::KeepOpen,
                // A body left unread would be taken for the next request.
                "transfer-encoding" => return Self::error("413 Content Too Large"),
                "content-length" if value != "0" => return Self::error("413 Content Too Large"),
                _ => {}
            }
        }
        let (status, body) = match (method, path) {
            ("GET" | "HEAD", "/") => ("200 OK", "Hello from Slipway\n"),
            ("GET" | "HEAD", _) => ("404 Not Found", "not found\n"),
            _ => ("405 Method Not Allowed", "only GET and HEAD\n"),
        };
        Self {
            status,
            body,
            head_only: method == "HEAD",
            next,
        }
    }

    /// A reply after which the rest of the connection cannot be made sense of.
    fn error(status: &'static str) -> Self {
        Self {
            status,
            body: "",
            head_only: false,
            next: Next::Close,
        }
    }

    fn write(&self, reply: &mut Vec<u8>) {
        let connection = if self.next == Next::Close {
            "close"
        } else {
            "keep-alive"
        };
        let length = self.body.len();
        let body = if self.head_only { "" } else { self.body };
        let text = format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: {connection}\r\n\r\n{body}",
            self.status,
        );
        reply.extend_from_slice(text.as_bytes());
    }
}
