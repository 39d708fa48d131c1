//! An HTTP/1.1 server on tokio and hyper; `PORT` names its port, default 8080. All connections share
//! one thread, and a request that waits keeps no other from being answered.
//!
//! ```text
//! GET /           a greeting
//! GET /later      the same, a second later
//! POST /echo      the request's body, as it comes in
//! ```

use std::convert::Infallible;
use std::env;
use std::error::Error;
use std::process::ExitCode;
use std::time::Duration;

use hyper::server::conn::Http;
use hyper::service::service_fn;
use hyper::{Body, Method, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::time::sleep;

const DEFAULT_PORT: u16 = 8080;

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("tokio-http-server: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    let port = match env::var("PORT") {
        Ok(text) => text
            .parse()
            .map_err(|error| format!("PORT is '{text}', not a port number: {error}"))?,
        Err(_) => DEFAULT_PORT,
    };
    // WebAssembly has one thread here, and so has the runtime.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(serve(port))?)
}

async fn serve(port: u16) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(("0.0.0.0", port)).await?;
    println!("listening on port {port}");
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // The client may be gone again before it is accepted.
            Err(error) => {
                eprintln!("accept: {error}");
                continue;
            }
        };
        tokio::spawn(async move {
            let connection = Http::new().serve_connection(stream, service_fn(answer));
            // Its errors are those of a client that is gone: nobody is left to hear of them.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => greeting(),
        (&Method::GET, "/later") => {
            sleep(Duration::from_secs(1)).await;
            greeting()
        }
        (&Method::POST, "/echo") => Response::new(request.into_body()),
        _ => {
            let mut response = Response::new("not found\n".into());
            *response.status_mut() = StatusCode::NOT_FOUND;
            response
        }
    })
}

fn greeting() -> Response<Body> {
    Response::new("Hello from Slipway\n".into())
}
