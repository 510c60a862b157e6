//! nginx in front of several instances, in the foreground, with a configuration in a temporary folder.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::process::{PATIENCE, Server, soon};

/// A running nginx, or, where the machine has none, nothing but the instances in turn.
pub struct Front {
    /// Where browsers go, one after the other.
    pub doors: Vec<SocketAddr>,
    shell: Option<(Child, Option<ChildStdin>)>,
    _folder: tempfile::TempDir,
}

// Ends nginx when its own input ends, however the tests came to their end.
const SHELL: &str = r#"nginx -p "$1" -c "$1/nginx.conf" & pid=$!; cat >/dev/null; kill $pid; wait $pid"#;

impl Front {
    /// Balances over these instances.
    pub fn of(instances: &[&Server]) -> Front {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let own: Vec<SocketAddr> = instances.iter().map(|server| server.address()).collect();
        let known = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/sbin/nginx"];
        if !known.iter().any(|path| Path::new(path).is_file()) {
            eprintln!("NOT TESTED BEHIND NGINX: install it (Debian: nginx-light); requests go to the instances in turn instead");
            return Front { doors: own, shell: None, _folder: folder };
        }
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").port();
        let upstreams: String = own.iter().map(|address| format!("server {address} max_fails=1 fail_timeout=1s;")).collect();
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|of| format!("{of}_temp_path temporary_{of};")).concat();
        let configuration = format!(
            "{user} daemon off; pid nginx.pid; error_log error.log; worker_processes 1; events {{ worker_connections 512; }}
             http {{ access_log off; {temporary}
               upstream instances {{ {upstreams} keepalive 16; }}
               server {{ listen 127.0.0.1:{port};
                 location / {{ proxy_pass http://instances; proxy_http_version 1.1; proxy_set_header Connection \"\";
                   proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; }} }} }}"
        );
        fs::write(folder.path().join("nginx.conf"), configuration).expect("written");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SHELL, "sh"]).arg(folder.path()).env("PATH", "/usr/sbin:/usr/bin:/bin:/usr/local/sbin").stdin(Stdio::piped());
        let mut shell = command.spawn().expect("a shell");
        let input = shell.stdin.take();
        let door = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(soon(PATIENCE, || TcpStream::connect(door).is_ok()), "nginx does not listen");
        Front { doors: vec![door], shell: Some((shell, input)), _folder: folder }
    }

    /// The door for the `n`-th request.
    pub fn door(&self, n: usize) -> SocketAddr {
        self.doors[n % self.doors.len()]
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        if let Some((mut shell, input)) = self.shell.take() {
            drop(input);
            let _ = shell.wait();
        }
    }
}
