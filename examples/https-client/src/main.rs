//! Gets a page over TLS and prints its body; the exit status says whether that worked.
//!
//! ```text
//! https-client https://HOST[:PORT][/PATH]
//! ```
//!
//! Servers are trusted by the CA certificates in the file that `SSL_CERT_FILE` names, by default
//! `/etc/ssl/certs/ca-certificates.crt`. Nothing is built in: what is trusted, the node or the pod
//! decides.

use std::env;
use std::fmt::Display;
use std::io::{self, ErrorKind, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use wasmedge_wasi_socket::{TcpStream, nslookup};

const DEFAULT_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Longest silence of the server.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest answer taken, in bytes.
const MAX_ANSWER: u64 = 64 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [url] = &arguments[..] else {
        eprintln!("usage: https-client https://HOST[:PORT][/PATH]");
        return ExitCode::from(2);
    };
    match get(url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("https-client: {url}: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Prints the body of what `url` names.
fn get(url: &str) -> Result<(), String> {
    let url = Url::parse(url)?;
    let mut stream = connect(&url, roots()?)?;
    // The answer to HTTP/1.0 ends with the connection: there are no chunks to put together.
    let request = format!(
        "GET {} HTTP/1.0\r\nHost: {}\r\n\r\n",
        url.path, url.authority
    );
    stream.write_all(request.as_bytes()).map_err(explain)?;
    let mut answer = Vec::new();
    let end = stream.take(MAX_ANSWER).read_to_end(&mut answer);
    let (head, body) = match (split(&answer), end) {
        // Many servers close without TLS's own end: then the announced length says what is whole.
        (Some((head, body)), Err(error))
            if error.kind() == ErrorKind::UnexpectedEof && length(head) == Some(body.len()) =>
        {
            (head, body)
        }
        (_, Err(error)) => return Err(explain(error)),
        (Some(parts), Ok(_)) => parts,
        (None, Ok(_)) => return Err("the answer is not HTTP".to_owned()),
    };
    let status = head.lines().next().unwrap_or_default();
    io::stdout()
        .write_all(body)
        .map_err(|error| format!("standard output: {error}"))?;
    match status.split(' ').nth(1) {
        Some("200") => Ok(()),
        _ => Err(format!("the server says '{status}'")),
    }
}

struct Url<'a> {
    /// Host and port as they are written.
    authority: &'a str,
    host: &'a str,
    port: u16,
    path: &'a str,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Result<Self, String> {
        let rest = url
            .strip_prefix("https://")
            .ok_or("the address does not begin with https://")?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, "/"),
        };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) => {
                let port = port
                    .parse()
                    .map_err(|_| format!("'{port}' is not a port number"))?;
                (host, port)
            }
            None => (authority, 443),
        };
        Ok(Self {
            authority,
            host,
            port,
            path,
        })
    }
}

/// The CA certificates of the file.
fn roots() -> Result<RootCertStore, String> {
    let file = env::var("SSL_CERT_FILE").unwrap_or_else(|_| DEFAULT_ROOTS.to_owned());
    let remedy = "mount a file of CA certificates there, or name another in SSL_CERT_FILE";
    let wrong = |error: &dyn Display| format!("CA certificates: {file}: {error}; {remedy}");
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        // A bundle may hold certificates that cannot be roots; the others are still good.
        let _ = roots.add(certificate);
    }
    if roots.is_empty() {
        return Err(wrong(&"no certificate in it"));
    }
    Ok(roots)
}

fn connect(
    url: &Url,
    roots: RootCertStore,
) -> Result<StreamOwned<ClientConnection, TcpStream>, String> {
    let name = ServerName::try_from(url.host.to_owned())
        .map_err(|_| format!("'{}' is no host name", url.host))?;
    // The port as the service: a service's name would be looked up in /etc/services, which images
    // of a module alone do not have.
    let addresses = nslookup(url.host, &url.port.to_string())
        .map_err(|error| format!("no address of '{}': {error}", url.host))?;
    let tcp = TcpStream::connect(&addresses[..]).map_err(|error| format!("connect: {error}"))?;
    let socket = tcp.as_ref();
    socket
        .set_recv_timeout(Some(PATIENCE))
        .and_then(|()| socket.set_send_timeout(Some(PATIENCE)))
        .map_err(|error| format!("timeouts: {error}"))?;
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tls = ClientConnection::new(Arc::new(config), name).map_err(|error| error.to_string())?;
    Ok(StreamOwned::new(tls, tcp))
}

/// What went wrong on a connection, and what can be done if it is the server's certificate.
fn explain(error: io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock => format!("no answer within {} s", PATIENCE.as_secs()),
        ErrorKind::InvalidData => format!("TLS: {error}"),
        _ => error.to_string(),
    }
}

/// Head and body of an answer.
fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    head.starts_with("HTTP/")
        .then_some((head, &answer[end + 4..]))
}

/// The length of the body, as the head announces it.
fn length(head: &str) -> Option<usize> {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut lengths = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    lengths.next()?.1.trim().parse().ok()
}
