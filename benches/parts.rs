//! The parts of a request, one by one: `cargo bench --bench parts`.

mod fill;

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use criterion::{Criterion, criterion_group, criterion_main};
use tower::ServiceExt;

use holdfast::client::Peer;
use holdfast::clock::{Clock, Timestamp};
use holdfast::db::Fault;
use holdfast::device_sessions::{self, Known};
use holdfast::live_sessions::Met;
use holdfast::router::router;
use holdfast::secret::{Token, TokenHash};
use holdfast::session_security::{Limits, judge};

const SESSIONS: u64 = 100_000;
/// How many of them are asked for in turn.
const IN_TURN: u64 = 1000;

fn written(n: u64) -> String {
    URL_SAFE_NO_PAD.encode(fill::token(n))
}

fn hash(n: u64) -> TokenHash {
    Token::read(&written(n)).expect("a token").hash()
}

fn parts(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("parts.db");
    fill::fill(&path, fill::Plan { users: SESSIONS / 5, sessions: SESSIONS, silent_s: 1, ..fill::Plan::default() }).expect("a database");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let app = runtime.block_on(fill::open(&path));

    let limits = Limits { idle_ms: Some(1_800_000), expires_at: Timestamp(86_400_000) };
    c.bench_function("judge", |b| b.iter(|| judge(black_box(&limits), black_box(Timestamp(0)), black_box(Timestamp(1_000_000)))));

    let cookie = written(0);
    c.bench_function("read and hash a token", |b| b.iter(|| Token::read(black_box(&cookie)).map(|token| token.hash())));

    c.bench_function("look a token up in the database", |b| {
        b.iter_custom(|times| {
            let app = app.clone();
            runtime.block_on(async {
                let begun = Instant::now();
                for n in 0..times {
                    let token = hash(n % SESSIONS);
                    let known = app.db.glance(move |tx| device_sessions::look_up(tx, &token)).await;
                    assert!(matches!(known, Ok::<_, Fault>(Known::Open(..))));
                }
                begun.elapsed()
            })
        })
    });

    let router = router(app.clone());
    let ask = |cookie: &str| {
        let request = Request::get("/check").header("host", "localhost:8300").header("cookie", format!("holdfast={cookie}"));
        request.extension(ConnectInfo(Peer(SocketAddr::from(([127, 0, 0, 1], 1))))).body(Body::empty()).expect("a request")
    };
    let cookies = |from: u64| (from..from + IN_TURN).map(written).collect::<Vec<_>>();
    for (name, cookies, status) in
        [("GET /check, signed in", cookies(0), StatusCode::NO_CONTENT), ("GET /check, unknown token", cookies(SESSIONS), StatusCode::UNAUTHORIZED)]
    {
        let all = |times: u64| {
            runtime.block_on(async {
                let mut took = Duration::ZERO;
                for n in 0..times {
                    let request = ask(&cookies[(n % IN_TURN) as usize]);
                    let begun = Instant::now();
                    let response = router.clone().oneshot(request).await.expect("it cannot fail");
                    took += begun.elapsed();
                    assert_eq!(response.status(), status);
                }
                took
            })
        };
        // What has to be written back is written before it counts.
        all(IN_TURN);
        c.bench_function(name, |b| b.iter_custom(all));
    }

    let tokens: Vec<TokenHash> = (0..IN_TURN).map(hash).collect();
    let now = Clock::System.now();
    let mut turn = 0;
    c.bench_function("find a live session in memory", |b| {
        b.iter(|| {
            turn = (turn + 1) % tokens.len();
            let met = app.db.live().meet(&tokens[turn], now, false);
            assert!(matches!(met, Met::Live(..)));
            met
        })
    });
}

criterion_group! {
    name = all;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2)).without_plots();
    targets = parts
}
criterion_main!(all);
