//! Downloads from local servers that misbehave in various ways.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Command;

use candle_core::Device;

use super::*;
use crate::dataset::files::{FASHION_MNIST, MNIST};
use crate::get_datasets_from;

/// Handles a connection after the request for a path was read.
type Handler = fn(&str, TcpStream) -> std::io::Result<()>;

/// Starts a server that lives as long as the process, and returns its base URL.
fn serve(handler: Handler) -> String {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let connection = connection.unwrap();
            std::thread::spawn(move || {
                let mut lines = BufReader::new(connection.try_clone()?).lines();
                let request = lines.next().transpose()?.unwrap_or_default();
                lines
                    .by_ref()
                    .find(|line| line.as_ref().map_or(true, |line| line.is_empty()));
                // Errors are ignored: clients that give up close the connection.
                handler(request.split(' ').nth(1).unwrap_or_default(), connection)
            });
        }
    });
    url
}

/// The file in the project's data folder that a path requests.
fn good_file(path: &str) -> Vec<u8> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data");
    std::fs::read(data.join(path.trim_start_matches('/'))).unwrap()
}

fn respond(
    mut to: TcpStream,
    head: &str,
    length: usize,
    body: &[u8],
) -> std::io::Result<()> {
    write!(
        to,
        "HTTP/1.1 {head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    to.write_all(body)
}

fn send_good_file(path: &str, to: TcpStream) -> std::io::Result<()> {
    let body = good_file(path);
    respond(to, "200 OK", body.len(), &body)
}

/// Keeps the connection open without sending until the client gives up.
fn stall(mut connection: TcpStream) -> std::io::Result<()> {
    std::io::copy(&mut connection, &mut std::io::sink()).map(drop)
}

/// Short enough for a test, long enough for a loaded machine to respond.
const SHORT: Timeouts = Timeouts {
    connect: Duration::from_secs(2),
    read: Duration::from_secs(1),
    file: Duration::from_secs(3),
};

fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The error of a download from one misbehaving server; checks that no file is left behind.
fn error_of(handler: Handler) -> String {
    error_from(&serve(handler))
}

fn error_from(mirror: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let error = fetch_missing(&MNIST, dir.path(), &[mirror], SHORT).unwrap_err();
    assert_eq!(entries(dir.path()), Vec::<String>::new(), "files are left behind");
    assert!(
        matches!(error.downcast_ref(), Some(DataError::Download { .. })),
        "{error:?}"
    );
    error.to_string()
}

#[track_caller]
fn assert_says(error: &str, parts: &[&str]) {
    for part in ["t10k-labels-idx1-ubyte.gz", "MNIST_DATA_DIR"].iter().chain(parts) {
        assert!(error.contains(part), "{part:?} is not in: {error}");
    }
}

#[test]
fn downloaded_files_are_the_datasets() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("created/on/demand");
    fetch_missing(&MNIST, &folder, &[&serve(send_good_file)], Timeouts::DEFAULT)
        .unwrap();
    let (train_ds, test_ds) = get_datasets_from(&folder, &Device::Cpu).unwrap();
    assert_eq!((train_ds.len(), test_ds.len()), (60_000, 10_000));
    assert_eq!(entries(&folder).len(), 4);
}

#[test]
fn existing_files_are_not_downloaded_again() {
    let dir = tempfile::tempdir().unwrap();
    fetch_missing(&MNIST, dir.path(), &[&serve(send_good_file)], Timeouts::DEFAULT)
        .unwrap();
    fetch_missing(&MNIST, dir.path(), &[], Timeouts::DEFAULT).unwrap();
    std::fs::remove_file(dir.path().join("t10k-images-idx3-ubyte.gz")).unwrap();
    let error = fetch_missing(&MNIST, dir.path(), &[], Timeouts::DEFAULT)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot download t10k-images-idx3-ubyte.gz"), "{error}");
}

#[test]
fn a_failing_mirror_is_followed_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let broken = serve(|_, to| respond(to, "500 Internal Server Error", 0, b""));
    fetch_missing(&MNIST, dir.path(), &[&broken, &serve(send_good_file)], SHORT)
        .unwrap();
    assert_eq!(entries(dir.path()).len(), 4);
}

#[test]
fn the_error_names_every_mirror_and_its_problem() {
    let dir = tempfile::tempdir().unwrap();
    let broken = serve(|_, to| respond(to, "500 Internal Server Error", 0, b""));
    let empty = serve(|_, to| respond(to, "404 Not Found", 0, b""));
    let error = fetch_missing(&MNIST, dir.path(), &[&broken, &empty], SHORT)
        .unwrap_err()
        .to_string();
    assert_says(&error, &[&broken, "500", &empty, "404"]);
}

#[test]
fn a_server_that_stalls_before_its_response_times_out() {
    let error = error_of(|_, connection| stall(connection));
    assert_says(&error, &["timeout"]);
}

#[test]
fn a_server_that_stalls_within_the_file_times_out() {
    let error = error_of(|path, to| {
        let body = good_file(path);
        respond(to.try_clone()?, "200 OK", body.len(), &body[..1000])?;
        stall(to)
    });
    assert_says(&error, &["timeout"]);
}

#[test]
fn a_server_that_sends_byte_by_byte_times_out() {
    let error = error_of(|_, mut to| {
        respond(to.try_clone()?, "200 OK", 5000, b"")?;
        to.set_read_timeout(Some(Duration::from_millis(100)))?;
        loop {
            // Faster than the client's read timeout.
            let _ = to.read(&mut [0]);
            to.write_all(b"x")?;
        }
    });
    assert_says(&error, &["timeout"]);
}

#[test]
fn a_reset_connection_is_an_error() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (connection, _) = listener.accept().unwrap();
        connection.peek(&mut [0]).unwrap();
        respond(
            connection,
            "200 OK",
            5000,
            b"The request is never read: closing resets.",
        )
        .unwrap();
    });
    assert_says(&error_from(&url), &["disconnected"]);
    server.join().unwrap();
}

#[test]
fn a_connection_closed_without_a_response_is_an_error() {
    let error = error_of(|_, connection| {
        drop(connection);
        Ok(())
    });
    assert_says(&error, &[]);
}

#[test]
fn a_truncated_file_is_refused() {
    let error = error_of(|path, to| {
        let body = &good_file(path)[..1000];
        respond(to, "200 OK", body.len(), body)
    });
    assert_says(&error, &["cannot be read"]);
}

#[test]
fn a_web_page_is_refused() {
    let error = error_of(|_, to| {
        let page = b"<!DOCTYPE html><title>Sign in to the network</title>";
        respond(to, "200 OK\r\nContent-Type: text/html", page.len(), page)
    });
    assert_says(&error, &["no IDX file, gzipped or not"]);
}

#[test]
fn a_file_with_other_content_is_refused() {
    let error = error_of(|path, to| {
        let name = path.trim_start_matches('/').trim_end_matches(".gz");
        let file = MNIST.files.iter().find(|file| file.name == name).unwrap();
        let mut body =
            flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        body.write_all(&vec![0; file.size as usize])?;
        let body = body.finish()?;
        respond(to, "200 OK", body.len(), &body)
    });
    assert_says(&error, &["SHA-256"]);
}

#[test]
fn a_redirect_loop_ends() {
    let error = error_of(|path, to| {
        respond(to, &format!("302 Found\r\nLocation: {path}"), 0, b"")
    });
    assert_says(&error, &["redirects"]);
}

#[test]
fn an_endless_file_is_cut_off() {
    let error = error_of(|_, mut to| {
        write!(to, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
        loop {
            to.write_all(&[0; 4096])?;
        }
    });
    assert_says(&error, &["limit"]);
}

#[test]
fn an_endless_header_is_cut_off() {
    let error = error_of(|_, mut to| {
        write!(to, "HTTP/1.1 200 OK\r\n")?;
        loop {
            write!(to, "X: {}\r\n", "x".repeat(1000))?;
        }
    });
    assert_says(&error, &["header"]);
}

#[test]
fn a_response_that_is_not_http_is_an_error() {
    assert_says(&error_of(|_, mut to| to.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")), &[]);
}

#[test]
fn a_refused_connection_is_an_error() {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    assert_says(&error_from(&url), &["refused"]);
}

#[test]
fn https_mirrors_cannot_redirect_to_plain_http() {
    // Refused before connecting.
    let agent: Agent = Agent::config_builder().https_only(true).build().into();
    let error = agent.get("http://127.0.0.1:9/").call().unwrap_err().to_string();
    assert!(error.contains("https"), "{error}");
    let mut mirrors = MNIST.mirrors.iter().chain(&FASHION_MNIST.mirrors);
    assert!(mirrors.all(|mirror| mirror.starts_with("https://")));
}

#[test]
fn a_folder_that_cannot_be_created_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let error =
        fetch_missing(&MNIST, &file.join("cache"), &[&serve(send_good_file)], SHORT)
            .unwrap_err();
    assert!(
        matches!(&error, Error::Save { path, .. } if path.starts_with(&file)),
        "{error:?}"
    );
}

const FOLDER: &str = "MNIST_TEST_DOWNLOAD_FOLDER";
const MIRROR: &str = "MNIST_TEST_DOWNLOAD_MIRROR";

/// Run by the next test in another process; does nothing if the variables are not set.
#[test]
fn download_as_another_process() {
    let (Some(folder), Ok(mirror)) = (std::env::var_os(FOLDER), std::env::var(MIRROR))
    else {
        return;
    };
    fetch_missing(&MNIST, Path::new(&folder), &[&mirror], Timeouts::DEFAULT).unwrap();
    get_datasets_from(&folder, &Device::Cpu).unwrap();
}

#[test]
fn two_processes_that_download_at_once_both_get_good_data() {
    let dir = tempfile::tempdir().unwrap();
    let mirror = serve(send_good_file);
    let start = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "dataset::download::tests::download_as_another_process"])
            .env(FOLDER, dir.path())
            .env(MIRROR, &mirror)
            .spawn()
            .unwrap()
    };
    let mut processes = [start(), start()];
    for process in &mut processes {
        assert!(process.wait().unwrap().success());
    }
    assert_eq!(entries(dir.path()).len(), 4, "{:?}", entries(dir.path()));
    get_datasets_from(dir.path(), &Device::Cpu).unwrap();
}
