//! Sockets that one process hands to the next.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_the_process_before_is_taken_over_with_who_waits_there() {
    let old = std::net::TcpListener::bind(ANY).unwrap();
    let addr = old.local_addr().unwrap();
    let mut waiting = TcpStream::connect(addr).await.unwrap();
    let mut sockets = Sockets::from_iter([(addr.to_string(), old.into())]);
    let door = Running::at(Bound::open(&listener(&addr.to_string()), &mut sockets).unwrap(), desk(LIMITS));
    ask(&mut waiting).await;
    door.stop().await;
    let late = TcpStream::connect(addr).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::ConnectionRefused, "nothing keeps the socket listening");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_pauses_connections_are_left_to_the_next_process() {
    let (bound, desk) = (open(&listener(ANY)).unwrap(), desk(LIMITS));
    let (addr, pause) = (bound.local_addr().unwrap(), desk.pause.clone());
    let next = std::net::TcpListener::from(bound.share().unwrap().1);
    next.set_nonblocking(true).unwrap();
    let next = tokio::net::TcpListener::from_std(next).unwrap();
    pause.begin();
    let door = Running::at(bound, desk);
    let mut clients = Vec::new();
    for _ in 0..20 {
        clients.push(TcpStream::connect(addr).await.unwrap());
        next.accept().await.unwrap();
    }
    pause.end();
    drop(next);
    ask(&mut TcpStream::connect(addr).await.unwrap()).await;
    door.stop().await;
}

#[test]
fn a_socket_is_shared_with_the_next_process_under_a_name_of_its_own() {
    let bound = open(&listener(ANY)).unwrap();
    let other = open(&Listener { name: "other".into(), ..listener(ANY) }).unwrap();
    let ((name, socket), (others, _)) = (bound.share().unwrap(), other.share().unwrap());
    assert_ne!(name, others, "port 0 is written alike, but the sockets are two");
    let mut sockets = Sockets::from_iter([(name, socket)]);
    let next = Bound::open(&listener(ANY), &mut sockets).unwrap();
    assert_eq!(next.local_addr(), bound.local_addr());
    assert_ne!(Bound::open(&listener(ANY), &mut sockets).unwrap().local_addr(), bound.local_addr());
}

#[test]
fn an_address_that_overlaps_with_one_of_the_process_before_is_said_to_need_a_restart() {
    let old = std::net::TcpListener::bind(ANY).unwrap();
    let addr = old.local_addr().unwrap();
    let mut sockets = Sockets::from_iter([(addr.to_string(), old.into())]);
    let wider = format!("0.0.0.0:{}", addr.port());
    let error = Bound::open(&listener(&wider), &mut sockets).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "cannot listen on {wider} (listener `plain`): address in use; the running process listens on {addr}, \
             and a change to an address that overlaps needs a restart"
        )
    );
    assert!(Bound::open(&listener(&addr.to_string()), &mut sockets).is_ok());
}

#[test]
fn an_address_that_overlaps_with_one_that_stays_is_not_said_to_need_a_restart() {
    let old = std::net::TcpListener::bind(ANY).unwrap();
    let kept = old.local_addr().unwrap().to_string();
    let wider = kept.replace("127.0.0.1", "0.0.0.0");
    let mut sockets = Sockets::from_iter([(kept.clone(), old.into())]);
    let error = bind(&[listener(&wider), listener(&kept)], &mut sockets).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot listen on {wider} (listener `plain`): address in use"));
}
