//! An nginx in the rack's network.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Stdio},
};

use tempfile::TempDir;

use crate::rack::{HOST, Rack};

const PORT: u16 = 8080;

/// A running nginx; killed on drop.
pub(super) struct Nginx {
    child: Child,
    dir: TempDir,
}

impl Nginx {
    pub(super) fn start(rack: &Rack) -> Self {
        let dir = TempDir::new().unwrap();
        let at = dir.path().display();
        fs::create_dir(dir.path().join("files")).unwrap();
        let config = format!(
            "daemon off; master_process off; pid {at}/pid; user root;
            events {{}}
            http {{
                log_format short '$request_method $uri $status';
                access_log {at}/access.log short;
                client_body_temp_path {at}/t1; proxy_temp_path {at}/t2; fastcgi_temp_path {at}/t3;
                uwsgi_temp_path {at}/t4; scgi_temp_path {at}/t5;
                root {at}/files;
                server {{ listen {HOST}:{PORT}; }}
            }}"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let child = rack
            .inside(&["nginx", "-c", "nginx.conf", "-e", "error.log", "-p"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, dir }
    }

    /// The path of the file that is served under this name.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("files").join(name)
    }

    pub(super) fn url(name: &str) -> String {
        format!("http://{HOST}:{PORT}/{name}")
    }

    /// One line for each request: method, path and status.
    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("access.log")).unwrap()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The process may have ended before.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}
