//! Clients that others wrote: curl, OpenSSL, Python.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::{HELLO, ONE, beside, folder, listener, start};
use crate::harness::{Authority, Gateway, Kind};

async fn run(mut command: Command, input: &'static str) -> Output {
    let running = tokio::task::spawn_blocking(move || {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
        child.wait_with_output().expect("ends")
    });
    crate::harness::soon("the client", running).await.expect("joined")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn curl(gateway: &Gateway, more: &[&str]) -> String {
    let port = gateway.address().port();
    let mut command = Command::new("curl");
    command.current_dir(beside(gateway)).args(["-sS", "-m", "8", "--cacert", "ca.pem"]).args(more);
    command.args(["--resolve", &format!("a.test:{port}:127.0.0.1")]);
    command.args(["-w", " %{http_version} %{http_code}", &format!("https://a.test:{port}/")]);
    text(&run(command, "").await)
}

/// What OpenSSL says of a request, shown this and asked with these options.
pub(super) async fn s_client(gateway: &Gateway, more: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.current_dir(beside(gateway)).args(["s_client", "-connect", &gateway.address().to_string()]);
    command.args(["-servername", "a.test", "-CAfile", "ca.pem", "-ign_eof"]).args(more);
    text(&run(command, "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await)
}

#[tokio::test]
async fn curl_speaks_http_2_and_http_1_1_over_both_versions() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    for (options, said) in [
        (&["--http2"][..], "hello 2 200"),
        (&["--http1.1"], "hello 1.1 200"),
        (&["--http2", "--tls-max", "1.2"], "hello 2 200"),
        (&["--http1.1", "--tls-max", "1.2"], "hello 1.1 200"),
        (&["--http1.1", "--no-alpn"], "hello 1.1 200"),
        (&["--http2-prior-knowledge"], "hello 2 200"),
    ] {
        assert_eq!(curl(&gateway, options).await, said, "{options:?}");
    }
    let line =
        gateway.log_line(|line| line["protocol"] == "HTTP/2" && line["tls_version"] == "TLSv1.2").await;
    assert_eq!(line["scheme"], "https");
}

#[tokio::test]
async fn curl_is_told_by_a_plain_answer_that_it_forgot_the_s() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let mut command = Command::new("curl");
    command.args(["-sS", "-m", "8", &format!("http://{}/", gateway.address())]);
    assert!(text(&run(command, "").await).contains("this port speaks TLS"));
}

#[tokio::test]
async fn openssl_gets_ecdsa_where_it_can_and_rsa_where_it_cannot() {
    let authority = Authority::new("servers");
    let folder = folder(&authority);
    authority.write(folder.path(), "r", &["a.test"], Kind::Rsa);
    let tls = "{certificates: [{cert: r.pem, key: r.key}, {cert: a.pem, key: a.key}]}";
    let gateway = Gateway::within(folder, &listener(tls), HELLO).await;
    for (options, signature) in [
        (&["-tls1_3"][..], "ECDSA"),
        (&["-tls1_2"], "ECDSA"),
        (&["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"], "RSA-PSS"),
        (&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"], "RSA-PSS"),
    ] {
        let said = s_client(&gateway, options).await;
        assert!(said.contains("Verify return code: 0 (ok)"), "{options:?}: {said}");
        assert!(said.contains(&format!("Peer signature type: {signature}")), "{options:?}: {said}");
        assert!(said.contains("\nhello"), "{options:?}: {said}");
    }
    let old = s_client(&gateway, &["-tls1_1"]).await;
    assert!(!old.contains("\nhello"), "{old}");
}

#[tokio::test]
async fn openssl_is_sent_the_ocsp_response_of_the_certificate() {
    let authority = Authority::new("servers");
    let folder = folder(&authority);
    std::fs::write(folder.path().join("ca.key"), authority.key()).expect("written");
    let mut command = Command::new("sh");
    let made = command.current_dir(folder.path()).arg("-c").arg(
        "serial=$(openssl x509 -in a.pem -noout -serial | cut -d= -f2) &&
         printf 'V\\t491231235959Z\\t\\t%s\\tunknown\\t/CN=a\\n' \"$serial\" >index.txt &&
         openssl ocsp -index index.txt -rsigner ca.pem -rkey ca.key -CA ca.pem -issuer ca.pem -cert a.pem \
             -ndays 7 -respout a.ocsp",
    );
    let made = made.output().expect("openssl runs");
    assert!(made.status.success(), "{}", text(&made));
    let tls = "{certificates: [{cert: a.pem, key: a.key, ocsp: a.ocsp}]}";
    let gateway = Gateway::within(folder, &listener(tls), HELLO).await;
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&gateway, &[version, "-status"]).await;
        assert!(said.contains("OCSP Response Status: successful (0x0)"), "{version}: {said}");
        assert!(said.contains("Cert Status: good"), "{version}: {said}");
    }
}

#[tokio::test]
async fn python_shakes_hands_and_asks() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let script = "import socket, ssl, sys
context = ssl.create_default_context(cafile='ca.pem')
context.set_alpn_protocols(['http/1.1'])
raw = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=8)
with context.wrap_socket(raw, server_hostname='a.test') as tls:
    print(tls.version(), tls.selected_alpn_protocol())
    for close in (False, True):
        tls.sendall(b'GET / HTTP/1.1\\r\\nHost: a.test\\r\\n' + b'Connection: close\\r\\n' * close + b'\\r\\n')
    data = b''
    while piece := tls.recv(4096):
        data += piece
    print(data.count(b'hello'))
";
    let mut command = Command::new("python3");
    command.current_dir(beside(&gateway)).args(["-c", script, &gateway.address().port().to_string()]);
    assert_eq!(text(&run(command, "").await), "TLSv1.3 http/1.1\n2\n");
}
