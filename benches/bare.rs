//! `bare ANSWER PATH`: axum and nothing else. Gives one fixed answer to every request for a path.
//!
//! The answer is a recording of the route that it is compared with: the same status, headers and bytes. It is made of static
//! parts, so that giving it costs as little as axum allows. Started by `benches/run`.

use std::net::SocketAddr;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use axum::routing::any;

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [answer, path] = args.as_slice() else {
        println!("bare is started by benches/run");
        return Ok(());
    };
    let (status, headers, body) = recorded(Box::leak(std::fs::read_to_string(answer)?.into_boxed_str()));
    let routes = Router::new().route(
        path,
        any(move || {
            let mut response = Response::new(Body::from(body.clone()));
            *response.status_mut() = status;
            let mut all = HeaderMap::with_capacity(headers.len());
            for (name, value) in headers {
                all.append(name, value.clone());
            }
            *response.headers_mut() = all;
            std::future::ready(response)
        }),
    );
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        println!("listening on http://{}", listener.local_addr()?);
        axum_server::from_tcp(listener)?.serve(routes.into_make_service_with_connect_info::<SocketAddr>()).await
    })
}

/// Reads a recording: the status, a header on each line, an empty line, the body.
fn recorded(text: &'static str) -> (StatusCode, &'static [(HeaderName, HeaderValue)], Bytes) {
    let (head, body) = text.split_once("\n\n").expect("an empty line after the head");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.parse().ok()).expect("a status on the first line");
    let header = |line: &'static str| {
        let (name, value) = line.split_once(": ").expect("a name and a value");
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let headers: Vec<_> = lines.map(header).collect();
    (status, headers.leak(), Bytes::from_static(body.as_bytes()))
}
