//! Web servers: resumed downloads, failures, and messages.

use std::time::{Duration, Instant};

use hostler::image::{FetchError, Sources};

use super::{
    Fetch, digest,
    faults::{Fault, Faults, rude},
    nginx::Nginx,
    noise, used_bytes,
};

const MIB: usize = 1 << 20;
const MIB_U64: u64 = 1 << 20;

#[tokio::test]
async fn a_file_is_fetched_as_published_and_as_sparse_as_it_can_be() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let published = [noise(MIB), vec![0; 16 * MIB], noise(5), vec![0; 3 * MIB]].concat();
    nginx.publish("a.img", &published);
    for path in ["moved/a.img?token=x", "labelled/a.img"] {
        fetch.run(&nginx.url(path), &digest(&published)).await.unwrap();
        assert!(fetch.bytes() == published);
        assert!(used_bytes(&fetch.part()) < 3 * MIB_U64 / 2);
        fetch.into.set_len(0).unwrap();
    }
    let progress = fetch.progress();
    assert_eq!((progress.done_bytes, progress.total_bytes), (20_971_525, 20_971_525));
    assert_eq!(fetch.size(&nginx.url("a.img")).await.unwrap(), Some(20_971_525));
    assert_eq!(fetch.size(&nginx.url("none.img")).await.unwrap(), None);
}

/// Invariant (image): A download that breaks goes on, and one that brings nothing new ends.
#[tokio::test]
async fn a_download_that_is_cut_ten_times_goes_on_each_time_where_it_was() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let published = noise(12 * MIB);
    nginx.publish("a.img", &published);
    let faults = Faults::start(nginx.address, &[Fault::Cut(MIB_U64); 10]).await;
    fetch.run(&faults.url("a.img"), &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
    let log = nginx.log_of(11);
    assert_eq!(log.iter().filter(|line| line.contains(" 206 [bytes=")).count(), 10, "{log:#?}");
    assert_eq!(fetch.progress().done_bytes, published.len() as u64);
}

#[tokio::test]
async fn a_server_that_is_killed_in_the_middle_and_comes_back_is_met_again() {
    let (fetch, mut nginx) = (Fetch::new(), Nginx::start());
    let published = noise(2 * MIB);
    nginx.publish("a.img", &published);
    let (url, wanted) = (nginx.url("slow/a.img"), digest(&published));
    let restart = async {
        fetch.reaches(MIB_U64 / 2).await;
        nginx.kill();
        // Long enough for several refused connections.
        tokio::time::sleep(Duration::from_millis(600)).await;
        nginx.restart();
    };
    let (fetched, ()) = tokio::join!(fetch.run(&url, &wanted), restart);
    fetched.unwrap();
    assert!(fetch.bytes() == published);
    assert!(nginx.log_of(1).iter().any(|line| line.contains(" 206 ")), "{:?}", nginx.log());
}

#[tokio::test]
async fn connections_and_servers_that_fail_for_a_moment_are_tried_again() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    nginx.publish("a.img", b"bytes");
    let moment = [
        Fault::Drop,
        Fault::Answer("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"),
        Fault::Answer("HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"),
        Fault::Cut(10),
    ];
    let faults = Faults::start(nginx.address, &moment).await;
    fetch.run(&faults.url("a.img"), &digest(b"bytes")).await.unwrap();
    assert_eq!(fetch.bytes(), b"bytes");
}

#[tokio::test]
async fn a_server_that_cannot_send_parts_sends_the_whole_again() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let published = noise(3 * MIB);
    nginx.publish("a.img", &published);
    let faults =
        Faults::start(nginx.address, &[Fault::Cut(MIB_U64), Fault::Cut(2 * MIB_U64)]).await;
    fetch.run(&faults.url("unranged/a.img"), &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
    assert_eq!(fetch.progress().done_bytes, published.len() as u64);
}

/// Invariant (image): A download that breaks goes on, and one that brings nothing new ends.
#[tokio::test]
async fn a_server_that_sends_the_same_beginning_for_ever_is_given_up() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    nginx.publish("a.img", &noise(MIB));
    let fetch = Fetch { stall: Duration::from_secs(3), ..fetch };
    let faults = Faults::start(nginx.address, &[Fault::Cut(MIB_U64 / 2); 100]).await;
    let error = fetch.error(&faults.url("unranged/a.img"), &digest(b"")).await;
    assert!(matches!(error, FetchError::Connection { .. }), "{error}");
    assert!(!error.is_lasting());
    assert!((3..12).contains(&faults.connections()), "{}", faults.connections());
}

#[tokio::test]
async fn a_file_that_is_replaced_in_the_middle_is_fetched_as_it_is_then() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let (old, new) = (noise(2 * MIB), [vec![1], noise(2 * MIB - 1)].concat());
    nginx.publish("a.img", &old);
    let faults =
        Faults::start(nginx.address, &[Fault::Cut(MIB_U64), Fault::Drop, Fault::Drop]).await;
    let replace = async {
        faults.has_had(2).await;
        // nginx's entity tag consists of the time in seconds and the length.
        nginx.publish("a.img", &new);
        std::fs::File::open(nginx.file("files/a.img"))
            .unwrap()
            .set_modified(std::time::SystemTime::now() + Duration::from_secs(60))
            .unwrap();
    };
    let (url, wanted) = (faults.url("a.img"), digest(&new));
    let (fetched, ()) = tokio::join!(fetch.run(&url, &wanted), replace);
    fetched.unwrap();
    assert!(fetch.bytes() == new);
    assert!(nginx.log_of(2)[1].contains(" 200 [bytes="), "{:?}", nginx.log());
}

/// Invariant (image): A download that breaks goes on, and one that brings nothing new ends.
#[tokio::test]
async fn a_beginning_from_before_is_gone_on_from_and_a_wrong_one_thrown_away() {
    let nginx = Nginx::start();
    let published = noise(2 * MIB);
    nginx.publish("a.img", &published);
    let wrong = [b"?", &published[1..MIB]].concat();
    let longer = [&published[..], b"more"].concat();
    for (beginning, statuses) in [
        (&published[..MIB], vec!["206"]),
        (&published[..], vec!["416"]),
        (&wrong[..], vec!["206", "200"]),
        (&longer[..], vec!["416", "200"]),
    ] {
        let fetch = Fetch::new();
        let before = nginx.log().len();
        fetch.begin_with(beginning);
        fetch.run(&nginx.url("a.img"), &digest(&published)).await.unwrap();
        assert!(fetch.bytes() == published);
        let log = nginx.log_of(before + statuses.len());
        let got: Vec<&str> =
            log[before..].iter().map(|line| line.split(' ').nth(2).unwrap()).collect();
        assert_eq!(got, statuses);
    }
}

#[tokio::test]
async fn a_connection_that_stands_still_is_given_up_at_the_limit() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    nginx.publish("a.img", &noise(MIB));
    let fetch = Fetch { stall: Duration::from_secs(1), ..fetch };
    for (fault, reason) in [
        (Fault::Stall(0), "no progress in time"),
        (Fault::Stall(1000), "the server sent nothing for 333ms"),
    ] {
        let faults = Faults::start(nginx.address, &[fault; 100]).await;
        let began = Instant::now();
        let error = fetch.error(&faults.url("a.img"), &digest(b"")).await;
        assert!(error.to_string().ends_with(reason) && !error.is_lasting(), "{error}");
        assert!((0..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_connection_that_falls_silent_is_replaced_by_another() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let published = noise(2 * MIB);
    nginx.publish("a.img", &published);
    let fetch = Fetch { stall: Duration::from_secs(6), ..fetch };
    let faults = Faults::start(nginx.address, &[Fault::Stall(MIB_U64)]).await;
    fetch.run(&faults.url("a.img"), &digest(&published)).await.unwrap();
    assert!(fetch.bytes() == published);
    assert!(nginx.log_of(2).iter().any(|line| line.contains(" 206 ")), "{:?}", nginx.log());
}

#[tokio::test]
async fn a_download_is_cancelled_within_a_second_also_while_it_waits() {
    let nginx = Nginx::start();
    nginx.publish("a.img", &noise(2 * MIB));
    let (wanted, faults) = (digest(b""), Faults::start(nginx.address, &[Fault::Stall(0)]).await);
    for (url, bytes) in [(nginx.url("slow/a.img"), MIB_U64 / 4), (faults.url("a.img"), 0)] {
        let fetch = Fetch::new();
        let cancelled = async {
            if bytes > 0 {
                fetch.reaches(bytes).await;
            } else {
                faults.has_had(1).await;
            }
            fetch.cancel.send_replace(true);
            Instant::now()
        };
        let (error, at) = tokio::join!(fetch.error(&url, &wanted), cancelled);
        assert_eq!(error.to_string(), "cancelled");
        assert!(at.elapsed() < Duration::from_secs(1), "{:?}", at.elapsed());
    }
}

#[tokio::test]
async fn a_refusal_is_told_with_its_status_and_no_secret_and_at_once() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let secret = nginx.url("none.img?token=hunter2").replace("://", "://user:hunter2@");
    for (source, status) in [
        (secret, "none.img: the server answered 404 Not Found"),
        (
            nginx.url("moved/gone.img?token=hunter2"),
            &format!(
                "{}, redirected to {}: the server answered 404 Not Found",
                nginx.url("moved/gone.img"),
                nginx.url("gone.img")
            ),
        ),
        (nginx.url("denied"), "denied: the server answered 403 Forbidden"),
        (nginx.url("loop"), "loop: redirected in a circle"),
        ("ftp://127.0.0.1/a".to_owned(), "ftp is neither http nor https"),
        ("http://exa mple/a".to_owned(), "not one that can be fetched: invalid"),
    ] {
        let began = Instant::now();
        let error = fetch.error(&source, &digest(b"")).await;
        let text = error.to_string();
        assert!(text.contains(status) && !text.contains("hunter2"), "{text}");
        assert!(error.is_lasting() && began.elapsed() < Duration::from_secs(2), "{text}");
        assert!(!format!("{error:?}").contains("hunter2"));
    }
    assert_eq!(nginx.log().iter().filter(|line| line.contains("/none.img")).count(), 1);
    assert_eq!(Sources::shown("https://u:hunter2@a.test:8/b.img?t=1#c"), "https://a.test:8/b.img");
    assert_eq!(Sources::shown("https://u:hunter2@/"), "a URL");
    assert_eq!(Sources::shown("13/b.img"), "13/b.img");
}

#[tokio::test]
async fn a_failing_server_and_one_that_is_not_there_are_told_after_some_tries() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let fetch = Fetch { stall: Duration::from_secs(2), ..fetch };
    let nobody = format!("http://{}/a.img", crate::ports::free());
    for (source, reason) in [
        (nginx.url("broken"), "broken: the server answered 500 Internal Server Error"),
        (nobody, "a.img: Connection refused (os error 111)"),
    ] {
        let error = fetch.error(&source, &digest(b"")).await;
        assert!(error.to_string().ends_with(reason), "{error}");
        assert!(!error.is_lasting());
    }
    assert!(nginx.log().len() >= 3, "{:?}", nginx.log());
}

#[tokio::test]
async fn a_file_that_is_too_large_is_given_up_before_it_comes_or_as_soon_as_it_is_seen() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    nginx.publish("a.img", &noise(MIB + 1));
    let fetch = Fetch { bytes_max: MIB_U64, ..fetch };
    let error = fetch.error(&nginx.url("a.img"), &digest(b"")).await;
    assert!(matches!(error, FetchError::TooLarge { is_all: true, .. }), "{error}");
    assert_eq!(fetch.bytes(), b"");
    for (head, endless) in [
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "5\r\nnoise\r\n"),
        ("HTTP/1.0 200 OK\r\n\r\n", "noise"),
    ] {
        let error = fetch.error(&rude(head, Some(endless)).await, &digest(b"")).await;
        assert!(matches!(error, FetchError::TooLarge { is_all: false, .. }), "{error}");
        assert!(fetch.bytes().len() <= MIB);
        fetch.into.set_len(0).unwrap();
    }
}

#[tokio::test]
async fn answers_that_make_no_sense_are_told_and_never_taken() {
    // The same for every request, so that the whole file is not available either.
    let part = "HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n";
    for (head, reason) in [
        (format!("{part}Content-Range: bytes 0-1/4\r\n\r\nab"), "a part of the file where all"),
        (format!("{part}\r\nab"), "a part of the file where all"),
        ("HTTP/1.1 204 No Content\r\n\r\n".to_owned(), "the server answered 204 No Content"),
        (
            "HTTP/1.1 302 Found\r\nLocation: ftp://a/b\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "ftp",
        ),
    ] {
        let fetch = Fetch::new();
        fetch.begin_with(b"12");
        let error = fetch.error(&rude(head.clone().leak(), None).await, &digest(b"12ab")).await;
        assert!(error.to_string().contains(reason), "{head}: {error}");
        assert!(error.is_lasting(), "{error}");
        assert_eq!(fetch.bytes(), b"12", "the beginning is kept until the whole comes");
    }
    let fetch = Fetch { stall: Duration::from_secs(1), ..Fetch::new() };
    let short = rude("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", None).await;
    let error = fetch.error(&short, &digest(b"short")).await;
    assert!(matches!(error, FetchError::Connection { .. } | FetchError::Length { .. }), "{error}");
}

#[tokio::test]
async fn of_a_file_with_a_wrong_checksum_it_is_said_what_came() {
    for (kind, body, said) in [
        (
            "Content-Type: text/html",
            "<!DOCTYPE html>\n<p>Sign in</p>",
            "; the server sent text/html, which begins with \"<!DOCTYPE html> <p>Sign in</p>\"",
        ),
        (
            "Content-Type: x/y\r\nContent-Encoding: gzip",
            "\x1f\x01binary bytes",
            "; the server sent x/y in Content-Encoding gzip, which begins with 1f0162696e617279",
        ),
        ("X: y", "", "; the server sent something without a type, which begins with nothing"),
    ] {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{kind}\r\n\r\n{body}", body.len());
        let fetch = Fetch::new();
        let error = fetch.error(&rude(head.leak(), None).await, &digest(b"wanted")).await;
        let text = error.to_string();
        assert!(matches!(error, FetchError::Checksum { .. }) && text.ends_with(said), "{text}");
    }
}

#[tokio::test]
async fn a_list_of_checksums_is_fetched_and_names_in_urls_are_decoded() {
    let (fetch, nginx) = (Fetch::new(), Nginx::start());
    let wanted = digest(b"disk");
    let hex = wanted.to_string().replace("sha256:", "");
    nginx.publish("SHA256SUMS", format!("{hex} *13/a disk.img\n").as_bytes());
    nginx.publish("large", &vec![b'\n'; 3 * MIB]);
    let faults = Faults::start(nginx.address, &[Fault::Drop]).await;
    let image = nginx.url("x/a%20disk.img?token=a/b#c");
    let found = fetch.listed(&faults.url("SHA256SUMS?token=hunter2"), &image).await;
    assert_eq!(found.unwrap(), wanted);
    for (list, reason) in [
        ("large?token=hunter2", "/large: larger than 1 MiB, so no file of checksums"),
        ("none", "/none: the server answered 404 Not Found"),
    ] {
        let error = fetch.listed(&nginx.url(list), &image).await.unwrap_err();
        assert!(error.to_string().ends_with(reason), "{error}");
        assert!(error.is_lasting());
    }
}
