//! A Postgres server for the tests: the one that `TEST_POSTGRES_URL` names, or PostgreSQL's own programs, started on a socket
//! in a temporary folder.
//!
//! A shell stands between: it starts the server, does what it reads, and when its input ends, however the tests came to
//! their end, it stops the server and removes the folder. Processes of the server are stopped by their ids.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;

/// PostgreSQL refuses to run as root; this is who runs it then: nobody.
pub const UNPRIVILEGED: u32 = 65_534;

/// One server, as long as this lives.
pub struct Cluster {
    shell: Child,
    orders: Option<ChildStdin>,
    reports: BufReader<ChildStdout>,
    url: String,
    folder: PathBuf,
}

const SHELL: &str = r#"
bin=$1 folder=$2 primary=$3
shift 3
start() {
    "$bin/postgres" -D "$folder/data" -c listen_addresses= -c unix_socket_directories="$folder" -c max_connections=300 \
        -c shared_buffers=64MB -c fsync=off -c full_page_writes=off -c autovacuum=off "$@" >>"$folder/log" 2>&1 &
    pid=$!
    until "$bin/pg_isready" -q -h "$folder"; do
        kill -0 $pid 2>/dev/null || { cat "$folder/log" >&2; exit 1; }
        sleep 0.02
    done
    echo started
}
stop() {
    kill "-$1" $pid && wait $pid
    echo stopped
}
all() {
    kill "-$1" $pid $(cat /proc/$pid/task/$pid/children)
}
cd "$folder" || exit 1
if [ -z "$primary" ]; then
    "$bin/initdb" -D "$folder/data" -U holdfast -A trust -E UTF8 --locale=C.UTF-8 -N
else
    "$bin/pg_basebackup" -D "$folder/data" -U holdfast -h "$primary" --checkpoint=fast --no-sync --write-recovery-conf
fi >>"$folder/log" 2>&1 || { cat "$folder/log" >&2; exit 1; }
start "$@"
while read -r order; do
    case $order in
        start) start "$@" ;;
        stop) stop INT ;;
        crash) stop QUIT ;;
        freeze) all STOP && echo frozen ;;
        thaw) all CONT && echo thawed ;;
    esac
done
all CONT 2>/dev/null
kill -QUIT $pid 2>/dev/null && wait $pid
rm -rf "$folder"
"#;

impl Cluster {
    /// Starts a server of PostgreSQL's own programs, if the machine has them.
    pub fn start() -> Option<Cluster> {
        Cluster::start_with(&[])
    }

    /// The same with these settings of its own (`name=value`), which win.
    pub fn start_with(settings: &[&str]) -> Option<Cluster> {
        Cluster::of(settings, None)
    }

    /// Starts a standby of this one.
    #[allow(dead_code)] // For `../api_postgres`.
    pub fn standby(&self) -> Cluster {
        Cluster::of(&[], Some(&self.folder)).unwrap_or_else(|| none_found())
    }

    fn of(settings: &[&str], primary: Option<&Path>) -> Option<Cluster> {
        let bin = programs()?;
        // Short: the name of a socket has at most 107 bytes.
        let folder = tempfile::Builder::new().prefix("hf-pg-").tempdir_in("/tmp").expect("a temporary folder").keep();
        let port = settings.iter().find_map(|setting| setting.strip_prefix("port=")).unwrap_or("5432");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHELL, "sh"]).arg(bin).arg(&folder).arg(primary.unwrap_or(Path::new("")));
        command.args(settings.iter().flat_map(|setting| ["-c", setting])).env("PGPORT", port).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Not in our group: an interrupt at the terminal is for us, and then the shell sees the end of its input.
        command.process_group(0);
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("a mode");
        if rustix::process::geteuid().is_root() {
            chown(&folder, Some(UNPRIVILEGED), Some(UNPRIVILEGED)).expect("an owner");
            command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        }
        let mut shell = command.spawn().expect("a shell");
        let (orders, reports) = (shell.stdin.take(), BufReader::new(shell.stdout.take().expect("a pipe")));
        let url = format!("postgres:///postgres?host={}&port={port}&user=holdfast", folder.display());
        let mut cluster = Cluster { shell, orders, reports, url, folder };
        cluster.hears("started");
        Some(cluster)
    }

    /// The folder of its socket.
    #[allow(dead_code)] // For `../api_postgres`.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops it as an operator does, and waits until it has stopped.
    pub fn stop(&mut self) {
        self.order("stop", "stopped");
    }

    /// Stops it at once, as a power cut would.
    pub fn crash(&mut self) {
        self.order("crash", "stopped");
    }

    /// Starts it again, and waits until it serves.
    pub fn begin(&mut self) {
        self.order("start", "started");
    }

    /// Freezes it, as a machine that hangs: connections stand, nothing is answered.
    #[allow(dead_code)] // For `../api_postgres`.
    pub fn freeze(&mut self) {
        self.order("freeze", "frozen");
    }

    /// Lets it go on.
    #[allow(dead_code)] // For `../api_postgres`.
    pub fn thaw(&mut self) {
        self.order("thaw", "thawed");
    }

    #[track_caller]
    fn order(&mut self, word: &str, report: &str) {
        writeln!(self.orders.as_mut().expect("open until the end"), "{word}").expect("the shell listens");
        self.hears(report);
    }

    #[track_caller]
    fn hears(&mut self, report: &str) {
        let mut line = String::new();
        self.reports.read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), report, "the server did not do what it was told");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}

/// The address of the server that all sentences share. Where there is none, says so and ends the whole: a sentence that
/// tested nothing must not count as one that holds.
pub fn common() -> &'static str {
    static COMMON: OnceLock<(String, Option<Cluster>)> = OnceLock::new();
    let (url, _) = COMMON.get_or_init(|| match std::env::var("TEST_POSTGRES_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let cluster = Cluster::start().unwrap_or_else(|| none_found());
            (cluster.url().to_string(), Some(cluster))
        }
    });
    url
}

/// Says, past the harness, that there is nothing to test on.
pub fn none_found() -> ! {
    let _ = writeln!(std::io::stderr().lock(), "NOT TESTED ON POSTGRES: set TEST_POSTGRES_URL, or install PostgreSQL's server (Debian: postgresql)");
    std::process::exit(0)
}

/// Where PostgreSQL's programs are: the newest of Debian's, or beside `postgres` on the path.
pub fn programs() -> Option<PathBuf> {
    let has_all = |bin: &PathBuf| ["initdb", "postgres", "pg_isready"].iter().all(|name| bin.join(name).is_file());
    let debian = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|version| version.path().join("bin"));
    let number = |bin: &PathBuf| bin.parent().and_then(Path::file_name).and_then(|name| name.to_str()?.parse::<u32>().ok());
    let newest = debian.filter(has_all).max_by_key(number);
    let paths = std::env::var_os("PATH").unwrap_or_default();
    newest.or_else(|| std::env::split_paths(&paths).find(has_all))
}
