//! Clients that others wrote: curl, OpenSSL, Python.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use super::{HELLO, ONE, beside, folder, listener, start};
use crate::harness::{Authority, Gateway, Kind, write_pair};

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
    let gateway = of_both_kinds(&authority).await;
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

/// A certificate of each type of key for `a.test`.
async fn of_both_kinds(authority: &Authority) -> Gateway {
    let folder = folder(authority);
    authority.write(folder.path(), "r", &["a.test"], Kind::Rsa);
    let tls = "{certificates: [{cert: r.pem, key: r.key}, {cert: a.pem, key: a.key}]}";
    Gateway::within(folder, &listener(tls), HELLO).await
}

#[tokio::test]
async fn openssl_resumes_sessions_of_both_versions_and_kinds_of_keys() {
    let authority = Authority::new("servers");
    let gateway = of_both_kinds(&authority).await;
    for options in [
        &["-tls1_3"][..],
        &["-tls1_3", "-sigalgs", "RSA-PSS+SHA256"],
        &["-tls1_2"],
        &["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"],
    ] {
        let said = s_client(&gateway, &[options, &["-sess_out", "session.pem"]].concat()).await;
        assert!(said.contains("\nNew, TLSv1."), "{options:?}: {said}");
        for _ in 0..2 {
            let said = s_client(&gateway, &[options, &["-sess_in", "session.pem"]].concat()).await;
            assert!(said.contains("\nReused, TLSv1.") && said.contains("\nhello"), "{options:?}: {said}");
        }
        // RFC 6066 s3, RFC 8446 s4.6.1: a session is of one name.
        let other = [options, &["-sess_in", "session.pem", "-servername", "b.test"]].concat();
        let said = s_client(&gateway, &other).await;
        assert!(said.contains("\nNew, TLSv1."), "{options:?}: {said}");
    }
}

#[tokio::test]
async fn openssl_agrees_on_a_protocol_or_is_told_that_there_is_none() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    for (offered, agreed) in
        [("http/1.1", "http/1.1"), ("h2", "h2"), ("http/1.1,h2", "h2"), ("spdy/3,h2", "h2")]
    {
        let mut command = Command::new("openssl");
        command.current_dir(beside(&gateway)).args(["s_client", "-connect", &gateway.address().to_string()]);
        command.args(["-servername", "a.test", "-CAfile", "ca.pem", "-alpn", offered]);
        let said = text(&run(command, "Q\n").await);
        assert!(said.contains(&format!("ALPN protocol: {agreed}")), "{offered}: {said}");
    }
    for version in ["-tls1_2", "-tls1_3"] {
        let said = s_client(&gateway, &[version, "-alpn", "spdy/3"]).await;
        assert!(said.contains("alert no application protocol"), "RFC 7301 s3.2: {said}");
    }
}

#[tokio::test]
async fn h2load_is_served_over_both_versions_of_http() {
    let authority = Authority::new("servers");
    let gateway = of_both_kinds(&authority).await;
    for options in [&["-m", "10"][..], &["--h1"], &["--tls13-ciphers=TLS_CHACHA20_POLY1305_SHA256"]] {
        let mut command = Command::new("h2load");
        command.args(["-n", "200", "-c", "10"]).args(options).arg(format!("https://{}/", gateway.address()));
        let said = text(&run(command, "").await);
        assert!(said.contains("200 succeeded, 0 failed, 0 errored"), "{options:?}: {said}");
    }
}

#[tokio::test]
async fn curl_shows_its_certificate_where_one_is_asked_for() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    for (mode, without) in [("require", false), ("optional", true)] {
        let folder = folder(&servers);
        std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
        std::fs::write(folder.path().join("clients.crl"), clients.revoke(&[7])).expect("written");
        for (name, serial) in [("good", 8), ("revoked", 7)] {
            write_pair(folder.path(), name, &clients.sign_client(name, serial));
        }
        write_pair(folder.path(), "expired", &clients.sign_until("expired.test", 2020));
        write_pair(folder.path(), "stranger", &Authority::new("clients").sign_client("stranger", 8));
        let tls = format!(
            "{{certificates: [{{cert: a.pem, key: a.key}}], \
             client_auth: {{mode: {mode}, ca: clients.pem, crl: clients.crl}}}}"
        );
        let gateway = Gateway::within(folder, &listener(&tls), HELLO).await;
        for version in ["1.2", "1.3"] {
            for (name, served) in
                [("good", true), ("revoked", false), ("expired", false), ("stranger", false), ("", without)]
            {
                let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
                let shown = ["--cert", &certificate, "--key", &key];
                let shown = if name.is_empty() { &[][..] } else { &shown };
                let said = curl(&gateway, &[&["--tls-max", version][..], shown].concat()).await;
                assert_eq!(said.contains("hello"), served, "{mode} {version} {name}: {said}");
            }
        }
    }
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

#[tokio::test]
async fn python_resumes_its_sessions() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let script = "import socket, ssl, sys
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cafile='ca.pem')
    context.minimum_version = context.maximum_version = version
    session = None
    for _ in range(3):
        raw = socket.create_connection(('127.0.0.1', int(sys.argv[1])), timeout=8)
        with context.wrap_socket(raw, server_hostname='a.test', session=session) as tls:
            tls.sendall(b'GET / HTTP/1.1\\r\\nHost: a.test\\r\\nConnection: close\\r\\n\\r\\n')
            data = b''
            while piece := tls.recv(4096):
                data += piece
            print(tls.version(), tls.session_reused, data.count(b'hello'))
            session = tls.session
";
    let mut command = Command::new("python3");
    command.current_dir(beside(&gateway)).args(["-c", script, &gateway.address().port().to_string()]);
    let each = |version| format!("{version} False 1\n{version} True 1\n{version} True 1\n");
    assert_eq!(text(&run(command, "").await), each("TLSv1.2") + &each("TLSv1.3"));
}

/// OpenSSL alone would choose AES of 256 bits, which it names first.
#[tokio::test]
async fn the_cheap_suite_is_taken_unless_the_client_likes_chacha20_best() {
    let authority = Authority::new("servers");
    let gateway = start(&authority, ONE, HELLO).await;
    let chacha = "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256";
    for (options, agreed) in [
        (&["-tls1_3"][..], "TLS_AES_128_GCM_SHA256"),
        (&["-tls1_3", "-ciphersuites", chacha], "TLS_CHACHA20_POLY1305_SHA256"),
        (&["-tls1_3", "-ciphersuites", "TLS_AES_256_GCM_SHA384"], "TLS_AES_256_GCM_SHA384"),
        (&["-tls1_2"], "ECDHE-ECDSA-AES128-GCM-SHA256"),
        (&["-tls1_2", "-cipher", "ECDHE+CHACHA20:ECDHE+AESGCM"], "ECDHE-ECDSA-CHACHA20-POLY1305"),
    ] {
        let said = s_client(&gateway, options).await;
        assert!(said.contains(&format!("Cipher is {agreed}\n")), "{options:?}: {said}");
    }
}
