//! The program itself: the binary, in a folder of its own, and a client that sees every byte.
//!
//! [`Place`] is a folder with settings; commands run and servers start in it. [`Server`] is a running one; it dies with its
//! test, by its process id. [`Wire`] is a connection, [`Browser`] a client with cookies that keeps its connection. Nothing
//! here sleeps: logs, answers and exits are waited for, each with a bound.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// No test waits longer than this for anything that should happen at once. The machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A good password.
pub const PASSWORD: &str = "correct horse battery";

/// A folder with settings, in which the program runs.
pub struct Place {
    folder: TempDir,
    settings: BTreeMap<String, String>,
}

impl Place {
    /// Cheap hashes, a free port, the database in `data/`.
    pub fn new() -> Self {
        let mut place = Place::bare();
        for (name, value) in [
            ("LISTEN_ADDR", "127.0.0.1:0"),
            ("DATABASE_URL", "sqlite:data/holdfast.db"),
            ("ARGON2_MEMORY_KIB", "8"),
            ("ARGON2_ITERATIONS", "1"),
            ("HASH_THREADS", "2"),
        ] {
            place.set(name, value);
        }
        place
    }

    /// The same with these settings over it.
    pub fn with(settings: &[(&str, &str)]) -> Self {
        let mut place = Place::new();
        for (name, value) in settings {
            place.set(name, value);
        }
        place
    }

    /// Without any setting.
    pub fn bare() -> Self {
        Place { folder: tempfile::tempdir().expect("a temporary folder"), settings: BTreeMap::new() }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.settings.insert(name.into(), value.into());
    }

    /// The token of a link to this page in a letter that has been delivered into the folder; waits for one.
    #[track_caller]
    pub fn link(&self, page: &str) -> String {
        let mut found = None;
        let link = format!("/security/{page}/");
        let look = || {
            let letters = std::fs::read_dir(self.path("data/mail")).into_iter().flatten().flatten().map(|letter| std::fs::read_to_string(letter.path()));
            found = letters.flatten().find_map(|text| Some(text.split_once(&link)?.1.split_whitespace().next()?.to_string()));
            found.is_some()
        };
        assert!(soon(PATIENCE, look), "no letter with a link to {page}");
        found.expect("a link")
    }

    /// A file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.path("data/holdfast.db")
    }

    /// The database, as another process would open it.
    pub fn sql(&self) -> rusqlite::Connection {
        open_sql(&self.database())
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
        self.dress(&mut command);
        command.args(args);
        command
    }

    fn dress(&self, command: &mut Command) {
        command.env_clear().envs(&self.settings).current_dir(self.folder.path());
    }

    /// Runs a command to its end, with nothing on its standard input.
    pub fn run(&self, args: &[&str]) -> Done {
        self.run_typing(args, b"")
    }

    /// Runs a command to its end; `typed` comes on its standard input.
    pub fn run_typing(&self, args: &[&str], typed: impl AsRef<[u8]>) -> Done {
        finish(self.command(args), typed.as_ref())
    }

    /// Runs a command under `umask 000`.
    pub fn run_unmasked(&self, args: &[&str], typed: impl AsRef<[u8]>) -> Done {
        let mut command = unmasked(args);
        self.dress(&mut command);
        finish(command, typed.as_ref())
    }

    /// Makes an account at the command line.
    #[track_caller]
    pub fn create(&self, email: &str, role: &str) -> Value {
        self.run_typing(&["user", "create", "--email", email, "--role", role, "--password-stdin", "--json"], PASSWORD).ok().json()
    }

    /// Starts the server and waits until it serves.
    #[track_caller]
    pub fn start(&self) -> Server {
        Server::of(self.command(&[]))
    }

    /// Starts the server where a process may open so many files.
    #[track_caller]
    pub fn start_with_files(&self, soft: u32, hard: u32) -> Server {
        let mut command = shell(&format!("ulimit -Sn {soft}; ulimit -Hn {hard}"), &[]);
        self.dress(&mut command);
        Server::of(command)
    }

    /// Starts the server under `umask 000`.
    #[track_caller]
    pub fn start_unmasked(&self) -> Server {
        let mut command = unmasked(&[]);
        self.dress(&mut command);
        Server::of(command)
    }
}

/// Opens a database file as it is, waiting a little for locks.
pub fn open_sql(path: &Path) -> rusqlite::Connection {
    let connection = rusqlite::Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE).expect("the database opens");
    connection.busy_timeout(Duration::from_secs(10)).expect("a timeout");
    connection
}

/// What SQLite itself says about a file.
pub fn integrity_of(path: &Path) -> String {
    open_sql(path).query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("an answer")
}

fn unmasked(args: &[&str]) -> Command {
    shell("umask 000", args)
}

/// The program, after a command of the shell.
fn shell(before: &str, args: &[&str]) -> Command {
    let mut command = Command::new("/bin/sh");
    // `exec` keeps the process id.
    command.args(["-c", &format!("{before}; exec \"$@\""), "sh", env!("CARGO_BIN_EXE_holdfast")]).args(args);
    command
}

fn finish(mut command: Command, typed: &[u8]) -> Done {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A program that does not read its input is free not to.
    let _ = stdin.write_all(typed);
    drop(stdin);
    let pid = Pid::from_child(&child);
    let (done, ended) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || done.send(child.wait_with_output()).is_ok());
    let output = ended.recv_timeout(PATIENCE).unwrap_or_else(|_| {
        let _ = kill_process(pid, Signal::KILL);
        panic!("a command did not end");
    });
    reader.join().expect("no panic");
    Done::of(output.expect("its output"))
}

/// What a command left behind.
#[derive(Debug)]
pub struct Done {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Done { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Expects that it did what it was asked.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Expects this exit code; what is no success is told on standard error.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{}{}", self.stdout, self.stderr);
        assert!(code == 0 || !self.stderr.is_empty(), "a silent failure");
        self
    }

    /// Expects this exit code and exactly one line of explanation.
    #[track_caller]
    pub fn exits_with_one_line(self, code: i32) -> Self {
        let done = self.exits(code);
        assert_eq!(done.stderr.lines().count(), 1, "{}", done.stderr);
        done
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }
}

/// The lines that a server has written.
#[derive(Default)]
struct Lines {
    state: Mutex<(Vec<String>, usize)>,
    news: Condvar,
}

impl Lines {
    /// Waits until `find` finds something, or all pipes are closed, or patience ends.
    fn wait<T>(&self, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.state.lock().expect("no panic");
        loop {
            if let Some(found) = find(&state.0) {
                return Some(found);
            }
            let left = until.saturating_duration_since(Instant::now());
            if state.1 == 0 || left.is_zero() {
                return None;
            }
            state = self.news.wait_timeout(state, left).expect("no panic").0;
        }
    }
}

/// A running server.
pub struct Server {
    child: Child,
    lines: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    addresses: Vec<SocketAddr>,
}

impl Server {
    #[track_caller]
    fn of(mut command: Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        let lines = Arc::new(Lines { state: Mutex::new((Vec::new(), 2)), news: Condvar::new() });
        let pipes: [Box<dyn Read + Send>; 2] = [Box::new(child.stdout.take().expect("a pipe")), Box::new(child.stderr.take().expect("a pipe"))];
        let readers = pipes.map(|pipe| {
            let lines = lines.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                    lines.state.lock().expect("no panic").0.push(line);
                    lines.news.notify_all();
                }
                lines.state.lock().expect("no panic").1 -= 1;
                lines.news.notify_all();
            })
        });
        let mut server = Server { child, lines, readers: readers.into(), addresses: Vec::new() };
        // All addresses are told before it says that it is ready.
        server.wait_for("ready: ");
        server.addresses = server.log().lines().filter_map(address_in).collect();
        assert!(!server.addresses.is_empty(), "{}", server.log());
        server
    }

    /// Where it listens.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All that it has written so far.
    pub fn log(&self) -> String {
        self.lines.state.lock().expect("no panic").0.join("\n")
    }

    /// Waits for a line that contains `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        let found = self.lines.wait(|lines| lines.iter().find(|line| line.contains(text)).cloned());
        found.unwrap_or_else(|| panic!("no line with {text:?} came:\n{}", self.log()))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    /// Waits for its end, at most `patience`; what it wrote comes with its exit status.
    #[track_caller]
    pub fn ends_within(mut self, patience: Duration) -> (ExitStatus, String) {
        let until = Instant::now() + patience;
        // Its pipes close when it ends, so this waits for nothing else.
        while self.lines.state.lock().expect("no panic").1 > 0 {
            let state = self.lines.state.lock().expect("no panic");
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "it did not end within {patience:?}:\n{}", state.0.join("\n"));
            drop(self.lines.news.wait_timeout_while(state, left, |state| state.1 > 0).expect("no panic"));
        }
        let status = self.child.wait().expect("its status");
        for reader in self.readers.drain(..) {
            reader.join().expect("no panic");
        }
        (status, self.log())
    }

    /// Stops it as an operator does, and expects exit code 0; all that it wrote comes back.
    #[track_caller]
    pub fn stop(self) -> String {
        self.signal(Signal::TERM);
        let (status, log) = self.ends_within(PATIENCE);
        assert_eq!(status.code(), Some(0), "{log}");
        log
    }

    /// `kill -9`.
    pub fn kill(mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("its status");
    }

    /// How many files it may open, where the system tells.
    pub fn file_limit(&self) -> Option<u64> {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).ok()?;
        let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
        line.split_whitespace().nth(3)?.parse().ok()
    }

    /// How much memory it uses, in KiB, where the system tells.
    pub fn resident_kib(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse().ok()
    }

    /// How often these bytes are in its memory, where the system lets us look.
    #[allow(dead_code)] // For `program.rs`.
    pub fn copies_of(&self, needle: &[u8]) -> Option<usize> {
        let process = PathBuf::from(format!("/proc/{}", self.child.id()));
        let (maps, memory) = (std::fs::read_to_string(process.join("maps")).ok()?, std::fs::File::open(process.join("mem")).ok()?);
        let mut copies = 0;
        for line in maps.lines().filter(|line| line.contains(" rw")) {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let (from, to) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(to, 16).ok()?);
            let mut bytes = vec![0; usize::try_from(to - from).ok()?];
            // What was unmapped since is not there.
            if memory.read_exact_at(&mut bytes, from).is_err() {
                continue;
            }
            // From one first byte to the next: by what the standard library does fast, also in a debug build.
            let mut rest = bytes.as_slice();
            while rest.skip_until(needle[0]).is_ok_and(|skipped| skipped > 0) {
                copies += usize::from(rest.starts_with(&needle[1..]));
            }
        }
        Some(copies)
    }

    /// How many files and connections it has open, where the system tells.
    #[allow(dead_code)] // For the soak.
    pub fn open_files(&self) -> Option<u64> {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).ok()?;
        u64::try_from(files.count()).ok()
    }

    /// A new connection.
    pub fn wire(&self) -> Wire {
        Wire::open(self.address())
    }

    /// A new browser.
    pub fn browser(&self) -> Browser {
        Browser::at(self.address())
    }

    /// A new account, signed in.
    #[track_caller]
    pub fn sign_up(&self, email: &str) -> Browser {
        let mut browser = self.browser();
        browser.post("/signup", json!({"email": email, "password": PASSWORD})).is(201);
        browser
    }

    /// One more browser of that account.
    #[track_caller]
    pub fn sign_in(&self, email: &str) -> Browser {
        let mut browser = self.browser();
        browser.log_in(email, PASSWORD).is(200);
        browser
    }

    /// Whether it still serves.
    #[track_caller]
    pub fn is_well(&self) {
        self.wire().ask("GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n").is(200);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn address_in(line: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once("listening on http://")?;
    let end = rest.find(|c: char| !(c.is_ascii_hexdigit() || ".:[]".contains(c))).unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// A connection.
pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    #[track_caller]
    pub fn open(address: SocketAddr) -> Self {
        Wire::try_open(address).expect("a connection")
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Wire { stream, read: Vec::new() })
    }

    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())
    }

    /// Sends a request without a body to be read, and reads its answer.
    #[track_caller]
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> Reply {
        self.send(request).expect("it is sent");
        self.reply().expect("an answer")
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Reads some more bytes; false at the end.
    fn more(&mut self) -> io::Result<bool> {
        let mut chunk = [0; 16 * 1024];
        let n = self.stream.read(&mut chunk)?;
        self.read.extend_from_slice(&chunk[..n]);
        Ok(n > 0)
    }

    /// Reads `n` bytes.
    pub fn bytes(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.read.len() < n {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.read.drain(..n).collect())
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line: Vec<u8> = self.read.drain(..end + 2).collect();
                return String::from_utf8(line[..end].to_vec()).map_err(io::Error::other);
            }
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads one answer to a request that was no HEAD.
    pub fn reply(&mut self) -> io::Result<Reply> {
        let mut reply = self.head()?;
        if reply.status < 200 || matches!(reply.status, 204 | 304) {
            return Ok(reply);
        }
        if reply.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(self.line()?.split(';').next().unwrap_or(""), 16).map_err(io::Error::other)?;
                let chunk = self.bytes(size)?;
                self.line()?;
                if size == 0 {
                    return Ok(reply);
                }
                reply.body.extend(chunk);
            }
        }
        reply.body = match reply.header("content-length") {
            Some(length) => {
                let length = length.parse().map_err(io::Error::other)?;
                self.bytes(length)?
            }
            None => {
                while self.more()? {}
                std::mem::take(&mut self.read)
            }
        };
        Ok(reply)
    }

    /// Reads the head of an answer: all of it, if the request was a HEAD.
    pub fn head(&mut self) -> io::Result<Reply> {
        let first = self.line()?;
        let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).and_then(|code| code.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {first:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(Reply { status, headers, body: Vec::new() });
            }
            let (name, value) = line.split_once(':').ok_or_else(|| io::Error::other(format!("no header: {line:?}")))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_string()));
        }
    }

    /// Whether something has come that was not read yet, or the connection has ended.
    pub fn has_news(&mut self) -> bool {
        self.stream.set_nonblocking(true).expect("a mode");
        let news = !matches!(self.stream.peek(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock);
        self.stream.set_nonblocking(false).expect("a mode");
        news
    }

    /// Waits for the end of the connection, at most this long; what comes before it is kept.
    pub fn ends_within(&mut self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.stream.set_read_timeout(Some(left)).expect("a timeout");
            let more = self.more();
            self.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            match more {
                Ok(true) => {}
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return false,
                Ok(false) | Err(_) => return true,
            }
        }
    }

    /// Waits until the server closes the connection, and says what it sent before.
    #[track_caller]
    pub fn is_closed(&mut self) -> Vec<u8> {
        loop {
            match self.more() {
                Ok(true) => {}
                Ok(false) => return std::mem::take(&mut self.read),
                Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => return std::mem::take(&mut self.read),
                Err(e) => panic!("the connection is still open: {e}"),
            }
        }
    }
}

/// An answer, as it came.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    /// Expects this status.
    #[track_caller]
    pub fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?} {}", String::from_utf8_lossy(&self.body));
        self
    }

    /// Expects a refusal with this status and code.
    #[track_caller]
    pub fn is_refused(self, status: u16, code: &str) -> Self {
        assert_eq!((self.status, self.code().as_str()), (status, code), "{}", String::from_utf8_lossy(&self.body));
        self
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The code of a problem; empty when it is none.
    pub fn code(&self) -> String {
        serde_json::from_slice::<Value>(&self.body).ok().and_then(|body| body["code"].as_str().map(String::from)).unwrap_or_default()
    }
}

/// A client with cookies, which keeps its connection while the server does.
pub struct Browser {
    address: SocketAddr,
    wire: Option<Wire>,
    pub cookies: BTreeMap<String, String>,
    headers: Vec<(String, String)>,
}

impl Browser {
    pub fn at(address: SocketAddr) -> Self {
        Browser { address, wire: None, cookies: BTreeMap::new(), headers: Vec::new() }
    }

    /// Sending this header too, with every request.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// A browser that holds just this session token.
    pub fn holding(mut self, token: &str) -> Self {
        self.cookies.insert("holdfast".into(), token.into());
        self
    }

    /// The session token.
    #[track_caller]
    pub fn token(&self) -> String {
        self.cookies.get("holdfast").cloned().expect("signed in")
    }

    /// Sends a request and reads the answer, or says how the connection failed.
    pub fn try_send(&mut self, method: &str, path: &str, body: Option<&Value>) -> io::Result<Reply> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: tests\r\n", self.address);
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request += &format!("Cookie: {}\r\n", pairs.join("; "));
        }
        for (name, value) in &self.headers {
            request += &format!("{name}: {value}\r\n");
        }
        match body {
            Some(body) => {
                let body = body.to_string();
                request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            }
            None if method == "GET" => request += "\r\n",
            None => request += "Content-Length: 0\r\n\r\n",
        }
        let mut wire = match self.wire.take() {
            Some(wire) => wire,
            None => Wire::try_open(self.address)?,
        };
        wire.send(&request)?;
        let reply = wire.reply()?;
        if reply.header("connection") != Some("close") {
            self.wire = Some(wire);
        }
        for (_, line) in reply.headers.iter().filter(|(name, _)| name == "set-cookie") {
            let (pair, attributes) = line.split_once(';').unwrap_or((line, ""));
            let Some((name, value)) = pair.split_once('=') else { continue };
            if attributes.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.into(), value.into());
            }
        }
        Ok(reply)
    }

    #[track_caller]
    pub fn send(&mut self, method: &str, path: &str, body: Option<&Value>) -> Reply {
        self.try_send(method, path, body).unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    #[track_caller]
    pub fn get(&mut self, path: &str) -> Reply {
        self.send("GET", path, None)
    }

    /// A POST without a body.
    #[track_caller]
    pub fn poke(&mut self, path: &str) -> Reply {
        self.send("POST", path, None)
    }

    #[track_caller]
    pub fn post(&mut self, path: &str, body: Value) -> Reply {
        self.send("POST", path, Some(&body))
    }

    #[track_caller]
    pub fn put(&mut self, path: &str, body: Value) -> Reply {
        self.send("PUT", path, Some(&body))
    }

    #[track_caller]
    pub fn log_in(&mut self, email: &str, password: &str) -> Reply {
        self.post("/login", json!({"email": email, "password": password}))
    }
}

/// Asks again and again until the answer is the wanted one, for at most `within`; says whether it came.
pub fn soon(within: Duration, mut asked: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + within;
    loop {
        if asked() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::yield_now();
    }
}
