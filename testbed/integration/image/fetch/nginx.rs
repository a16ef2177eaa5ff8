//! A test's nginx: its ports, files and log.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::ports;

/// Time limit of nginx's start, and of its log lines.
const LIMIT: Duration = Duration::from_secs(10);

/// A running nginx; killed on drop.
pub(super) struct Nginx {
    child: Child,
    dir: TempDir,
    pub(super) address: SocketAddr,
}

impl Nginx {
    /// Serves the files of [`Nginx::publish`].
    pub(super) fn start() -> Self {
        Self::serve(|_| String::new())
    }

    /// Serves with further servers in the configuration, which may use the given directory.
    pub(super) fn serve(further: impl FnOnce(&std::path::Path) -> String) -> Self {
        let (dir, address) = (TempDir::new().unwrap(), ports::free());
        fs::create_dir(dir.path().join("files")).unwrap();
        let config = configuration(&dir, address, &further(dir.path()));
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let child = spawn(&dir);
        let nginx = Self { child, dir, address };
        nginx.wait();
        nginx
    }

    /// Publishes a file in one step.
    pub(super) fn publish(&self, name: &str, bytes: &[u8]) {
        let new = self.dir.path().join("new");
        fs::write(&new, bytes).unwrap();
        fs::rename(new, self.dir.path().join("files").join(name)).unwrap();
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }

    /// One line for each request: method, path, status, range, and proxy.
    pub(super) fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The log once it has so many lines: nginx writes a line after its answer.
    pub(super) fn log_of(&self, requests: usize) -> Vec<String> {
        let began = Instant::now();
        while self.log().len() < requests {
            assert!(began.elapsed() < LIMIT, "{:?}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
        self.log()
    }

    /// Kills nginx.
    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts nginx again after a kill.
    pub(super) fn restart(&mut self) {
        self.child = spawn(&self.dir);
        self.wait();
    }

    /// The path of a file for certificates and lists.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn wait(&self) {
        let began = Instant::now();
        while TcpStream::connect(self.address).is_err() {
            assert!(began.elapsed() < LIMIT, "nginx did not start: {}", self.errors());
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn errors(&self) -> String {
        fs::read_to_string(self.dir.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The process may have been killed already.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

fn spawn(dir: &TempDir) -> Child {
    let errors = fs::File::options().create(true).append(true).open(dir.path().join("error.log"));
    Command::new("nginx")
        .arg("-p")
        .arg(dir.path())
        .args(["-c", "nginx.conf", "-e", "error.log"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.unwrap())
        .spawn()
        .unwrap()
}

fn configuration(dir: &TempDir, address: SocketAddr, further: &str) -> String {
    let dir = dir.path().display();
    let owner = if rustix::process::getuid().is_root() { "user root;" } else { "" };
    format!(
        "daemon off; master_process off; pid {dir}/pid; {owner}
        events {{}}
        http {{
            log_format short '$request_method $uri $status [$http_range] [$http_via]';
            access_log {dir}/access.log short;
            client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
            uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
            root {dir}/files;
            server {{
                listen {address};
                location /slow/ {{ alias {dir}/files/; limit_rate 1m; }}
                location /unranged/ {{ alias {dir}/files/; max_ranges 0; }}
                location /labelled/ {{ alias {dir}/files/; add_header Content-Encoding gzip; }}
                location /loop {{ return 302 /loop?again; }}
                location /moved/ {{ rewrite ^/moved/(.*) /$1 redirect; }}
                location /denied {{ return 403; }}
                location /broken {{ return 500; }}
            }}
            {further}
        }}"
    )
}
