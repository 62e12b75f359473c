//! A real nginx as the origin.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;
use tokio::net::TcpStream;

use super::soon;

const PROGRAM: &str = "/usr/sbin/nginx";

/// A running nginx; it is killed when dropped.
pub(crate) struct Nginx {
    child: Child,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Nginx {
    /// Serves these files (`/packed` as one that is in gzip), and `/empty` (204), `/tea` (418); `/upload`
    /// stores what is PUT.
    pub(crate) async fn start(files: &[(&str, &[u8])]) -> Self {
        Self::with(files, "", "").await
    }

    /// As [`Nginx::start`], with these words behind the address it listens on, and these directives.
    pub(crate) async fn with(files: &[(&str, &[u8])], listen: &str, directives: &str) -> Self {
        assert!(Path::new(PROGRAM).exists(), "{PROGRAM} is missing: install the package `nginx-light`");
        let directory = TempDir::new().expect("a temporary directory");
        for (name, content) in files {
            std::fs::write(directory.path().join(name), content).expect("write");
        }
        // nginx cannot bind port 0, so one that is free now is used.
        let address = super::refusing().await;
        let config = directory.path().join("nginx.conf");
        std::fs::write(&config, configuration(directory.path(), address, listen, directives)).expect("write");
        let child = Command::new(PROGRAM)
            .arg("-p")
            .arg(directory.path())
            .arg("-c")
            .arg(&config)
            .args(["-e", "stderr"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx starts");
        let mut nginx = Self { child, address, directory };
        nginx.ready().await;
        nginx
    }

    /// Where a file that it serves is.
    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn ready(&mut self) {
        soon("nginx", async {
            while TcpStream::connect(self.address).await.is_err() {
                assert!(self.child.try_wait().expect("a child").is_none(), "nginx ended");
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        })
        .await;
    }
}

fn configuration(directory: &Path, address: SocketAddr, listen: &str, directives: &str) -> String {
    let directory = directory.display();
    format!(
        "daemon off; master_process off; pid {directory}/pid; error_log stderr crit;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off; client_max_body_size 0;\n\
         client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};\n\
         uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
         server {{ listen {address} {listen}; {directives} root {directory};\n\
         location = /empty {{ return 204; }}\n\
         location = /packed {{ add_header Content-Encoding gzip; }}\n\
         location = /tea {{ return 418 \"short and stout\"; }}\n\
         }} }}\n"
    )
}
